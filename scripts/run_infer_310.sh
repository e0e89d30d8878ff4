#!/usr/bin/env bash
# Build the C++ application, classify the images of a folder of class folders, and compute the
# accuracy (acc.log).
# Usage: bash scripts/run_infer_310.sh [MINDIR_PATH] [DATA_PATH] [DEVICE_ID]
# DEVICE_TARGET=CPU needs no Ascend. BATCH_SIZE (default: the model's) and THREADS (default: all
# cores) are optional. RUNTIME=openvino classifies with an ONNX model on CPU, PRECISION=bfloat16 in
# less time and with rounded logits.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    fail "usage: bash scripts/run_infer_310.sh [MINDIR_PATH] [DATA_PATH] [DEVICE_ID]"
fi
mindir=$1
data=$2
device_id=${3:-0}
target=${DEVICE_TARGET:-Ascend310}
python=${PYTHON:-$repository/.venv/bin/python}
command -v "$python" > /dev/null || python=python3
[ -f "$mindir" ] || fail "$mindir: no such model; export.py writes one"
[ -d "$data" ] || fail "$data: no such folder; expected one folder of images per class"

bash "$repository/ascend310_infer/build.sh"  # names its own errors

flags=(--mindir_path "$mindir" --dataset_path "$data" --device "$target" --device_id "$device_id"
    --runtime "${RUNTIME:-lite}" --precision "${PRECISION:-float32}")
[ -z "${BATCH_SIZE:-}" ] || flags+=(--batch_size "$BATCH_SIZE")
[ -z "${THREADS:-}" ] || flags+=(--threads "$THREADS")

folder_number() { stat -c %i result_Files 2> /dev/null || true; }
earlier=$(folder_number)
code=0
"$repository/ascend310_infer/out/main" "${flags[@]}" || code=$?
# The application replaces the folder if it has answers. Then a failure is that of some files: the
# accuracy of the others can still be computed.
[ "$(folder_number)" != "$earlier" ] || fail "inference failed" $((code == 0 ? 1 : code))
rm -f acc.log

name=$(basename "$mindir")
description=$(dirname "$mindir")/${name%.*}.json
postprocess=("$repository/scripts/postprocess.py" result_Files/top5.jsonl "$description")
"$python" "${postprocess[@]}" > acc.log || {
    code=$?
    rm -f acc.log
    fail "the accuracy could not be computed" "$code"
}
cat acc.log
[ "$code" -eq 0 ] || fail "some files could not be classified; they are listed above" "$code"
