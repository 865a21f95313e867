#!/usr/bin/env bash
# Active learning on ACDC with a U-Net: six strategies over five rounds, from masks (three seeds) and scribbles (one).
# bash benchmarks/al_acdc.sh [output folder] [further arguments of run_al.py, such as datadir=/data/acdc]
# The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/al_acdc}"
shift || true
jobs="${JOBS:-2}"
# 11 to 57 of 386 slices, as many as 1 to 4 % of the 1,454 of CoreCLR's split. A strategy is chosen 4 times for a seed;
# round 0 is trained once for a seed, and the whole pool once.
common=(policy.budgets='[0.03,0.06,0.09,0.12,0.15]' model.options.iterations=800 "$@")
strategies=(random entropy kcenter kcenter_pixels kcenter_untrained coreclr)

echo "104 trainings of 800 iterations (78 from masks at 1 minute of a core, 26 from scribbles at 1.5 minutes, half as fast
where the processor has no bf16): about 2 hours of one core (JOBS=$jobs at a time). Stop it at any time; the same command goes on."
mkdir -p "$out"
export OMP_NUM_THREADS=1

# Seeds change fastest: jobs that run at the same time then wait for no other's round 0.
{
    for strategy in "${strategies[@]}"; do
        for seed in 0 1 2; do echo "acdc_strong $strategy $seed"; done
        echo "acdc_weak $strategy 0"
    done
} | xargs -P "$jobs" -L 1 bash -c '
    given=("$@")
    set -- "${given[@]: -3}"
    folder="$0/$1/$2/seed$3"
    mkdir -p "$folder"
    echo "$(date +%H:%M) $1 $2 seed $3"
    python agents/run_al.py "experiment=$1" "strategy=$2" "seed=$3" "run_dir=$folder" "${given[@]:0:${#given[@]}-3}" \
        >>"$folder/log.txt" 2>&1 || { tail -n 3 "$folder/log.txt"; exit 1; }
' "$out" "${common[@]}" || { echo "some runs failed; run the same command again"; exit 1; }

for experiment in acdc_strong acdc_weak; do
    python agents/report_al.py "$out/$experiment"
    seggym compare "$out/$experiment/random" $(printf "$out/$experiment/%s " "${strategies[@]:1}") |
        tee "$out/$experiment/comparison.txt"
done
