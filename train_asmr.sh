#!/usr/bin/env bash
# Stage 3: train a sampling policy, e.g. `bash train_asmr.sh env=kspace_phantom agent=maskable_ppo seed=0`.
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=python3
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "$PYTHON" agents/train_asmr.py "$@"
