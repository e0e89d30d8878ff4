#!/usr/bin/env bash
# Run the commands of docs/guide.md as they are written there, one after the other.
# Usage: bash scripts/guide.sh [--list | FIRST [LAST]], numbers of commands; without LAST that one, without both all of them
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t commands < <(awk '/^```bash$/ { shown = 1; next } /^```$/ { shown = 0 } shown' docs/guide.md)
if [ "${1:-}" = --list ]; then
    printf '%s\n' "${commands[@]}"
    exit 0
fi
[ ! -x .venv/bin/python ] || PATH=$PWD/.venv/bin:$PATH
first=${1:-1}
last=${2:-${1:-${#commands[@]}}}
for number in $(seq "$first" "$last"); do
    echo "\$ ${commands[number - 1]}"
    bash -euo pipefail -c "${commands[number - 1]}"
done
