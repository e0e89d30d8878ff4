#!/usr/bin/env bash
# Set up everything and run the whole test suite. Usage: bash scripts/run_tests.sh [pytest flags]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh requirements-test.txt
# Two files of tests at a time: most tests compile graphs, on one core. A file shares what it trains.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
