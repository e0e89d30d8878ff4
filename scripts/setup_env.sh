#!/usr/bin/env bash
# Make the virtual environment .venv with the given requirements file, unless it is there already.
# Usage: setup_env.sh REQUIREMENTS
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
stamp=.venv/.installed-$(basename "$requirements")
if [ -f "$stamp" ] && [ "$stamp" -nt requirements.txt ] && [ "$stamp" -nt "$requirements" ]; then
    exit 0
fi
if [ ! -x .venv/bin/python ]; then
    for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.10 python3.9; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "${python:-}" ]; then
        echo "setup_env.sh: error: no Python 3.9 to 3.12 with venv found; set PYTHON to one" >&2
        exit 2
    fi
    "$python" -m venv .venv
fi
echo "installing $requirements into .venv ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
touch "$stamp"
