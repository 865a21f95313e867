"""What a reward net learns from: images, what is held to be their segmentation, and predictions right and wrong.

Files: a folder with ``dataset.json`` (what it is, and the SHA-256 of every other file), ``index.csv`` (one row per
pair) and either NPZ shards or NIfTI files ``images/``, ``gt/`` and ``pred/`` of equal names, the layout of RL4Seg
(Judge et al., MICCAI 2024). ``dataset.json`` is written last: a folder without it was interrupted.
"""

import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seggym.errors import SeggymError
from seggym.files import read_json, write_atomic, write_json

HEAD = "dataset.json"
INDEX = "index.csv"
FORMS = ("npz", "nifti")
_FOLDERS = ("images", "gt", "pred")
_COLUMNS = ["pair", "item", "name", "patient", "origin", "kind"]
ORIGINS = ("labels", "policy", "correction")
"""Where the truth of an image comes from: somebody's labels, a valid mask of the policy, or a corrected one."""
# Images in a shard; a damaged one is found by its hash and loses so many.
_SHARD = 256
_ADVICE = "build the reward pairs again"


class RewardPair(NamedTuple):
    """One prediction beside what is held to be true.

    ``image`` float32 (1, H, W) in [0, 1]; ``truth`` and ``prediction`` uint8 (H, W), 0 = background; ``kind`` is where
    the prediction came from, as in :mod:`seggym.reward_models.reward_pairs`.
    """

    image: Tensor
    truth: Tensor
    prediction: Tensor
    patient: str
    kind: str


