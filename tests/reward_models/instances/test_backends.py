"""One contract for every backend, on images that are the same everywhere; it is skipped where a backend cannot load."""

import sys
import types

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.reward_models.instances.backends import make_segmenter
from seggym.reward_models.instances.detection_metrics import average_precision
from seggym.reward_models.instances.geometry import box_ious, mask_boxes
from seggym.reward_models.instances.segmenter import (
    Checkpointing,
    Detections,
    InstanceSegmenter,
    InstanceTarget,
    McDropout,
    Thresholds,
    TrainingSettings,
)

# What each backend needs to learn two shapes in a few seconds (small) or two minutes (torchvision) of a core.
OPTIONS = {"small": {"size": 64, "width": 32}, "torchvision": {"backbone": "resnet18", "size": 96}}
TRAINING = {
    "small": TrainingSettings(iterations=60, batch=4, learning_rate=0.05, warmup=10),
    "torchvision": TrainingSettings(iterations=40, batch=2, learning_rate=0.01, warmup=10),
}


def scene(number: int, height: int = 64, width: int = 64) -> tuple[torch.Tensor, InstanceTarget]:
    """A red disc (class 1) and a blue square (class 2) on grey, at places that follow from ``number``."""
    generator = np.random.default_rng(number)
    image = np.full((3, height, width), 0.5) + generator.normal(0, 0.02, (3, height, width))
    y, x = np.mgrid[:height, :width] + 0.5
    left = generator.uniform(14, width / 2 - 4), generator.uniform(14, height - 14)
    right = generator.uniform(width / 2 + 12, width - 12), generator.uniform(14, height - 14)
    disc = np.hypot(x - left[0], y - left[1]) < generator.uniform(7, 10)
    half = generator.uniform(6, 9)
    square = (np.abs(x - right[0]) < half) & (np.abs(y - right[1]) < half)
    image[:, disc] = np.array([0.9, 0.1, 0.1])[:, None]
    image[:, square] = np.array([0.1, 0.1, 0.9])[:, None]
    masks = torch.from_numpy(np.stack([disc, square]))
    return torch.from_numpy(image.clip(0, 1)).float(), InstanceTarget(masks, torch.tensor([1, 2]))


SCENES = [scene(number) for number in range(12)]
IMAGES, TARGETS = [image for image, _ in SCENES], [target for _, target in SCENES]


def make(backend: str, **changes: object) -> InstanceSegmenter:
    thresholds = Thresholds(confidence=0.05, nms=0.5)
    try:
        return make_segmenter(backend, 2, {**OPTIONS[backend], **changes}, thresholds)
    except SeggymError as error:
        if "needs torchvision" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module", params=list(OPTIONS))
def trained(request: pytest.FixtureRequest) -> tuple[str, InstanceSegmenter]:
    segmenter = make(request.param)
    assert segmenter.fit(IMAGES[:8], TARGETS[:8], TRAINING[request.param], seed=0) is None
    return request.param, segmenter


def check(found: Detections, image: torch.Tensor, thresholds: Thresholds, passes: int) -> None:
    """What is true of any detections."""
    count, size = len(found), image.shape[-2:]
    assert found.boxes.shape == (count, 4)
    assert found.class_probabilities.shape == (count, 3)
    assert found.masks.shape == (count, *size)
    assert (found.masks.dtype, found.labels.dtype) == (torch.bool, torch.int64)
    assert torch.allclose(found.class_probabilities.sum(1), torch.ones(count), atol=1e-5)
    best = found.class_probabilities[:, 1:].max(1)
    assert torch.equal(best.indices + 1, found.labels)
    assert torch.equal(best.values, found.scores)
    assert bool((found.scores >= thresholds.confidence).all())
    assert bool((found.boxes >= 0).all())
    assert bool((found.boxes <= torch.tensor([size[1], size[0]] * 2)).all())
    assert bool((found.passes.diff() >= 0).all())
    assert set(found.passes.tolist()) <= set(range(passes))
    for number in range(passes):
        of_pass = found.take(found.passes == number)
        assert bool((of_pass.scores.diff() <= 0).all())
        overlap = box_ious(of_pass.boxes, of_pass.boxes).fill_diagonal_(0)
        assert bool((overlap <= thresholds.nms + 1e-4).all())
    # A mask lies in its box.
    around = mask_boxes(found.masks)
    there = found.masks.flatten(1).any(1)
    assert bool((around[there, :2] >= found.boxes[there, :2] - 1).all())
    assert bool((around[there, 2:] <= found.boxes[there, 2:] + 1).all())


def test_learns_what_it_is_shown(trained: tuple[str, InstanceSegmenter]) -> None:
    _, segmenter = trained
    found = segmenter.detect(IMAGES[8:])
    for image, detections in zip(IMAGES[8:], found, strict=True):
        check(detections, image, segmenter.thresholds, 1)
    assert average_precision(found, TARGETS[8:], 2).ap50 > 0.6
    assert not any(parameter.requires_grad for parameter in segmenter.network.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["head", "complete"])
