#!/usr/bin/env bash
# Passes the tests, from nothing: bash tests/run.sh [--slow | --ray] [pytest arguments]
# --ray makes .venv-ray (or $SEGGYM_RAY_VENV), where RLlib pins the oldest Gymnasium that seggym supports, and tests both there.
set -euo pipefail
cd "$(dirname "$0")/.."

selection=(-m "not slow")
case "${1:-}" in
--slow)
    selection=(-m "slow")
    shift
    ;;
--ray)
    export SEGGYM_VENV="${SEGGYM_RAY_VENV:-.venv-ray}"
    constraints=constraints-ray.txt
    extras=dev,ray
    shift
    . benchmarks/venv.sh
    python -c "import ray"  # its tests would be skipped without it
    exec python -m pytest tests/envs tests/agents/test_rllib.py "$@"
    ;;
esac
. benchmarks/venv.sh
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "${selection[@]}" "$@"
