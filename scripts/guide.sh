#!/usr/bin/env bash
# Run the commands of docs/guide.md as they are written there, one after the other.
# Usage: bash scripts/guide.sh [--list | FIRST [LAST]]
# FIRST and LAST are numbers of commands: without LAST only FIRST is run, without both all are.
# --list prints them.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

mapfile -t commands < <(
    awk '/^```bash$/ { shown = 1; next } /^```$/ { shown = 0 } shown' docs/guide.md
)
if [ "${1:-}" = --list ]; then
    printf '%s\n' "${commands[@]}"
    exit 0
fi
[ $# -le 2 ] || fail "usage: bash scripts/guide.sh [--list | FIRST [LAST]]"
first=${1:-1}
last=${2:-${1:-${#commands[@]}}}
for number in "$first" "$last"; do
    if [[ ! $number =~ ^[1-9][0-9]*$ ]] || [ "$number" -gt ${#commands[@]} ]; then
        fail "the command is '$number', should be a number from 1 to ${#commands[@]}; see --list"
    fi
done
[ "$first" -le "$last" ] || fail "the last command is $last, should not be before the first, $first"
[ ! -x .venv/bin/python ] || PATH=$PWD/.venv/bin:$PATH
for ((number = first; number <= last; number++)); do
    echo "\$ ${commands[number - 1]}"
    bash -euo pipefail -c "${commands[number - 1]}"
done
