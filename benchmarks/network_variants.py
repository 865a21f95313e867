"""Ways to run one frozen network: layouts, precisions, batches, CUDA graphs, torch.compile.

``python benchmarks/network_variants.py [--device cuda] [--out FILE.json]`` prints microseconds per image of the U-Net
of the published figures (16-32-64-128 channels) at 128 x 128: processor time on a processor, wall time on a GPU. It is
where to look before the engine is told to do it another way; docs/performance.md has what it said.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference import ReferenceUNet
from torch import nn

from seggym.errors import one_sentence
from seggym.files import write_json
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.inference import fold_batch_norm, for_inference
from seggym.reward_models.precision import PRECISIONS

SIDE = 128
# What is done to the network, each line on top of the one before; the last is what the engine runs.
KINDS = ("as trained, channels first", "batch norm folded", "and channels last", "and rewritten for inference")
COMPILED = "and torch.compile"
Run = Callable[[torch.Tensor], object]


@one_sentence
def main() -> None:
    """Measure every variant at every batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", nargs="*", type=int, help="default: 1 4 8 16 64, on a GPU 16 64 256 1024")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes a minute and a C++ compiler")
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = resolve_device(options.device)
    # As frozen networks are run: fp32 is no TF32, and the algorithms do not depend on the clock.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    batches = options.batches or ([16, 64, 256, 1024] if device.type == "cuda" else [1, 4, 8, 16, 64])
    found: dict[str, dict[str, float]] = {}
    print(f"{'us per image':44}" + "".join(f"{batch:>9}" for batch in batches))
    kinds = [*KINDS, *(["in a CUDA graph"] if device.type == "cuda" else []), *([COMPILED] if options.compile else [])]
    for precision in ("fp32", "bf16"):
        for kind in kinds:
            name = f"{precision}, {kind}"
            found[name] = {}
            for batch in batches:
                torch.manual_seed(0)
                x = torch.rand(batch, 1, SIDE, SIDE, device=device, dtype=PRECISIONS[precision])
                found[name][str(batch)] = measure(build(kind, x), x, device, options.rounds)
            print(f"{name:44}" + "".join(f"{value:9.0f}" for value in found[name].values()), flush=True)
    if options.out:
        write_json(Path(options.out), found)


def build(kind: str, example: torch.Tensor) -> Run:
    """The network as ``kind`` says, for images like ``example``."""
    torch.manual_seed(0)
    network: nn.Module = ReferenceUNet(4).eval().requires_grad_(False)
    layout = torch.contiguous_format if kind in KINDS[:2] else torch.channels_last
    if kind in KINDS[1:3]:
        network = fold_batch_norm(network)
    elif kind != KINDS[0]:
        network = for_inference(network, example.dtype)
    network.to(example.device, example.dtype).to(memory_format=layout)  # type: ignore[call-overload]
    if kind == "in a CUDA graph":
        return graphed(network, example)
    run = torch.compile(network, dynamic=False) if kind == COMPILED else network
    return lambda images: run(images.contiguous(memory_format=layout))


def graphed(network: nn.Module, example: torch.Tensor) -> Run:
    """``network`` as one CUDA graph: a launch instead of one per operation, for one batch size."""
    held = example.contiguous(memory_format=torch.channels_last).clone()
    stream = torch.cuda.Stream(example.device)
    stream.wait_stream(torch.cuda.current_stream(example.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(held)
    torch.cuda.current_stream(example.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(held)

    def run(images: torch.Tensor) -> object:
        held.copy_(images)
        graph.replay()
        return output

    return run


def measure(run: Run, x: torch.Tensor, device: torch.device, rounds: int) -> float:
    """Median over ``rounds`` in microseconds per image."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    repeats = max(1, 64 // len(x))
    times = []
    with torch.no_grad():
        for _ in range(3):
            run(x)
        for _ in range(rounds):
            _wait(device)
            start = clock()
            for _ in range(repeats):
                run(x)
            _wait(device)
            times.append((clock() - start) / repeats / len(x) * 1e6)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
