"""Annotating instances as an environment: counts, quality, leaks, batches, resume, images of one's own."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from seggym.agents.maskal.strategies import make_instance_strategy
from seggym.cohorts.annotations.model import rasterise
from seggym.cohorts.instance_phantoms import BALANCED, CLASSES, draw_instances, write_instances
from seggym.envs.selection.instances import InstanceEngine, build_instance_engine
from seggym.envs.selection.settings import SelectionSettings
from seggym.errors import SeggymError
from seggym.reward_models.instances.detection_metrics import average_precision
from seggym.reward_models.instances.learner import InstanceLearner, instances, planes
from seggym.reward_models.instances.segmenter import InstanceTarget, McDropout

TINY = {"first_iterations": 3, "iterations": 2, "batch": 2, "width": 8, "proposals": 6}
KWARGS: dict[str, Any] = {
    "cohort_options": {"images": 60, "variant": "balanced"},
    "learner_options": TINY,
    "budget": 3,
    "initial": 3,
    "candidates": 5,
    "device": "cpu",
}
KIND = {"cohort": "instances", "size": 64, "learner": "instances", "metric": "map"}


def engine(num_envs: int = 1, **changes: Any) -> InstanceEngine:
    return build_instance_engine(SelectionSettings(**{**KIND, **KWARGS, **changes}), num_envs)


def begin(made: InstanceEngine, *keys: int) -> InstanceEngine:
    made.begin(torch.arange(len(keys)), made.draw(torch.tensor(keys)))
    return made


def annotation_of(name: str) -> Any:
    return draw_instances(int(name.removeprefix("image_").removesuffix(".png")), settings=BALANCED)[1]


def test_what_is_counted_is_what_was_outlined() -> None:
    env = gymnasium.make("ALSelect-Instances-v0", **KWARGS, costs={"volume": 2.0, "instance": 0.25})
    _, info = env.reset(seed=0)
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
    made = env.unwrapped.engine
    names = [made.pool.table.names[sample] for sample in made.order[0, : int(made.count[0])]]
    wanted = [annotation_of(name) for name in names]
    assert info["annotated"] == 6
    assert info["instances"] == sum(len(one.instances) for one in wanted)
    assert info["vertices"] == sum(one.vertices for one in wanted)
    assert info["minutes"] == pytest.approx(6 * 2 + 0.25 * info["instances"])


def test_quality_is_the_precision_on_the_reward_set() -> None:
    made = begin(engine(), 5)
    part = made.learner._scored["reward"]
    names = set(made.pool.table.names)
    weights = made.learner.state_dict()["weights"][0]
    made.learner._segmenter.load_state_dict(weights)
    found = made.learner._segmenter.detect(made.pool.images[part.slices].unbind(0))
    expected = average_precision(found, part.targets, len(CLASSES))
    assert float(made.quality[0]) == pytest.approx(expected.map)
    np.testing.assert_allclose(made.evaluate(0, "reward")[0].numpy(), expected.per_class)
    # The truth is that of the images, none of which is in the pool.
    bank = {tuple(image.flatten()[:400].tolist()): number for number, image in enumerate(made.pool.images)}
    for number, target in list(zip(part.slices.tolist(), part.targets, strict=True))[:5]:
        pixels, annotation = draw_instances(number, settings=BALANCED)
        image = torch.tensor(pixels).permute(2, 0, 1).float() / 255
        assert bank[tuple(image.flatten()[:400].tolist())] == number
        masks, labels = rasterise(annotation, CLASSES)
        assert np.array_equal(target.masks.numpy(), masks)
        assert target.labels.tolist() == labels.tolist()
        assert annotation.image not in names


def test_labels_that_nobody_annotated_change_nothing() -> None:
    honest, poisoned = engine(), engine()
    begin(honest, 7)
    hidden = torch.ones(len(honest.pool), dtype=torch.bool)
    hidden[honest.order[0, :3]] = False
    oracle = poisoned.oracle
    kept = oracle._lessons.clone(), oracle._targets.clone(), oracle._histograms.clone(), oracle._effort.clone()
    try:
        generator = torch.Generator().manual_seed(0)
        oracle._lessons[hidden] = torch.randint(6, oracle._lessons[hidden].shape, generator=generator).to(torch.uint8)
        oracle._targets[hidden], oracle._histograms[hidden], oracle._effort[hidden] = 3, 77, 99
        begin(poisoned, 7)
        assert poisoned.order[0, :3].tolist() == honest.order[0, :3].tolist()
        seen, other = honest.observe(), poisoned.observe()
        assert all(torch.equal(seen[part], other[part]) for part in seen)
        assert torch.equal(honest.action_mask(), poisoned.action_mask())
        assert torch.equal(honest.minutes, poisoned.minutes)
    finally:
        for name, value in zip(("_lessons", "_targets", "_histograms", "_effort"), kept, strict=True):
            setattr(oracle, name, value)


def test_a_batch_is_its_episodes_one_by_one() -> None:
    both = begin(engine(2), 11, 12)
    for slot, key in enumerate((11, 12)):
        alone = begin(engine(), key)
        assert alone.order[0, :3].tolist() == both.order[slot, :3].tolist()
        assert alone.candidates[0].tolist() == both.candidates[slot].tolist()
        assert float(alone.quality[0]) == float(both.quality[slot])
    both.step(torch.tensor([1, 2]))
    alone = begin(engine(), 12)
    alone.step(torch.tensor([2]))
    assert float(alone.quality[0]) == float(both.quality[1])
    assert int(alone.instances[0]) == int(both.instances[1])


def test_state_goes_on_exactly() -> None:
    made = begin(engine(), 3)
    made.step(torch.tensor([0]))
    other = engine()
    other.load_state_dict(made.state_dict())
    for one in (made, other):
        one.step(torch.tensor([1]))
    assert torch.equal(made.quality, other.quality)
    assert torch.equal(made.instances, other.instances)
    seen, again = made.observe(), other.observe()
    assert all(torch.equal(seen[part], again[part]) for part in seen)
    with pytest.raises(SeggymError, match="make the environments with the same data"):
        engine(2).load_state_dict(made.state_dict())


def test_looking_ahead_leaves_the_episode_alone() -> None:
    made = begin(engine(), 4)
    before = made.state_dict()
    sample = made.candidates[0, :1]
    ahead = made.lookahead(0, sample)
    after = made.state_dict()
    assert torch.equal(before["quality"], after["quality"])
    made.step(torch.tensor([0]))
    assert float(made.quality[0]) == float(ahead[0])


@pytest.mark.parametrize("name", ["uncertainty", "certainty", "entropy", "bald", "kcenter"])
def test_strategies_choose_in_the_environment(name: str) -> None:
    env = gymnasium.make("ALSelect-Instances-v0", **KWARGS)
    _, info = env.reset(seed=1)
    common = {"passes": 2} if "certain" in name else {}
    query = make_instance_strategy(name, common, {}).query(env.unwrapped.view(), 2)
    assert set(query.indices.tolist()) <= set(info["candidates"].tolist())
    view = env.unwrapped.view()
    labels = view.labels(view.labelled)
    assert labels.shape == (3, 64, 64)
    with pytest.raises(SeggymError, match="before it is annotated"):
        view.labels(query.indices)
    first = view.certainty(view.candidates, McDropout(2), 0.5, "mean")
    np.testing.assert_array_equal(first, view.certainty(view.candidates, McDropout(2), 0.5, "mean"))


def test_images_of_ones_own(tmp_path: Any) -> None:
    root = write_instances(tmp_path / "mine", 40, settings=BALANCED)
    options = {**KWARGS, "data_root": str(root), "cohort_options": {"classes": list(CLASSES)}}
    env = gymnasium.make("ALSelect-Instances-v0", **options)
    env.reset(seed=0)
    assert env.unwrapped.engine.pool.class_names == ("background", *CLASSES)
    with pytest.raises(SeggymError, match="cohort_options has no classes"):
        gymnasium.make("ALSelect-Instances-v0", **{**options, "cohort_options": {}})
    with pytest.raises(SeggymError, match="add the class"):
        gymnasium.make("ALSelect-Instances-v0", **{**options, "cohort_options": {"classes": ["cell"]}})
    (root / "image_00004.json").unlink()
    with pytest.raises(SeggymError, match=r"image_00004.png have no annotation"):
        gymnasium.make("ALSelect-Instances-v0", **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learner": "unet"}, "metric=map and learner=unet do not suit cohort=instances"),
        ({"cohort": "acdc"}, "metric=map and learner=instances do not suit cohort=acdc"),
        ({"cohort_options": {"images": 3}}, "expected at least 10"),
        ({"cohort_options": {"variant": "even"}}, "imbalanced or balanced"),
        ({"learner_options": {"start": "again"}}, "expected scratch or fine_tune"),
        ({"learner_options": {"iteration": 2}}, "learner_options.iteration is unknown"),
        ({"size": 16}, "size=16 must be a multiple of 16 pixels, at least 32"),
        ({"shares": [0.5, 0.0, 0.5]}, "leave no image for the pool|shares"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SeggymError, match=words):
        gymnasium.make("ALSelect-Instances-v0", **{**KWARGS, **changes})


def test_lessons_hold_the_objects() -> None:
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0, :3], masks[1, 2:5, 2:5], masks[2, 5, 5] = True, True, True
    target = InstanceTarget(masks, torch.tensor([2, 1, 2]))
    empty = InstanceTarget(masks[:0], torch.zeros(0, dtype=torch.int64))
    drawn = planes([target, empty])
    assert drawn.shape == (2, 3, 6, 6)
    again = instances(drawn[0])
    assert torch.equal(again.masks, masks)
    assert again.labels.tolist() == [2, 1, 2]
    assert len(instances(drawn[1]).labels) == 0


def test_a_learner_learns() -> None:
    """What it is taught again and again it finds: the precision on the lessons themselves rises."""
    made = engine(learner_options={"first_iterations": 60, "batch": 4, "width": 16}, initial=3)
    learner: InstanceLearner = made.learner
    samples = torch.tensor([[0, 1, 2]])
    lessons = made.oracle.annotate(samples)[0]
    learner.begin(torch.tensor([0]))
    learner.teach(torch.tensor([0]), made.pool.slices[samples], lessons, torch.tensor([1]), torch.tensor([0]))
    found = learner._detect(0, made.pool.slices[samples[0], 0])
    targets = [instances(lesson) for lesson in lessons[0]]
    assert average_precision(found, targets, len(CLASSES)).ap50 > 0.1
    assert bool((learner.predict(torch.tensor([0]), torch.tensor([[0, 1]])).sum(2) - 1).abs().max() < 1e-5)
    assert bool((learner.disagreement(torch.tensor([0]), torch.tensor([[0, 1]])) <= 1).all())
