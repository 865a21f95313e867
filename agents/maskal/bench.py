"""What the experiments of a file share: folders, annotations of the held-out images, training and scoring."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seggym.agents.maskal.data import AnnotatedTargets, FolderImages
from seggym.agents.maskal.experiments import Experiment
from seggym.agents.maskal.records import write_changed
from seggym.agents.maskal.settings import MaskalSettings
from seggym.agents.maskal.workflow import AnnotateFolder, AnnotationsPending, Annotator, SimulatedOracle
from seggym.cohorts.annotations.model import Annotation
from seggym.cohorts.annotations.reading import ImageFolder, open_image_folder
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.instances.backends import make_segmenter
from seggym.reward_models.instances.detection_metrics import AveragePrecision, average_precision
from seggym.reward_models.instances.segmenter import (
    Checkpointing,
    Detections,
    InstanceSegmenter,
    Thresholds,
    TrainingSettings,
)

Say = Callable[[str], Any]
PARTS = ("train", "val", "test")
# Images whose detections are held at a time.
_PART = 32


@dataclass(frozen=True)
class Bench:
    """What all experiments of a file share: folders, annotations of val and test, and the device."""

    settings: MaskalSettings
    folders: Mapping[str, ImageFolder]
    images: Mapping[str, FolderImages]
    annotations: Mapping[str, dict[str, Annotation]]
    annotator: Annotator
    device: torch.device


def open_bench(settings: MaskalSettings, found: Sequence[Experiment], say: Say) -> Bench:
    """Open the three folders, and have the validation, test and initial images annotated."""
    folders = {part: open_image_folder(getattr(settings, f"{part}dir")) for part in PARTS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(
            {p.resolve() for p in folders[first].images.values()}
            & {p.resolve() for p in folders[second].images.values()}
        ):
            raise SeggymError(
                f"{both[0]} is an image of {first}dir and of {second}dir, expected different folders: mend them"
            )
    _write_lists(settings, folders, found)
    annotators = {part: _annotator(settings, folders[part], settings.wait, say) for part in PARTS}
    if settings.annotator == "folder":
        _offer(settings, folders, found, say)
    annotations = {part: annotators[part].annotate(folders[part].names) for part in ("val", "test")}
    images = {part: FolderImages(folders[part], folders[part].names) for part in PARTS}
    return Bench(settings, folders, images, annotations, annotators["train"], resolve_device(settings.device))


def _annotator(settings: MaskalSettings, folder: ImageFolder, wait: bool, say: Say) -> Annotator:
    if settings.annotator == "simulated":
        return SimulatedOracle(folder, settings.classes)
    form: Any = settings.export_format
    return AnnotateFolder(folder.root, settings.classes, form=form, wait=wait, say=say)


def _offer(settings: MaskalSettings, folders: Mapping[str, ImageFolder], found: Sequence[Experiment], say: Say) -> None:
    """Hand out, and say, at once what must be annotated before anything is trained; without waiting it ends there."""
    wanted = {"train": initial_images(settings, folders["train"].names, found[0].seed)}
    pending: dict[Path, str] = {}
    for part in PARTS:
        try:
            _annotator(settings, folders[part], False, say).annotate(wanted.get(part, folders[part].names))
        except AnnotationsPending as error:
            pending |= error.problems
    if pending and not settings.wait:
        raise AnnotationsPending(pending)
    if len(pending) > 1:
        say(f"Images wait to be annotated in {', '.join(map(str, pending))}")


def initial_images(settings: MaskalSettings, names: Sequence[str], seed: int) -> list[str]:
    """The images of round 0: those of initial_train_file, or as many as asked for, drawn from ``names``."""
    if settings.initial_train_file is not None:
        path = Path(settings.initial_train_file)
        try:
            lines = [line.strip() for line in path.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SeggymError(f"initial_train_file={path} cannot be read ({error}); mend the path") from None
        wanted = list(dict.fromkeys(line for line in lines if line))
        if unknown := [name for name in wanted if name not in set(names)]:
            raise SeggymError(f"{path} names {unknown[0]}, expected file names of images in traindir; mend it")
        if not wanted:
            raise SeggymError(f"{path} names no image, expected one file name in a line; mend it")
        return wanted
    if settings.initial_datasize > len(names):
        raise SeggymError(
            f"initial_datasize={settings.initial_datasize} is more than the {len(names)} images of "
            f"{settings.traindir}; lower it"
        )
    generator = np.random.default_rng(seed_of("initial images", seed))
    return [names[number] for number in generator.permutation(len(names))[: settings.initial_datasize]]


def seed_of(*what: Any) -> int:
    """A number from 0 to 2^63 - 1 that follows from ``what``."""
    return key_of(" ".join(map(str, ("maskal", *what)))) & (2**63 - 1)


def _write_lists(settings: MaskalSettings, folders: Mapping[str, ImageFolder], found: Sequence[Experiment]) -> None:
    """The names of all images, as maskAL lists them in dataroot."""
    root = Path(settings.dataroot)
    lists = {f"{part}.txt": folders[part].names for part in PARTS}
    lists["initial_train.txt"] = initial_images(settings, folders["train"].names, found[0].seed)
    for file, names in lists.items():
        write_changed(root / file, "\n".join([*names, ""]).encode())


def segmenter_of(settings: MaskalSettings, experiment: Experiment, device: torch.device) -> InstanceSegmenter:
    """A network as the settings and the experiment want it; raises :class:`SeggymError` where it cannot be had."""
    options = {"dropout": experiment.dropout, **settings.backend_options}
    thresholds = Thresholds(settings.confidence_threshold, settings.nms_threshold)
    return make_segmenter(settings.backend, len(settings.classes), options, thresholds, device)


def training_settings(settings: MaskalSettings, images: int) -> TrainingSettings:
    """How a network is trained on so many ``images``."""
    steps = max(1, math.ceil(images / settings.step_image_number)) - 1
    iterations = settings.train_iterations_base + steps * settings.train_iterations_step_size
    repeated = settings.train_sampler == "RepeatFactorTrainingSampler"
    return TrainingSettings(
        iterations=iterations,
        batch=settings.train_batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup_iterations,
        steps=tuple(int(iterations * ratio) for ratio in settings.step_ratios),
        gamma=settings.gamma,
        schedule=settings.learning_policy,
        weight_decay=settings.weight_decay,
        eval_period=settings.eval_period,
        repeat_factor=settings.repeat_factor_smallest_class if repeated else None,
        minority=settings.minority_labels if repeated else (),
    )


def fit(
    bench: Bench,
    segmenter: InstanceSegmenter,
    annotations: Mapping[str, Annotation],
    seed: int,
    best: float | None,
    checkpointing: Checkpointing,
) -> float | None:
    """Train ``segmenter`` on ``annotations`` by image; the validation score of what is kept."""
    settings, images = bench.settings, bench.images["train"].of(list(annotations))
    targets = AnnotatedTargets(list(annotations.values()), settings.classes)
    training = training_settings(settings, len(images))
    return segmenter.fit(
        images, targets, training, seed, lambda one: evaluate(bench, one, "val").map, best, checkpointing
    )


def evaluate(bench: Bench, segmenter: InstanceSegmenter, part: str) -> AveragePrecision:
    """Average precision on the images of ``part``."""
    settings = bench.settings
    names = bench.images[part].names
    targets = AnnotatedTargets([bench.annotations[part][name] for name in names], settings.classes)
    with _confidence(segmenter, settings.evaluation_confidence):
        return average_precision(detected(segmenter, bench.images[part]), targets, len(settings.classes))


@contextmanager
def _confidence(segmenter: InstanceSegmenter, confidence: float | None) -> Iterator[None]:
    """Another confidence threshold, for as long as it takes."""
    usual = segmenter.thresholds
    if confidence is not None:
        segmenter.thresholds = replace(usual, confidence=confidence)
    try:
        yield
    finally:
        segmenter.thresholds = usual


def detected(segmenter: InstanceSegmenter, images: FolderImages) -> Iterator[Detections]:
    """What is found in each image, a few at a time."""
    for start in range(0, len(images), _PART):
        yield from segmenter.detect(images.of(images.names[start : start + _PART]))
