"""The baselines by name: those that are trained take as many gradient steps as RL4Seg's policy, in the same run.

None but the privileged ones sees a label of the target, and none chooses a checkpoint by one: networks trained anew on
the source keep the best weights on source validation patients, everything else its last ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seggym.agents.rl4seg.baselines.batch_norm import adabn, tent
from seggym.agents.rl4seg.stages import ACTOR, style_of, train_policy, train_source, updates, varied
from seggym.agents.rl4seg.supervised import FitSettings, dice_score, fit, label_maps
from seggym.agents.rl4seg.trial import PRIOR, TWIN, Trial, save_masks
from seggym.envs.adaptation.domains import target_train_labels
from seggym.envs.adaptation.rewards import OracleReward
from seggym.reward_models.metrics import most_probable
from seggym.reward_models.networks import UNet
from seggym.reward_models.uncertainty import augmented as test_time_augmented

# Images (n, 1, H, W) to label maps uint8 (n, H, W).
Predictor = Callable[[Tensor], Tensor]
# Trains what there is to train, writes it to the folder, and says what it makes of images, and some facts.
Maker = Callable[[Trial, Path], tuple[Predictor, dict[str, Any]]]
_TENT_RATE = 1e-3


@dataclass(frozen=True)
class Baseline:
    """``privileged`` ones see labels of the target; ``after`` are the stages that it stands on."""

    make: Maker
    note: str
    privileged: bool = False
    after: tuple[str, ...] = (ACTOR,)


def budget(trial: Trial) -> FitSettings:
    """As many gradient steps as RL4Seg's policy takes, on batches of ``pretrain.batch`` images."""
    return replace(trial.settings.pretrain, iterations=updates(trial))


