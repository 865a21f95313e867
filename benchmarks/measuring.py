"""Measuring one environment in one process: time per image-step, the bare network beside it, parts, and memory."""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference import ReferenceUNet, Straightforward

import seggym  # noqa: F401  registers the ids
from seggym.envs import ENVIRONMENTS
from seggym.envs.kspace import engine as engine_module
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.environment import KSpaceVectorEnv
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import choose_patients, load_cohort
from seggym.errors import SeggymError
from seggym.files import write_json
from seggym.kspace import simulation
from seggym.reward_models.frozen import FrozenNetwork, normalise, resolve_device
from seggym.reward_models.slices import prepared_slices

BUDGET = 12
_MIB = 2**20


@dataclass(frozen=True)
class Case:
    """An environment to measure; with ``reference_network`` it is scored by an untrained :class:`ReferenceUNet`."""

    env_id: str
    num_envs: int
    device: str = "cpu"
    precision: str = "fp32"
    output: str = "numpy"
    kwargs: dict[str, Any] = field(default_factory=dict)
    reference_network: bool = False
    straightforward: bool = False
    seconds: float = 3.0


class Clock:
    """Processor and wall seconds of each block that runs in it, the GPU's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu: list[float] = []
        self.wall: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time this block."""
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self._wait()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measured(path: Path, name: str, case: Case) -> dict[str, Any] | None:
    """The figures of ``case``, from ``path`` where just that has been measured before, else from a fresh process.

    None where it cannot be built on this machine, which is said.
    """
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["case"] == asdict(case):
            return kept
    command = [sys.executable, __file__, json.dumps(asdict(case))]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        said = process.stderr.strip().splitlines() or [
            f"ended with code {process.returncode}, perhaps for want of memory"
        ]
        print(f"{name}, N={case.num_envs}: {said[-1]}", flush=True)
        return None
    result = {"name": name, **json.loads(process.stdout.splitlines()[-1])}
    write_json(path, result)
    return result


def make_env(case: Case) -> tuple[KSpaceVectorEnv, ReferenceUNet | None]:
    """The environment of ``case``, and its network where that is the reference one."""
    kwargs = {**ENVIRONMENTS[case.env_id][2], "budget": BUDGET, "device": case.device, **case.kwargs}
    if not case.reference_network:
        env = KSpaceVectorEnv(
            case.num_envs, autoreset_mode="SameStep", output=case.output, precision=case.precision, **kwargs
        )
        return env, None
    settings = KSpaceSettings(**{**kwargs, "reward_model": "reference"})
    cohort, split = load_cohort(settings)
    stack = prepared_slices(cohort, choose_patients(cohort, split, settings), settings.scan)
    device = resolve_device(case.device)
    torch.manual_seed(0)
    network = ReferenceUNet(stack.num_classes).eval()
    frozen = FrozenNetwork(network, device, case.precision, max_batch=settings.micro_batch)
    engine = KSpaceEngine(stack, settings, case.num_envs, networks=[frozen], device=device)
    return KSpaceVectorEnv(case.num_envs, autoreset_mode="SameStep", output=case.output, engine=engine), network


def measure(case: Case) -> dict[str, Any]:
    """Figures of ``case``: medians over steps, in microseconds per image; processor time unless the name says wall."""
    torch.set_num_threads(1)
    before = _peak_memory(None)
    env, network = make_env(case)
    engine, device = env.engine, env.engine.device
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    # The library prepares its kernels when it first meets a batch size, and the last batch may have any.
    for frozen in engine.networks:
        for size in range(1, min(engine.micro_batch, case.num_envs) + 1):
            frozen(engine.magnitude[:size])
    env.step(legal_actions(env, rng))
    bare_pass(engine)()

    steps, resets, forward = Clock(device), Clock(device), Clock(device)
    deadline = time.perf_counter() + case.seconds

    def enough() -> bool:
        return len(steps.cpu) >= 3 and time.perf_counter() > deadline

    while not enough():
        with resets.running():
            env.reset()
        bare = bare_pass(engine)
        # The last step of an episode resets by itself, and is left out. In turn, so that another program's load, or
        # a processor that slows down, slows both.
        for _ in range(BUDGET - 1):
            actions = legal_actions(env, rng)
            with steps.running():
                env.step(actions)
            with forward.running():
                bare()
            if enough():
                break

    def per_image(seconds: Any) -> float:
        return 1e6 * float(np.median(seconds)) / case.num_envs

    step, floor, reset = per_image(steps.cpu), per_image(forward.cpu), per_image(resets.cpu)
    step_wall, floor_wall = per_image(steps.wall), per_image(forward.wall)
    result: dict[str, Any] = {
        "case": vars(case),
        "precision": engine.networks[0].precision if engine.networks else "none",  # type: ignore[attr-defined]
        "steps": len(steps.cpu),
        "step_us": step,
        "step_wall_us": step_wall,
        "forward_us": floor,
        "forward_wall_us": floor_wall,
        # Of each step and the pass right after it, because the speed of a shared processor drifts.
        "overhead_us": per_image(np.subtract(steps.cpu, forward.cpu)),
        "overhead_wall_us": per_image(np.subtract(steps.wall, forward.wall)),
        "ratio": float(np.median(np.divide(steps.cpu, forward.cpu))) if engine.networks else None,
        "wall_ratio": float(np.median(np.divide(steps.wall, forward.wall))) if engine.networks else None,
        "reset_us": reset,
        "image_steps_per_cpu_s": 1e6 / step,
        "image_steps_per_s": 1e6 / step_wall,
        "image_steps_per_cpu_s_with_resets": 1e6 / (step + reset / BUDGET),
        "peak_mib": (_peak_memory(device) - (before if device.type == "cpu" else 0)) / _MIB,
        "state_mib_per_env": _state_bytes(engine) / _MIB / case.num_envs,
    }
    result["parts"] = _parts(env, rng)
    if case.straightforward:
        result["straightforward_us"] = _straightforward(engine, network, rng, case.seconds)
        result["speedup"] = result["straightforward_us"] / step
    return result


