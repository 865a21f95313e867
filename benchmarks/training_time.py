"""How long a policy takes to learn what centre-out knows: time until its validation area reaches that order's.

python benchmarks/training_time.py out=runs/training_time
python benchmarks/training_time.py out=runs/prior prior_strength=48 observations=energy,acquired,budget seeds=0,1

Further options and their defaults are in OPTIONS. The default agent starts from a prior that is nearly centre-out, so
the prior is off here unless ``prior_strength`` says otherwise. The clock runs while the policy acts and learns, not
while it is validated; a run ends where it reaches centre-out, or at ``steps`` (it is then reported as censored, with
the area that it had). ``out`` gets one JSON per run, which a repeated call reads instead of training again, and
``table.txt``, ``results.json`` and ``curves.png`` over all of them.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from seggym.agents.algorithms.scores import best_legal
from seggym.agents.models import TrainSettings, make_batch, make_model
from seggym.agents.policies import FixedOrder
from seggym.agents.train_asmr import env_kwargs
from seggym.agents.validation import Choice, validate, validation_episodes
from seggym.configs.checking import plain
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic, write_json
from seggym.kspace import orders

OPTIONS = {
    "out": "runs/training_time",
    "env": "kspace_phantom",
    "agent": "maskable_ppo",
    "observations": "image,acquired,budget energy,acquired,budget probability_grid,energy,acquired,budget",
    "seeds": "0,1,2",
    "steps": "40000",  # limit of one run
    "every": "4096",  # steps between validations: the resolution of the times
    "episodes": "64",  # validation slices
    "budget": "4,12",
    "num_envs": "32",
    "prior_strength": "0",
    "threads": "1",
    "device": "auto",
    "rollouts_on_device": "null",
}
_PARTS = ("environment", "rest of collection", "learning")


@one_sentence
def main(*arguments: str) -> None:
    """Train, or read, every run and report on all of them."""
    options = _read_options(arguments)
    torch.set_num_threads(int(options["threads"]))
    out = Path(options["out"])
    runs = []
    for observation in options["observations"].split():
        for seed in options["seeds"].split(","):
            settings = _settings(options, observation.split(","), int(seed))
            run = _finished(Path(settings.run_dir), settings, options)
            if run is None:
                run = measure(settings, int(options["every"]), options)
                write_json(Path(settings.run_dir), run)
            runs.append(run)
            print(_describe(run), flush=True)
    text = table(runs)
    print(text)
    write_atomic(out / "table.txt", text.encode())
    write_json(out / "results.json", {"options": options, "runs": runs})
    plot(runs, out / "curves.png")


def _read_options(arguments: tuple[str, ...]) -> dict[str, str]:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise SeggymError(f"{', '.join(unknown)}: no such option, expected some of {', '.join(OPTIONS)} as name=value")
    return {**OPTIONS, **given}


def _settings(options: dict[str, str], observation: list[str], seed: int) -> TrainSettings:
    """The run of ``observation`` and ``seed``, with the agent of ``configs/``; its result goes to ``run_dir``."""
    with initialize_config_module("seggym.configs", version_base="1.3"):
        values = plain(compose("train_asmr", [f"env={options['env']}", f"agent={options['agent']}"]))
    budget = [int(bound) for bound in options["budget"].split(",")]
    kwargs = {**env_kwargs(values), "observation": observation, "budget": budget, "device": options["device"]}
    agent = {key: values["agent"][key] for key in ("algorithm", "hyperparameters", "network", "group_size")}
    return TrainSettings(
        run_dir=str(Path(options["out"]) / f"{'+'.join(observation)}_prior{options['prior_strength']}_seed{seed}.json"),
        env_id=values["env"]["id"],
        env_kwargs=kwargs,
        prior_strength=float(options["prior_strength"]),
        seed=seed,
        total_steps=int(options["steps"]),
        num_envs=int(options["num_envs"]),
        eval_episodes=int(options["episodes"]),
        threads=int(options["threads"]),
        device=options["device"],
        rollouts_on_device=json.loads(options["rollouts_on_device"]),
        **agent,
    )


def _finished(path: Path, settings: TrainSettings, options: dict[str, str]) -> dict[str, Any] | None:
    """The result of the same run, if there is one."""
    if not path.is_file():
        return None
    run = json.loads(path.read_text())
    if run["settings"] != _identity(settings, options):
        raise SeggymError(f"{path} was measured with other settings: choose another out, or delete the file")
    return run


def _identity(settings: TrainSettings, options: dict[str, str]) -> dict[str, Any]:
    own = {name: value for name, value in asdict(settings).items() if name != "run_dir"}
    return json.loads(json.dumps({**own, "validated_every": int(options["every"])}))


# --- one run ----------------------------------------------------------------------------------------------------------


class Clock:
    """Wall and CPU seconds spent in functions that are wrapped, by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with the time of its calls added to ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = function(*args, **kwargs)
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
            return result

        return timed