@dataclass(frozen=True)
class RewardDataset:
    """n images with their masks, and p predictions of them.

    ``images`` float32 (n, 1, H, W) in [0, 1]; ``truths`` uint8 (n, H, W); ``names`` (unique), ``patients`` and
    ``origins`` (:data:`ORIGINS`) of the images; ``predictions`` uint8 (p, H, W) of the images ``items`` int64 (p,), and
    the ``kinds`` of them. Label values are those of ``class_names``, the background first. Raises
    :class:`SeggymError` where these do not fit together.
    """

    images: Tensor
    truths: Tensor
    names: tuple[str, ...]
    patients: tuple[str, ...]
    origins: tuple[str, ...]
    predictions: Tensor
    items: Tensor
    kinds: tuple[str, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        count, pairs = len(self.names), len(self.kinds)
        plane = tuple(self.images.shape[-2:])
        expected = {
            "images": (count, 1, *plane),
            "truths": (count, *plane),
            "predictions": (pairs, *plane),
            "items": (pairs,),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise SeggymError(f"reward pairs: {name} are {found}, expected {shape}; {_ADVICE}")
        if not len(self.patients) == len(self.origins) == len(set(self.names)) == count:
            raise SeggymError(
                f"reward pairs: {count} images have {len(self.patients)} patients, {len(self.origins)} origins and "
                f"{len(set(self.names))} different names, expected {count} of each; {_ADVICE}"
            )
        if not set(self.origins) <= set(ORIGINS):
            raise SeggymError(f"reward pairs: origins {sorted(set(self.origins))}, expected {', '.join(ORIGINS)}")
        if not count or not pairs:
            raise SeggymError(
                "reward pairs: there are none; take more images, or loosen the rules, or let a corrector mend them"
            )
        for name in ("truths", "predictions"):
            highest = int(getattr(self, name).max())
            if highest >= len(self.class_names):
                raise SeggymError(
                    f"reward pairs: {name} hold label {highest}, expected 0 to {len(self.class_names) - 1} "
                    f"({', '.join(self.class_names)}); use a policy and a corrector of these classes"
                )
        if not bool(torch.isfinite(self.images).all()):
            raise SeggymError(f"reward pairs: an image holds NaN or infinity, expected [0, 1]; {_ADVICE}")
        if int(self.items.min()) < 0 or int(self.items.max()) >= count:
            raise SeggymError(f"reward pairs: items name an image outside 0 to {count - 1}; {_ADVICE}")

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, number: int) -> RewardPair:
        item = int(self.items[number])
        return RewardPair(
            self.images[item], self.truths[item], self.predictions[number], self.patients[item], self.kinds[number]
        )

    @property
    def num_classes(self) -> int:
        """Label values, the background included."""
        return len(self.class_names)

    def of(self, patients: Iterable[str]) -> "RewardDataset":
        """The pairs of ``patients``."""
        wanted = set(patients)
        return self._chosen(torch.tensor([patient in wanted for patient in self.patients]))

    def _chosen(self, there: Tensor) -> "RewardDataset":
        kept = there[self.items]
        images = there.nonzero()[:, 0].tolist()
        return RewardDataset(
            self.images[there],
            self.truths[there],
            tuple(self.names[item] for item in images),
            tuple(self.patients[item] for item in images),
            tuple(self.origins[item] for item in images),
            self.predictions[kept],
            (there.cumsum(0) - 1)[self.items[kept]],
            tuple(self.kinds[pair] for pair in kept.nonzero()[:, 0].tolist()),
            self.class_names,
        )

    def split(self, share: float, seed: int) -> tuple["RewardDataset", "RewardDataset"]:
        """The pairs of most patients, and of a ``share`` of them, at least one; no patient is in both."""
        patients = sorted(set(self.patients))
        if len(patients) < 2 or not 0 < share < 1:
            raise SeggymError(
                f"reward pairs of {len(patients)} patients cannot be split with a share of {share} for validation: "
                "expected two patients or more, and a share between 0 and 1"
            )
        order = np.random.default_rng(seed).permutation(len(patients))
        apart = min(max(1, round(share * len(patients))), len(patients) - 1)
        return self.of(patients[i] for i in order[apart:]), self.of(patients[i] for i in order[:apart])

    def save(self, folder: str | os.PathLike[str], form: str = "npz") -> None:
        """Write the folder in the ``form`` npz or nifti; an earlier data set in it is replaced."""
        if form not in FORMS:
            raise SeggymError(f"form={form!r} of a reward data set is unknown, expected {' or '.join(FORMS)}")
        folder = Path(folder)
        (folder / HEAD).unlink(missing_ok=True)
        written = [self._write_index(folder)]
        written += self._write_shards(folder) if form == "npz" else self._write_nifti(folder)
        write_json(
            folder / HEAD,
            {
                "form": form,
                "class_names": list(self.class_names),
                "images": len(self.names),
                "pairs": len(self),
                "files": {str(path.relative_to(folder)): _hash(path.read_bytes()) for path in written},
            },
        )

    def _write_index(self, folder: Path) -> Path:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        for pair, (item, kind) in enumerate(zip(self.items.tolist(), self.kinds, strict=True)):
            table.writerow([pair, item, self.names[item], self.patients[item], self.origins[item], kind])
        return write_atomic(folder / INDEX, text.getvalue().encode())

    def _write_shards(self, folder: Path) -> list[Path]:
        written = []
        for number, start in enumerate(range(0, len(self.names), _SHARD)):
            inside = (self.items >= start) & (self.items < start + _SHARD)
            arrays = {
                "images": self.images[start : start + _SHARD].numpy(),
                "truths": self.truths[start : start + _SHARD].to(torch.uint8).numpy(),
                "predictions": self.predictions[inside].to(torch.uint8).numpy(),
                "pairs": inside.nonzero()[:, 0].numpy(),
            }
            written.append(write_atomic(folder / f"shard-{number:04d}.npz", _npz_writer(arrays)))
        return written

    def _write_nifti(self, folder: Path) -> list[Path]:
        written = []
        for number in range(len(self)):
            pair = self[number]
            for name, array in zip(_FOLDERS, (pair.image[0], pair.truth, pair.prediction), strict=True):
                path = folder / name / _nifti_name(number)
                written.append(write_atomic(path, _nifti_bytes(array.numpy())))
        return written


def load_reward_dataset(folder: str | os.PathLike[str]) -> RewardDataset:
    """Read what :meth:`RewardDataset.save` wrote.

    Raises :class:`SeggymError`, one sentence, for a folder that is missing, unfinished, damaged or not of this form.
    """
    folder = Path(folder)
    head = read_json(folder / HEAD, "reward data set")
    if not isinstance(head, dict) or set(head) != {"form", "class_names", "images", "pairs", "files"}:
        raise SeggymError(f"{folder / HEAD} does not describe a reward data set; {_ADVICE}")
    contents = {name: _verified(folder / name, expected) for name, expected in head["files"].items()}
    if INDEX not in contents:
        raise SeggymError(f"{folder / HEAD} lists no {INDEX}; {_ADVICE}")
    rows = _read_index(folder / INDEX, contents.pop(INDEX), head["pairs"])
    named = {int(row["item"]): (row["name"], row["patient"], row["origin"]) for row in rows}
    if sorted(named) != list(range(head["images"])):
        raise SeggymError(
            f"{folder / INDEX} names {len(named)} images, {folder / HEAD} says {head['images']}; {_ADVICE}"
        )
    items = torch.tensor([int(row["item"]) for row in rows])
    read = _read_shards if head["form"] == "npz" else _read_nifti
    images, truths, predictions = read(folder, contents, items, len(named))
    names, patients, origins = zip(*(named[item] for item in sorted(named)), strict=True)
    return RewardDataset(
        torch.from_numpy(images)[:, None],
        torch.from_numpy(truths),
        names,
        patients,
        origins,
        torch.from_numpy(predictions),
        items,
        tuple(row["kind"] for row in rows),
        tuple(head["class_names"]),
    )


def join_reward_datasets(datasets: Sequence[RewardDataset]) -> RewardDataset:
    """All pairs of ``datasets`` of one image size and the same classes; names of images must differ between them."""
    sizes = {tuple(dataset.images.shape[-2:]) for dataset in datasets}
    classes = {dataset.class_names for dataset in datasets}
    if len(sizes) != 1 or len(classes) != 1:
        raise SeggymError(
            f"reward data sets of sizes {sorted(sizes)} and classes {sorted(classes)} cannot be joined, expected one "
            "of each; build them with the same size and label set"
        )
    starts = np.cumsum([0, *(len(dataset.names) for dataset in datasets)]).tolist()
    return RewardDataset(
        torch.cat([dataset.images for dataset in datasets]),
        torch.cat([dataset.truths for dataset in datasets]),
        tuple(name for dataset in datasets for name in dataset.names),
        tuple(patient for dataset in datasets for patient in dataset.patients),
        tuple(origin for dataset in datasets for origin in dataset.origins),
        torch.cat([dataset.predictions for dataset in datasets]),
        torch.cat([dataset.items + start for dataset, start in zip(datasets, starts, strict=False)]),
        tuple(kind for dataset in datasets for kind in dataset.kinds),
        datasets[0].class_names,
    )


def _nifti_name(pair: int) -> str:
    return f"{pair:06d}.nii.gz"


def _npz_writer(arrays: dict[str, np.ndarray]) -> Any:
    return lambda path: np.savez_compressed(path, allow_pickle=False, **arrays)


def _nifti_bytes(plane: np.ndarray) -> bytes:
    import gzip

    import nibabel

    image = nibabel.Nifti1Image(plane.T.copy(), np.eye(4))
    # No time stamp, so that the same content has the same hash.
    return gzip.compress(image.to_bytes(), mtime=0)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verified(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SeggymError(f"reward data set: cannot read {path} ({error.strerror}); {_ADVICE}") from None
    if _hash(content) != expected:
        raise SeggymError(
            f"reward data set: {path} is damaged or was changed, its hash is not that of {HEAD}; {_ADVICE}"
        )
    return content


def _read_index(path: Path, content: bytes, pairs: int) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    if not rows or list(rows[0]) != _COLUMNS or [row["pair"] for row in rows] != [str(n) for n in range(pairs)]:
        raise SeggymError(f"{path} has no rows {', '.join(_COLUMNS)} for pairs 0 to {pairs - 1}; {_ADVICE}")
    return rows


def _read_shards(
    folder: Path, contents: dict[str, bytes], items: Tensor, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, truths, predictions, order = [], [], [], []
    for name, content in sorted(contents.items()):
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as shard:
                images.append(shard["images"][:, 0])
                truths.append(shard["truths"])
                predictions.append(shard["predictions"])
                order.append(shard["pairs"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise SeggymError(f"reward data set: {folder / name} is no shard of pairs ({error}); {_ADVICE}") from None
    pairs = np.concatenate(order) if order else np.zeros(0, int)
    if len(pairs) != len(items):
        raise SeggymError(
            f"reward data set: the shards of {folder} hold {len(pairs)} pairs, not {len(items)}; {_ADVICE}"
        )
    return np.concatenate(images), np.concatenate(truths), np.concatenate(predictions)[np.argsort(pairs)]


def _read_nifti(
    folder: Path, contents: dict[str, bytes], items: Tensor, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import gzip

    import nibabel

    def plane(kind: str, pair: int, dtype: type) -> np.ndarray:
        name = f"{kind}/{_nifti_name(pair)}"
        if name not in contents:
            raise SeggymError(f"reward data set: {folder / HEAD} lists no {name}; {_ADVICE}")
        try:
            image = nibabel.Nifti1Image.from_bytes(gzip.decompress(contents[name]))
        except Exception as error:  # nibabel has many
            raise SeggymError(f"reward data set: {folder / name} is no NIfTI file ({error}); {_ADVICE}") from None
        return np.asarray(image.dataobj).T.astype(dtype)

    first = {int(item): pair for pair, item in reversed(list(enumerate(items.tolist())))}
    return (
        np.stack([plane("images", first[item], np.float32) for item in range(count)]),
        np.stack([plane("gt", first[item], np.uint8) for item in range(count)]),
        np.stack([plane("pred", pair, np.uint8) for pair in range(len(items))]),
    )
