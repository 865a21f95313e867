"""Reward pairs made with a policy: what it draws on images without labels, and on images with true ones.

RL4Seg (Judge et al., MICCAI 2024), its predict step: where the policy's own mask is anatomically valid and the
corrector hardly changes it, that mask is held to be true (a *gold standard*) and wrong ones are made of it; where it is
not, a valid correction is held to be true and the policy's mask is the wrong one. Beyond the paper every kind can be
switched, per-pixel samples at several temperatures are stored (reinforcement learning shows a reward net exactly
those), so is the true mask itself, and images with true labels may be given, whose errors are real ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from seggym.errors import SeggymError
from seggym.reward_models import distortions
from seggym.reward_models.correctors import Corrector
from seggym.reward_models.reward_dataset import RewardDataset

# Points of the random field of an elastic distortion and of patches: from a shift to a few pixels.
_CELLS = (1, 4)
_PATCH_CELLS = 6


class NoPairs(SeggymError):
    """Nothing that a policy draws can be held to be true, nor mended."""


class Rules(Protocol):
    """Anatomical validity."""

    def valid(self, masks: Any, /) -> Any:
        """Whether each of ``masks`` (n, H, W) is valid, bool (n,)."""
        ...


@dataclass(frozen=True)
class PairSettings:
    """Which predictions are stored of an image; an empty list, 0 or False leaves a kind out.

    ``agreement`` is what a corrector's Dice with a valid mask must exceed for it to be a gold standard. ``identity``:
    the true mask itself. ``corrections``: invalid masks with their valid corrections as truth. ``swap`` true masks of
    other patients; ``weight_noise`` standard deviations; ``contrast`` factors and ``noise`` standard deviations of the
    image that the policy sees; ``temperatures`` of per-pixel samples; ``morphological`` radii and ``elastic``
    amplitudes in pixels; ``patches`` shares of the image; ``missing``: a class left out.
    """

    agreement: float = 0.95
    identity: bool = True
    corrections: bool = True
    swap: int = 1
    weight_noise: Sequence[float] = (0.005, 0.01, 0.015, 0.02)
    contrast: Sequence[float] = (0.7, 0.8)
    noise: Sequence[float] = (0.05, 0.1)
    temperatures: Sequence[float] = (0.5, 1.0, 2.0)
    morphological: Sequence[int] = (1, 2)
    elastic: Sequence[float] = (1.5, 4.0)
    patches: Sequence[float] = (0.02, 0.1)
    missing: bool = True
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.agreement <= 1 or self.swap < 0 or self.batch < 1:
            raise SeggymError(
                f"pairs: agreement={self.agreement}, swap={self.swap}, batch={self.batch}, expected an agreement from "
                "0 to 1, swap of at least 0 and batch of at least 1; mend them"
            )
        for name in ("weight_noise", "contrast", "noise", "temperatures", "morphological", "elastic", "patches"):
            values = getattr(self, name)
            kinds = int if name == "morphological" else (int, float)
            if not all(isinstance(value, kinds) and not isinstance(value, bool) and value >= 0 for value in values):
                raise SeggymError(f"pairs.{name}={list(values)} must be numbers of 0 or more (radii whole ones)")
        if min(self.temperatures, default=1.0) <= 0 or not all(0 < share < 1 for share in self.patches):
            raise SeggymError(
                f"pairs: temperatures={list(self.temperatures)} must be positive and patches={list(self.patches)} "
                "shares between 0 and 1; mend them"
            )


class Anchors(NamedTuple):
    """Gold standards: images float32 (n, 1, H, W) whose masks uint8 (n, H, W) are held to be true."""

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]
    patients: tuple[str, ...]


def build_reward_pairs(
    policy: nn.Module,
    images: Tensor,
    patients: Sequence[str],
    names: Sequence[str],
    corrector: Corrector | None = None,
    rules: Rules | None = None,
    settings: PairSettings | None = None,
    *,
    class_names: Sequence[str],
    truths: Tensor | None = None,
) -> tuple[RewardDataset, Anchors]:
    """Pairs of ``images`` float32 (n, 1, H, W) in [0, 1], and the gold standards among them.

    ``policy`` maps images to (logits (B, K, H, W), features). Without ``rules`` every mask counts as valid, without a
    ``corrector`` none is corrected and all valid masks are gold standards. With ``truths`` uint8 (n, H, W), the labels
    of a source domain, these are the truth of every image whatever the policy draws. Raises :class:`NoPairs` where
    no pair results, which is what an all-background policy leads to.
    """
    settings = settings or PairSettings()
    _check(images, patients, names, truths)
    generator = torch.Generator().manual_seed(settings.seed)
    logits = policy_logits(policy, images, settings.batch)
    if logits.shape[1] != len(class_names):
        raise SeggymError(
            f"the policy draws {logits.shape[1]} classes, class_names are {', '.join(class_names)}: use a policy of "
            "these classes"
        )
    greedy = logits.argmax(1).to(torch.uint8)
    if truths is None:
        truth, gold, kept = _believed(greedy, corrector, rules, settings)
        origins = ["policy" if golden else "correction" for golden in gold.tolist()]
    else:
        truth, gold = truths.to(torch.uint8), torch.ones(len(images), dtype=torch.bool)
        kept, origins = gold, ["labels"] * len(images)
    if not bool(kept.any()):
        raise NoPairs(
            f"no reward pair results from {len(images)} images: no mask of the policy is valid and agrees with its "
            "correction, and none is mended; train the policy longer, lower agreement or use another corrector"
        )
    chosen = kept.nonzero()[:, 0]
    # Stored pairs lie on the CPU, wherever the policy that drew them does.
    picked = _Picked(images[chosen], truth[chosen], greedy[chosen], logits[chosen], gold[chosen])
    owners = [patients[item] for item in chosen.tolist()]
    found = list(_predictions(policy, picked, owners, settings, generator))
    dataset = RewardDataset(
        picked.images.cpu(),
        picked.truths.cpu(),
        tuple(names[item] for item in chosen.tolist()),
        tuple(owners),
        tuple(origins[item] for item in chosen.tolist()),
        torch.cat([masks for _, _, masks in found]).cpu(),
        torch.cat([items for _, items, _ in found]).cpu(),
        tuple(kind for kind, items, _ in found for _ in range(len(items))),
        tuple(class_names),
    )
    golden = gold.nonzero()[:, 0].tolist()
    anchors = Anchors(
        images[gold].cpu(),
        truth[gold].cpu(),
        tuple(names[item] for item in golden),
        tuple(patients[item] for item in golden),
    )
    return dataset, anchors


@torch.no_grad()
def policy_logits(policy: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    """What ``policy`` says of ``images`` (n, 1, H, W), in evaluation mode: float32 (n, K, H, W)."""
    training = policy.training
    policy.eval()
    device = next(policy.parameters()).device
    logits = torch.cat([policy(part.to(device))[0].float().to(images.device) for part in images.split(batch)])
    policy.train(training)
    return logits


def _check(images: Tensor, patients: Sequence[str], names: Sequence[str], truths: Tensor | None) -> None:
    count = len(images)
    if not len(patients) == len(names) == count or not count:
        raise SeggymError(
            f"reward pairs of {count} images with {len(patients)} patients and {len(names)} names, expected as many of "
            "each, and at least one"
        )
    if truths is not None and (len(truths), *truths.shape[1:]) != (count, *images.shape[2:]):
        raise SeggymError(
            f"truths are {tuple(truths.shape)}, expected {(count, *images.shape[2:])}; give one per image"
        )


def _believed(
    greedy: Tensor, corrector: Corrector | None, rules: Rules | None, settings: PairSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """What is held to be true of every image, uint8 (n, H, W), where that is a gold standard, and where it is kept."""
    masks = greedy.cpu().numpy()
    valid = np.ones(len(masks), bool) if rules is None else np.asarray(rules.valid(masks), bool)
    truth, gold, kept = greedy.clone(), torch.from_numpy(valid.copy()), torch.from_numpy(valid.copy())
    if corrector is None:
        return truth, gold, kept
    for number, mask in enumerate(masks):
        correction = corrector.correct(mask)
        gold[number] = bool(valid[number]) and float(correction.agreement) > settings.agreement
        corrected = np.asarray(correction.mask)
        # A valid mask that a corrector doubts and leaves as it is teaches nothing: nobody vouches for it.
        mended = settings.corrections and bool(correction.valid) and bool((corrected != mask).any())
        kept[number] = bool(gold[number]) or mended
        if not gold[number]:
            truth[number] = torch.as_tensor(corrected).to(truth)
    return truth, gold, kept


class _Picked(NamedTuple):
    images: Tensor
    truths: Tensor
    greedy: Tensor
    logits: Tensor
    gold: Tensor


def _predictions(
    policy: nn.Module,
    picked: _Picked,
    owners: Sequence[str],
    settings: PairSettings,
    generator: torch.Generator,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Kind, images int64 (m,) and masks uint8 (m, H, W) of the predictions."""
    every, classes = torch.arange(len(picked.images)), picked.logits.shape[1]
    if settings.identity:
        yield "identity", every, picked.truths
    differs = (picked.greedy != picked.truths).flatten(1).any(1).cpu()
    if bool(differs.any()):
        yield "greedy", every[differs], picked.greedy[differs]
    for temperature in settings.temperatures:
        yield f"sample-{temperature:g}", every, distortions.sample(picked.logits, temperature, generator)
    # What follows is made of masks that are known to be right: those of a corrector are not.
    gold = picked.gold.nonzero()[:, 0].cpu()
    if not len(gold):
        return
    truths, images = picked.truths[gold], picked.images[gold]
    for _ in range(settings.swap):
        partner = distortions.partners([owners[item] for item in gold.tolist()], generator)
        there = partner >= 0
        if bool(there.any()):
            yield "swap", gold[there], truths[partner[there]]
    for deviation in settings.weight_noise:
        other = distortions.perturbed(policy, deviation, generator)
        yield f"weights-{deviation:g}", gold, _greedy(other, images, settings.batch)
    for factor in settings.contrast:
        seen = distortions.contrast(images, factor)
        yield f"contrast-{factor:g}", gold, _greedy(policy, seen, settings.batch)
    for deviation in settings.noise:
        seen = distortions.noisy(images, deviation, generator)
        yield f"noise-{deviation:g}", gold, _greedy(policy, seen, settings.batch)
    for radius in settings.morphological:
        yield f"morphological-{radius}", gold, distortions.morphological(truths, classes, radius, generator)
    for amplitude in settings.elastic:
        for cells in _CELLS:
            yield f"elastic-{amplitude:g}-{cells}", gold, distortions.elastic(truths, amplitude, cells, generator)
    for share in settings.patches:
        yield f"patches-{share:g}", gold, distortions.patches(truths, classes, share, _PATCH_CELLS, generator)
    if settings.missing:
        yield "missing", gold, distortions.missing(truths, classes, generator)


def _greedy(policy: nn.Module, images: Tensor, batch: int) -> Tensor:
    return policy_logits(policy, images, batch).argmax(1).to(torch.uint8)
