#!/usr/bin/env bash
# Passes the tests, from nothing: bash tests/run.sh [--slow] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

selection=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then
    selection=(-m "slow")
    shift
fi
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "${selection[@]}" "$@"
