#!/usr/bin/env bash
# Adapt a segmentation to a domain without labels, e.g. `bash train_rl4seg.sh experiment=phantom seed=0`.
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=python3
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "$PYTHON" agents/train_rl4seg.py "$@"
