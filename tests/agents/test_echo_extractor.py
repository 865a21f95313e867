"""Scores in coordinates centred on the echo: the rule at the start, and what it is built on."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seggym.agents.echo_extractor import EchoExtractor, echo_position
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


def test_mirrored_scans_get_mirrored_scores():
    torch.manual_seed(2)
    extractor = EchoExtractor(space("corrupted"))
    torch.nn.init.normal_(extractor.score[-1].weight)
    right = extractor(seen([30, 31, 32, 33], [1.0, 2.0, 3.0, 1.5], [31]))[0, :LINES]
    left = extractor(seen([31, 32, 33, 34], [1.5, 3.0, 2.0, 1.0], [33]))[0, :LINES]
    lines = np.arange(10, 54)
    np.testing.assert_allclose(right[lines].detach().numpy(), left[LINES - lines].detach().numpy(), atol=1e-4)


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
    """Away from the edges a shift of the spectrum shifts the scores; the position of the echo itself is context."""
    torch.manual_seed(1)
    extractor = EchoExtractor(space("corrupted"))
    torch.nn.init.normal_(extractor.score[-1].weight)
    torch.nn.init.zeros_(extractor.shared.weight)
    amplitudes = [0.5, 2.0, 3.0, 1.0, 0.2]
    scores = [extractor(seen(range(start, start + 5), amplitudes, [start + 1]))[0, :LINES] for start in (24, 31)]
    np.testing.assert_allclose(scores[0][14:44].detach().numpy(), scores[1][21:51].detach().numpy(), atol=1e-4)


def test_parts_that_it_cannot_do_without():
    with pytest.raises(SeggymError, match="needs energy among the parts"):
        EchoExtractor(spaces.Dict({name: part for name, part in space().items() if name != "energy"}))


def test_without_flags_measured_lines_are_left_alone():
    scores = EchoExtractor(space())(seen([31, 32, 33], [1.0, 3.0, 1.0]))[0, :LINES]
    assert sorted(scores.argsort().tolist()[:3]) == [31, 32, 33]
    assert int(scores.argmax()) in (30, 34)
