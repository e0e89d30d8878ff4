#!/usr/bin/env bash
# Install everything that is missing, Debian packages included; search a network on the embedded
# digits; train, evaluate and export it; classify with it in C++.
# Usage: bash scripts/quickstart.sh [--no-system-packages] [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

usage="usage: bash scripts/quickstart.sh [--no-system-packages] [RUN_FOLDER]"
packages=--install
setup=()
run=
for word in "$@"; do
    case $word in
        --no-system-packages)
            packages=--suggest
            setup+=("$word")
            ;;
        -*) fail "flag '$word' is unknown; $usage" ;;
        *)
            [ -z "$run" ] || fail "there are two run folders, '$run' and '$word'; $usage"
            run=$word
            ;;
    esac
done
run=${run:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}

number=0
step() {
    number=$((number + 1))
    echo "[$number/6] $1"
}

step "set up: Debian packages for C++, Python packages in .venv"
with_cpp=yes
bash scripts/system_packages.sh "$packages" python cpp || with_cpp=no
bash scripts/setup_env.sh "${setup[@]}"

step "search a network for 60 million multiply-adds on the digits: $run/search"
.venv/bin/python search.py --dataset_name digits --target 60 --checkpoint_path "$run/search"

step "train it: $run/ckpt_0"
.venv/bin/python train.py --dataset_name digits --arch "$run/search/arch.json" \
    --checkpoint_path "$run"

step "evaluate it"
.venv/bin/python eval.py --checkpoint_path "$run/ckpt_0"

step "export it in four forms, each compared with the trained network"
export_as() {  # NAME [flags of export.py...]
    .venv/bin/python export.py --ckpt_file "$run/ckpt_0/best.ckpt" --file_name "$run/$1" "${@:2}"
}
export_as spnas  # the one that C++ reads
export_as spnas_version3 --mindir_version 3
export_as spnas_unfolded --no_fold
export_as spnas_onnx --file_format ONNX

if [ "$with_cpp" = no ]; then
    missing=$(bash scripts/system_packages.sh --missing cpp)
    step "classify in C++: left out, as packages are missing: $missing"
    exit 0
fi
step "build the C++ application and classify the validation images: $run/acc.log"
digits=$PWD/data/digits/val
cd "$run"
DEVICE_TARGET=CPU bash "$repository/scripts/run_infer_310.sh" spnas.mindir "$digits"
