"""The four stages of RL4Seg, each a folder of the run that follows from the folders before it.

``0/actor``: supervised on the source (pretrain). ``i/rewards``: what the last policy draws on the target, with what is
held to be true (predict). ``i/reward_net``: a net that tells right pixels from wrong ones (reward). ``i/actor``: the
policy that it rewards, with its critic (ppo). Networks pass from stage to stage through files alone, so that a run
that was stopped goes on to the same bits.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seggym.agents.pixel.settings import PixelSettings
from seggym.agents.pixel.training import Trained, shrink_perturb, train_pixel_ppo
from seggym.agents.rl4seg.baselines.styles import augmented, fourier_styled, histogram_matched
from seggym.agents.rl4seg.selection import Evidence, choose, evidence
from seggym.agents.rl4seg.supervised import Style, dice_score, fit, label_maps
from seggym.agents.rl4seg.trial import ACTOR, PRIOR, UNREADABLE, Trial
from seggym.configs.checking import build
from seggym.envs.adaptation.rewards import OracleReward
from seggym.errors import SeggymError
from seggym.files import write_atomic, write_json
from seggym.reward_models.checkpoints import ERRORS, ModelCard, load_network, save_network
from seggym.reward_models.error_net import ErrorNet, ErrorNetEnsemble, RewardMap, load_error_net
from seggym.reward_models.error_training import ErrorNetSettings, train_error_net
from seggym.reward_models.network_learner import turned
from seggym.reward_models.networks import UNet
from seggym.reward_models.reward_dataset import RewardDataset, join_reward_datasets, load_reward_dataset
from seggym.reward_models.reward_pairs import NoPairs, PairSettings, build_reward_pairs
from seggym.reward_models.seeding import seeded
from seggym.reward_models.shape_prior import PriorSettings, train_shape_prior

ANCHORS, CHOICE, CRITIC, LOG = "anchors.npz", "choice.json", "critic", "ppo.json"


def actor(iteration: int) -> str:
    """The stage that holds the policy of ``iteration``; 0 is the supervised network."""
    return ACTOR if iteration == 0 else f"{iteration}/actor"


def pretrain(trial: Trial) -> None:
    """Stage ``0``: the source network, and the shape prior where the corrector is a learned one."""
    trial.folder.stage(ACTOR, [], lambda folder: train_source(trial, folder, ACTOR, trial.settings.start))
    if trial.settings.prior:
        trial.folder.stage(PRIOR, [], lambda folder: _train_prior(trial, folder))


def train_source(trial: Trial, folder: Path, what: str, start: str, norm: str = "group") -> dict[str, Any]:
    """Supervised training on the source, plain or strongly augmented; the best weights by its validation patients."""
    source, val = trial.pair.source_train, trial.pair.source_val
    assert source.masks is not None
    assert val.masks is not None
    fitted = fit(
        trial.network(norm, what), source.images, source.masks, trial.settings.pretrain, trial.seed(what),
        style=None if start == "plain" else style_of(trial, start),
        score=dice_score(val.images, val.masks, trial.num_classes),
    )  # fmt: skip
    trial.save(folder, fitted.network, source.patients, source_val_dice=fitted.best)
    return {"source_val_dice": fitted.best, "updates": trial.settings.pretrain.iterations}


def style_of(trial: Trial, name: str) -> Style:
    """How source images are changed: by target images (histogram, fda) or by the run's family of shifts (augmented)."""
    if name == "augmented":
        return augmented(trial.settings.augmentation)
    return {"histogram": histogram_matched, "fda": fourier_styled}[name](trial.pair.target_train.images)


def _train_prior(trial: Trial, folder: Path) -> dict[str, Any]:
    masks = trial.pair.source_train.masks
    assert masks is not None
    settings = build(PriorSettings, {**trial.settings.prior, "seed": trial.seed(PRIOR)}, "prior.")
    train_shape_prior(masks, trial.num_classes, settings).save(folder)
    return {}


def predict(trial: Trial, iteration: int) -> None:
    """Stage ``i/rewards``: reward pairs and anchors made with the policy of the last iteration."""
    after = [actor(iteration - 1), *_prior(trial)]
    trial.folder.stage(f"{iteration}/rewards", after, lambda folder: _predict(trial, iteration, folder))


