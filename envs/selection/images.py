"""Images with one label each, for the classification environment: class folders on disk, or drawn ones.

A data folder holds ``initial_labeled_images/<class>/*`` and ``unlabeled_pool_images/<class>/*``: the first are known
from the start, the class folders of the second are what the simulated annotator knows. ``test_images/<class>/*``, where
there is one, is set apart for testing.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seggym.errors import SeggymError

INITIAL, POOL, TEST = "initial_labeled_images", "unlabeled_pool_images", "test_images"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_SHAPES = ("disc", "square", "triangle", "cross")


@dataclass(frozen=True)
class LabelledImages:
    """``images`` float32 (n, C, size, size) in [0, 1]; ``labels`` int64 (n,) into ``class_names``.

    ``names`` are unique; ``parts`` says for each "initial", "pool" or "test".
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    parts: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str


def read_images(root: Path, size: int) -> LabelledImages:
    """The class folders below ``root``; images are made RGB and resized to ``size``."""
    from PIL import Image

    found: list[tuple[str, str, Path]] = []
    for part, folder in (("initial", INITIAL), ("pool", POOL), ("test", TEST)):
        if not (root / folder).is_dir():
            if part == "test":
                continue
            raise SeggymError(
                f"{root} has no folder {folder}, expected {INITIAL} and {POOL} with one subfolder per class; make it"
            )
        loose = [path.name for path in sorted((root / folder).iterdir()) if path.suffix.lower() in _SUFFIXES]
        if loose:
            raise SeggymError(
                f"{root / folder} holds images outside any class folder ({loose[0]}), expected {folder}/<class>/image: "
                "the simulated annotator reads the class off the folder; move them"
            )
        for kind in sorted(path for path in (root / folder).iterdir() if path.is_dir()):
            files = (path for path in sorted(kind.iterdir()) if path.suffix.lower() in _SUFFIXES)
            found += [(part, kind.name, path) for path in files]
    classes = tuple(sorted({kind for _, kind, _ in found}))
    if len(classes) < 2 or not any(part == "pool" for part, _, _ in found):
        raise SeggymError(
            f"{root} holds {len(classes)} classes with images, expected at least two and a pool that is not empty; add "
            f"images to {POOL}/<class>"
        )
    seen: dict[str, Path] = {}
    images, digest = [], hashlib.sha256()
    for _, _, path in found:
        content = path.read_bytes()
        key = hashlib.sha256(content).hexdigest()
        if key in seen:
            raise SeggymError(
                f"{path} is the same image as {seen[key]}, expected every image once: it would be annotated twice, or "
                "be tested on after it was learned; remove one of them"
            )
        seen[key] = path
        digest.update(f"{path.relative_to(root)} {key}".encode())
        try:
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        except OSError as error:
            raise SeggymError(f"{path} is not a readable image ({error}); restore or remove it") from None
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return LabelledImages(
        torch.stack(images).float() / 255,
        torch.tensor([classes.index(kind) for _, kind, _ in found]),
        tuple(str(path.relative_to(root)) for _, _, path in found),
        tuple(part for part, _, _ in found),
        classes,
        digest.hexdigest()[:16],
    )


def draw_images(size: int, count: int = 400, classes: int = 4, seed: int = 0) -> LabelledImages:
    """``count`` drawn images of up to four shapes on an uneven, noisy ground; a shape is a class."""
    if not 2 <= classes <= len(_SHAPES) or count < 10:
        raise SeggymError(
            f"cohort_options has classes={classes} and count={count}, expected 2 to {len(_SHAPES)} classes and at "
            "least 10 images"
        )
    rng = np.random.default_rng(seed)
    y, x = (np.indices((size, size)) + 0.5) / size * 2 - 1
    images, labels = [], rng.integers(classes, size=count)
    for label in labels:
        radius, angle = rng.uniform(0.25, 0.6), rng.uniform(0, np.pi / 2)
        across, down = x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3)
        u = (np.cos(angle) * across + np.sin(angle) * down) / radius
        v = (np.cos(angle) * down - np.sin(angle) * across) / radius
        inside = {
            "disc": np.hypot(u, v) < 0.9,
            "square": np.maximum(abs(u), abs(v)) < 0.8,
            "triangle": (v > -0.6) & (v < 1.2 - 1.8 * abs(u)),
            "cross": (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 1),
        }[_SHAPES[label]]
        ground = 0.3 + 0.1 * rng.normal() * x + 0.1 * rng.normal() * y
        image = ground + inside * rng.uniform(0.3, 0.6) + rng.normal(0, 0.05, x.shape)
        images.append(np.clip(image, 0, 1))
    return LabelledImages(
        torch.from_numpy(np.stack(images)).float()[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        tuple(f"image{number:04d}" for number in range(count)),
        ("pool",) * count,
        _SHAPES[:classes],
        f"drawn2-{size}-{count}-{classes}-{seed}",
    )


def write_example(directory: Path, size: int = 32, count: int = 60, classes: int = 3) -> Path:
    """A small data folder of drawn images in the layout of :func:`read_images`."""
    from PIL import Image

    drawn = draw_images(size, count, classes, seed=1)
    for number, (image, label) in enumerate(zip(drawn.images, drawn.labels.tolist(), strict=True)):
        folder = directory / (INITIAL if number < 4 * classes else POOL) / drawn.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image[0].numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{drawn.names[number]}.png")
    return directory