def measure(settings: TrainSettings, every: int, options: dict[str, str]) -> dict[str, Any]:
    """Train until the validation area is centre-out's or the steps are used up; everything that is reported of it."""
    model = make_model(settings)
    if not isinstance(model, OnPolicyAlgorithm):
        raise SeggymError(f"agent={options['agent']} has no rollouts to take times of: choose ppo or maskable_ppo")
    area, centre_out = _validation(settings, model)
    clock = Clock()
    env: Any = model.env
    env.step_wait = clock.around("environment", env.step_wait)
    env.env_method = clock.around("environment", env.env_method)
    model.collect_rollouts = clock.around("collection", model.collect_rollouts)  # type: ignore[method-assign]
    model.train = clock.around("learning", model.train)  # type: ignore[method-assign]
    learn = clock.around("total", model.learn)
    curve = [{"steps": 0, "wall_s": 0.0, "cpu_s": 0.0, "area": area()}]
    while curve[-1]["area"] < centre_out and model.num_timesteps < settings.total_steps:
        learn(every, reset_num_timesteps=model.num_timesteps == 0)
        point = {"wall_s": clock.wall["total"], "cpu_s": clock.cpu["total"], "area": area()}
        curve.append({"steps": model.num_timesteps, **point})
    return {
        "observation": settings.env_kwargs["observation"],
        "prior_strength": settings.prior_strength,
        "seed": settings.seed,
        "reached": curve[-1]["area"] >= centre_out,
        "centre_out": centre_out,
        "curve": curve,
        "seconds": {kind: _parts(getattr(clock, kind)) for kind in ("wall", "cpu")},
        "buffer_bytes": buffer_bytes(model),
        "transitions": model.rollout_buffer.buffer_size * model.n_envs,
        "device": str(env.batch.engine.device),
        "precision": sorted({network.precision for network in env.batch.engine.networks}),
        "torch": torch.__version__,
        "settings": _identity(settings, options),
    }


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    environment, learning = seconds.get("environment", 0.0), seconds.get("learning", 0.0)
    return dict(zip(_PARTS, (environment, seconds.get("collection", 0.0) - environment, learning), strict=True))


def _validation(settings: TrainSettings, model: OnPolicyAlgorithm) -> tuple[Callable[[], float], float]:
    """Measures the area of ``model`` on validation patients in single precision; and centre-out's area."""
    kwargs = {
        **settings.env_kwargs,
        "role": "val",
        "precision": "fp32",
        "budget": settings.env_kwargs["budget"][1],
    }
    engine = make_batch(settings.env_id, kwargs, settings.eval_episodes).engine
    episodes = validation_episodes(engine, settings.eval_episodes)

    def area(choose: Choice) -> float:
        return validate(engine, episodes, choose)["mean_quality"]

    def learned() -> float:
        model.policy.set_training_mode(False)
        return area(lambda seen, legal: best_legal(model.policy, seen, legal))

    order = FixedOrder("centre_out", orders.centre_out(engine.num_lines))
    return learned, area(lambda seen, legal: order.act(engine, seen, legal))


def buffer_bytes(model: OnPolicyAlgorithm) -> dict[str, int]:
    """Bytes of every array or tensor of the rollout buffer as it stands after a rollout; observations by part."""
    found: dict[str, int] = {}
    for name, value in vars(model.rollout_buffer).items():
        parts = value if isinstance(value, dict) else {name: value}
        found |= {key: int(part.nbytes) for key, part in parts.items() if hasattr(part, "nbytes")}
    return found


# --- the report -------------------------------------------------------------------------------------------------------


def table(runs: list[dict[str, Any]]) -> str:
    """One row per observation: medians over the seeds, each censored run counted as slower than any that reached."""
    columns = ("observation", "prior", "reached", "steps", "wall s", "CPU s", "area at the end", "steps per CPU s")
    head = (*columns, *_PARTS, "buffer MiB", "bytes of a transition")
    rows = []
    for group in _grouped(runs):
        first = group[0]
        seconds = {part: sum(run["seconds"]["cpu"][part] for run in group) for part in _PARTS}
        total = sum(seconds.values())
        size = sum(first["buffer_bytes"].values())
        steps = sum(run["curve"][-1]["steps"] for run in group)
        areas = [run["curve"][-1]["area"] for run in group]
        rows.append(
            (
                ", ".join(first["observation"]),
                f"{first['prior_strength']:g}",
                f"{sum(run['reached'] for run in group)} of {len(group)}",
                *(_median(group, name) for name in ("steps", "wall_s", "cpu_s")),
                f"{min(areas):.4f} to {max(areas):.4f}",
                f"{steps / total:.0f}" if total else "-",
                *(f"{seconds[part] / total:.0%}" if total else "-" for part in _PARTS),
                f"{size / 2**20:.1f}",
                f"{size / first['transitions']:.0f}",
            )
        )
    lines = [f"Centre-out's area on the validation episodes: {runs[0]['centre_out']:.4f}"]
    lines += [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) + "\n"


def _median(group: list[dict[str, Any]], name: str) -> str:
    """Median over runs of ``name`` when centre-out was reached; ">" where the median run did not reach it."""
    values = [run["curve"][-1][name] if run["reached"] else np.inf for run in group]
    middle = float(np.median(values))
    if np.isfinite(middle):
        return f"{middle:.0f}"
    return f"> {max(run['curve'][-1][name] for run in group):.0f}"


def _grouped(runs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = list(dict.fromkeys(tuple(run["observation"]) for run in runs))
    return [[run for run in runs if tuple(run["observation"]) == name] for name in names]


def _describe(run: dict[str, Any]) -> str:
    last = run["curve"][-1]
    verdict = "reached" if run["reached"] else "did not reach"
    return (
        f"{', '.join(run['observation'])}, seed {run['seed']}: {verdict} centre-out ({run['centre_out']:.4f}) with "
        f"{last['area']:.4f} after {last['steps']} steps, {last['wall_s']:.0f} s, {last['cpu_s']:.0f} CPU s"
    )


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Validation area against wall time, one line per run, one colour per observation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, group in enumerate(_grouped(runs)):
        for run in group:
            points = [(point["wall_s"], point["area"]) for point in run["curve"]]
            label = ", ".join(run["observation"]) if run is group[0] else None
            axes.plot(*zip(*points, strict=True), color=f"C{index}", marker=".", linewidth=1, label=label)
    axes.axhline(runs[0]["centre_out"], color="black", linestyle="--", linewidth=1, label="centre-out")
    axes.set(xlabel="seconds of acting and learning", ylabel="area on validation episodes")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
