#!/usr/bin/env bash
# Protocol K1 (docs/protocol_k1.md): bash benchmarks/k1.sh preset=phantom_hard out=runs/k1/phantom_hard
# The same command goes on where it was stopped; two at once share the work.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh
exec python -m benchmarks.k1 "$@"
