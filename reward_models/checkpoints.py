"""Networks on disk: weights in safetensors, what they are in a JSON card, and folders of cross-fitted networks."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from seggym import __version__
from seggym.cohorts.cohort import Cohort, seggym_home
from seggym.errors import SeggymError
from seggym.files import json_bytes, read_json, write_together
from seggym.reward_models.networks import build_network

WEIGHTS = "model.safetensors"
CARD = "model.json"
INDEX = "index.json"
TASKS = ("segmentation", "reconstruction")
# What a network without labels is for.
ENCODING = "encoding"
# Whether the labels of a segmentation are correct.
ERRORS = "errors"
# Measured on 30 ACDC patients: five networks of 8 to 18 minutes each, one thread, for the message that asks for one.
TRAINING_MINUTES = 60
PACKAGED = {
    name: Path(__file__).parent / name.replace("-", "_")
    for name in ("phantom", "phantom-hard", "phantom-radial", "phantom-points", "phantom-encoder")
}


@dataclass(frozen=True)
class ModelCard:
    """What is known about a network: how to build it, and what it was trained on.

    ``architecture`` and ``options`` are those of :func:`~seggym.reward_models.networks.build_network`; ``class_names``
    starts with the background (empty for a reconstruction network); ``crop`` is the side in pixels of the square that
    the network sees; ``patients`` are those it was trained on; ``fingerprint`` is the cohort's; ``version`` is the
    seggym that made it; ``weights`` is the :func:`weights_hash`, filled in by :func:`save_network`.
    """

    architecture: str
    options: dict[str, Any]
    num_outputs: int
    class_names: list[str]
    task: str
    crop: int
    patients: list[str]
    cohort: str
    fingerprint: str
    metrics: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    weights: str = ""


@dataclass(frozen=True)
class RewardModel:
    """A folder of networks that score one cohort.

    ``full`` was trained on all train patients; network ``fold{i}`` never saw the patients ``folds[i]``; ``independent``
    (None where there is none) has another seed and architecture, for scoring policies chosen with the others.
    ``acquisition`` holds the settings of the simulated scanner that all were trained with.
    """

    folder: Path
    full: Path
    folds: list[list[str]]
    independent: Path | None
    cards: dict[str, ModelCard]
    cohort: str
    fingerprint: str
    acquisition: dict[str, Any]

    def path(self, key: str) -> Path:
        """Folder of the network ``key``: ``full``, ``fold{i}`` or ``independent``."""
        if key not in self.cards:
            raise SeggymError(f"reward model {self.folder} has no network {key!r}; it has {', '.join(self.cards)}")
        return self.full if key == "full" else self.folder / key

    def network_for(self, patient: str, cohort: str) -> str:
        """Key of the network that may score ``patient`` of ``cohort``: one that was not trained on it."""
        if cohort == self.cohort:
            for fold, held_out in enumerate(self.folds):
                if patient in held_out:
                    return f"fold{fold}"
        self.require_unseen("full", [patient], cohort)
        return "full"

    def require_unseen(self, key: str, patients: Iterable[str], cohort: str) -> None:
        """Raise :class:`SeggymError` naming those of ``patients`` of ``cohort`` that network ``key`` was trained on.

        Names are a cohort's own: patient001 of another cohort is somebody else.
        """
        folder, card = self.path(key), self.cards[key]
        seen = sorted(set(patients) & set(card.patients)) if cohort == card.cohort else []
        if seen:
            raise SeggymError(
                f"the network in {folder} was trained on {', '.join(seen)}, so its score of them would be optimistic; "
                "use other patients, or a reward model that was cross-fitted with them"
            )


def save_network(folder: str | os.PathLike[str], network: nn.Module, card: ModelCard) -> ModelCard:
    """Write ``network`` and ``card`` into ``folder``, both or neither; returns the card with their hash."""
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(state)
    card = replace(card, weights=_hash(content))
    write_together({folder / WEIGHTS: content, folder / CARD: json_bytes(asdict(card))})
    return card


def load_network(folder: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """Read the network in ``folder`` onto the CPU, in evaluation mode, with its card.

    Raises :class:`SeggymError` where a file is missing, damaged, or not the one that the card describes.
    """
    folder = Path(folder)
    card = read_card(folder)
    network = build_network(card.architecture, card.num_outputs, **card.options)
    content = _read_weights(folder)
    advice = "copy or train the network again"
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise SeggymError(f"{folder / WEIGHTS} is damaged or cut short ({error}); {advice}") from None
    expected = network.state_dict()
    wrong = sorted(set(state) ^ set(expected)) or [n for n in expected if state[n].shape != expected[n].shape]
    if wrong:
        raise SeggymError(
            f"{folder / WEIGHTS} does not fit architecture {card.architecture} with options {card.options} of "
            f"{folder / CARD}: {len(wrong)} tensors differ, the first is {wrong[0]}; {advice}"
        )
    if _hash(content) != card.weights:
        raise SeggymError(
            f"{folder / WEIGHTS} has hash {_hash(content)}, but {folder / CARD} describes weights {card.weights}; "
            f"{advice}"
        )
    network.load_state_dict(state)
    return network.eval(), card


def read_card(folder: str | os.PathLike[str]) -> ModelCard:
    """Read and check ``model.json`` in ``folder``."""
    path = Path(folder) / CARD
    if not path.parent.is_dir():
        raise SeggymError(f"network folder {path.parent} does not exist; give a folder that holds {CARD} and {WEIGHTS}")
    content = _read_object(path, "model card", [entry.name for entry in fields(ModelCard)])
    for name, kind in (
        *((name, str) for name in ("architecture", "task", "cohort", "fingerprint", "version", "weights")),
        *((name, int) for name in ("num_outputs", "crop")),
        *((name, dict) for name in ("options", "metrics")),
        *((name, list) for name in ("class_names", "patients")),
    ):
        _require_type(path, name, content[name], kind)
    for name in ("class_names", "patients"):
        _require_names(path, name, content[name])
    card = ModelCard(**content)
    tasks = (*TASKS, ENCODING, ERRORS)
    if card.task not in tasks:
        raise SeggymError(f"{path}: task is {card.task!r}, expected {' or '.join(tasks)}; mend or train it again")
    if card.task == "segmentation" and len(card.class_names) != card.num_outputs:
        raise SeggymError(
            f"{path}: {len(card.class_names)} class_names for num_outputs {card.num_outputs}, expected as many; mend "
            "it or train it again"
        )
    return card


def require_labels(cohort: Cohort, instead: str) -> None:
    """Raise :class:`SeggymError` for a cohort without labels; ``instead`` is what to set instead."""
    if cohort.num_classes < 2:
        raise SeggymError(
            f"cohort {cohort.name} at {cohort.root} has no labels, so there is no segmentation to reward or to train: "
            f"set {instead}"
        )


def require_classes(card: ModelCard, num_classes: int, folder: str | os.PathLike[str]) -> None:
    """Raise :class:`SeggymError` unless the network in ``folder`` has ``num_classes`` outputs."""
    if card.num_outputs != num_classes:
        raise SeggymError(
            f"the network in {folder} has {card.num_outputs} classes ({', '.join(card.class_names)}), but the cohort "
            f"has {num_classes}; choose or train a reward model for this cohort"
        )


def weights_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the weights file in ``folder`` (16 hexadecimal digits), for records."""
    return _hash(_read_weights(Path(folder)))


