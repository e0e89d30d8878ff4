#!/usr/bin/env bash
# Train on several devices, one process per device, in the background as the model zoo does, or with
# --foreground.
# Usage: bash scripts/run_train.sh [RANK_TABLE_FILE] DATASET [flags of train.py...]
#        bash scripts/run_train.sh --device_num N DATASET [flags of train.py...]
# --program search.py searches instead. DEVICE_TARGET=CPU runs the same on CPU. --help lists the
# launcher's own flags.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
python=$repository/.venv/bin/python
[ -x "$python" ] || python=python
exec "$python" "$repository/scripts/launch.py" "$@"
