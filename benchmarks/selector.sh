#!/usr/bin/env bash
# The learned selector (docs/selector.md): trained on phantoms, evaluated on phantoms whose settings it never saw, and on
# ACDC where SEGGYM_ACDC_ROOT is set, beside every query strategy in the same episodes; prints both tables.
#   bash benchmarks/selector.sh [output folder]
# SEEDS="0 1 2" trains several and evaluates them as one method, AGENT=selector_dqn another agent, REPLAY=unet teaches
# the final sets of four policies to a U-Net in 5 episodes as well. The same command goes on where it was stopped.
# One core takes 15 minutes for the training of a seed and 10 for each evaluation (without REPLAY).
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/selector}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
agent="${AGENT:-selector_ppo}"
runs=""
for seed in ${SEEDS:-0}; do
    run="$out/${agent}_seed$seed"
    resume=false
    # The evolution before the first step has no checkpoint: what was stopped there begins again.
    if [ -e "$run/last/state.pt" ]; then resume=true; else rm -rf "$run"; fi
    python agents/train_selector.py env=alselect_phantom agent="$agent" seed="$seed" run_dir="$run" resume=$resume \
        progress_bar=false
    runs="$runs${runs:+,}$run"
done
# VAAL takes 4 s a query with its 200 steps: 20 here. All others have their defaults.
strategies='[random,foreground_random,predicted_foreground_random,least_confidence,margin,entropy,bald,ensemble_variance,ensemble_entropy,stochastic_batches,clasp_pe,kcenter,coreclr,coregcn,{name: vaal, steps: 20},typiclust,probcover,patient_stratified,evenly_spaced,metadata_kcenter,greedy,label_greedy]'
evaluate() {
    python agents/eval_selector.py load_from_snapshot_base_dir="[$runs]" budget=15 episodes=20 \
        strategies="$strategies" replay="${REPLAY:-null}" "$@"
}
evaluate output="$out/${agent}_phantoms" 'env_kwargs={cohort_options: {patients: 48, test_patients: 40, seed: 5}}'
if [ -n "${SEGGYM_ACDC_ROOT:-}" ]; then
    # None of its patients was trained on: all of them take part.
    evaluate output="$out/${agent}_acdc" env=alselect_acdc role=all
fi