def bare_pass(engine: KSpaceEngine) -> Callable[[], None]:
    """One forward pass of the networks over as many images as a step has, in the same batches, and nothing else."""
    inputs = []
    for network, rows in engine._by_network(slice(None)):
        if not isinstance(network, FrozenNetwork):
            continue
        images = engine.magnitude[rows]
        for part in images.split(engine.micro_batch):
            x = normalise(part).to(network.dtype).contiguous(memory_format=torch.channels_last)
            inputs.append((network, x))

    def run() -> None:
        with torch.inference_mode():
            for network, x in inputs:
                with network._exact():  # the settings of cuDNN with which the step runs it
                    network.network(x)

    return run


def legal_actions(env: KSpaceVectorEnv, rng: np.random.Generator) -> np.ndarray:
    """A random legal line for every scan, int64 (N,)."""
    masks = env.action_masks()
    return np.where(masks, rng.random(masks.shape), -1).argmax(1)


def _parts(env: KSpaceVectorEnv, rng: np.random.Generator) -> dict[str, float]:
    """Share of a step's processor time per part: a second, instrumented pass."""
    engine, device = env.engine, env.engine.device
    clocks = {name: Clock(device) for name in ("acquire", "reconstruct", "network", "metrics")}
    whole = Clock(device)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            with clocks[name].running():
                return function(*arguments, **named)

        return run

    kept = engine_module.quality, engine_module.summarise, list(engine.networks)
    combined = simulation.root_sum_of_squares
    engine._measure = timed("acquire", engine._measure)  # type: ignore[method-assign]
    simulation.root_sum_of_squares = timed("reconstruct", combined)
    engine_module.quality = timed("metrics", engine_module.quality)
    engine_module.summarise = timed("metrics", engine_module.summarise)
    timed_networks: list[Any] = [timed("network", network) for network in kept[2]]
    engine.networks[:] = timed_networks
    env.reset()
    for clock in clocks.values():
        clock.cpu.clear()
    for _ in range(min(BUDGET - 1, 1 + 512 // env.num_envs)):
        actions = legal_actions(env, rng)
        with whole.running():
            env.step(actions)
    engine_module.quality, engine_module.summarise, engine.networks[:] = kept
    simulation.root_sum_of_squares = combined
    del engine._measure  # the class's own is seen again
    shares = {name: sum(clock.cpu) / sum(whole.cpu) for name, clock in clocks.items()}
    shares["acquire"] -= shares["reconstruct"]  # which is a part of it
    return {**shares, "border": 1 - sum(shares.values())}


def _straightforward(
    engine: KSpaceEngine, network: ReferenceUNet | None, rng: np.random.Generator, seconds: float
) -> float:
    plain, clock = Straightforward(engine, network), Clock(engine.device)
    plain.step(torch.from_numpy(rng.integers(engine.num_lines, size=engine.num_envs)))
    deadline = time.perf_counter() + seconds
    while len(clock.cpu) < 3 or time.perf_counter() < deadline:
        lines = torch.from_numpy(rng.integers(engine.num_lines, size=engine.num_envs))
        with clock.running():
            plain.step(lines)
    return 1e6 * statistics.median(clock.cpu) / engine.num_envs


def _peak_memory(device: torch.device | None) -> float:
    """Bytes: the largest resident size of this process, or the largest allocation on a GPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    gc.collect()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _state_bytes(engine: KSpaceEngine) -> int:
    """What the running episodes hold."""
    records = [vars(engine), *(vars(part) for part in (engine.segmentation,) if part is not None)]
    if engine.truth is not None:
        records += [vars(part) for part in vars(engine.truth).values() if part is not None]
    tensors = [value for record in records for value in record.values() if isinstance(value, torch.Tensor)]
    return sum(x.element_size() * x.numel() for x in tensors if x.ndim and len(x) == engine.num_envs)


if __name__ == "__main__":
    try:
        print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
    except SeggymError as error:
        sys.exit(str(error))