def _predict(trial: Trial, iteration: int, folder: Path) -> dict[str, Any]:
    policy, pair = trial.load(actor(iteration - 1)), trial.pair
    what = f"{iteration}/rewards"
    settings = replace(trial.pair_settings, seed=trial.seed(what))
    target = pair.target_train
    looks = trial.settings.loop.source_looks
    known = [
        _source_pairs(trial, policy, f"{what}, look {place}", look, replace(settings, seed=settings.seed + place))
        for place, look in enumerate(looks)
    ]
    counts = {"target_images": len(target.images), "used": 0, "anchors": 0}
    shape = (0, *target.images.shape[1:])
    arrays: dict[str, Any] = {"images": np.zeros(shape, np.float32), "masks": np.zeros(shape[:1] + shape[2:], np.uint8)}
    try:
        found, anchors = build_reward_pairs(
            policy, target.images, target.patients, target.names, trial.corrector(), pair.rules, settings,
            class_names=pair.class_names,
        )  # fmt: skip
    except NoPairs:
        # Nothing that the policy draws can be believed: the source alone then says what an error is.
        if not known:
            raise
    else:
        known.append(found)
        counts |= {"used": len(found.names), "anchors": len(anchors.images)}
        arrays = {"images": anchors.images.cpu().numpy(), "masks": anchors.masks.cpu().numpy()}
    dataset = join_reward_datasets(known)
    dataset.save(folder)
    write_atomic(folder / ANCHORS, lambda path: np.savez_compressed(path, **arrays))
    return {**counts, "pairs": len(dataset)}


def _source_pairs(trial: Trial, policy: nn.Module, what: str, look: str, settings: PairSettings) -> RewardDataset:
    """Pairs of the source with its true labels, its images in another ``look``: errors that are known."""
    source = trial.pair.source_train
    assert source.masks is not None
    images = source.images
    if look != "plain":
        style = style_of(trial, look)
        with seeded(trial.seed(what)):
            images = style(images, torch.arange(len(images)))
    names = [f"{what} {name}" for name in source.names]
    classes = trial.pair.class_names
    return build_reward_pairs(
        policy, images, source.patients, names, None, None, settings, class_names=classes, truths=source.masks
    )[0]


def load_anchors(trial: Trial, iteration: int) -> tuple[Tensor, Tensor] | None:
    """Images (n, 1, H, W) and gold-standard masks (n, H, W) of an iteration; None where there is no anchor."""
    path = trial.folder.root / f"{iteration}/rewards" / ANCHORS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, masks = (torch.from_numpy(arrays[name]).to(trial.device) for name in ("images", "masks"))
    except UNREADABLE as error:
        raise SeggymError(f"cannot read {path} ({error}): delete its folder, then run the same command again") from None
    return (images, masks) if len(images) else None


