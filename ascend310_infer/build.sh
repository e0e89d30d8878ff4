#!/usr/bin/env bash
# Build ascend310_infer/out/main and profile (and, with GoogleTest, its unit tests). Usage: bash build.sh [--missing]
# --missing only prints the packages (of Debian and Ubuntu) that are not there.
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

missing=()
need() {  # PACKAGE FILE..., where the package puts them: the first that exists will do
    local package=$1 file
    shift
    for file in "$@"; do
        [ ! -e "$file" ] || return 0
    done
    missing+=("$package")
}
command -v cmake > /dev/null || missing+=(cmake)
command -v "${CXX:-g++}" > /dev/null || missing+=(g++)
for prefix in /usr /usr/local ${CMAKE_PREFIX_PATH:-}; do prefixes+=("$prefix/include"); done
need libopencv-dev "${prefixes[@]/%//opencv4/opencv2/imgcodecs.hpp}" "${prefixes[@]/%//opencv2/imgcodecs.hpp}"
need libturbojpeg0-dev "${prefixes[@]/%//turbojpeg.h}"
need nlohmann-json3-dev "${prefixes[@]/%//nlohmann/json.hpp}"
need libcli11-dev "${prefixes[@]/%//CLI/CLI.hpp}"
need libssl-dev "${prefixes[@]/%//openssl/evp.h}"
if [ "${1:-}" = --missing ]; then
    echo "${missing[*]}"
    exit 0
fi
[ ${#missing[@]} -eq 0 ] || fail "packages are missing; on Debian and Ubuntu: apt-get install ${missing[*]}"

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
            "mindspore-lite==$version" ||
            fail "mindspore-lite $version cannot be fetched; set LITE_HOME to an unpacked MindSpore Lite package"
        "$python" -m zipfile -e "$scratch"/*.whl "$scratch"
        # In one step, so that the folder is whole or not there; another build may have been faster.
        mv -T "$scratch/mindspore_lite" "$LITE_HOME" 2> /dev/null || [ -d "$LITE_HOME" ]
    fi
fi
[ -f "$LITE_HOME/include/api/model.h" ] || [ -f "$LITE_HOME/runtime/include/api/model.h" ] ||
    fail "LITE_HOME=$LITE_HOME: holds no include/api/model.h; expected an unpacked MindSpore Lite package"
[ -f "$LITE_HOME/include/api/model.h" ] || LITE_HOME=$LITE_HOME/runtime

exec 9< "$root"
flock 9 # one build at a time
cmake -S "$root" -B "$root/out" -DLITE_HOME="$LITE_HOME" > "$root/out.log" 2>&1 &&
    cmake --build "$root/out" --parallel "$(nproc)" >> "$root/out.log" 2>&1 || {
    grep -E -m 5 -A 2 "rror" "$root/out.log" >&2 || tail -n 5 "$root/out.log" >&2
    fail "the build failed; $root/out.log says more"
}
mv "$root/out.log" "$root/out/build.log"
# With this file a search compares the runtime of a latency table with the installed one, without starting a program.
if [ "$root/out/profile" -nt "$root/out/runtime_version" ]; then
    "$root/out/profile" --version > "$root/out/runtime_version.new" &&
        mv "$root/out/runtime_version.new" "$root/out/runtime_version"
fi
echo "built $root/out/main and profile with MindSpore Lite at $LITE_HOME"
