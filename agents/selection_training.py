"""What training knows of active learning beside what it knows of scans: whose data, and how good a policy is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from seggym.agents.algorithms.scores import best_legal
from seggym.cohorts.cohort import open_cohort
from seggym.envs.selection.engine import Episodes, SelectionEngine
from seggym.envs.selection.instances import build_instance_engine
from seggym.envs.selection.pools import PooledEngine
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.sources import build_engine, choose_roles
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.checkpoints import open_reward_model


def episode_keys(count: int, first: int = 0) -> torch.Tensor:
    """Keys int64 (count,) of the episodes that policies are measured on, always the same ones."""
    return torch.tensor([key_of(f"eval:{number}") for number in range(first, first + count)])


def selection_measure(
    settings: SelectionSettings, episodes: int, model: BaseAlgorithm
) -> Callable[[], dict[str, float]]:
    """Measures the policy of ``model`` among the validation patients: ``episodes`` of the largest budget."""
    chosen = replace(settings, role="val", precision="fp32", budget=settings.budget_range[1], illegal_action="noop")
    with torch.random.fork_rng():
        # Networks that are loaded for the first time draw numbers, which would change those of the training.
        build = build_instance_engine if settings.learner == "instances" else build_engine
        engine = build(chosen, episodes)
    keys = episode_keys(episodes)

    def measure() -> dict[str, float]:
        model.policy.set_training_mode(False)
        return validate_selection(engine, keys, lambda seen, legal: best_legal(model.policy, seen, legal))

    return measure


def validate_selection(
    engine: SelectionEngine,
    keys: torch.Tensor,
    choose: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor],
) -> dict[str, float]:
    """Means over the episodes ``keys``, one for each environment, with the largest budget.

    ``mean_quality`` of Q_1..Q_T (the area), last ``quality``, ``dice_<class>`` (of a classification F1 scores, of
    instances average precision).
    """
    budget = engine.settings.budget_range[1]
    slots = torch.arange(engine.num_envs, device=engine.device)
    keys = keys.to(engine.device)
    engine.begin(slots, Episodes(torch.full_like(keys, budget), keys))
    qualities = []
    for _ in range(budget):
        engine.step(choose(engine.observe(), engine.action_mask()))
        qualities.append(engine.quality.double().cpu())
    by_class = engine.scores.double().nanmean(0).tolist()
    return {
        "episodes": float(engine.num_envs),
        "mean_quality": float(torch.stack(qualities).mean()),
        "quality": float(qualities[-1].mean()),
        **{f"dice_{index}": value for index, value in enumerate(by_class, 1)},
    }


def selection_facts(engine: SelectionEngine | PooledEngine) -> dict[str, Any]:
    """What a snapshot says about the data of ``engine``; raises :class:`SeggymError` for what means nothing elsewhere.

    The network whose view is observed is the encoder: "reward_model_hash" is its hash where it has a name.
    """
    settings = engine.settings
    if "embeddings" in settings.observation and settings.encoder is None:
        raise SeggymError(
            "env.kwargs.observation has embeddings, which mean something else with every encoder, and "
            "env.kwargs.encoder=null trains one for every set of patients: name an encoder, or leave embeddings out"
        )
    fingerprint, patients = patients_of(engine)
    return {
        "num_lines": None,
        "num_classes": engine.pool.num_classes,
        "reward_model_hash": encoder_hash(settings),
        "cohort": settings.cohort,
        "patients": sorted(patients),
        "data_fingerprint": fingerprint,
    }


def encoder_hash(settings: SelectionSettings) -> str | None:
    """The weights of the encoder that ``settings`` name, None where they name none."""
    return None if settings.encoder is None else open_reward_model(settings.encoder).cards["full"].weights


def patients_of(engine: SelectionEngine | PooledEngine) -> tuple[str, frozenset[str]]:
    """Fingerprint of the data, and everybody who has a part in the episodes of ``engine``.

    Of single images those of the pool.
    """
    settings = engine.settings
    if settings.single_images:
        return "none", frozenset(engine.pool.table.names)
    cohort = open_cohort(settings.cohort, settings.data_root, **settings.cohort_options)
    roles = choose_roles(settings, cohort)
    return cohort.fingerprint or "none", frozenset((*roles.state, *roles.pool, *roles.reward))