def varied(trial: Trial, what: str, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of images and their label maps, all but the first changed as in supervised training.

    A policy that is rewarded on a few dozen images alone learns those by heart.
    """
    with seeded(trial.seed(f"{what}, copies")):
        made = [turned(images, masks, outside=0) for _ in range(trial.settings.loop.copies - 1)]
    shown, labels = zip((images, masks), *made, strict=True)
    return torch.cat(shown), torch.cat([entry.to(torch.uint8) for entry in labels])


def reward(trial: Trial, iteration: int) -> None:
    """Stage ``i/reward_net``: trained on the pairs of the iteration, with a fitted temperature."""
    begun = {"supervised": [ACTOR], "before": [f"{iteration - 1}/reward_net"] if iteration > 1 else [], "scratch": []}
    start = begun[trial.settings.loop.reward_start]

    def make(folder: Path) -> dict[str, Any]:
        seed = trial.seed(f"{iteration}/reward_net")
        values = {"widths": list(trial.settings.widths), **trial.settings.reward, "seed": seed}
        settings = build(ErrorNetSettings, values, "reward.")
        pairs = load_reward_dataset(trial.folder.root / f"{iteration}/rewards")
        net = train_error_net(pairs, settings, _begun(trial, start[0], pairs) if start else None)
        net.save(folder, trial.pair.source_train.images.shape[-1], str(trial.settings.domains["cohort"]))
        return {"temperature": net.temperature, **net.metrics}

    trial.folder.stage(f"{iteration}/reward_net", [f"{iteration}/rewards", *start], make)


def _begun(trial: Trial, stage: str, pairs: RewardDataset) -> ErrorNet:
    """What the training of a reward net starts from: the network of a stage, or its reward net."""
    if stage != ACTOR:
        return _load_net(trial, stage)
    contrast = float(pairs.images.flatten(1).std(1).mean())
    return ErrorNet.of_segmentation(trial.load(ACTOR), trial.pair.class_names, contrast)


def reward_stages(trial: Trial, iteration: int) -> list[str]:
    """The stages whose nets are the reward of an iteration."""
    first = 1 if trial.settings.loop.ensemble else iteration
    return [f"{number}/reward_net" for number in range(first, iteration + 1)]


def load_reward(trial: Trial, iteration: int) -> ErrorNetEnsemble:
    """The reward of an iteration, on the run's device."""
    return ErrorNetEnsemble([_load_net(trial, stage) for stage in reward_stages(trial, iteration)])


def _load_net(trial: Trial, stage: str) -> ErrorNet:
    net = load_error_net(trial.folder.root / stage)
    net.require_classes(trial.pair.class_names)
    return net.to(trial.device)


def ppo(trial: Trial, iteration: int) -> None:
    """Stage ``i/actor``: PPO against the reward net; of its checkpoints and the networks before it the best is kept."""
    what = actor(iteration)
    after = [actor(iteration - 1), ACTOR, f"{iteration}/rewards", *reward_stages(trial, iteration), *_prior(trial)]

    def make(folder: Path) -> dict[str, Any]:
        anchors, images = load_anchors(trial, iteration), trial.pair.target_train.images
        # Nobody knows their label maps: those that go along are empty.
        shown = varied(trial, what, images, torch.zeros_like(images[:, 0], dtype=torch.uint8))[0]
        trained, candidates = train_policy(
            trial, what, iteration, shown, load_reward(trial, iteration),
            None if anchors is None else varied(trial, f"{what}, anchors", *anchors),
            trial.load(actor(iteration - 1)), _critic(trial, iteration - 1),
        )  # fmt: skip
        candidates = {"supervised": trial.load(ACTOR), **candidates}
        if iteration > 1:
            candidates = {"before": trial.load(actor(iteration - 1)), **candidates}
        chosen, record = pick(trial, candidates, load_reward(trial, iteration))
        seen = (*trial.pair.source_train.patients, *trial.pair.target_train.patients)
        trial.save(folder, chosen, seen)
        _save_critic(trial, trained.critic, folder / CRITIC, seen)
        write_json(folder / CHOICE, record)
        write_json(folder / LOG, trained.log)
        return {"chosen": record["chosen"]}

    trial.folder.stage(actor(iteration), after, make)


def train_policy(
    trial: Trial,
    what: str,
    iteration: int,
    images: Tensor,
    score: RewardMap | OracleReward,
    anchors: tuple[Tensor, Tensor] | None,
    start: UNet,
    critic: UNet | None,
) -> tuple[Trained, dict[str, UNet]]:
    """PPO from ``start`` on ``images`` of the target, and its checkpoints by name, the last one among them."""
    entropy, divergence = trial.settings.loop.weights(iteration)
    values = {**trial.settings.ppo, "entropy": entropy, "beta": divergence, "seed": trial.seed(what)}
    settings = build(PixelSettings, {**values, "device": str(trial.device)}, "ppo.")
    if trial.settings.loop.shrink and iteration > 1:
        generator = torch.Generator().manual_seed(trial.seed(f"{what}, shrink"))
        start = shrink_perturb(start, generator)
        critic = None if critic is None else shrink_perturb(critic, generator)
    kept: dict[str, UNet] = {}

    def progress(images: int, policy: nn.Module, row: dict[str, float]) -> None:
        due = (len(kept) + 1) * settings.images / trial.settings.choice.checkpoints
        if images >= due - settings.batch / 2 or images >= settings.images:
            assert isinstance(policy, UNet)
            kept[f"images{images:06d}"] = copy.deepcopy(policy).eval().requires_grad_(False)

    trained = train_pixel_ppo(start, critic, trial.load(ACTOR), images, score, settings, anchors, progress)
    return trained, kept


def updates(trial: Trial) -> int:
    """Gradient steps of the policy over all iterations, supervised ones on anchors included: the baselines' budget."""
    settings = build(PixelSettings, trial.settings.ppo, "ppo.")
    rollouts = -(-settings.images // settings.batch)
    passes = -(-settings.batch // (settings.minibatch or settings.batch))
    return trial.settings.loop.iterations * rollouts * (settings.epochs * passes + settings.anchor_steps)


def pick(trial: Trial, candidates: dict[str, UNet], score: RewardMap | None) -> tuple[UNet, dict[str, Any]]:
    """The candidate that :mod:`selection` prefers on held-out target images, and the record of all."""
    held, weights = trial.held(), trial.settings.choice
    found: dict[str, Evidence] = {
        name: evidence(label_maps(network, held.images), held, score, trial.valid, weights.band)
        for name, network in candidates.items()
    }
    best, record = choose(found, weights)
    return candidates[best], record


def _prior(trial: Trial) -> list[str]:
    return [PRIOR] if trial.settings.prior else []


def _critic(trial: Trial, iteration: int) -> UNet | None:
    """The critic of the iteration before; the first one starts from nothing."""
    if iteration == 0:
        return None
    network = load_network(trial.folder.root / actor(iteration) / CRITIC)[0]
    assert isinstance(network, UNet)
    return network.to(trial.device)


def _save_critic(trial: Trial, critic: UNet, folder: Path, patients: tuple[str, ...]) -> None:
    # What it says of a pixel is of the kind of an error net: how right the label will be.
    size, names = trial.pair.source_train.images.shape[-1], list(trial.pair.class_names)
    save_network(
        folder, critic, ModelCard("unet", critic.options, 1, names, ERRORS, size, sorted(set(patients)), "", "none")
    )
