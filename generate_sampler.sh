#!/usr/bin/env bash
# Stage 2: weigh the training slices, e.g. bash generate_sampler.sh cohort=acdc datadir=/data/acdc
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python3
exec "$PYTHON" agents/gen_sampler.py "$@"