def test_dropout_passes(trained: tuple[str, InstanceSegmenter], method: str) -> None:
    _, segmenter = trained

    def passes(seed: int) -> list[Detections]:
        generator = torch.Generator().manual_seed(seed)
        return segmenter.detect(IMAGES[8:10], McDropout(3, method), generator)

    before = torch.get_rng_state()
    found, again, other = passes(1), passes(1), passes(2)
    assert torch.equal(torch.get_rng_state(), before)
    for image, detections in zip(IMAGES[8:10], found, strict=True):
        check(detections, image, segmenter.thresholds, 3)
    for mine, same in zip(found, again, strict=True):
        assert all(torch.equal(getattr(mine, name), getattr(same, name)) for name in vars(mine))
    assert not torch.equal(found[0].class_probabilities, other[0].class_probabilities)
    first, second = found[0].take(found[0].passes == 0), found[0].take(found[0].passes == 1)
    assert not torch.equal(first.scores, second.scores)
    # Dropout is off again.
    sure = [segmenter.detect(IMAGES[8:9])[0].class_probabilities for _ in range(2)]
    assert torch.equal(*sure)


def test_images_of_any_size_and_without_objects(trained: tuple[str, InstanceSegmenter]) -> None:
    _, segmenter = trained
    wide, tall = scene(20, 40, 96), scene(21, 200, 120)
    blank = torch.full((3, 48, 48), 0.5)
    images = [wide[0], tall[0], blank]
    for image, detections in zip(images, segmenter.detect(images), strict=True):
        check(detections, image, segmenter.thresholds, 1)
    strict = Thresholds(confidence=1.0, nms=0.5)
    usual, segmenter.thresholds = segmenter.thresholds, strict
    for dropout in (None, McDropout(2, "head"), McDropout(2, "complete")):
        nothing = segmenter.detect(images, dropout, torch.Generator())
        assert [len(found) for found in nothing] == [0, 0, 0]
        assert nothing[0].masks.shape == (0, 40, 96)
    segmenter.thresholds = usual
    features = segmenter.features(images)
    assert features.shape[0] == 3
    assert features.dtype == torch.float32


def test_weights_can_be_kept_and_given_back(trained: tuple[str, InstanceSegmenter]) -> None:
    backend, segmenter = trained
    other = make(backend)
    other.load_state_dict(segmenter.state_dict())
    mine, theirs = segmenter.detect(IMAGES[8:9])[0], other.detect(IMAGES[8:9])[0]
    assert torch.equal(mine.class_probabilities, theirs.class_probabilities)
    assert torch.equal(mine.masks, theirs.masks)
    other.reset(0)
    again = make(backend)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("backend", list(OPTIONS))
def test_training_is_reproducible_and_goes_on_exactly(backend: str) -> None:
    none = InstanceTarget(torch.zeros(0, 64, 64, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    images, targets = [*IMAGES[:3], torch.full((3, 64, 64), 0.5)], [*TARGETS[:3], none]
    settings = TrainingSettings(iterations=6, batch=2, learning_rate=0.01, warmup=2, steps=(4,), eval_period=2)
    scores = iter([0.2, 0.5, 0.1])
    states: list[dict[str, object]] = []

    def keep(state: dict[str, object]) -> None:
        states.append({key: _copy(value) for key, value in state.items()})

    straight = make(backend)
    best = straight.fit(images, targets, settings, 7, lambda _: next(scores), None, Checkpointing(keep, 2))
    assert best == 0.5
    assert [state["done"] for state in states] == [2, 4, 6]
    # From the first checkpoint, in a segmenter that knows nothing of the other.
    scores = iter([0.5, 0.1])
    resumed = make(backend)
    best = resumed.fit(images, targets, settings, 7, lambda _: next(scores), None, Checkpointing(keep, 2, states[0]))
    assert best == 0.5
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def _copy(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return list(value) if isinstance(value, list) else value


@pytest.mark.parametrize("backend", list(OPTIONS))
def test_what_was_better_before_stays(backend: str) -> None:
    segmenter = make(backend)
    before = segmenter.state_dict()
    settings = TrainingSettings(iterations=2, batch=1, learning_rate=0.01, warmup=0)
    assert segmenter.fit(IMAGES[:2], TARGETS[:2], settings, 0, lambda _: 0.3, best=0.4) == 0.4
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    assert segmenter.fit(IMAGES[:2], TARGETS[:2], settings, 0, lambda _: 0.3, best=0.2) == 0.3
    assert any(not torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())


def test_a_missing_torchvision_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    # Parts of it that other tests have imported are no longer to be had either.
    for name in ["torchvision", *(name for name in sys.modules if name.startswith("torchvision."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SeggymError, match=r"needs torchvision, which cannot be imported .*backend=small"):
        make_segmenter("torchvision", 2, {}, Thresholds())


def test_operators_that_do_not_load_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision does next to another build of torch: it fails when imported, or when an operator is called."""

    def nms(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nsecond line")

    package, operators = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    operators.nms = nms  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.ops", operators)
    with pytest.raises(
        SeggymError, match=r"operators, which do not load .*nms does not exist\): use backend=small"
    ) as found:
        make_segmenter("torchvision", 2, {}, Thresholds())
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("backend", "options", "words"),
    [
        ("smal", {}, "backend='smal' is unknown"),
        ("small", {"sizes": 64}, "backend_options.sizes is unknown"),
        ("small", {"size": 63}, "size=63 must be a multiple of 16"),
        ("small", {"dropout": 1.0}, "dropout=1.0 must be"),
    ],
)
def test_wrong_options(backend: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(SeggymError, match=words):
        make_segmenter(backend, 2, options, Thresholds())