def _source_only(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    if trial.settings.start == "plain":
        return partial(label_maps, trial.load(ACTOR)), {"updates": 0}
    facts = train_source(trial, folder, "source only", "plain")
    return partial(label_maps, _load(trial, folder)), {**facts, "updates": 0}


def _styled(trial: Trial, folder: Path, name: str) -> tuple[Predictor, dict[str, Any]]:
    """The supervised network trained on, with source images in another style."""
    source, settings = trial.pair.source_train, budget(trial)
    assert source.masks is not None
    style = style_of(trial, name)
    fitted = fit(trial.load(ACTOR), source.images, source.masks, settings, trial.seed(folder.name), style=style)
    trial.save(folder, fitted.network, (*source.patients, *trial.pair.target_train.patients))
    return partial(label_maps, fitted.network), {"updates": settings.iterations}


def _twin(trial: Trial) -> UNet:
    """The source network again with batch norm, trained once for all baselines that adapt through it."""
    trial.folder.stage(TWIN, [], lambda folder: train_source(trial, folder, TWIN, trial.settings.start, norm="batch"))
    return trial.load(TWIN)


def _batch_norm_twin(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    return partial(label_maps, _twin(trial)), {"updates": 0}


def _adabn(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    batch = trial.settings.pretrain.batch
    return partial(label_maps, adabn(_twin(trial), trial.pair.target_train.images, batch)), {"updates": 0}


def _tent(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    images, batch = trial.pair.target_train.images, trial.settings.pretrain.batch
    # Once over the target, as published: with the budget of the others it ends with one class everywhere.
    steps = -(-len(images) // batch)
    adapted = tent(_twin(trial), images, batch, steps, _TENT_RATE, trial.seed("tent"))
    return partial(label_maps, adapted), {"updates": steps}


def _test_time_augmentation(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    network = trial.load(ACTOR)
    return lambda images: most_probable(test_time_augmented(network, images)), {"updates": 0}


def _corrected(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    network = trial.load(ACTOR)
    return lambda images: trial.correct(label_maps(network, images)).masks, {"updates": 0}


def _self_training(trial: Trial, folder: Path, validated: bool) -> tuple[Predictor, dict[str, Any]]:
    """Rounds of pseudo labels of the target: corrected ones, or those that need no correction, and nothing else."""
    images, total = trial.pair.target_train.images, budget(trial)
    rounds = trial.settings.loop.iterations
    settings = replace(total, iterations=max(1, total.iterations // rounds))
    network = trial.load(ACTOR)
    counts, steps = [], 0
    for number in range(1, rounds + 1):
        drawn = label_maps(network, images)
        corrected = trial.correct(drawn)
        kept = torch.from_numpy(corrected.gold if validated else corrected.valid).to(trial.device)
        counts.append(int(kept.sum()))
        if not counts[-1]:
            break
        seed = trial.seed(f"{folder.name}, round {number}")
        network = fit(network, images[kept], corrected.masks[kept], settings, seed).network
        steps += settings.iterations
    trial.save(folder, network, (*trial.pair.source_train.patients, *trial.pair.target_train.patients))
    return partial(label_maps, network), {"updates": steps, "pseudo_labels": counts}


def _oracle(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    """The same loop with the true pixelwise accuracy as its reward, and no anchors: what a perfect reward net gives."""
    labels = target_train_labels(trial.domain_settings).to(trial.device)
    network, critic = trial.load(ACTOR), None
    for iteration in range(1, trial.settings.loop.iterations + 1):
        what = f"{folder.name}, iteration {iteration}"
        shown, truth = varied(trial, what, trial.pair.target_train.images, labels)
        score = OracleReward(truth, trial.num_classes, "accuracy")
        trained, _ = train_policy(trial, what, iteration, shown, score, None, network, critic)
        network, critic = trained.actor, trained.critic
    trial.save(folder, network, (*trial.pair.source_train.patients, *trial.pair.target_train.patients))
    return partial(label_maps, network), {"updates": updates(trial)}


def _supervised(trial: Trial, folder: Path) -> tuple[Predictor, dict[str, Any]]:
    """Trained on the target's own labels from the supervised network on: the ceiling."""
    target, val = trial.pair.target_train, trial.pair.target_val
    assert val.masks is not None
    steps = trial.settings.pretrain.iterations + updates(trial)
    settings = replace(trial.settings.pretrain, iterations=steps)
    labels = target_train_labels(trial.domain_settings).to(trial.device)
    score = dice_score(val.images, val.masks, trial.num_classes)
    fitted = fit(trial.load(ACTOR), target.images, labels, settings, trial.seed(folder.name), score=score)
    trial.save(folder, fitted.network, (*trial.pair.source_train.patients, *target.patients))
    return partial(label_maps, fitted.network), {"updates": steps, "target_val_dice": fitted.best}


def _load(trial: Trial, folder: Path) -> UNet:
    return trial.load(str(folder.relative_to(trial.folder.root)))


BASELINES: dict[str, Baseline] = {
    "source_only": Baseline(_source_only, "trained on the source"),
    "source_augmented": Baseline(
        partial(_styled, name="augmented"), "source images strongly augmented by the family of shifts"
    ),
    "histogram_matching": Baseline(partial(_styled, name="histogram"), "source images with target histograms"),
    "fda": Baseline(partial(_styled, name="fda"), "source images with target amplitudes, low frequencies"),
    "batch_norm_twin": Baseline(_batch_norm_twin, "the source network with batch norm, for the next two"),
    "adabn": Baseline(_adabn, "the batch-norm twin with the statistics of the target"),
    "tent": Baseline(_tent, "the batch-norm twin, entropy minimised by its affine parameters"),
    "test_time_augmentation": Baseline(_test_time_augmentation, "mean over contrasts and shifts of a test image"),
    "source_corrector": Baseline(_corrected, "source network, its masks corrected", after=(ACTOR, PRIOR)),
    "self_training_corrector": Baseline(
        partial(_self_training, validated=False),
        "pseudo labels: all masks that are valid or can be made so",
        after=(ACTOR, PRIOR),
    ),
    "self_training_validated": Baseline(
        partial(_self_training, validated=True), "pseudo labels: valid masks only", after=(ACTOR, PRIOR)
    ),
    "oracle_reward": Baseline(_oracle, "PPO with the true reward (sees labels)", privileged=True),
    "supervised_target": Baseline(_supervised, "trained on the target's labels: the ceiling", privileged=True),
}


def run_baseline(trial: Trial, name: str) -> dict[str, Any]:
    """Stage ``baselines/<name>``: its network, if it has one, and its label maps of the target's val and test."""
    baseline = BASELINES[name]

    def make(folder: Path) -> dict[str, Any]:
        predict, facts = baseline.make(trial, folder)
        masks = {part: getattr(trial.pair, f"target_{part}").images for part in ("val", "test")}
        save_masks(folder, {part: predict(images) for part, images in masks.items()})
        return {**facts, "privileged": baseline.privileged, "note": baseline.note}

    after = [stage for stage in baseline.after if stage != PRIOR or trial.settings.prior]
    return trial.folder.stage(f"baselines/{name}", after, make)
