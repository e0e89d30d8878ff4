#!/usr/bin/env bash
# Set up everything, search a network on the embedded digits, train it and evaluate it.
# Usage: bash scripts/quickstart.sh [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
bash scripts/setup_env.sh requirements.txt
.venv/bin/python search.py --dataset_name digits --target 60 --checkpoint_path "$run/search"
.venv/bin/python train.py --dataset_name digits --arch "$run/search/arch.json" --checkpoint_path "$run"
.venv/bin/python eval.py --checkpoint_path "$run/ckpt_0"
