"""Selectors and query strategies in the same episodes of active learning, scored after every retraining."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from seggym import __version__
from seggym.agents.comparison import differences
from seggym.agents.selection_comparison import SelectionTable
from seggym.agents.selection_results import FILE, SelectionResult, load_selection
from seggym.agents.selection_training import encoder_hash, episode_keys, patients_of
from seggym.agents.snapshots import LearnedPolicy
from seggym.agents.strategies.registry import STRATEGIES, make_strategy
from seggym.agents.strategies.strategy import Strategy
from seggym.cohorts.cohort import open_cohort
from seggym.envs.selection.engine import Episodes, SelectionEngine
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.sources import build_engine, choose_roles, load_material
from seggym.envs.selection.view import EpisodeView
from seggym.errors import SeggymError

_SELECTION_ENTRY = "seggym.envs.selection."
_NOT_SETTINGS = ("autoreset_mode", "output", "render_mode", "max_episode_steps")
# Where data and networks lie and what is rewarded or observed: no part of what a score depends on.
_FREE = ("data_root", "device", "observation", "objective", "reward", "cost_weight", "encoder", "class_slots", "split")
# Needs a library that is not installed by default, and a strategy of it to be named.
_OPTIONAL = ("skactiveml",)


@dataclass(frozen=True)
class SelectionBench:
    """Episodes ``keys`` int64 (E,) of ``budget`` samples each, on the patients of the role of ``settings``.

    ``volumes`` are those that the learner is scored on, of ``patients``; ``full`` (V,) is their Dice with the whole
    pool annotated, NaN for a learner that nobody trained so; ``foreground`` counts the pixels of the pool's.
    """

    env_id: str
    settings: SelectionSettings
    keys: Tensor
    budget: int
    engine: SelectionEngine
    volumes: tuple[str, ...]
    patients: tuple[str, ...]
    full: np.ndarray
    foreground: float
    fingerprint: str

    @property
    def key(self) -> dict[str, Any]:
        """What a score depends on beside policy and episode, plain JSON."""
        described = {name: value for name, value in asdict(self.settings).items() if name not in _FREE}
        described |= {"fingerprint": self.fingerprint, "encoder": encoder_hash(self.settings), "seggym": __version__}
        return json.loads(json.dumps({**described, "metric": self.settings.metric}))


def selection_settings(env_id: str, env_kwargs: Mapping[str, Any]) -> SelectionSettings:
    """The settings of a registered selection environment with ``env_kwargs`` over its defaults."""
    try:
        spec = gymnasium.spec(env_id.rpartition(":")[2])
    except gymnasium.error.Error as error:
        raise SeggymError(
            f"environment {env_id!r} is not registered ({error}); `seggym envs` lists those that are"
        ) from None
    if not str(spec.entry_point).startswith(_SELECTION_ENTRY):
        raise SeggymError(f"environment {env_id!r} selects no samples, which is what this evaluation compares")
    kwargs = {**spec.kwargs, **env_kwargs}
    if isinstance(kwargs.get("split_seed"), (list, tuple)):
        # An evaluation has one pool; training may have had several.
        kwargs["split_seed"] = kwargs["split_seed"][0]
    try:
        return SelectionSettings(**{name: value for name, value in kwargs.items() if name not in _NOT_SETTINGS})
    except TypeError as error:
        raise SeggymError(f"environment {env_id!r} does not take these arguments: {error}") from None


def open_selection_bench(
    env_id: str, env_kwargs: Mapping[str, Any], role: str, budget: int, episodes: int
) -> SelectionBench:
    """Make the episodes "eval:0", "eval:1", ...; raises :class:`SeggymError` for a budget that the pool does not hold.

    Environments of single images are refused: there is one number per episode to compare, and no patient to resample.
    """
    if episodes < 2 or budget < 1:
        raise SeggymError(f"episodes={episodes} and budget={budget}, expected at least 2 episodes of 1 sample or more")
    settings = replace(
        selection_settings(env_id, env_kwargs), role=role, budget=budget, precision="fp32", illegal_action="noop"
    )
    if settings.single_images:
        raise SeggymError(
            f"{env_id} has single images, expected patients to resample: choose a segmentation, or compare strategies "
            "with agents/run_al.py (classification) or agents/run_maskal.py (instances)"
        )
    engine = build_engine(settings, episodes)
    cohort = open_cohort(settings.cohort, settings.data_root, **settings.cohort_options)
    owners = choose_roles(settings, cohort).reward
    volumes = load_material(settings, engine.device, engine.dtype).scored["reward"].names
    masks = engine.oracle.masks(torch.arange(len(engine.pool), device=engine.device))
    shown = (masks > 0) & (masks < engine.pool.num_classes)
    return SelectionBench(
        env_id,
        settings,
        episode_keys(episodes),
        budget,
        engine,
        volumes,
        # A volume is called <patient>_<frame>, and both may have underscores in them.
        tuple(max((name for name in owners if volume.startswith(f"{name}_")), key=len) for volume in volumes),
        _whole_pool(engine) if settings.learner == "probe" else np.full(len(volumes), np.nan),
        float(shown.sum()),
        patients_of(engine)[0],
    )


def _whole_pool(engine: SelectionEngine) -> np.ndarray:
    """Dice of each volume with the whole pool annotated, (V,)."""
    copy = engine.sibling(1)
    slot = torch.zeros(1, dtype=torch.int64, device=copy.device)
    everything = torch.arange(len(copy.pool), device=copy.device)[None]
    copy.learner.begin(slot)
    lessons = copy.oracle.annotate(everything)[0]
    copy.learner.teach(slot, copy.pool.slices[everything], lessons, slot, slot)
    return _volume_dice(copy)[0]


def named_strategies(entries: Sequence[str | Mapping[str, Any]] | None) -> list[Strategy]:
    """Strategies by name, or {name, **options}; None is every one that needs nothing but this package."""
    if entries is None:
        return [make_strategy(name) for name in STRATEGIES if name not in _OPTIONAL]
    made = []
    for entry in entries:
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        if "name" not in options:
            raise SeggymError(f"strategies has {entry!r}, expected the name of a strategy, or name and options")
        made.append(make_strategy(**options))
    return made


def run_policy(bench: SelectionBench, policy: LearnedPolicy | Strategy) -> SelectionResult:
    """Run ``policy`` through all episodes of ``bench``; a seed of the result is the number of an episode."""
    # What nobody looks at need not be computed.
    observed = policy.observation if isinstance(policy, LearnedPolicy) else ("progress",)
    engine = bench.engine.sibling(len(bench.keys), observation=observed)
    if isinstance(policy, LearnedPolicy):
        policy.begin(engine)
    slots = torch.arange(engine.num_envs, device=engine.device)
    keys = bench.keys.to(engine.device)
    engine.begin(slots, Episodes(torch.full_like(keys, bench.budget), keys))
    trace = _Trace(bench, engine)
    trace.read()
    plans: list[list[int]] = []
    for step in range(bench.budget):
        if isinstance(policy, LearnedPolicy):
            actions = policy.act(engine, engine.observe(), engine.action_mask())
        else:
            if step % bench.settings.samples_per_query == 0:
                count = min(bench.settings.samples_per_query, bench.budget - step)
                plans = [_rows(engine, policy, slot, count) for slot in range(engine.num_envs)]
            actions = torch.tensor([plan.pop(0) for plan in plans], device=engine.device)
        engine.step(actions)
        if not bool(engine.pending[0]):
            trace.read()
    return trace.result(policy)


def _rows(engine: SelectionEngine, strategy: Strategy, slot: int, count: int) -> list[int]:
    """The candidates that ``strategy`` asks for in one episode, as actions."""
    chosen = strategy.query(EpisodeView(engine, slot, strategy.privileged), count).indices
    rows = {sample: row for row, sample in enumerate(engine.candidates[slot].tolist())}
    return [rows[sample] for sample in chosen.tolist()]


class _Trace:
    """What the episodes of an engine have come to, retraining after retraining."""

    def __init__(self, bench: SelectionBench, engine: SelectionEngine) -> None:
        self._bench, self._engine = bench, engine
        self._dice: list[np.ndarray] = []
        self._numbers: dict[str, list[np.ndarray]] = {"pixels": [], "foreground": [], "cost": []}
        self._samples: list[int] = []

    def read(self) -> None:
        """Record the state after a retraining."""
        engine = self._engine
        self._dice.append(_volume_dice(engine))
        shown = engine.pixels[:, 1:].sum(1) / self._bench.foreground
        for name, value in (("pixels", engine.pixels.sum(1)), ("foreground", shown), ("cost", engine.minutes)):
            self._numbers[name].append(value.double().cpu().numpy().copy())
        self._samples.append(int(engine.count[0]))

    def result(self, policy: LearnedPolicy | Strategy) -> SelectionResult:
        """All of it."""
        names, ends = self._engine.pool.table.names, [0, *self._samples]
        orders = self._engine.order.tolist()
        numbers: dict[str, Any] = {name: np.stack(values, 1) for name, values in self._numbers.items()}
        return SelectionResult(
            strategy=policy.name,
            options=policy.identity or {},
            privileged=policy.privileged,
            seeds=tuple(range(len(orders))),
            samples=np.array(self._samples),
            pool=len(names),
            cost_unit="minutes",
            volumes=self._bench.volumes,
            patients=self._bench.patients,
            dice=np.stack(self._dice, 1),
            full=self._bench.full,
            selected=tuple(
                tuple(tuple(names[sample] for sample in order[start:stop]) for start, stop in pairwise(ends))
                for order in orders
            ),
            key=self._bench.key,
            **numbers,
        )


def _volume_dice(engine: SelectionEngine) -> np.ndarray:
    """Dice of each volume, mean over its classes, (N, V)."""
    found = [engine.evaluate(slot, "reward").double().nanmean(-1) for slot in range(engine.num_envs)]
    return torch.stack(found).cpu().numpy()


def kept_result(bench: SelectionBench, policy: LearnedPolicy | Strategy, folder: Path) -> SelectionResult:
    """What :func:`run_policy` finds, from ``folder`` where it has been found before."""
    if (folder / FILE).is_file():
        known = load_selection(folder / FILE)
        same = known.strategy == policy.name and known.options == (policy.identity or {})
        run = len(known.seeds) == len(bench.keys) and known.samples[-1] - known.samples[0] == bench.budget
        if same and run and not differences(known.key, bench.key):
            return known
    result = run_policy(bench, policy)
    result.save(folder)
    return load_selection(folder / FILE)


def mean_result(results: Sequence[SelectionResult]) -> SelectionResult:
    """Training runs of one method as one: the mean of their Dice and costs in each episode.

    What was selected is that of the first run.
    """
    means: dict[str, Any] = {
        name: np.mean([getattr(result, name) for result in results], 0)
        for name in ("dice", "pixels", "foreground", "cost")
    }
    return replace(results[0], options={"runs": [result.options for result in results]}, **means)


def ranked_table(subject: SelectionResult, others: Sequence[SelectionResult]) -> SelectionTable:
    """The subject, the others by area from the best one on, and those that see labels apart, at the end."""
    table = SelectionTable(("", *(str(number) for number in range(len(others)))), (subject, *others))
    area = {int(row["strategy"]): row["aubc"]["mean"] for row in table.rows[1:]}
    order = sorted(area, key=lambda number: (others[number].privileged, -area[number]))
    results = (subject, *(others[number] for number in order))
    names = [result.strategy for result in results]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SeggymError(f"strategies names {twice} more than once, expected each once: leave one out")
    return SelectionTable(tuple(names), results)
