"""What a run has come to: every method on the same target patients, compared by patient; uncertainty; monitors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seggym.agents.rl4seg.baselines.registry import BASELINES
from seggym.agents.rl4seg.figures import example
from seggym.agents.rl4seg.monitors import observe, suspicions, table
from seggym.agents.rl4seg.results import CORRECTED, EVALUATION, EXAMPLE, FORMAT, METRICS, SUBJECT
from seggym.agents.rl4seg.scoring import Scores
from seggym.agents.rl4seg.stages import actor, load_reward
from seggym.agents.rl4seg.supervised import label_maps, probabilities
from seggym.agents.rl4seg.test_time import stage_of
from seggym.agents.rl4seg.trial import ACTOR, Trial, load_masks
from seggym.files import write_atomic, write_json
from seggym.reward_models import statistics, uncertainty
from seggym.reward_models.calibration import reliability, scored_region

PARTS = ("val", "test")
_BINS = 10


def evaluate(trial: Trial, iterations: int) -> dict[str, Any]:
    """Score the policies of ``iterations`` and the baselines that there are, and write the results."""
    methods = {name: _scored(trial, masks) for name, masks in _policies(trial, iterations).items()}
    facts: dict[str, dict[str, Any]] = {name: {"privileged": False, "note": "RL4Seg"} for name in methods}
    stage = stage_of(trial.settings.tto)
    record = trial.folder.facts(stage)
    if record is not None and record["inputs"].get(actor(iterations)) == trial.folder.digest(actor(iterations)):
        name = f"{SUBJECT}_tto"
        methods[name] = _scored(trial, load_masks(trial.folder.root / stage))
        facts[name] = {**record["facts"], "privileged": False, "note": "RL4Seg, optimised for single images"}
    for name in BASELINES:
        record = trial.folder.facts(f"baselines/{name}")
        if record is not None:
            methods[name] = _scored(trial, load_masks(trial.folder.root / "baselines" / name))
            facts[name] = {**record["facts"], "seconds": record["seconds"]}
    rows = watch(trial, iterations)
    content = {
        "format": FORMAT,
        "name": trial.settings.name,
        "seed": trial.settings.seed,
        "iterations": iterations,
        "class_names": list(trial.pair.class_names),
        "domains": dict(trial.settings.domains),
        "methods": {name: {**facts[name], **_json(scores)} for name, scores in methods.items()},
        "comparisons": comparisons(methods),
        "gap": _gap(methods),
        "monitors": rows,
        "suspicions": suspicions(rows),
        "uncertainty": _uncertainty(trial, iterations) if iterations else {},
    }
    if iterations:
        write_atomic(trial.folder.root / "figures" / EXAMPLE, _example(trial, iterations))
    write_json(trial.folder.root / EVALUATION, content)
    return content


def _policies(trial: Trial, iterations: int) -> dict[str, dict[str, Tensor]]:
    """Label maps by part: of the supervised network ``rl4seg_0``, of its policies, and of the last one ``rl4seg``."""
    images = {part: getattr(trial.pair, f"target_{part}").images for part in PARTS}
    found = {}
    for number in range(iterations + 1):
        network = trial.load(actor(number))
        found[f"{SUBJECT}_{number}"] = {part: label_maps(network, images[part]) for part in PARTS}
    return {**found, SUBJECT: found[f"{SUBJECT}_{iterations}"]}


def _scored(trial: Trial, masks: Mapping[str, Tensor]) -> dict[str, Scores]:
    found = {part: trial.score(masks[part], getattr(trial.pair, f"target_{part}")) for part in PARTS}
    # Whoever wants valid masks may have those of any method corrected, so what that gives stands beside them all.
    return {**found, CORRECTED: trial.score(trial.correct(masks["test"]).masks, trial.pair.target_test)}


def _json(scores: Mapping[str, Scores]) -> dict[str, Any]:
    return {
        "summary": {
            part: {metric: entry.mean(metric) for metric in ("dice", "hd95", "failed", "valid")}
            for part, entry in scores.items()
        },
        **{part: entry.to_json() for part, entry in scores.items()},
    }


def comparisons(methods: Mapping[str, Mapping[str, Scores]]) -> list[dict[str, Any]]:
    """RL4Seg minus every other method on test, paired by patient."""
    if SUBJECT not in methods:
        return []
    ours, found = methods[SUBJECT]["test"], []
    for name, parts in methods.items():
        if name.startswith(SUBJECT):
            continue
        for metric in ("dice", "hd95", "valid"):
            difference = statistics.paired_difference(ours.values(metric), parts["test"].values(metric), ours.patients)
            found.append({"other": name, "metric": metric, **difference._asdict()})
    return found


def _gap(methods: Mapping[str, Mapping[str, Scores]]) -> dict[str, float]:
    """How far the source network lies below the ceiling on validation: at least .05 is what severity is chosen for."""
    if not {"source_only", "supervised_target"} <= set(methods):
        return {}
    low, high = (methods[name]["val"].mean("dice") for name in ("source_only", "supervised_target"))
    return {"source_only": low, "supervised_target": high, "gap": high - low}


def watch(trial: Trial, iterations: int) -> list[dict[str, Any]]:
    """Monitors of each iteration, of the policy before and after it by its reward, which ``metrics.csv`` has too."""
    rows: list[dict[str, Any]] = []
    band = trial.settings.choice.band
    for part in PARTS:
        domain = getattr(trial.pair, f"target_{part}")
        supervised = probabilities(trial.load(ACTOR), domain.images)
        for number in range(1, iterations + 1):
            reward = load_reward(trial, number)
            for phase, policy in (("before", actor(number - 1)), ("after", actor(number))):
                believed = probabilities(trial.load(policy), domain.images)
                seen = observe(believed, supervised, domain.images, domain.masks, reward, trial.valid, band)
                rows.append({"iteration": number, "phase": phase, "part": part, **seen})
    write_atomic(trial.folder.root / METRICS, table(rows))
    return rows


def _uncertainty(trial: Trial, iterations: int) -> dict[str, Any]:
    """Confidence of the last policy's masks from its reward map and from other sources, on target test images.

    All sources say how sure they are of the same masks. Each has one temperature, fitted on source validation images
    (no label of the target) or, as ``target_``, on target validation images.
    """
    network, reward = trial.load(actor(iterations)), load_reward(trial, iterations)
    policies = {trial.folder.digest(actor(number)): number for number in range(1, iterations + 1)}
    networks = [trial.load(actor(number)) for number in policies.values()]
    seed = trial.seed("uncertainty")
    sources = {
        "reward_map": lambda images, masks: uncertainty.of_reward(reward, network, images, masks),
        "maximum_softmax": lambda images, masks: _of(uncertainty.softmax(network, images), masks),
        "mc_dropout": lambda images, masks: _of(uncertainty.mc_dropout(network, images, seed=seed), masks),
        "ensemble_of_iterations": lambda images, masks: _of(uncertainty.ensemble(networks, images), masks),
        "test_time_augmentation": lambda images, masks: _of(uncertainty.augmented(network, images), masks),
    }
    parts = {"source": trial.pair.source_val, "val": trial.pair.target_val, "test": trial.pair.target_test}
    masks = {name: label_maps(network, domain.images) for name, domain in parts.items()}
    found = {}
    for name, confident in sources.items():
        said = {part: confident(domain.images, masks[part]) for part, domain in parts.items()}
        truth = {part: domain.masks.to(torch.uint8) for part, domain in parts.items() if domain.masks is not None}
        entry: dict[str, Any] = uncertainty.evaluate_uncertainty(
            said["source"], truth["source"], said["test"], truth["test"]
        )
        known = uncertainty.evaluate_uncertainty(said["val"], truth["val"], said["test"], truth["test"])
        entry.update({f"target_{key}": known[key] for key in ("temperature", "ece", "brier", "auroc")})
        calibrated = uncertainty.scaled(said["test"], entry["temperature"])
        where = scored_region(calibrated.masks, truth["test"])
        diagram = reliability(calibrated.values[where], (calibrated.masks == truth["test"])[where], _BINS)
        entry["reliability"] = {key: value.tolist() for key, value in diagram._asdict().items()}
        found[name] = entry
    return found


def _example(trial: Trial, iterations: int) -> bytes:
    """Test images, by the supervised network's Dice the worst, the median and the best: masks and the reward map."""
    domain, reward = trial.pair.target_test, load_reward(trial, iterations)
    first, last = (label_maps(trial.load(actor(number)), domain.images) for number in (0, iterations))
    quality = trial.score(first, domain).image_dice
    order = np.argsort(np.nan_to_num(quality), kind="stable")
    chosen = torch.from_numpy(order[[0, len(order) // 2, len(order) - 1]].copy()).to(trial.device)
    images = domain.images[chosen]
    columns = {
        "image": images[:, 0],
        "truth": domain.labels[chosen],
        "supervised": first[chosen],
        "RL4Seg": last[chosen],
        "reward map": reward(images, last[chosen]),
    }
    return example({name: values.cpu().numpy() for name, values in columns.items()})


def _of(believed: Tensor, masks: Tensor) -> uncertainty.Confidence:
    return uncertainty.of_probabilities(believed, masks)
