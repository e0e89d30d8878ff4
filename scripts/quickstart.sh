#!/usr/bin/env bash
# Set up everything, search a network on the embedded digits, train, evaluate and export it, classify in C++.
# Usage: bash scripts/quickstart.sh [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
run=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
bash scripts/setup_env.sh requirements.txt
.venv/bin/python search.py --dataset_name digits --target 60 --checkpoint_path "$run/search"
.venv/bin/python train.py --dataset_name digits --arch "$run/search/arch.json" --checkpoint_path "$run"
.venv/bin/python eval.py --checkpoint_path "$run/ckpt_0"
# Each export is compared with the trained network (ONNX where ONNX Runtime is installed); C++ reads the first.
.venv/bin/python export.py --ckpt_file "$run/ckpt_0/best.ckpt" --file_name "$run/spnas"
.venv/bin/python export.py --ckpt_file "$run/ckpt_0/best.ckpt" --file_name "$run/spnas_version3" --mindir_version 3
.venv/bin/python export.py --ckpt_file "$run/ckpt_0/best.ckpt" --file_name "$run/spnas_unfolded" --no_fold
.venv/bin/python export.py --ckpt_file "$run/ckpt_0/best.ckpt" --file_name "$run/spnas_onnx" --file_format ONNX
missing=$(bash ascend310_infer/build.sh --missing)
if [ -n "$missing" ]; then
    echo "quickstart.sh: C++ inference is left out; it needs: apt-get install $missing"
    exit 0
fi
digits=$PWD/data/digits/val
cd "$run"
DEVICE_TARGET=CPU bash "$root/scripts/run_infer_310.sh" spnas.mindir "$digits"
