"""``seggym doctor`` and ``seggym envs``: what is on this machine, and what can be made of it."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium
import torch

from seggym.cohorts.cohort import READERS, cohort_root, seggym_home
from seggym.envs import ENVIRONMENTS
from seggym.envs.adaptation.settings import AdaptationSettings
from seggym.envs.kspace.volumes.settings import VolumeSettings, settings_type
from seggym.envs.selection.observation import EMBEDDING, candidate_width, learner_width
from seggym.envs.selection.settings import SelectionSettings
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import ENCODING, PACKAGED, RewardModel, open_reward_model
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.precision import HOW_TO_MEASURE, judge, native_precision
from seggym.speed_check import ENVIRONMENT, NUM_ENVS, measure_speed

_WITHOUT_GPU = {
    "bf16": "train agents with precision=auto, which is about twice as fast where a reward model is trusted with bf16",
    "fp32": "and no native bf16: several environments at once and a small reward model are what saves time",
}
_PACKAGES = ("gymnasium", "torch", "stable-baselines3", "sb3-contrib", "monai", "numpy", "nibabel", "hydra-core")


def examine() -> list[str]:
    """Lines for the user: versions, computing, data, reward models, speed, environments, advice."""
    advice: list[str] = []
    lines = [f"seggym {version('seggym') if _installed('seggym') else '(not installed, run from its folder)'}"]
    lines.append(f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    lines += ["", "Computing", *_computing(advice)]
    lines += ["", "Data", *_data(advice)]
    lines += ["", "Reward models", *_reward_models(advice)]
    lines += ["", "Speed", *_speed(advice)]
    lines += ["", "Environments", *(f"  {name}" for name in ENVIRONMENTS)]
    return [*lines, "", "Advice", *(f"  {line}" for line in advice or ["nothing to mend"])]


def environment_table() -> str:
    """One row per id: its action and its observation, as far as they are known before any data are read."""
    rows = [("id", "action", "observation", "needs")]
    for name in ENVIRONMENTS:
        spec = gymnasium.spec(name)
        if name.startswith("ALSelect"):
            rows.append((name, *_selection_row(SelectionSettings(**spec.kwargs))))
            continue
        if name.startswith("SegAdapt"):
            rows.append((name, *_adaptation_row(AdaptationSettings(**spec.kwargs))))
            continue
        settings = settings_type(spec.entry_point)(**spec.kwargs)
        views, crop = settings.scan.num_views, settings.scan.crop
        shapes = {"image": f"uint8 (1, {crop}, {crop})", "acquired": f"int8 ({views},)", "budget": "float32 (1,)"}
        shapes |= {"energy": f"float32 ({views},)", "corrupted": shapes["acquired"], "axis": "int8 (1,)"}
        if isinstance(settings, VolumeSettings):
            # K label values are known once the cohort is read.
            shapes |= {"slices": f"float32 ({3 * settings.slots},)", "probability_grid": "float32 (64 K,)"}
            shapes |= {"slice_probabilities": f"float32 ({settings.slots} K,)"}
        needs = [] if settings.cohort == "phantom" else ["data_root"]
        needs += ["num_classes"] if settings.cohort == "folder" else []
        needs += ["a reward model"] if settings.needs_network and settings.reward_model not in PACKAGED else []
        observation = ", ".join(f"{part} {shapes[part]}" for part in settings.observation)
        rows.append((name, f"Discrete({views})", observation, ", ".join(needs) or "nothing"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _selection_row(settings: SelectionSettings) -> tuple[str, str, str]:
    """Action, observation and needs of a selection environment; K classes are known once the cohort is read."""
    rows = settings.candidates
    shapes = {
        "candidates": f"float32 ({rows}, {candidate_width(0)} + {candidate_width(1) - candidate_width(0)} K)",
        "embeddings": f"float32 ({rows}, {EMBEDDING})",
        "learner": f"float32 ({learner_width(0)} + 2 K,)",
        "budget": "float32 (1,)",
        "progress": "float32 (2,)",
        "action_mask": f"int8 ({rows},)",
    }
    observation = ", ".join(f"{part} {shapes[part]}" for part in settings.observation)
    needs = "nothing" if settings.cohort in ("phantom", "images", "instances") else "data_root"
    return f"Discrete({rows})", observation, needs


def _adaptation_row(settings: AdaptationSettings) -> tuple[str, str, str]:
    """Action, observation and needs of an adaptation environment; K classes are known once the cohort is read."""
    size = settings.size
    needs = "nothing" if settings.cohort in ("phantom", "echo") else "data_root"
    return f"MultiDiscrete([K] * {size * size})", f"float32 (1, {size}, {size})", needs


def _computing(advice: list[str]) -> Iterator[str]:
    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    yield f"  device: {device} ({name})"
    if native_precision(device) == "bf16":
        yield "  precision=auto: bf16, native here, for the reward models below that are trusted with it; else fp32"
    else:
        yield f"  precision=auto: fp32, because the {device.type} has no native bf16, which would only be slower"
    yield "  evaluation: always fp32"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield f"  threads: {torch.get_num_threads()} of {cores} cores"
    if torch.get_num_threads() > cores:
        advice.append(f"set OMP_NUM_THREADS={cores}: more threads than cores make torch several times slower")
    if device.type == "cpu":
        advice.append(f"there is no GPU: {_WITHOUT_GPU[native_precision(device)]}")


def _data(advice: list[str]) -> Iterator[str]:
    home = seggym_home()
    yield f"  SEGGYM_HOME: {home}"
    for folder in sorted(path for path in (home / "cache").glob("*") if path.is_dir()):
        yield f"  cache of {folder.name}: {_size(folder)}"
    for name in READERS:
        root = cohort_root(name)
        if name == "phantom":
            yield f"  {name}: generated in {root} when first asked for"
        else:
            yield f"  {name}: {root}" if root.is_dir() else f"  {name}: nothing at {root}"
            if name == "acdc" and not root.is_dir():
                advice.append("set SEGGYM_ACDC_ROOT to the folder with patient001, ... or pass data_root=")


def _reward_models(advice: list[str]) -> Iterator[str]:
    published = seggym_home() / "reward_models"
    names = {*PACKAGED, *(path.name for path in published.glob("*") if path.is_dir())}
    missing: list[str] = []
    for name in sorted(names):
        try:
            model = open_reward_model(name)
        except SeggymError as error:
            missing.append(name)
            yield f"  {name}: {error}"
            continue
        card: Any = model.cards["full"]
        # A published model hides the packaged one of its name, so say which of them is meant.
        origin = f"published in {model.folder}" if model.folder == published / name else "comes with seggym"
        networks = ", ".join(model.cards)
        if card.task == ENCODING:
            yield f"  {name}: {card.architecture}, {card.num_outputs} features, for active learning; {origin}"
            continue
        yield f"  {name}: {card.architecture}, {card.num_outputs} classes, networks {networks}; {origin}"
        yield from _precision_of(model, advice)
    if "acdc" not in names or missing:
        wanted = missing[0] if missing else "acdc"
        advice.append(f"`bash train_reward_model.sh cohort={wanted}` trains a reward model")


def _precision_of(model: RewardModel, advice: list[str]) -> Iterator[str]:
    """What precision=auto is for each network of ``model``, and why."""
    device = resolve_device("auto")
    unmeasured = []
    for key in model.cards:
        try:
            verdict = judge(model.path(key), device)
        except SeggymError as error:
            yield f"    {key}: {error}"
            continue
        yield f"    {key}: {verdict.precision}, because {verdict.reason}"
        unmeasured += [key] if verdict.unmeasured else []
    if unmeasured:
        advice.append(f"{', '.join(unmeasured)} of {model.folder} would be faster in bf16: {HOW_TO_MEASURE}")


def _speed(advice: list[str]) -> Iterator[str]:
    try:
        speed = measure_speed()
    except (SeggymError, OSError) as error:
        yield f"  not measured: {error}"
        return
    yield f"  {ENVIRONMENT}, {NUM_ENVS} at once, {speed.precision}: {speed.steps_per_second:.0f} image-steps per second"
    yield f"  a bare forward pass of the network takes {speed.network_share:.0%} of the time of a step"
    if speed.network_share < 0.5:
        advice.append("the network takes less than half of a step: more environments at once (num_envs) may be faster")


def _size(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {len(files)} files"


def _installed(name: str) -> bool:
    return _version(name) != "missing"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
