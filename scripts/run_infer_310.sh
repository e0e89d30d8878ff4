#!/usr/bin/env bash
# Build the C++ application, classify a folder of class folders with it, and compute the accuracy (acc.log).
# Usage: bash scripts/run_infer_310.sh [MINDIR_PATH] [DATA_PATH] [DEVICE_ID]
# DEVICE_TARGET=CPU runs it without Ascend; BATCH_SIZE (the model's own) and THREADS (the cores) are optional.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "run_infer_310.sh: error: $1" >&2
    exit "${2:-2}"
}

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    fail "usage: bash scripts/run_infer_310.sh [MINDIR_PATH] [DATA_PATH] [DEVICE_ID]"
fi
mindir=$1
data=$2
device_id=${3:-0}
target=${DEVICE_TARGET:-Ascend310}
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
[ -f "$mindir" ] || fail "$mindir: no such model; export.py --file_format MINDIR writes one"
[ -d "$data" ] || fail "$data: no such folder; expected one folder of images a class"

bash "$root/ascend310_infer/build.sh" || fail "the application could not be built" $?

rm -rf result_Files time_Result acc.log
flags=(--mindir_path "$mindir" --dataset_path "$data" --device "$target" --device_id "$device_id")
[ -z "${BATCH_SIZE:-}" ] || flags+=(--batch_size "$BATCH_SIZE")
[ -z "${THREADS:-}" ] || flags+=(--threads "$THREADS")
code=0
"$root/ascend310_infer/out/main" "${flags[@]}" || code=$?
# With answers, a failure means files that could not be answered: the others still have an accuracy.
[ -f result_Files/top5.jsonl ] || fail "inference failed" $((code == 0 ? 1 : code))

if ! "$python" "$root/scripts/postprocess.py" result_Files/top5.jsonl "${mindir%.*}.json" > acc.log; then
    rm -f acc.log
    fail "the accuracy could not be computed" 1
fi
cat acc.log
[ "$code" -eq 0 ] || fail "some files were not answered; they are listed above" "$code"
