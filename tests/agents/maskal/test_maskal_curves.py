"""Curves of mAP against effort, and what random's last mAP costs, worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from seggym.agents.maskal.curves import Curve, band, effort_to, load_curves, saving
from seggym.errors import SeggymError


def curve(name: str, efforts: list[list[float]], scores: list[list[float]], seeds: tuple[int, ...]) -> Curve:
    table = {"instances": np.array(efforts, float)}
    values = np.array(scores, float)
    return Curve(name, name, seeds, table, {"map": values}, values[..., None])


def test_effort_to_a_target_lies_between_rounds() -> None:
    efforts, scores = np.array([10.0, 20, 40]), np.array([0.1, 0.3, 0.2])
    assert effort_to(efforts, scores, 0.2) == 15
    assert effort_to(efforts, scores, 0.05) == 10
    assert math.isnan(effort_to(efforts, scores, 0.31))


def test_saving_of_mean_curves() -> None:
    """Random ends at .3 after 40 instances; the other is there, on average, after 25."""
    random = curve("random", [[10, 20, 40], [10, 20, 40]], [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], (0, 1))
    better = curve("better", [[10, 30, 60], [10, 30, 60]], [[0.1, 0.38, 0.5], [0.1, 0.36 - 1 / 75, 0.5]], (1, 0))
    found = saving(better, random, "instances")
    mean = (0.38 + 0.36 - 1 / 75) / 2
    assert found.share == pytest.approx((10 + 20 * 0.2 / (mean - 0.1)) / 40)
    assert found.low <= found.share <= found.high
    assert found.censored == 0
    # By seed, in the order of the curve that is compared.
    assert found.per_seed == pytest.approx([(10 + 20 * 0.2 / 0.28) / 40, (10 + 20 * 0.2 / (0.26 - 1 / 75)) / 40])


def test_what_is_not_reached_is_censored() -> None:
    random = curve("random", [[10, 20]] * 2, [[0.1, 0.4], [0.1, 0.2]], (0, 1))
    worse = curve("worse", [[10, 30]] * 2, [[0.1, 0.2], [0.1, 0.3]], (0, 1))
    found = saving(worse, random, "instances")
    # In the mean .25 falls short of .3; the second seed alone reaches its .2 half way.
    assert math.isnan(found.share)
    assert found.beyond == 1.5
    assert math.isnan(found.per_seed[0])
    assert found.per_seed[1] == 1.0
    assert 0.5 < found.censored < 1
    assert found.high == math.inf


def test_bands() -> None:
    mean, low, high = band(np.array([[0.2], [0.4]]))
    # t with one degree of freedom is 12.706, the standard error .1.
    assert [mean[0], low[0], high[0]] == pytest.approx([0.3, 0.3 - 1.2706205, 0.3 + 1.2706205])
    assert np.isnan(band(np.array([[0.2]]))[1:]).all()


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(SeggymError, match=r"holds no round that has ended"):
        load_curves(tmp_path)
    one, other = curve("a", [[1, 2]], [[0, 1]], (0,)), curve("b", [[1, 2]], [[0, 1]], (1,))
    with pytest.raises(SeggymError, match="share no seed"):
        saving(one, other, "instances")
