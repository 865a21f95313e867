#!/usr/bin/env bash
# The whole k-space job on phantoms, from nothing: reward model, sampler, policy, evaluation, report.
# bash benchmarks/quickstart.sh [output folder]
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/venv.sh

out="${1:-runs/quickstart}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
export SEGGYM_HOME="${SEGGYM_HOME:-$out/home}"
seed=0

# The networks are independent of each other: two processes, one per core, share the work.
bash train_reward_model.sh +experiment=phantom output="$out/reward_model" seed=$seed 'members=[fold1,independent]' &
bash train_reward_model.sh +experiment=phantom output="$out/reward_model" seed=$seed 'members=[full,fold0]'
wait $!
bash generate_sampler.sh cohort=phantom output="$out/sampler.npz"
bash train_asmr.sh env=kspace_phantom seed=$seed reward_model_dir="$out/reward_model" \
    train_sampler_filename="$out/sampler.npz" run_dir="$out/policy" total_steps=45056 eval_every=8192
# Smaller searches for the baselines than the defaults, so that all of it fits into a coffee break.
python agents/eval_asmr.py load_from_snapshot_base_dir="$out/policy" 'eval_range=[1,12]' \
    window=10 max_slices=16 'surface_budgets=[12]'
echo "report: $out/policy/report.html"
