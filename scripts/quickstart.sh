#!/usr/bin/env bash
# Install everything that is missing, Debian packages included; train an elastic supernet on the
# embedded digits; measure this machine; serve networks for two latencies, export them, and classify
# with them in C++; make a page of all that.
# Usage: bash scripts/quickstart.sh [--no-system-packages] [RUN_FOLDER]
# Variables: TRAIN_FLAGS, PROFILE_FLAGS and SERVE_FLAGS, further flags of train.py,
# scripts/profile_latency.py and search.py.
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
read -ra train_flags <<< "${TRAIN_FLAGS:-}"
read -ra profile_flags <<< "${PROFILE_FLAGS:-}"
read -ra serve_flags <<< "${SERVE_FLAGS:-}"
if [ -z "$run" ]; then
    run=runs/quickstart
    [ ! -e $run ] || run+=-$(date +%Y%m%d-%H%M%S)
fi

number=0
step() {
    number=$((number + 1))
    echo "[$number/6] $1"
}

step "set up: Debian packages for C++, Python packages in .venv"
runtime=lite
bash scripts/system_packages.sh "$packages" python cpp || runtime=mindspore
bash scripts/setup_env.sh "${setup[@]}"
mkdir -p "$run"
run=$(cd "$run" && pwd)

step "train all networks of a space on the digits, in one supernet: $run/ckpt_0"
.venv/bin/python train.py --dataset_name digits --space nas_bench_macro --epoch_size 5 \
    --checkpoint_path "$run" "${train_flags[@]}"

step "measure this machine: $run/table.json"
profile=(.venv/bin/python scripts/profile_latency.py --space nas_bench_macro --num_classes 10
    --runtime "$runtime" --out "$run/table.json" --fit_networks 4 "${profile_flags[@]}")
"${profile[@]}"

step "serve a network for each of two latencies: $run/served"
.venv/bin/python search.py --from_supernet "$run" --latency_table "$run/table.json" \
    --sweep 35%,70% --evaluations 20 --calibration_images 400 --checkpoint_path "$run/served" \
    "${serve_flags[@]}"

step "export them, and classify the validation images in Python and in C++"
networks=("$run"/served/target_*)
for network in "${networks[@]}"; do
    .venv/bin/python eval.py --checkpoint_path "$network/inherited.ckpt" \
        --output "$network/eval.json"
    .venv/bin/python export.py --ckpt_file "$network/inherited.ckpt" --file_name "$network/spnas"
    if [ "$runtime" = lite ]; then
        (cd "$network" && DEVICE_TARGET=CPU bash "$repository/scripts/run_infer_310.sh" \
            spnas.mindir "$repository/data/digits/val")
    fi
done
if [ "$runtime" != lite ]; then
    echo "C++ is left out, as packages are missing: $(bash scripts/system_packages.sh --missing cpp)"
fi

step "measure them, and make a page of everything: $run/report.html"
files=$(printf ',%s' "${networks[@]/%//arch.json}")
# The table may have been fitted to those that are served: enough others to judge it by.
"${profile[@]}" --verify 3 --verify_arch "${files:1}"
.venv/bin/python scripts/served_networks.py "$run/served" "$run/table.json"
.venv/bin/python scripts/report.py "$run" --out "$run/report.html"
