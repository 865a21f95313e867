"""What every instance network is trained with: learning rate, batches, repeated images."""

import math

import pytest
import torch

from seggym.reward_models.instances.segmenter import TrainingSettings
from seggym.reward_models.instances.training import Batches, learning_rate, repeat_factors


def test_the_learning_rate_rises_and_falls_in_steps() -> None:
    settings = TrainingSettings(iterations=100, learning_rate=0.1, warmup=10, steps=(50, 80), gamma=0.1)
    found = [learning_rate(settings, iteration) for iteration in (0, 4, 9, 49, 50, 79, 80, 99)]
    assert found == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_learning_rate_falls_as_a_cosine() -> None:
    settings = TrainingSettings(iterations=100, learning_rate=0.2, warmup=0, schedule="cosine")
    assert [learning_rate(settings, iteration) for iteration in (0, 50)] == pytest.approx([0.2, 0.1])
    assert learning_rate(settings, 99) < 1e-4


def test_repeat_factors_by_hand() -> None:
    """Class 1 in 3 of 4 images, class 2 in 1 of 4: with a factor of 2 the threshold is 4/4 = 1."""
    labels = [torch.tensor([1, 1]), torch.tensor([1, 2]), torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
    found = repeat_factors(labels, 2.0, (2,))
    assert found.tolist() == pytest.approx([math.sqrt(4 / 3), 2.0, math.sqrt(4 / 3), 1.0])
    # A factor of 1.5: the threshold 2.25/4 is below the share of class 1, which is not repeated.
    assert repeat_factors(labels, 1.5, (2,)).tolist() == pytest.approx([1.0, 1.5, 1.0, 1.0])
    assert repeat_factors(labels, 1.5, (5,)).tolist() == [1.0] * 4


def test_batches_pass_over_all_images_again_and_again() -> None:
    torch.manual_seed(0)
    batches = Batches(torch.tensor([1.0, 1.0, 2.5, 1.0]), 3)
    drawn = [number for _ in range(200) for number in batches.next()]
    counts = torch.tensor(drawn).bincount().double()
    # 600 images are about 109 passes of 5.5.
    assert counts[[0, 1, 3]].tolist() == pytest.approx([600 / 5.5] * 3, abs=2)
    assert counts[2] == pytest.approx(2.5 * 600 / 5.5, rel=0.08)
