#!/usr/bin/env bash
# Seeds of one experiment of RL4Seg and their report: rl4seg_seeds.sh EXPERIMENT FOLDER [arguments of train_rl4seg.py]
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

experiment="$1" out="$2"
shift 2
mkdir -p "$out"
export OMP_NUM_THREADS=1
for seed in ${SEEDS:-0 1 2}; do echo "$seed"; done | xargs -P "${JOBS:-2}" -I {} bash -c '
    folder="$1/seed{}"
    mkdir -p "$folder"
    echo "$(date +%H:%M) $0, seed {}: $folder/log.txt"
    python agents/train_rl4seg.py "experiment=$0" seed={} "out=$folder" "${@:2}" >>"$folder/log.txt" 2>&1 ||
        { tail -n 3 "$folder/log.txt"; exit 1; }
' "$experiment" "$out" "$@" || { echo "some seeds failed; run the same command again"; exit 1; }
python agents/report_rl4seg.py "$out"
