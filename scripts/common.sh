# shellcheck shell=bash
# Functions that the shell scripts share. Usage: source scripts/common.sh

program=$(basename "$0")
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # the scripts that install something write to it
setup_log=$repository/setup.log

# fail MESSAGE [EXIT_CODE]: 2, the default, is a mistake that the user can correct; 1 is a fault.
fail() {
    echo "$program: error: $1" >&2
    exit "${2:-2}"
}

# Prints how long the work has taken and the last line of its log, once per second, until it is
# stopped.
show_progress() {  # LOG
    local start=$SECONDS width text
    width=$(tput cols 2> /dev/null || echo 80)
    while kill -0 $$ 2> /dev/null; do
        text=$(tail -c 1000 "$1" | tr '\r' '\n' | sed '/^ *$/d' | tail -n 1 | tr -cd '[:print:]')
        text="  $((SECONDS - start)) s  $text"
        printf '\r\033[K%s' "${text:0:width - 1}"
        sleep 1
    done
}

# quietly LOG WHAT COMMAND...: runs the command with its output in the log, and returns its exit
# code.
# On a terminal the progress is shown meanwhile. Elsewhere, for example in CI, there is one line
# with the time it took.
quietly() {
    local log=$1 what=$2 start=$SECONDS code=0 shown="" time
    shift 2
    printf '\n== %s: %s\n' "$(date '+%F %T')" "$*" >> "$log"
    if [ -t 1 ]; then
        echo "$what ..."
        show_progress "$log" &
        shown=$!
    else
        printf '%s ... ' "$what"
    fi
    "$@" >> "$log" 2>&1 < /dev/null || code=$?
    if [ -n "$shown" ]; then
        kill "$shown" 2> /dev/null || true
        wait "$shown" 2> /dev/null || true
        printf '\r\033[K  '
    fi
    time="$((SECONDS - start)) s"
    if [ "$code" -eq 0 ]; then echo "done in $time"; else echo "failed after $time"; fi
    return "$code"
}

# first_error LOG: what the last command in the log gave as its reason: the first line that pip or
# apt marks as an error.
first_error() {
    tac "$1" | sed '/^== /q' | tac | grep -m 1 -E '^(E|ERROR|Error): ?' || true
}

is_suitable() {  # PYTHON
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null
}
can_make_environments() {  # PYTHON: Debian has these modules in a package of their own
    "$1" -c 'import ensurepip, venv' 2> /dev/null
}

# Sets `python` to PYTHON or to a suitable Python, one that can make environments where there is
# one; to nothing if there is none.
find_python() {
    local candidate
    python=${PYTHON:-}
    if [ -n "$python" ]; then
        is_suitable "$python" || fail "PYTHON is '$python', should be a Python 3.10 to 3.12"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.10; do
        is_suitable "$candidate" || continue
        python=${python:-$candidate}
        if can_make_environments "$candidate"; then
            python=$candidate
            return
        fi
    done
}
