#!/usr/bin/env bash
# The Debian and Ubuntu packages that the project needs. This list is the only one.
# Usage: bash scripts/system_packages.sh --missing|--install|--suggest GROUP...
# Groups: python (what makes .venv), cpp, tests (cpp, what the tests of C++ need, and a browser).
#   --missing  prints the names of those that are not there
#   --install  installs them, as root or with a sudo that asks for no password; otherwise it does
#              the same as --suggest
#   --suggest  prints the one command that installs them
# The exit code of the last two is 1 if packages are missing afterwards.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

missing=()
need_command() {  # PACKAGE COMMAND
    command -v "$2" > /dev/null || missing+=("$1")
}
# Headers are looked for instead of packages, so that libraries which were installed in another way
# count too.
need_header() {  # PACKAGE HEADER...: the first that exists is enough
    local package=$1 prefix prefixes header
    shift
    IFS=':;' read -ra prefixes <<< "${CMAKE_PREFIX_PATH:-}"
    for prefix in /usr /usr/local ${prefixes[@]+"${prefixes[@]}"}; do
        for header in "$@"; do
            [ ! -e "$prefix/include/$header" ] || return 0
        done
    done
    missing+=("$package")
}

need_python() {
    [ ! -x "$repository/.venv/bin/pip" ] || return 0
    find_python
    # Without a suitable Python there is nothing to do here; setup_env.sh says so.
    [ -n "$python" ] && ! can_make_environments "$python" || return 0
    missing+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
}

need_cpp() {
    local compiler
    read -ra compiler <<< "${CXX:-g++}"  # with flags, or behind ccache
    need_command g++ "${compiler[0]}"  # also compiles the operators for CPU
    need_command cmake cmake
    [ -n "${CMAKE_GENERATOR:-}" ] || need_command make make  # cmake only recommends it
    # Of OpenCV two modules: libopencv-dev would bring all of them, with Qt, VTK and FFmpeg.
    need_header libopencv-imgproc-dev {opencv4/,}opencv2/imgproc.hpp
    need_header libopencv-imgcodecs-dev {opencv4/,}opencv2/imgcodecs.hpp
    need_header libturbojpeg0-dev turbojpeg.h
    need_header nlohmann-json3-dev nlohmann/json.hpp
    need_header libcli11-dev CLI/CLI.hpp
    need_header libssl-dev openssl/evp.h
}

find_missing() {  # GROUP...
    local group
    for group in "$@"; do
        case $group in
            cpp) need_cpp ;;
            tests)
                need_cpp
                need_header libgtest-dev gtest/gtest.h
                need_command chromium chromium  # opens the page of runs
                need_command chromium-driver chromedriver
                ;;
            python) need_python ;;
            *) fail "the group is '$group', should be python, cpp or tests" ;;
        esac
    done
}

# Sets `administrator` to the words before a command that needs root, or returns 1.
become_administrator() {
    administrator=()
    command -v apt-get > /dev/null || return 1
    [ "$(id -u)" -ne 0 ] || return 0
    administrator=(sudo -n)
    command -v sudo > /dev/null && sudo -n true 2> /dev/null
}

# On a new machine apt knows no packages before an update. If that fails, it may know them from an
# earlier one.
# shellcheck disable=SC2317  # quietly calls it
install_missing() {
    local apt=("${administrator[@]}" env DEBIAN_FRONTEND=noninteractive)
    apt+=(apt-get -o DPkg::Lock::Timeout=120)  # another installation may run: wait two minutes
    "${apt[@]}" update || true
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
}

suggest() {
    local command="apt-get install --no-install-recommends ${missing[*]}"
    if ! command -v apt-get > /dev/null; then
        echo "$program: packages are missing, by their names on Debian: ${missing[*]}" >&2
    elif [ "$(id -u)" -eq 0 ]; then
        echo "$program: packages are missing; to install them: $command" >&2
    else
        echo "$program: packages are missing; to install them: sudo $command" >&2
    fi
}

[ $# -ge 2 ] || fail "usage: bash scripts/system_packages.sh --missing|--install|--suggest GROUP..."
action=$1
shift
find_missing "$@"
case $action in
    --missing)
        echo "${missing[*]}"
        exit 0
        ;;
    --install | --suggest) [ ${#missing[@]} -gt 0 ] || exit 0 ;;
    *) fail "the action is '$action', should be --missing, --install or --suggest" ;;
esac
if [ "$action" = --install ] && become_administrator; then
    if quietly "$setup_log" "installing Debian packages: ${missing[*]}" install_missing; then
        missing=()
        find_missing "$@"
    else
        reason=$(first_error "$setup_log")
        reason=${reason:+ ($reason)}
        echo "$program: packages could not be installed$reason; $setup_log says more" >&2
    fi
    [ ${#missing[@]} -gt 0 ] || exit 0
fi
suggest
exit 1
