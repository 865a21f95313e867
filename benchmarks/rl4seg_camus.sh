#!/usr/bin/env bash
# RL4Seg on CAMUS, three seeds (another split of the patients each): a shift of appearance, and from the two-chamber to the
# four-chamber view.
# bash benchmarks/rl4seg_camus.sh [output folder] [further arguments of train_rl4seg.py, such as domains.data_root=/data/camus]
# The same command goes on where it was stopped. JOBS (default 2) seeds run at the same time, a thread each.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/rl4seg}"
shift || true
for experiment in camus camus_views; do
    bash benchmarks/rl4seg_seeds.sh "$experiment" "$out/$experiment" "$@"
done
