#!/usr/bin/env bash
# Evaluate checkpoints. Usage: bash scripts/run_eval.sh CKPT_FILE_OR_DIR [DATA_PATH] [flags of eval.py...]
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: bash scripts/run_eval.sh CKPT_FILE_OR_DIR [DATA_PATH] [flags of eval.py...]" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python
checkpoint=$1
shift
data=()
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    data=(--data_path "$1")
    shift
fi
exec "$python" "$root/eval.py" --checkpoint_path "$checkpoint" "${data[@]}" "$@"
