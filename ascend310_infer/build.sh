#!/usr/bin/env bash
# Build ascend310_infer/out/main and profile and, where GoogleTest is installed, the unit tests.
# Usage: bash build.sh [--missing]
# --missing only prints the Debian and Ubuntu packages that are not there: the list is in
# scripts/system_packages.sh.
# LITE_HOME: an unpacked MindSpore Lite (include/api, lib); without it the wheel mindspore-lite
# 2.0.0 is fetched once. Where Python has the wheel openvino, the programs have this runtime too.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
source "$root/../scripts/common.sh"
version=2.0.0
python=${PYTHON:-$repository/.venv/bin/python}
command -v "$python" > /dev/null || python=python3

missing=$(bash "$repository/scripts/system_packages.sh" --missing cpp)
case ${1:-} in
    "") ;;
    --missing)
        echo "$missing"
        exit 0
        ;;
    *) fail "'$1' is unknown; usage: bash build.sh [--missing]" ;;
esac
[ -z "$missing" ] ||
    fail "packages are missing; to install them: apt-get install --no-install-recommends $missing"

# Fetches the wheel into the cache of this user. Its C++ libraries need no Python, whatever its tag
# says.
fetch_lite() {
    mkdir -p "$(dirname "$LITE_HOME")"
    scratch=$(mktemp -d "$LITE_HOME.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    quietly "$setup_log" "fetching mindspore-lite $version (170 MB)" \
        "$python" -m pip download --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.7 --implementation cp --platform manylinux1_x86_64 --dest "$scratch" \
        "mindspore-lite==$version" ||
        fail "no mindspore-lite $version ($setup_log says more); set LITE_HOME to an unpacked one"
    "$python" -m zipfile -e "$scratch"/*.whl "$scratch"
    # In one step, so that the folder is whole or not there; another build may have been faster.
    mv -T "$scratch/mindspore_lite" "$LITE_HOME" 2> /dev/null || [ -d "$LITE_HOME" ]
}

if [ -z "${LITE_HOME:-}" ]; then
    LITE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}/spnas/mindspore-lite-$version
    [ -d "$LITE_HOME" ] || fetch_lite
fi
# The official package has the headers under runtime/, the wheel at its top.
[ -f "$LITE_HOME/include/api/model.h" ] || [ -f "$LITE_HOME/runtime/include/api/model.h" ] ||
    fail "LITE_HOME=$LITE_HOME: holds no include/api/model.h; should be an unpacked MindSpore Lite"
[ -f "$LITE_HOME/include/api/model.h" ] || LITE_HOME=$LITE_HOME/runtime
LITE_HOME=$(cd "$LITE_HOME" && pwd)

# The folder of the package, without importing it; empty where it is not installed.
OPENVINO_HOME=$("$python" -c 'from importlib.util import find_spec as find
package = find("openvino")
# A folder of this name, without the package, has no origin.
print(package.submodule_search_locations[0] if package and package.origin else "")')

# One build at a time: tests and programs may ask for one at the same moment.
exec 9< "$root"
flock -n 9 || { echo "waiting for another build ..." && flock 9; }
build() {
    # What an earlier build has found in other folders is looked for again.
    cmake -S "$root" -B "$root/out" -ULITE_LIBRARY -UOpenVINO_DIR -DLITE_HOME="$LITE_HOME" \
        -DOPENVINO_HOME="$OPENVINO_HOME" &&
        cmake --build "$root/out" --parallel "$(nproc)"
}
log=$root/out.log
: > "$log"
runtimes="MindSpore Lite at $LITE_HOME${OPENVINO_HOME:+, OpenVINO at $OPENVINO_HOME}"
quietly "$log" "building $root/out/main and profile with $runtimes" build || {
    grep -E -m 5 -A 2 "rror" "$log" >&2 || tail -n 5 "$log" >&2
    fail "the build failed; $log says more"
}
mv "$log" "$root/out/build.log"
# With this file a search compares the runtime of a latency table with the installed one, without
# starting a program. A line for each runtime.
if [ "$root/out/profile" -nt "$root/out/runtime_versions" ]; then
    if "$root/out/profile" --version > "$root/out/runtime_versions.new"; then
        mv "$root/out/runtime_versions.new" "$root/out/runtime_versions"
    else  # the runtime lacks libraries here, those of a driver for example
        rm -f "$root/out/runtime_versions" "$root/out/runtime_versions.new"
    fi
fi
