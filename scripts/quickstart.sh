#!/usr/bin/env bash
# Set up everything, train the published network on the embedded digits and evaluate it.
# About two minutes on 2 CPU cores after installation. Usage: bash scripts/quickstart.sh [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
bash scripts/setup_env.sh requirements.txt
.venv/bin/python train.py --dataset_name digits --checkpoint_path "$run"
.venv/bin/python eval.py --checkpoint_path "$run/ckpt_0"
