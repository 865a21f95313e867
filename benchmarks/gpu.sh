#!/usr/bin/env bash
# Everything that needs a GPU, on phantoms, in one command: bash benchmarks/gpu.sh [output folder]
# For a machine with a CUDA build of torch and these sources. Where it has no network, put the packages that it lacks
# into a folder beforehand, on a machine that has one and with the GPU machine's version of Python,
#   pip wheel --no-deps --wheel-dir wheels antlr4-python3-runtime==4.9.3   # it has no wheel of its own
#   pip download --only-binary=:all: --find-links wheels --python-version 3.12 --no-deps --dest wheels \
#       -r benchmarks/gpu_packages.txt
# and name it: WHEELS=wheels bash benchmarks/gpu.sh. PYTHON is the interpreter with torch; DEVICE=cpu rehearses it all.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${1:-runs/gpu}"
device="${DEVICE:-cuda}"
counts="${COUNTS:-64 256 1024}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
python="${PYTHON:-python3}"
packages="$PWD/.gpu-packages"
if ! [ -e "$packages/installed" ]; then
    # Beside the machine's own, whose torch knows the GPU; a virtual environment would not see it where it is in one.
    from=(--only-binary=:all:)
    if [ -n "${WHEELS:-}" ]; then
        from=(--no-index --find-links "$WHEELS")
    fi
    "$python" -m pip install --quiet --no-deps --target "$packages" "${from[@]}" -r benchmarks/gpu_packages.txt
    touch "$packages/installed"
fi
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$packages" SEGGYM_HOME="${SEGGYM_HOME:-$out/home}"

if [ "$device" = cuda ]; then
    "$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"'
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.txt"
fi
"$python" -m seggym.cli doctor | tee "$out/doctor.txt"
# device="auto" is the GPU here, so these tests run on it.
"$python" -m pytest -q -p no:cacheprovider tests/envs tests/reward_models/test_frozen.py tests/agents/test_device_buffer.py \
    2>&1 | tee "$out/tests.txt" || echo "some tests failed: see $out/tests.txt"
"$python" benchmarks/network_variants.py --device "$device" ${COMPILE:+--compile} --out "$out/variants.json" | tee "$out/variants.txt"
# shellcheck disable=SC2086  # several numbers
"$python" benchmarks/env_throughput.py --device "$device" --output torch --num-envs $counts \
    --ids "reference SSIM" "reference U-Net" KSpaceSeg-Phantom-v0 --precisions fp32 bf16 --out "$out/throughput"
for on_device in false true; do
    "$python" agents/train_asmr.py env=kspace_phantom num_envs="${TRAIN_ENVS:-256}" total_steps="${TRAIN_STEPS:-131072}" eval_every=0 \
        rollouts_on_device=$on_device progress_bar=false run_dir="$out/policy_$on_device" |
        tee "$out/policy_$on_device.txt"
done
