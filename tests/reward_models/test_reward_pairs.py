"""Reward pairs by hand: which mask is held to be true of which image, and what is made of it."""

from collections import Counter, namedtuple

import numpy as np
import pytest
import torch
from drawn_hearts import NAMES, hearts, people
from torch import nn

from seggym.errors import SeggymError
from seggym.reward_models.reward_pairs import PairSettings, build_reward_pairs

Correction = namedtuple("Correction", "mask valid agreement")
OFF = PairSettings(
    identity=False,
    corrections=False,
    swap=0,
    weight_noise=(),
    contrast=(),
    noise=(),
    temperatures=(),
    morphological=(),
    elastic=(),
    patches=(),
    missing=False,
)


class Threshold(nn.Module):
    """Draws class 1 above .25 and class 2 above .75 with great confidence."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        label = (x[:, 0] > 0.25).long() + (x[:, 0] > 0.75).long()
        return 50 * nn.functional.one_hot(label, 3).movedim(-1, 1).float() + self.bias, x


class NeverClass2:
    """Masks with class 2 are not valid."""

    def valid(self, masks):
        return ~(masks == 2).any((1, 2))


class Reduces:
    """Class 2 becomes class 1, except in the mask whose first pixel is 2; agreement is the share of equal pixels."""

    def correct(self, mask):
        corrected = np.where(mask == 2, 1, mask)
        return Correction(corrected, mask[0, 0] != 2, float((corrected == mask).mean()))


@pytest.fixture
def images():
    """One valid image, one that a corrector mends, one beyond help."""
    images = torch.zeros(3, 1, 16, 16)
    images[0, 0, 4:9, 4:9] = 0.5
    images[1, 0, 6:12, 6:12] = 0.9
    images[2, 0, :3, :3] = 0.9
    return images


def build(images, settings, **options):
    patients, names = ["a", "b", "c", "d"][: len(images)], [f"image{n}" for n in range(len(images))]
    arguments = {"corrector": Reduces(), "rules": NeverClass2(), **options}
    corrector, rules = arguments.pop("corrector"), arguments.pop("rules")
    return build_reward_pairs(
        Threshold(), images, patients, names, corrector, rules, settings, class_names=NAMES, **arguments
    )


def test_valid_masks_are_gold_and_invalid_ones_are_corrected(images):
    pairs, anchors = build(images, PairSettings(seed=3))
    assert anchors.names == ("image0",)
    assert anchors.patients == ("a",)
    assert pairs.names == ("image0", "image1")
    expected = (images[1, 0] > 0.5).to(torch.uint8)
    assert torch.equal(pairs.truths[1], expected)
    wrong = [pair for pair in (pairs[n] for n in range(len(pairs))) if pair.patient == "b"]
    assert {pair.kind for pair in wrong} == {"identity", "greedy", "sample-0.5", "sample-1", "sample-2"}
    (greedy,) = [pair for pair in wrong if pair.kind == "greedy"]
    assert torch.equal(greedy.prediction, 2 * expected)


def test_agreement_decides_about_gold_standards(images):
    class Dislikes:
        def correct(self, mask):
            return Correction(np.ones_like(mask), True, 0.94)

    settings = PairSettings(agreement=0.95)
    pairs, anchors = build(images[:1], settings, corrector=Dislikes())
    assert len(anchors.names) == 0
    assert bool((pairs.truths == 1).all())
    doubts = type("Doubts", (), {"correct": lambda self, mask: Correction(mask, True, 0.94)})()
    with pytest.raises(SeggymError, match="no reward pair results from 1 images"):
        build(images[:1], settings, corrector=doubts)
    _, anchors = build(images[:1], PairSettings(agreement=0.9), corrector=Dislikes())
    assert anchors.names == ("image0",)


SWITCHES = {
    "identity": ({"identity": True}, {"identity": 2}),
    "swap": ({"swap": 2}, {"swap": 4}),
    "weights": ({"weight_noise": (0.005, 0.02)}, {"weights-0.005": 2, "weights-0.02": 2}),
    "contrast": ({"contrast": (0.7,)}, {"contrast-0.7": 2}),
    "noise": ({"noise": (0.1,)}, {"noise-0.1": 2}),
    "temperatures": ({"temperatures": (1.0, 3.0)}, {"sample-1": 2, "sample-3": 2}),
    "morphological": ({"morphological": (1,)}, {"morphological-1": 2}),
    "elastic": ({"elastic": (2.0,)}, {"elastic-2-1": 2, "elastic-2-4": 2}),
    "patches": ({"patches": (0.05,)}, {"patches-0.05": 2}),
    "missing": ({"missing": True}, {"missing": 2}),
}


@pytest.mark.parametrize("kind", SWITCHES)
def test_every_kind_has_its_switch(images, kind):
    options, expected = SWITCHES[kind]
    two = torch.stack([images[0], images[0].roll(4, -1)])
    pairs, _ = build(two, PairSettings(**{**vars(OFF), **options}), corrector=None)
    assert Counter(pairs.kinds) == expected
    if kind == "swap":
        assert torch.equal(pairs.predictions[0], pairs.truths[1])
    if kind == "identity":
        assert torch.equal(pairs.predictions, pairs.truths)


def test_source_images_have_their_labels_as_truth(images):
    truths = torch.zeros(3, 16, 16, dtype=torch.uint8)
    truths[:, 5:10, 5:10] = 2
    pairs, anchors = build(images, PairSettings(), truths=truths)
    assert torch.equal(pairs.truths, truths)
    assert torch.equal(anchors.masks, truths)
    greedy = [number for number, kind in enumerate(pairs.kinds) if kind == "greedy"]
    assert torch.equal(pairs.predictions[greedy[0]], (images[0, 0] > 0.25).to(torch.uint8))


def test_pairs_follow_from_the_seed_and_leave_the_policy_alone():
    images, masks = hearts(6)
    patients, names = people(6)
    policy = Threshold().train()
    made = [
        build_reward_pairs(policy, images, patients, names, settings=PairSettings(seed=seed), class_names=NAMES)[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(made[0].predictions, made[1].predictions)
    assert not torch.equal(made[0].predictions, made[2].predictions)
    assert policy.training
    assert policy.bias.item() == 0
    assert made[0].predictions.dtype == torch.uint8
    assert len(masks) == 6


def test_bad_input_is_one_sentence(images):
    background = torch.zeros(2, 1, 16, 16)
    nothing_valid = type("None", (), {"valid": lambda self, masks: np.zeros(len(masks), bool)})()
    with pytest.raises(SeggymError, match="no reward pair results from 2 images"):
        build(background, PairSettings(), rules=nothing_valid, corrector=None)
    with pytest.raises(SeggymError, match="draws 3 classes, class_names are background, heart"):
        build_reward_pairs(Threshold(), images, list("abc"), list("abc"), class_names=("background", "heart"))
    with pytest.raises(SeggymError, match="truths are"):
        build(images, PairSettings(), truths=torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(SeggymError, match="temperatures"):
        PairSettings(temperatures=(0.0,))
    with pytest.raises(SeggymError, match="as many of each"):
        build_reward_pairs(Threshold(), images, ["a"], list("abc"), class_names=NAMES)
