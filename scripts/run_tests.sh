#!/usr/bin/env bash
# Install everything that is missing, Debian packages included, and run the tests.
# Usage: bash scripts/run_tests.sh [--no-system-packages] [flags of pytest...]
set -euo pipefail
cd "$(dirname "$0")/.."

packages=--install
setup=()
flags=()
for word in "$@"; do
    if [ "$word" = --no-system-packages ]; then
        packages=--suggest
        setup+=("$word")
    else
        flags+=("$word")
    fi
done

# Where packages stay missing, the tests that need them are skipped and say why.
bash scripts/system_packages.sh "$packages" python tests || [ $? -eq 1 ] || exit 2
bash scripts/setup_env.sh "${setup[@]}" test
# Two files of tests at a time: most tests compile graphs, on one core. The tests of a file share
# what they train.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "${flags[@]}"
