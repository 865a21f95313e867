"""Scores in coordinates centred on the echo: the rule at the start, and what it is built on."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seggym.agents.echo_extractor import FEATURES, EchoExtractor, echo_position, line_features
from seggym.errors import SeggymError

LINES = 64


def space(*extra):
    parts = {
        "acquired": spaces.MultiBinary(LINES),
        "budget": spaces.Box(0, 1, (1,), np.float32),
        "energy": spaces.Box(0, 1, (LINES,), np.float32),
        "corrupted": spaces.MultiBinary(LINES),
    }
    return spaces.Dict({name: parts[name] for name in ("acquired", "budget", "energy", *extra)})


def seen(lines, amplitudes, corrupted=()):
    """Observation of one scan with ``amplitudes`` measured at ``lines``."""
    acquired, energy, flags = torch.zeros(1, LINES), torch.zeros(1, LINES), torch.zeros(1, LINES)
    acquired[0, list(lines)] = 1
    power = torch.tensor(amplitudes, dtype=torch.float32) ** 2
    energy[0, list(lines)] = 1 + (power / power.max()).log10() / 6
    flags[0, list(corrupted)] = 1
    return {"acquired": acquired, "energy": energy, "corrupted": flags, "budget": torch.tensor([[0.2]])}


def test_the_echo_is_the_centre_of_the_amplitudes():
    observation = seen([20, 21, 30], [1.0, 2.0, 0.5])
    found = echo_position(observation["acquired"], observation["energy"])
    assert float(found) == pytest.approx((20 * 1.0 + 21 * 2.0 + 30 * 0.5) / 3.5, abs=1e-4)


def test_weights_may_begin_elsewhere_and_near_centre_out():
    """Amplitudes far from DC: following the echo measures beside them, centre-out beside DC."""
    observation = seen([31, 32, 33], [0.1, 0.2, 8.0])
    follows, stays = (EchoExtractor(space(), start=start) for start in (None, {"off_dc": -3.0}))
    assert int(follows(observation)[0, :LINES].argmax()) == 34
    lines = []
    while len(lines) < 4:
        lines.append(int(stays(observation)[0, :LINES].argmax()))
        observation["acquired"][0, lines[-1]] = 1
    assert sorted(lines) == [29, 30, 34, 35]
    assert float(stays.weights[FEATURES.index("off_dc")]) == -3
    with pytest.raises(SeggymError, match="start names off_axis, expected some of adjacent"):
        EchoExtractor(space(), start={"off_axis": 1.0})


def trained(space):
    """An extractor with weights as large as training finds them."""
    extractor = EchoExtractor(space)
    with torch.no_grad():
        extractor.weights.copy_(3 * torch.randn(len(FEATURES), generator=torch.Generator().manual_seed(2)))
    return extractor


def test_mirrored_scans_get_mirrored_scores():
    extractor = trained(space("corrupted"))
    # A width is even: line 0 has no mirror image, and the distance from the edge has a half of a line to spare.
    with torch.no_grad():
        extractor.weights[FEATURES.index("inner")] = 0
    right = extractor(seen([30, 31, 32, 33, 35], [1.0, 2.0, 3.0, 1.5, 0.4], [31]))[0, :LINES]
    left = extractor(seen([29, 31, 32, 33, 34], [0.4, 1.5, 3.0, 2.0, 1.0], [33]))[0, :LINES]
    lines = np.arange(10, 54)
    right, left = right[lines].detach().numpy(), left[LINES - lines].detach().numpy()
    # What is the best line, at 0, may be the one at the edge that has no mirror image.
    np.testing.assert_allclose(right - right.mean(), left - left.mean(), atol=1e-3)


def test_untrained_scores_follow_the_rule():
    torch.manual_seed(0)
    extractor = EchoExtractor(space("corrupted"))
    scores = extractor(seen([31, 32, 33, 34], [1.0, 2.0, 3.0, 2.0]))[0, :LINES]
    # The echo is right of the middle: of the lines that are not measured 35 is nearer than 30.
    assert int(scores.argmax()) == 35
    assert float(scores.detach().max()) == 0
    order = scores.argsort(descending=True).tolist()
    assert order[:4] == [35, 30, 36, 29]
    flagged = extractor(seen([31, 32, 33, 34], [1.0, 2.0, 3.0, 2.0], corrupted=[32]))[0, :LINES]
    assert int(flagged.argmax()) == 32


def test_scores_move_with_the_echo():
    """Away from the edges a shift of the spectrum shifts the scores, but for what is told from DC or the edge."""
    extractor = trained(space("corrupted"))
    with torch.no_grad():
        extractor.weights[[FEATURES.index("inner"), FEATURES.index("off_dc")]] = 0
    amplitudes = [0.5, 2.0, 3.0, 1.0, 0.2]
    scores = [extractor(seen(range(start, start + 5), amplitudes, [start + 1]))[0, :LINES] for start in (24, 31)]
    np.testing.assert_allclose(scores[0][14:44].detach().numpy(), scores[1][21:51].detach().numpy(), atol=1e-3)


def test_features_of_a_scan_counted_by_hand():
    lines, amplitudes = [30, 31, 32, 33], [1.0, 3.0, 3.0, 1.0]
    observation = seen(lines, amplitudes, corrupted=[33])
    echo = echo_position(observation["acquired"], observation["energy"])
    assert float(echo) == pytest.approx(31.5)
    rule, features = line_features(*(observation[name] for name in ("acquired", "energy", "corrupted")), echo)
    feature = dict(zip(FEATURES, features[0], strict=True))
    assert float(rule[0, 40]) == pytest.approx(-8.5 / LINES)
    assert float(rule[0, 31]) == pytest.approx(-2 - 0.5 / LINES)
    assert float(feature["adjacent"][34]) == 0  # 33 is corrupted, 35 is not measured
    assert float(feature["adjacent"][29]) == pytest.approx(0.05 / 2)
    assert float(feature["dense"][33]) == pytest.approx(0.05 * (1 + 0.5 + 0.25) / 3.5)  # 32, 31 and 30
    covered = np.tanh((30 + 31 + 32 - 3 * 31.5) / 3 / 3)
    assert float(feature["covered_side"][40]) == pytest.approx(0.01 * covered, abs=1e-6)
    assert float(feature["covered_side_far"][23]) == pytest.approx(-0.5 * covered * 8.5 / LINES, abs=1e-6)
    assert float(feature["strong_side"][40]) == pytest.approx(0, abs=1e-6)  # as much on either side
    assert float(feature["off_dc"][40]) == pytest.approx(8 / LINES)
    assert float(feature["corrupted"][33]) == pytest.approx(0.03)
    assert float(feature["corrupted"].sum()) < 0.031
    assert float(feature["mirrored"][33]) == pytest.approx(0.03)
    assert float(feature["mirrored"][34]) == 0
    assert all(float(row[31]) == 0 for row in feature.values())  # nothing is added to what is measured well


def test_parts_that_it_cannot_do_without():
    with pytest.raises(SeggymError, match="needs energy among the parts"):
        EchoExtractor(spaces.Dict({name: part for name, part in space().items() if name != "energy"}))


def test_without_flags_measured_lines_are_left_alone():
    scores = EchoExtractor(space())(seen([31, 32, 33], [1.0, 3.0, 1.0]))[0, :LINES]
    assert sorted(scores.argsort().tolist()[:3]) == [31, 32, 33]
    assert int(scores.argmax()) in (30, 34)


def test_what_is_measured_well_is_last_whatever_the_weights():
    """Far lines are far below the corrupted one with such weights, and still above what is good."""
    extractor = EchoExtractor(space("corrupted"), start={"off_dc": -20.0})
    observation = seen([31, 32, 33], [1.0, 3.0, 1.0], [33])
    scores = extractor(observation)[0, :LINES]
    assert sorted(scores.argsort().tolist()[:2]) == [31, 32]
    assert int(scores.argsort()[2]) == 0
    observation["acquired"].fill_(1)
    assert bool(extractor(observation)[0, :LINES].isfinite().all())
