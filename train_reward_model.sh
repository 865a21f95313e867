#!/usr/bin/env bash
# Stage 1: train the reward model, e.g. bash train_reward_model.sh cohort=acdc datadir=/data/acdc reward_model=unext
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=python3
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "$PYTHON" agents/train_reward_model.py publish=true "$@"
