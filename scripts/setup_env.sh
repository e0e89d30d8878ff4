#!/usr/bin/env bash
# Make the virtual environment .venv and install the project into it: editable, so that src, scripts
# and benchmarks can be imported from any folder. Takes no time where this was done before and
# neither pins nor folder have changed.
# Usage: bash scripts/setup_env.sh [--no-system-packages] [EXTRA...], those of pyproject.toml: test, dev,
# docs, runtimes, more_runtimes, int8
# PYTHON chooses the interpreter, 3.10 to 3.12.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

packages=--install
extras=()
for word in "$@"; do
    case $word in
        --no-system-packages) packages=--suggest ;;
        test | dev | docs | runtimes | more_runtimes | int8) extras+=("$word") ;;
        *) fail "'$word' is unknown, should be test, dev, docs, runtimes, more_runtimes, int8 or \
--no-system-packages" ;;
    esac
done

make_environment() {
    find_python
    [ -n "$python" ] ||
        fail "no Python 3.10 to 3.12 was found; install one, or set PYTHON to where it is"
    bash scripts/system_packages.sh "$packages" python ||
        fail "$python cannot make virtual environments: a package is missing"
    quietly "$setup_log" "making .venv" "$python" -m venv .venv ||
        fail ".venv could not be made; $setup_log says more"
}

# A stamp per extra, and one for the run-time packages, holds what decided the installation.
state=$({ cat requirements.txt pyproject.toml && pwd; } | sha256sum)
is_installed() {  # STAMP...
    local stamp
    is_suitable .venv/bin/python || return 1  # the system's may be gone since
    for stamp in "$@"; do
        [ "$(cat ".venv/.installed-$stamp" 2> /dev/null)" = "$state" ] || return 1
    done
}

is_installed runtime "${extras[@]}" && exit 0
exec 9< pyproject.toml
flock -n 9 || { echo "waiting for another set-up of this folder ..." && flock 9; }
is_installed runtime "${extras[@]}" && exit 0

[ -x .venv/bin/pip ] || make_environment
is_suitable .venv/bin/python ||
    fail ".venv has an unsuitable Python; remove the folder, it is made again with 3.10 to 3.12"
names=$(IFS=, && echo "${extras[*]}")
quietly "$setup_log" \
    "installing Python packages into .venv: requirements.txt${names:+, extras $names}" \
    .venv/bin/python -m pip install --disable-pip-version-check -e ".${names:+[$names]}" || {
    reason=$(first_error "$setup_log")
    fail "Python packages could not be installed${reason:+ ($reason)}; $setup_log says more"
}
for stamp in runtime "${extras[@]}"; do
    echo "$state" > ".venv/.installed-$stamp"
done