def open_reward_model(path_or_name: str | os.PathLike[str]) -> RewardModel:
    """Open a reward model by the path of its folder or by name.

    A name is one published in ``$SEGGYM_HOME/reward_models``, else one that comes with the package (``phantom``), so
    what you published yourself wins. The folder of a single network counts as a reward model that has only ``full``.
    Raises :class:`SeggymError` where nothing is there or a network was trained on a patient that it is said not to
    know.
    """
    folder = _locate(path_or_name)
    if (folder / CARD).is_file() and not (folder / INDEX).is_file():
        card = read_card(folder)
        return RewardModel(folder, folder, [], None, {"full": card}, card.cohort, card.fingerprint, {})
    path = folder / INDEX
    index = _read_object(path, "index of a reward model", ["folds", "cohort", "fingerprint", "acquisition"])
    for name, kind in (("folds", list), ("cohort", str), ("fingerprint", str), ("acquisition", dict)):
        _require_type(path, name, index[name], kind)
    keys = ["full", *(f"fold{fold}" for fold in range(len(index["folds"])))]
    if (folder / "independent").is_dir():
        keys.append("independent")
    cards = {key: read_card(folder / key) for key in keys}
    for fold, held_out in enumerate(index["folds"]):
        _require_type(path, f"folds[{fold}]", held_out, list)
        _require_names(path, f"folds[{fold}]", held_out)
        seen = sorted(set(held_out) & set(cards[f"fold{fold}"].patients))
        if seen:
            raise SeggymError(
                f"{path}: fold {fold} is said to hold out {', '.join(seen)}, but {folder / f'fold{fold}' / CARD} was "
                "trained on them; train the reward model again"
            )
    for key, card in cards.items():
        if (card.class_names, card.crop) != (cards["full"].class_names, cards["full"].crop):
            raise SeggymError(
                f"{folder / key / CARD}: class_names and crop differ from those of {folder / 'full' / CARD}; train the "
                "reward model again"
            )
    independent = folder / "independent" if "independent" in cards else None
    return RewardModel(folder, folder / "full", cards=cards, independent=independent, **index)


