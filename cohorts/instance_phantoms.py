"""Instance images that are generated, not downloaded: cells under a microscope and produce in a field, with outlines.

Every image is one of two scenes. *Cells* are translucent discs that overlap, so that outlines do; some of them divide.
*Produce* lies under leaves that nobody outlines, which hide parts of it and may cut it in two; most of it is healthy,
some is bruised, little of it is rotten. An annotation has what can be seen of each object, as polygons of a dozen
points. :data:`IMBALANCED` has rare classes, which keep to few images, and images that are empty or crowded.
:data:`BALANCED` is its negative control: four objects are placed in every image, of classes drawn evenly and
independently, under the same noise, so that little tells one image's worth from another's. (An object that is nearly
hidden is taken out again: one image in six has three or two.)

Both settings were fixed before any image was selected by anything, and are not to be changed: other ones are another
generator. Numbers come from ``numpy.random`` under (version, seed, number), so that an image is the same alone or in
any set.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from seggym.cohorts.annotations.labelme import labelme_content
from seggym.cohorts.annotations.model import Annotation, Instance
from seggym.cohorts.annotations.tracing import trace
from seggym.errors import SeggymError
from seggym.files import json_bytes, read_json, write_atomic, write_json

CLASSES = ("cell", "dividing", "healthy", "bruised", "rotten")
# To be raised whenever the same arguments draw other images.
GENERATOR_VERSION = 1
MANIFEST = "instances.json"

_FINE = 4  # pixels of a mask per pixel of the image and axis, before outlines are simplified
_SCENES = {"cells": ("cell", "dividing"), "produce": ("healthy", "bruised", "rotten")}


@dataclass(frozen=True)
class InstanceSettings:
    """What is drawn. ``size`` is in pixels; other lengths are fractions of it.

    ``rare_images`` is the share of images in which the classes other than the first of a scene occur; there they are
    drawn with ``rare_shares``, elsewhere never. ``counts`` are the weights of 0, 1, 2, ... objects.
    """

    size: int = 64
    counts: tuple[float, ...] = (0.06, 0.2, 0.22, 0.18, 0.12, 0.08, 0.06, 0.04, 0.04)
    rare_images: float = 0.3
    rare_shares: tuple[tuple[str, float], ...] = (("dividing", 0.45), ("bruised", 0.4), ("rotten", 0.2))
    radius: tuple[float, float] = (0.09, 0.17)
    min_visible: float = 0.45
    leaves: int = 2
    noise: tuple[float, float] = (0.01, 0.05)


IMBALANCED = InstanceSettings()
BALANCED = InstanceSettings(
    counts=(0.0, 0.0, 0.0, 0.0, 1.0),
    rare_images=1.0,
    rare_shares=(("dividing", 1 / 2), ("bruised", 1 / 3), ("rotten", 1 / 3)),
    noise=(0.03, 0.03),
)
VARIANTS = {"imbalanced": IMBALANCED, "balanced": BALANCED}


def draw_instances(
    number: int, *, seed: int = 0, settings: InstanceSettings = IMBALANCED
) -> tuple[np.ndarray, Annotation]:
    """Image ``number`` of ``seed``: uint8 (size, size, 3), and its annotation, named ``image_<number>.png``."""
    generator = np.random.default_rng([GENERATOR_VERSION, seed, number])
    size = settings.size
    scene = ("cells", "produce")[int(generator.integers(2))]
    labels = _draw_labels(generator, scene, settings)
    masks = _place(generator, scene, labels, settings)
    leaves = _leaves(generator, settings) if scene == "produce" else np.zeros((0, size * _FINE, size * _FINE), bool)
    visible = _visible(scene, masks, leaves)
    # An object that is nearly hidden is not there at all, in the image or in the annotation.
    kept = [n for n, mask in enumerate(masks) if visible[n].sum() >= settings.min_visible * max(1, mask.sum())]
    masks, labels = masks[kept], [labels[n] for n in kept]
    visible = _visible(scene, masks, leaves)
    paint = _paint_cells if scene == "cells" else _paint_produce
    image = paint(generator, size, masks, labels)
    for leaf in leaves:
        colour = np.array([0.16, 0.4, 0.14]) * generator.uniform(0.8, 1.25)
        image = _over(image, _coverage(leaf), colour + 0.08 * _texture(generator, size, 2.0)[..., None])
    image = image * _light(generator, size) + generator.normal(0, generator.uniform(*settings.noise), image.shape)
    instances: list[Instance] = []
    for label, mask in zip(labels, visible, strict=True):
        if shapes := trace(mask, scale=_FINE, min_area=0.001 * size**2):
            group = len(instances) + 1 if len(shapes) > 1 else None
            rounded = tuple(type(shape)(shape.kind, np.round(shape.points, 2)) for shape in shapes)
            instances.append(Instance(label, rounded, group))
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return pixels, Annotation(f"image_{number:05d}.png", size, size, tuple(instances))


def write_instances(
    root: Path, images: int, *, first: int = 0, seed: int = 0, settings: InstanceSettings = IMBALANCED
) -> Path:
    """Write images ``first`` to ``first + images - 1`` of ``seed`` and their LabelMe files to ``root``; returns it.

    A ``root`` that holds the same set is left alone, an unfinished one is finished, another one is refused
    (:class:`SeggymError`).
    """
    plan = json.loads(
        json.dumps({"version": GENERATOR_VERSION, "seed": seed, "first": first, "images": images} | asdict(settings))
    )
    manifest = Path(root) / MANIFEST
    if manifest.is_file():
        found = read_json(manifest, "the description of generated images")
        if found == plan | {"complete": True}:
            return Path(root)
        if not isinstance(found, dict) or found | {"complete": True} != plan | {"complete": True}:
            raise SeggymError(
                f"{root} holds other generated images than are wanted ({MANIFEST} differs): choose another folder"
            )
    elif Path(root).is_dir() and any(Path(root).iterdir()):
        raise SeggymError(f"{root} holds files that were not generated, expected an empty folder: choose another one")
    write_json(manifest, plan | {"complete": False})
    for number in range(first, first + images):
        pixels, annotation = draw_instances(number, seed=seed, settings=settings)
        path = Path(root) / annotation.image
        write_atomic(path, partial(Image.fromarray(pixels).save, format="PNG"))
        write_atomic(path.with_suffix(".json"), json_bytes(labelme_content(annotation)))
    write_json(manifest, plan | {"complete": True})
    return Path(root)


def _draw_labels(generator: np.random.Generator, scene: str, settings: InstanceSettings) -> list[str]:
    common, *rare = _SCENES[scene]
    weights = np.array(settings.counts) / sum(settings.counts)
    count = int(generator.choice(len(weights), p=weights))
    shares = dict(settings.rare_shares)
    has_rare = generator.random() < settings.rare_images
    chances = [shares[label] if has_rare else 0.0 for label in rare]
    return [str(label) for label in generator.choice([common, *rare], count, p=[1 - sum(chances), *chances])]


def _place(generator: np.random.Generator, scene: str, labels: list[str], settings: InstanceSettings) -> np.ndarray:
    """Full outlines, bool (k, fine, fine), in order of depth: the last is on top. Clusters are likelier than gaps."""
    fine = settings.size * _FINE
    y, x = (np.arange(fine) + 0.5)[:, None], np.arange(fine) + 0.5
    masks = np.zeros((len(labels), fine, fine), bool)
    centres: list[np.ndarray] = []
    for number, label in enumerate(labels):
        radius = generator.uniform(*settings.radius) * fine
        if centres and generator.random() < 0.5:
            angle = generator.uniform(0, 2 * np.pi)
            centre = centres[int(generator.integers(len(centres)))] + generator.uniform(1.2, 1.9) * radius * np.array(
                [np.cos(angle), np.sin(angle)]
            )
        else:
            centre = generator.uniform(0.08, 0.92, 2) * fine
        centre = np.clip(centre, 0.05 * fine, 0.95 * fine)
        centres.append(centre)
        angles, reach = np.arctan2(y - centre[1], x - centre[0]), np.hypot(y - centre[1], x - centre[0])
        phases, turn = generator.uniform(0, 2 * np.pi, 3), generator.uniform(0, np.pi)
        if label == "dividing":  # two lobes
            boundary = radius * (0.72 + 0.42 * np.abs(np.cos(angles - turn)) ** 1.5)
        else:
            wobble = 0.05 if scene == "cells" else 0.09
            stretch = generator.uniform(0.0, 0.18)
            boundary = radius * (1 + stretch * np.cos(2 * (angles - turn)))
            boundary = boundary + radius * wobble * np.cos(3 * angles + phases[0])
            boundary = boundary + radius * 0.5 * wobble * np.cos(5 * angles + phases[1])
        masks[number] = reach <= boundary
    return masks


def _leaves(generator: np.random.Generator, settings: InstanceSettings) -> np.ndarray:
    """Narrow ellipses that lie on top of the produce, bool (k, fine, fine)."""
    fine = settings.size * _FINE
    y, x = (np.arange(fine) + 0.5)[:, None], np.arange(fine) + 0.5
    leaves = np.zeros((int(generator.integers(settings.leaves + 1)), fine, fine), bool)
    for leaf in leaves:
        centre, angle = generator.uniform(0.1, 0.9, 2) * fine, generator.uniform(0, np.pi)
        length, width = generator.uniform(0.2, 0.35) * fine, generator.uniform(0.025, 0.05) * fine
        along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        leaf[:] = (along / length) ** 2 + (across / width) ** 2 <= 1
    return leaves


def _visible(scene: str, masks: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """What can be seen of each object: all of a translucent cell; of produce, what nothing lies on."""
    if scene == "cells" or not len(masks):
        return masks
    covered = leaves.any(0) if len(leaves) else np.zeros(masks.shape[1:], bool)
    above = np.zeros_like(masks)
    for number in reversed(range(len(masks))):
        above[number] = covered
        covered = covered | masks[number]
    return masks & ~above


def _paint_cells(generator: np.random.Generator, size: int, masks: np.ndarray, labels: list[str]) -> np.ndarray:
    """Stained cells on a pale ground: each takes away some of the light that comes through."""
    ground = np.array([0.88, 0.84, 0.9]) * generator.uniform(0.85, 1.05)
    image = ground + 0.05 * _texture(generator, size, 4.0)[..., None]
    for mask, label in zip(masks, labels, strict=True):
        inside = _coverage(mask)
        depth = np.clip(_depth(mask) / 0.05, 0, 1)
        stain = np.array([0.32, 0.5, 0.2]) * generator.uniform(0.6, 1.2)
        density = 0.55 + 0.45 * (1 - depth) + 0.25 * _texture(generator, size, 1.2)
        nucleus = np.clip(_depth(mask) / 0.09, 0, 1) ** 2
        if label == "dividing":  # condensed: dark and mottled
            density = density + nucleus * (1.3 + 0.6 * _texture(generator, size, 0.8))
        else:
            density = density + 0.6 * nucleus
        image = image * (1 - inside[..., None] * np.clip(stain * density[..., None], 0, 0.9))
    return image


def _paint_produce(generator: np.random.Generator, size: int, masks: np.ndarray, labels: list[str]) -> np.ndarray:
    """Round produce on soil, lit from above; bruises are soft and brown, rot is dark and grainy."""
    image = (
        np.array([0.36, 0.27, 0.19]) * generator.uniform(0.75, 1.2) + 0.1 * _texture(generator, size, 1.5)[..., None]
    )
    for mask, label in zip(masks, labels, strict=True):
        colour = np.array([0.52, 0.62, 0.24]) + generator.normal(0, 0.04, 3)
        shade = 0.62 + 0.38 * np.clip(_depth(mask) / 0.1, 0, 1) ** 0.7
        skin = colour * (shade + 0.12 * _texture(generator, size, 0.9))[..., None]
        if label == "bruised":
            spots = np.clip(1.6 * _texture(generator, size, 3.0) + 0.25, 0, 1)[..., None]
            skin = skin * (1 - 0.75 * spots) + 0.75 * spots * np.array([0.42, 0.3, 0.16])
        elif label == "rotten":
            grain = np.clip(2.5 * _texture(generator, size, 0.8) + 0.55, 0, 1)[..., None]
            skin = skin * (1 - 0.85 * grain) + 0.85 * grain * np.array([0.2, 0.14, 0.12])
        image = _over(image, _coverage(mask), skin)
    return image


def _over(image: np.ndarray, inside: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return image * (1 - inside[..., None]) + inside[..., None] * colour


def _coverage(mask: np.ndarray) -> np.ndarray:
    """The share of each pixel that ``mask`` covers, float (size, size)."""
    size = len(mask) // _FINE
    return mask.reshape(size, _FINE, size, _FINE).mean((1, 3))


def _depth(mask: np.ndarray) -> np.ndarray:
    """How far each pixel lies within ``mask``, as a fraction of the side: float (size, size)."""
    inside = np.pad(_coverage(mask) > 0.5, 1)
    return ndimage.distance_transform_edt(inside)[1:-1, 1:-1] / (len(mask) // _FINE)


def _texture(generator: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise of standard deviation 0.5 with grains of ``scale`` pixels (of 64 a side): float (size, size)."""
    smooth = ndimage.gaussian_filter(generator.normal(size=(size, size)), scale * size / 64, mode="wrap")
    return 0.5 * smooth / smooth.std()


def _light(generator: np.random.Generator, size: int) -> np.ndarray:
    """Uneven illumination around 1: float (size, size, 1)."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    slope = generator.normal(0, 0.08, 2)
    return (1 + slope[0] * x + slope[1] * y)[..., None]
