#!/usr/bin/env bash
# Stage 2: weigh the training slices, e.g. bash generate_sampler.sh cohort=acdc datadir=/data/acdc
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=python3
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "$PYTHON" agents/gen_sampler.py "$@"
