#!/usr/bin/env bash
# RL4Seg on generated echo, three seeds: every baseline, every iteration, one report with intervals over patients and seeds.
# bash benchmarks/rl4seg_phantom.sh [output folder] [further arguments of train_rl4seg.py, such as loop.iterations=3]
# The same command goes on where it was stopped. JOBS (default 2) seeds run at the same time, a thread each.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/rl4seg/phantom}"
shift || true
bash benchmarks/rl4seg_seeds.sh phantom "$out" "$@"
