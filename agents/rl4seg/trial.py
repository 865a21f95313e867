"""The data of a run, opened and checked, and where its networks are found."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from seggym.agents.rl4seg.folders import RunFolder
from seggym.agents.rl4seg.scoring import Scores, score
from seggym.agents.rl4seg.selection import Held
from seggym.agents.rl4seg.settings import RunSettings
from seggym.agents.rl4seg.supervised import label_maps
from seggym.configs.checking import build
from seggym.envs.adaptation.domains import Domain, DomainPair, open_domains
from seggym.envs.adaptation.settings import ROLES, DomainSettings
from seggym.errors import SeggymError
from seggym.files import write_atomic
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.checkpoints import ModelCard, load_network, save_network
from seggym.reward_models.correctors import Corrector, MorphologyCorrector, ShapePriorCorrector
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.networks import UNet
from seggym.reward_models.reward_pairs import PairSettings
from seggym.reward_models.seeding import seeded
from seggym.reward_models.shape_prior import load_shape_prior

ACTOR, TWIN, PRIOR = "0/actor", "0/twin", "0/prior"
MASKS = "masks.npz"
# What NumPy raises for an archive that is damaged, cut short or empty.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Corrected(NamedTuple):
    """Corrections of n label maps: ``masks`` (n, H, W), which are ``valid`` bool (n,).

    Those that are ``gold`` bool (n,), a gold standard, were valid and plausible as they were, and stay as they were.
    """

    masks: Tensor
    valid: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True)
class Trial:
    """A run: its settings, its two domains on its device, and its folder."""

    settings: RunSettings
    pair: DomainPair
    folder: RunFolder
    device: torch.device

    @property
    def num_classes(self) -> int:
        """Label values, the background included."""
        return len(self.pair.class_names)

    def seed(self, what: str) -> int:
        """The seed of one stage of this run: stages and runs share no random number."""
        return seed_of(self.settings, what)

    @property
    def domain_settings(self) -> DomainSettings:
        """What :func:`seggym.envs.adaptation.domains.open_domains` was given."""
        return domain_settings(self.settings)

    @property
    def pair_settings(self) -> PairSettings:
        """How reward pairs are built, but for the seed."""
        return build(PairSettings, self.settings.pairs, "pairs.")

    def network(self, norm: str = "group", what: str = "network") -> UNet:
        """A fresh segmentation network; its weights follow from the run's seed and ``what``."""
        return fresh_network(self.settings, self.num_classes, self.device, what, norm)

    def save(self, folder: Path, network: nn.Module, patients: tuple[str, ...], **metrics: Any) -> None:
        """Write a network that has seen the images of ``patients``."""
        assert isinstance(network, UNet)
        card = ModelCard(
            "unet", network.options, self.num_classes, list(self.pair.class_names), "segmentation",
            self.pair.source_train.images.shape[-1], sorted(set(patients)), str(self.settings.domains.get("cohort")),
            "none", metrics,
        )  # fmt: skip
        save_network(folder, network, card)

    def load(self, name: str) -> UNet:
        """The network of a stage, in evaluation mode and without gradients."""
        network, card = load_network(self.folder.root / name)
        if card.num_outputs != self.num_classes or not isinstance(network, UNet):
            raise SeggymError(
                f"the network in {self.folder.root / name} has {card.num_outputs} classes "
                f"({', '.join(card.class_names)}), but the domains have {self.num_classes} "
                f"({', '.join(self.pair.class_names)}): choose another out="
            )
        network.requires_grad_(False)
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def corrector(self) -> Corrector:
        """The learned shape prior where the run has trained one, else morphology."""
        if self.settings.prior:
            return ShapePriorCorrector(self.pair.rules, load_shape_prior(self.folder.root / PRIOR))
        return MorphologyCorrector(self.pair.rules)

    def valid(self, masks: np.ndarray) -> np.ndarray:
        """Which of label maps (n, H, W) the rules accept, bool (n,)."""
        return np.asarray(self.pair.rules.valid(masks), dtype=bool)

    def held(self) -> Held:
        """Held-out target images with what the supervised network makes of them; their labels stay unread."""
        images = self.pair.target_val.images
        reference = label_maps(self.load(ACTOR), images)
        gold = self.correct(reference).gold
        return Held(images, reference, torch.from_numpy(gold).to(self.device))

    def correct(self, masks: Tensor) -> "Corrected":
        """Label maps (n, H, W), corrected one by one."""
        drawn = masks.cpu().numpy()
        corrector = self.corrector()
        found = [corrector.correct(mask) for mask in drawn]
        agreement = np.array([entry.agreement for entry in found])
        return Corrected(
            torch.from_numpy(np.stack([np.asarray(entry.mask) for entry in found])).to(masks),
            np.array([entry.valid for entry in found], dtype=bool),
            # As where reward pairs are built: valid, and like a known shape.
            self.valid(drawn) & (agreement > self.pair_settings.agreement),
        )

    def score(self, masks: Tensor, domain: Domain) -> Scores:
        """Scores of label maps of the images of a domain with labels."""
        assert domain.masks is not None
        valid = self.valid(masks.cpu().numpy())
        return score(masks, domain.masks, valid, domain.patients, domain.names, self.pair.class_names)


