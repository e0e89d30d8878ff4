#!/usr/bin/env bash
# Evaluate a checkpoint, or those of a folder.
# Usage: bash scripts/run_eval.sh CKPT_FILE_OR_DIR [DATA_PATH] [flags of eval.py...]
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

[ $# -ge 1 ] ||
    fail "usage: bash scripts/run_eval.sh CKPT_FILE_OR_DIR [DATA_PATH] [flags of eval.py...]"
python=$repository/.venv/bin/python
[ -x "$python" ] || python=python
checkpoint=$1
shift
data=()
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    data=(--data_path "$1")
    shift
fi
exec "$python" "$repository/eval.py" --checkpoint_path "$checkpoint" "${data[@]}" "$@"
