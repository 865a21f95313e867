#!/usr/bin/env bash
# maskAL on generated images: the least certain images against random ones, at equal images, instances and vertices.
# bash benchmarks/maskal.sh [output folder] [further key=value arguments of run_maskal.py]
# SEEDS="0 1 2" (default), VARIANTS="imbalanced balanced" (the balanced one is the negative control), JOBS=2 at a time.
# The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/maskal}"
shift || true
seeds=(${SEEDS:-0 1 2})
variants=(${VARIANTS:-imbalanced balanced})
jobs="${JOBS:-2}"
export OMP_NUM_THREADS=1

# 400 images to choose among, 100 for validation, 400 for the test; numbers of one seed of the generator never overlap.
python - "$out" "${variants[@]}" <<'END'
import sys
from pathlib import Path

from seggym.cohorts.instance_phantoms import VARIANTS, write_instances

for variant in sys.argv[2:]:
    for part, first, images in (("train", 0, 400), ("val", 10_000, 100), ("test", 20_000, 400)):
        write_instances(Path(sys.argv[1]) / variant / "data" / part, images, first=first, settings=VARIANTS[variant])
END

echo "${#variants[@]} variants x ${#seeds[@]} seeds x 2 strategies, 7 trainings each; $jobs at a time. Stop it at any time."
for variant in "${variants[@]}"; do
    folder="$out/$variant"
    common=(
        dataroot="$folder/data" traindir="$folder/data/train" valdir="$folder/data/val" testdir="$folder/data/test"
        "weightsroot=$folder/weights" "$@"
    )
    # Seeds change fastest, so that random choice finds the first networks trained. A process has a results folder to
    # itself; they are put together below.
    for strategy in uncertainty random; do
        for seed in "${seeds[@]}"; do echo "$strategy $seed"; done
    done | xargs -P "$jobs" -L 1 bash -c '
        folder="$0" strategy="${@: -2:1}" seed="${@: -1}"
        log="$folder/logs/$strategy-$seed.txt"
        mkdir -p "$folder/logs"
        echo "$(date +%H:%M) $folder $strategy seed $seed"
        python agents/run_maskal.py --config configs/maskal/generated.yaml "${@:1:$#-2}" "strategies=$strategy" \
            "seed=$seed" "resultsroot=$folder/parts/$strategy-$seed" >>"$log" 2>&1 || { tail -n 3 "$log"; exit 1; }
    ' "$folder" "${common[@]}" || { echo "some runs failed; run the same command again"; exit 1; }
    python - "$folder" <<'END'
import shutil
import sys
from pathlib import Path

from seggym.agents.maskal.report import write_report

folder = Path(sys.argv[1])
for run in sorted(folder.glob("parts/*/generated/*/seed*")):
    shutil.copytree(run, folder / "results" / run.parent.name / run.name, dirs_exist_ok=True)
page = write_report(folder / "results")
print(f"{page}; {page.parent / 'results.json'}")
END
done