def seed_of(settings: RunSettings, what: str) -> int:
    """The seed of ``what`` in a run: stages and runs share no random number."""
    return key_of(f"rl4seg, run {settings.seed}, {what}") & 0x7FFFFFFF


def fresh_network(
    settings: RunSettings, num_classes: int, device: torch.device, what: str, norm: str = "group"
) -> UNet:
    """A segmentation network whose weights follow from the run's seed and ``what``."""
    with seeded(seed_of(settings, what)):
        network = UNet(num_classes, settings.widths, norm=norm)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def domain_settings(settings: RunSettings) -> DomainSettings:
    """The two domains of a run, checked."""
    return build(DomainSettings, settings.domains, "domains.")


def open_pair(settings: DomainSettings, device: torch.device) -> DomainPair:
    """Both domains, their tensors on ``device``."""
    pair = open_domains(settings)
    moved: dict[str, Any] = {}
    for role in ROLES:
        domain: Domain = getattr(pair, role)
        masks = None if domain.masks is None else domain.masks.to(device)
        moved[role] = replace(domain, images=domain.images.to(device), masks=masks)
    return replace(pair, **moved)


def save_masks(folder: Path, masks: Mapping[str, Tensor]) -> Path:
    """Write label maps by part of the target."""
    arrays: dict[str, Any] = {part: values.to(torch.uint8).cpu().numpy() for part, values in masks.items()}
    return write_atomic(folder / MASKS, lambda path: np.savez_compressed(path, **arrays))


def load_masks(folder: Path) -> dict[str, Tensor]:
    """What :func:`save_masks` wrote."""
    try:
        with np.load(folder / MASKS, allow_pickle=False) as arrays:
            return {part: torch.from_numpy(arrays[part]) for part in arrays.files}
    except UNREADABLE as error:
        raise SeggymError(
            f"cannot read {folder / MASKS} ({error}): delete {folder}, then run the same command again"
        ) from None


def open_trial(settings: RunSettings) -> Trial:
    """Open the domains and the run's folder; raises :class:`SeggymError` for what does not fit together."""
    device = resolve_device(settings.device)
    pair = open_pair(domain_settings(settings), device)
    folder = RunFolder(Path(settings.out), {"settings": settings.identity(), "data": fingerprint(pair)})
    return Trial(settings, pair, folder, device)


def fingerprint(pair: DomainPair) -> dict[str, Any]:
    """What the data are: numbers of images and a hash of them and their known labels by part, and the label set."""
    found: dict[str, Any] = {"class_names": list(pair.class_names)}
    for name in ROLES:
        domain = getattr(pair, name)
        digest = hashlib.sha256(domain.images.cpu().numpy().tobytes())
        if domain.masks is not None:
            digest.update(domain.masks.cpu().numpy().tobytes())
        patients = len(set(domain.patients))
        found[name] = {"images": len(domain.images), "patients": patients, "content": digest.hexdigest()[:16]}
    return found
