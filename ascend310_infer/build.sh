#!/usr/bin/env bash
# Build ascend310_infer/out/main (and, with GoogleTest, its unit tests). Usage: bash build.sh
# LITE_HOME: an unpacked MindSpore Lite (include/api, lib); without it the wheel mindspore-lite 2.0.0 is fetched once.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
version=2.0.0
python=${PYTHON:-$root/../.venv/bin/python}
[ -x "$python" ] || python=python3

fail() {
    echo "build.sh: error: $1" >&2
    exit 2
}

command -v cmake > /dev/null || fail "no cmake; on Debian and Ubuntu: apt-get install cmake g++ libopencv-dev \
libturbojpeg0-dev nlohmann-json3-dev libcli11-dev libssl-dev"

if [ -z "${LITE_HOME:-}" ]; then
    LITE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}/spnas/mindspore-lite-$version
    if [ ! -d "$LITE_HOME" ]; then
        mkdir -p "$(dirname "$LITE_HOME")"
        scratch=$(mktemp -d "$LITE_HOME.XXXXXX")
        trap 'rm -rf "$scratch"' EXIT
        echo "fetching mindspore-lite $version (170 MB) ..."
        # Its C++ libraries need no Python, whatever the tag says.
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --python-version 3.7 --implementation cp --platform manylinux1_x86_64 --dest "$scratch" \
            "mindspore-lite==$version" || fail "mindspore-lite $version cannot be fetched; set LITE_HOME to an unpacked \
MindSpore Lite package"
        "$python" -m zipfile -e "$scratch"/*.whl "$scratch"
        # In one step, so that the folder is whole or not there; another build may have been faster.
        mv -T "$scratch/mindspore_lite" "$LITE_HOME" 2> /dev/null || [ -d "$LITE_HOME" ]
    fi
fi
[ -f "$LITE_HOME/include/api/model.h" ] || [ -f "$LITE_HOME/runtime/include/api/model.h" ] ||
    fail "LITE_HOME=$LITE_HOME: holds no include/api/model.h; expected an unpacked MindSpore Lite package"
[ -f "$LITE_HOME/include/api/model.h" ] || LITE_HOME=$LITE_HOME/runtime

cmake -S "$root" -B "$root/out" -DLITE_HOME="$LITE_HOME" "$@" > "$root/out.log" 2>&1 &&
    cmake --build "$root/out" --parallel "$(nproc)" >> "$root/out.log" 2>&1 || {
    grep -E -m 5 -A 2 "rror" "$root/out.log" >&2 || tail -n 5 "$root/out.log" >&2
    fail "the build failed; $root/out.log says more"
}
mv "$root/out.log" "$root/out/build.log"
echo "built $root/out/main with MindSpore Lite at $LITE_HOME"
