"""Learners that train networks: they learn, from masks and from scribbles, and everything random follows from keys."""

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.reward_models.classifier import ClassifierLearner, classifier_options
from seggym.reward_models.learners import UNLABELLED, ScoredSet
from seggym.reward_models.network_learner import NetworkOptions, turned
from seggym.reward_models.unet_learner import UNetLearner, dice_loss

SIZE = 32


def discs(count, seed=0):
    """Images (n, 1, 32, 32) and masks of a bright disc."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((SIZE, SIZE))
    masks = np.stack([np.hypot(y - rng.uniform(10, 22), x - rng.uniform(10, 22)) < 6 for _ in range(count)])
    images = 0.2 + 0.6 * masks + 0.1 * rng.normal(size=masks.shape)
    return torch.tensor(images, dtype=torch.float32)[:, None], torch.tensor(masks.astype(np.uint8))


def make(num_envs=1, scribbles=False, **options):
    images, masks = discs(8)
    number = torch.tensor([6, 7])
    scored = {"reward": ScoredSet(number, masks[number], torch.tensor([0, 1]), ("a", "b"))}
    chosen = NetworkOptions(**{"iterations": 3, "batch": 4, "widths": (4, 8), **options})
    return UNetLearner(images, scored, 2, num_envs, chosen, scribbles), masks


def teach(learner, targets, samples=((0, 1, 2, 3),), keys=(5,), number=0):
    rows = torch.arange(len(samples))
    slices = torch.tensor(samples)[..., None]
    lessons = learner.digest(slices, targets[slices])
    learner.teach(rows, slices, lessons, torch.tensor(keys), torch.full_like(rows, number))


def dice(learner, row=0):
    found = learner.overlap(torch.tensor([row]), "reward")
    return float((2 * found.intersection / (found.predicted + found.true))[0, :, 1].mean())


def test_a_unet_learns_from_masks():
    learner, masks = make(iterations=60, widths=(8, 16))
    learner.begin(torch.tensor([0]))
    teach(learner, masks)
    assert dice(learner) > 0.8


def test_a_unet_learns_from_scribbles():
    learner, masks = make(scribbles=True, iterations=80, widths=(8, 16))
    drawn = torch.full_like(masks, UNLABELLED)
    drawn[:, ::4, ::4] = masks[:, ::4, ::4]
    teach(learner, drawn)
    assert dice(learner) > 0.7


def test_scribbles_without_annotated_pixels_give_a_number():
    learner, masks = make(scribbles=True)
    teach(learner, torch.full_like(masks, UNLABELLED))
    assert torch.isfinite(learner.predict(torch.tensor([0]), torch.tensor([[0]]))).all()


def test_everything_follows_from_the_key():
    torch.manual_seed(1)
    one, masks = make(num_envs=2)
    teach(one, masks, samples=((0, 1), (0, 1)), keys=(5, 6))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    other, _ = make()
    teach(other, masks, samples=((0, 1),), keys=(6,))
    slices = torch.tensor([[4, 5]])
    # Alone or in a batch, whatever torch's generator was; another key is another network.
    assert torch.equal(one.predict(torch.tensor([1]), slices), other.predict(torch.tensor([0]), slices))
    assert not torch.equal(one.predict(torch.tensor([0]), slices), one.predict(torch.tensor([1]), slices))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_monte_carlo_dropout_changes_nothing():
    learner, masks = make()
    teach(learner, masks)
    rows, slices = torch.tensor([0]), torch.tensor([[4, 5]])
    before = learner.predict(rows, slices)
    passes = learner.members(0, slices[0], 6, torch.Generator().manual_seed(3))
    assert passes.shape == (6, 2, 2, SIZE, SIZE)
    assert float(passes.std(0).mean()) > 0
    again = learner.members(0, slices[0], 6, torch.Generator().manual_seed(3))
    assert torch.equal(passes, again)
    found = learner.disagreement(rows, slices)
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.equal(learner.disagreement(rows, slices), found)
    # Neither dropout nor batch norm is left in another mode.
    assert torch.equal(learner.predict(rows, slices), before)


def test_an_ensemble_is_its_own_members():
    learner, masks = make(ensemble=3)
    teach(learner, masks)
    slices = torch.tensor([4, 5])
    members = learner.members(0, slices, 99, torch.Generator())
    assert len(members) == 3
    assert float(members.std(0).mean()) > 0
    torch.testing.assert_close(learner.predict(torch.tensor([0]), slices[None])[0], members.mean(0))


def test_disagreement_is_mutual_information():
    learner, masks = make(ensemble=2)
    teach(learner, masks)
    slices = torch.tensor([4])
    members = learner.members(0, slices, 2, torch.Generator()).double().numpy()[:, 0]
    mean = members.mean(0)
    information = -(mean * np.log(mean)).sum(0) + (members * np.log(members)).sum(1).mean(0)
    found = learner.disagreement(torch.tensor([0]), slices[None])
    assert float(found) == pytest.approx(information.mean() / np.log(2), rel=1e-3)


def test_fine_tuning_goes_on_and_scratch_begins_anew():
    for start, same in (("scratch", True), ("fine_tune", False)):
        learner, masks = make(start=start)
        teach(learner, masks, samples=((0, 1),), keys=(5,))
        teach(learner, masks, samples=((2, 3),), keys=(8,), number=1)
        fresh, _ = make()
        teach(fresh, masks, samples=((0, 1, 2, 3),), keys=(8,))
        slices = torch.tensor([[4]])
        rows = torch.tensor([0])
        assert torch.equal(learner.predict(rows, slices), fresh.predict(rows, slices)) is same


def test_a_state_is_the_same_learner():
    learner, masks = make()
    teach(learner, masks, samples=((0, 1),))
    restored, _ = make()
    restored.load_state_dict(learner.state_dict())
    rows, slices = torch.tensor([0]), torch.tensor([[4]])
    assert torch.equal(learner.predict(rows, slices), restored.predict(rows, slices))
    for one in (learner, restored):
        teach(one, masks, samples=((2, 3),), keys=(9,), number=1)
    assert torch.equal(learner.predict(rows, slices), restored.predict(rows, slices))
    with pytest.raises(SeggymError, match="num_envs"):
        make(num_envs=2)[0].load_state_dict(learner.state_dict())


def test_dice_loss_by_hand():
    probabilities = torch.tensor([[[[0.8, 0.4]], [[0.2, 0.6]]]])
    labels = torch.tensor([[[0, 1]]])
    first = 2 * 0.8 / (0.8**2 + 0.4**2 + 1)
    second = 2 * 0.6 / (0.2**2 + 0.6**2 + 1)
    assert float(dice_loss(probabilities, labels)) == pytest.approx(1 - (first + second) / 2, abs=1e-5)


def test_images_and_labels_turn_together():
    _, masks = discs(6)
    torch.manual_seed(0)
    clean = torch.where(masks[:, None] > 0, 1.0, 0.2)
    moved, labels = turned(clean, masks, outside=7)
    known = labels != 7
    assert bool((labels == 7).any())
    # The gamma keeps 1 at 1 and 0.2 well below it; pixels at the rim are mixtures.
    wrong = ((moved[:, 0] > 0.75) != (labels == 1)) & known
    assert float(wrong.float().mean()) < 0.03
    assert not torch.equal(labels, masks.long())


def test_a_classifier_learns():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (40,), generator=generator)
    images = 0.1 * torch.randn(40, 1, 16, 16, generator=generator) + 0.5 * labels[:, None, None, None]
    scored = {"reward": ScoredSet(torch.arange(20, 40), labels[20:], torch.zeros(20, dtype=torch.int64), ("all",))}
    learner = ClassifierLearner(images, scored, 2, 1, classifier_options(iterations=40))
    slices = torch.arange(20)[:, None]
    zero = torch.zeros(1, dtype=torch.int64)
    learner.teach(zero, slices[None], learner.digest(slices, labels[slices])[None], torch.tensor([3]), zero)
    found = learner.overlap(zero, "reward")
    assert float(found.intersection.sum() / found.true.sum()) > 0.9
    assert learner.predict(zero, torch.tensor([[0, 1]])).shape == (1, 2, 2, 1, 1)
    assert learner.features(0, torch.tensor([0, 1])).shape == (2, 32)


def test_wrong_options_are_sentences():
    with pytest.raises(SeggymError, match="expected scratch or fine_tune"):
        NetworkOptions(start="warm")
    with pytest.raises(SeggymError, match=r"learner_options\.iterations=0 must be at least 1"):
        NetworkOptions(iterations=0)
    with pytest.raises(SeggymError, match="dropout"):
        NetworkOptions(dropout=1.0)


def test_the_precision_of_training_changes_little():
    fine, masks = make(iterations=60, widths=(8, 16), precision="fp32")
    coarse, _ = make(iterations=60, widths=(8, 16), precision="bf16")
    slices = torch.tensor([[4, 5, 6, 7]])
    for learner in (fine, coarse):
        teach(learner, masks)
    row = torch.tensor([0])
    exact, rounded = fine.predict(row, slices), coarse.predict(row, slices)
    assert rounded.dtype == exact.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact.argmax(2) == rounded.argmax(2)).float().mean() > 0.95
    with pytest.raises(SeggymError, match="precision='fp8' is unknown, expected one of auto, fp32, bf16"):
        NetworkOptions(precision="fp8")