def _locate(path_or_name: str | os.PathLike[str]) -> Path:
    name = os.fspath(path_or_name)
    published = seggym_home() / "reward_models" / name
    packaged = [PACKAGED[name]] if name in PACKAGED else []
    is_name = bool(name) and Path(name).name == name and name not in (".", "..")
    for folder in [published, *packaged, Path(name)] if is_name else [Path(name).expanduser()]:
        if (folder / INDEX).is_file() or (folder / CARD).is_file():
            return folder
    where = published if is_name else name
    # Networks of a cohort for other scans than its own are named after the experiment: acdc-hard.
    cohort, _, experiment = name.partition("-") if is_name else ("<cohort>", "", "")
    arguments = f"cohort={cohort}" + (f" +experiment={experiment}" if experiment else "")
    raise SeggymError(
        f"no reward model at {where} (neither {INDEX} nor {CARD}); train one with "
        f"`bash train_reward_model.sh {arguments}`, which takes about {TRAINING_MINUTES} "
        "minutes on one core, or give the folder of another"
    )


def _read_weights(folder: Path) -> bytes:
    try:
        return (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise SeggymError(
            f"cannot read {folder / WEIGHTS}: {error.strerror}; copy or train the network again"
        ) from None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read_object(path: Path, what: str, keys: list[str]) -> dict[str, Any]:
    """Read a JSON object that has exactly ``keys`` and names no Python object."""
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise SeggymError(f"{path} holds a {type(content).__name__}, expected an object; restore it or make it again")
    _refuse_targets(path, content)
    wrong = [f"lacks {key}" for key in keys if key not in content]
    wrong += [f"has the unknown key {key}" for key in sorted(set(content) - set(keys))]
    if wrong:
        raise SeggymError(f"{path} {', '.join(wrong)}; expected exactly {', '.join(keys)}: make it again")
    return content


def _refuse_targets(path: Path, content: Any) -> None:
    # Files come from strangers: they may choose among our components, never name code to run.
    if isinstance(content, dict):
        if "_target_" in content:
            raise SeggymError(
                f"{path} has a _target_ ({content['_target_']!r}), expected registry keys only; do not use this file"
            )
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            _refuse_targets(path, item)


def _require_type(path: Path, name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SeggymError(
            f"{path}: {name} is {value!r}, expected {kind.__name__}; restore the file or train the network again"
        )


def _require_names(path: Path, name: str, values: list[Any]) -> None:
    for value in values:
        _require_type(path, f"an entry of {name}", value, str)
