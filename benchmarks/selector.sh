#!/usr/bin/env bash
# The learned selector (docs/selector.md) beside every query strategy in the same episodes; prints a table for each of:
# - phantoms: trained on phantoms, evaluated on phantoms whose settings it never saw;
# - pools: the same in three further pools of such phantoms, and one table of all four;
# - transfer: the same selector on all patients of ACDC (where SEGGYM_ACDC_ROOT is set);
# - acdc: trained on some patients of ACDC, evaluated on others (likewise).
#   bash benchmarks/selector.sh [output folder] [parts, default: "phantoms pools transfer acdc"]
# SEEDS="0 1 2" trains several and evaluates them as one method, AGENT=selector_dqn another agent, REPLAY=unet teaches
# the final sets of four policies to a U-Net in 5 episodes as well. The same command goes on where it was stopped.
# One core takes about 5 minutes for the training of a seed and 10 for an evaluation (without REPLAY, which is 20 U-Nets of a
# minute). Encoders for ACDC, one or two minutes each, are trained the first time: one for part transfer, about fifteen
# for part acdc, where every pool of the training has its own.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/selector}"
parts="${2:-phantoms pools transfer acdc}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
agent="${AGENT:-selector_ppo}"
# VAAL takes 4 s a query with its 200 steps: 20 here. All others have their defaults.
strategies='[random,foreground_random,predicted_foreground_random,least_confidence,margin,entropy,bald,ensemble_variance,ensemble_entropy,stochastic_batches,clasp_pe,kcenter,coreclr,coregcn,{name: vaal, steps: 20},typiclust,probcover,patient_stratified,evenly_spaced,metadata_kcenter,greedy,label_greedy]'

# train NAME OPTIONS...: sets `runs` to the run folders of all seeds
train() {
    local name="$1" seed run resume
    shift
    runs=""
    for seed in ${SEEDS:-0}; do
        run="$out/${agent}_${name}_seed$seed"
        resume=false
        # What comes before the first step (agent.lookahead, agent.evolution) has no checkpoint: if stopped there it begins again.
        if [ -e "$run/last/state.pt" ]; then resume=true; else rm -rf "$run"; fi
        python agents/train_selector.py agent="$agent" seed="$seed" run_dir="$run" resume=$resume progress_bar=false "$@"
        runs="$runs${runs:+,}$run"
    done
}

# evaluate NAME OPTIONS...: the policies in `runs`
evaluate() {
    local name="$1"
    shift
    echo "== $name"
    python agents/eval_selector.py load_from_snapshot_base_dir="[$runs]" budget=15 episodes=20 \
        strategies="$strategies" replay="${REPLAY:-null}" output="$out/${agent}_evaluation_$name" "$@"
}

# unseen NAME SEED: on 40 phantoms of another generator
unseen() {
    evaluate "$1" role=test "env_kwargs={cohort_options: {patients: 48, test_patients: 40, seed: $2}}"
}

for part in $parts; do
    case "$part" in
    phantoms)
        train phantoms env=alselect_phantom
        unseen phantoms 5
        ;;
    pools)
        train phantoms env=alselect_phantom
        unseen phantoms 5
        for seed in 6 7 8; do unseen "pool$seed" "$seed"; done
        echo "== all pools"
        python benchmarks/selector_pools.py "$out/${agent}_evaluation_phantoms" "$out/${agent}_evaluation_pool"[678]
        ;;
    transfer)
        [ -n "${SEGGYM_ACDC_ROOT:-}" ] || continue
        train phantoms env=alselect_phantom
        # None of its patients was trained on: all of them take part.
        evaluate transfer env=alselect_acdc role=all
        ;;
    acdc)
        [ -n "${SEGGYM_ACDC_ROOT:-}" ] || continue
        # Half of the patients for the evaluation, so that its pool is one to choose from.
        python -c "
import sys
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import make_split, save_split
save_split(make_split(open_cohort('acdc', None).groups, (0.4, 0.1, 0.5)), sys.argv[1])" "$out/acdc_split.json"
        train acdc env=alselect_acdc split="$out/acdc_split.json" 'split_seeds=[0,1]'
        evaluate acdc role=test
        ;;
    *)
        echo "part $part is unknown, expected some of phantoms, pools, transfer, acdc" >&2
        exit 2
        ;;
    esac
done
