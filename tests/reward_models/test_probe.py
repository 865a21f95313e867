"""The closed-form learner against plain numpy: weights, increments, overlaps, scribbles, uncertainty."""

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.reward_models.learners import UNLABELLED, ScoredSet
from seggym.reward_models.probe import ProbeLearner, ProbeOptions, position_features

CLASSES, GRID, SLICES = 3, 4, 9


@pytest.fixture
def features():
    """Random features of 9 slices of 16 x 16 pixels, the last one constant."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(SLICES, 5, GRID, GRID, generator=generator, dtype=torch.float64)
    return torch.cat([drawn, torch.ones_like(drawn[:, :1])], 1)


@pytest.fixture
def labels():
    return torch.randint(CLASSES, (SLICES, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def make(features, labels, num_envs=1, **options):
    number = torch.tensor([6, 7, 8])
    scored = {"reward": ScoredSet(number, labels[number], torch.tensor([0, 0, 1]), ("a", "b"))}
    return ProbeLearner(features, scored, CLASSES, num_envs, ProbeOptions(**options))


def teach(learner, targets, *rounds):
    """Teach slices, a tuple of them for each retraining, one sample a slice."""
    learner.begin(torch.tensor([0]))
    for number in rounds:
        slices = torch.tensor(number)[:, None]
        lessons = learner.digest(slices, targets[slices])
        zero = torch.zeros(1, dtype=torch.int64)
        learner.teach(zero, slices[None], lessons[None], zero, zero)


def ridge_by_hand(features, targets, chosen, ridge, balance):
    """Weights (K, d) from the pixels themselves: every annotated pixel is an observation of its position's features."""
    x, y = [], []
    for number in chosen:
        for row in range(16):
            for column in range(16):
                if targets[number, row, column] != UNLABELLED:
                    x.append(features[number, :, row // 4, column // 4].numpy())
                    y.append(int(targets[number, row, column]))
    x, y = np.array(x), np.array(y)
    count = np.bincount(y, minlength=CLASSES)
    weight = np.where(count > 0, np.maximum(count, 1e-9) ** -balance, 0)
    weight = weight * count.sum() / (weight * count).sum()
    # Sixteen pixels are one position.
    each = weight[y] / 16
    penalty = np.diag([ridge * GRID**2] * (x.shape[1] - 1) + [1e-6 * GRID**2])
    system = (x * each[:, None]).T @ x + penalty
    return np.linalg.solve(system, (x * each[:, None]).T @ np.eye(CLASSES)[y]).T


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scribble", [False, True])
def test_weights_are_those_of_a_ridge_regression_of_pixels(features, labels, balance, scribble):
    targets = labels.clone()
    if scribble:
        targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.7] = UNLABELLED
    learner = make(features, labels, ridge=0.1, balance=balance)
    teach(learner, targets, (0, 2, 3))
    expected = ridge_by_hand(features, targets, (0, 2, 3), 0.1, balance)
    np.testing.assert_allclose(learner._weights[0].numpy(), expected, atol=1e-10)


def test_probabilities_keep_the_order_of_the_regression(features, labels):
    learner = make(features, labels)
    teach(learner, labels, (0, 1, 2))
    found = learner.predict(torch.tensor([0]), torch.tensor([[4, 5]]))[0]
    assert found.shape == (2, CLASSES, GRID, GRID)
    torch.testing.assert_close(found.sum(1), torch.ones(2, GRID, GRID, dtype=torch.float64))
    values = np.einsum("kd,ndhw->nkhw", learner._weights[0].numpy(), features[4:6].numpy())
    clear = values.max(1) > 0.03
    assert (found.argmax(1).numpy() == values.argmax(1))[clear].all()


def test_one_after_the_other_is_all_at_once(features, labels):
    together, apart = make(features, labels), make(features, labels)
    teach(together, labels, (3, 0, 2))
    teach(apart, labels, (3,), (0, 2))
    assert torch.equal(together._weights, apart._weights)


def test_rows_do_not_touch_each_other(features, labels):
    """Samples of different number in one batch, padded; the same as alone, bit for bit."""
    batch = make(features, labels, num_envs=3)
    slices = torch.tensor([[[0], [1]], [[2], [-1]]])
    lessons = batch.digest(torch.arange(SLICES)[:, None], labels[:, None])[slices[..., 0].clamp_min(0)]
    rows = torch.tensor([2, 0])
    batch.teach(rows, slices, lessons, rows, rows)
    for row, chosen in ((2, (0, 1)), (0, (2,))):
        alone = make(features, labels)
        teach(alone, labels, chosen)
        assert torch.equal(alone._weights[0], batch._weights[row])
    assert (batch._weights[1] == 0).all()


def test_overlap_counts_pixels(features, labels):
    learner = make(features, labels)
    teach(learner, labels, (0, 1))
    found = learner.overlap(torch.tensor([0]), "reward")
    chosen = learner.predict(torch.tensor([0]), torch.tensor([[6, 7, 8]]))[0].argmax(1).numpy()
    full = np.kron(chosen, np.ones((4, 4), int))
    truth = labels[6:].numpy()
    for case, part in enumerate((slice(0, 2), slice(2, 3))):
        for label in range(CLASSES):
            predicted, true = full[part] == label, truth[part] == label
            assert float(found.intersection[0, case, label]) == (predicted & true).sum()
            assert float(found.predicted[0, case, label]) == predicted.sum()
            assert float(found.true[0, case, label]) == true.sum()


def test_more_labels_leave_less_disagreement(features, labels):
    learner = make(features, labels)
    rows, slices = torch.tensor([0]), torch.tensor([[4, 5]])
    teach(learner, labels, (0,))
    few = learner.disagreement(rows, slices)
    spread_of_few = learner.members(0, slices[0], 64, torch.Generator().manual_seed(0)).std(0).mean()
    teach(learner, labels, (0, 1, 2, 3))
    many = learner.disagreement(rows, slices)
    spread_of_many = learner.members(0, slices[0], 64, torch.Generator().manual_seed(0)).std(0).mean()
    assert (many < few).all()
    assert (few > 0).all()
    assert (few < 1).all()
    assert float(spread_of_many) < float(spread_of_few)


def test_disagreement_is_the_variance_of_a_position(features, labels):
    """x^T A^-1 x by hand, averaged over positions."""
    learner = make(features, labels, ridge=0.1, balance=0.0)
    teach(learner, labels, (0, 1))
    x = features[:2].permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    system = x.T @ x + np.diag([0.1 * 16] * 5 + [1e-6 * 16])
    seen = features[4].permute(1, 2, 0).reshape(-1, 6).numpy()
    variance = 64 * np.mean(np.einsum("nd,de,ne->n", seen, np.linalg.inv(system), seen))
    found = learner.disagreement(torch.tensor([0]), torch.tensor([[4]]))
    assert float(found) == pytest.approx(variance / (1 + variance), rel=1e-8)


def test_features_end_with_a_constant_and_are_standardised():
    encoded = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    reference = torch.tensor([0, 1, 2])
    found = position_features(encoded, reference)
    assert found.shape == (6, 4 + 6 + 64 + 1, 5, 5)
    assert (found[:, -1] == 1).all()
    known = found[reference][:, :4].transpose(0, 1).flatten(1)
    torch.testing.assert_close(known.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(known.std(1), torch.ones(4))
    # The corners of the image are at -1 and 1.
    assert found[0, 4, 0, 0] == found[0, 5, 0, 0] == -1
    assert torch.equal(position_features(encoded[:3], reference), found[:3])


def test_wrong_options_and_states_are_sentences(features, labels):
    with pytest.raises(SeggymError, match="ridge > 0"):
        ProbeOptions(ridge=0.0)
    learner = make(features, labels, num_envs=2)
    with pytest.raises(SeggymError, match="no lessons of shape"):
        make(features, labels, num_envs=3).load_state_dict(learner.state_dict())
