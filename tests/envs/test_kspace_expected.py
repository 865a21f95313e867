"""The reward without labels: what an error net expects of a prediction, beside or instead of the quality."""

import json

import pytest
import torch
from synthetic_scanner import SMALL_SCAN, StubNetwork, synthetic_stack

from seggym.agents.validation import validate
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.expected import ExpectedDice, load_expected_dice
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.errors import SeggymError
from seggym.reward_models.error_net import ErrorNet, expected_dice

CLASSES = ("background", "one", "two", "three")
COUNT = 5


def brightness(images, masks):
    """A reward map that needs no labels: how bright a pixel is."""
    return images[:, 0] / images.amax((1, 2, 3))[:, None, None]


def engine_with(stack_labels=None, expected=True, **settings):
    settings = KSpaceSettings(
        "phantom",
        acquisition=SMALL_SCAN,
        reward_model="stub",
        **({"lambda_error": 2.0, "error_net": "stub"} if expected else {}),
        **settings,
    )
    stack = synthetic_stack(settings.scan)
    if stack_labels is not None:
        stack.labels[:] = stack_labels(stack.labels)
    return KSpaceEngine(
        stack,
        settings,
        COUNT,
        networks=[StubNetwork()],
        expected=ExpectedDice(brightness) if expected else None,
        dtype=torch.float64,
    )


def play(engine, lines=5):
    """Parts of the rewards, each (steps, COUNT), and the expectation after every step."""
    engine.begin(torch.arange(COUNT), engine.draw(torch.arange(10, 10 + COUNT)))
    parts, levels = [], [engine.expectation.clone()]
    for _ in range(lines):
        result = engine.step(engine.action_mask().double().argmax(1))
        parts.append(result.parts)
        levels.append(engine.expectation.clone())
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}, torch.stack(levels)


@pytest.mark.parametrize("lambda_seg", [0.0, 1.0])
def test_validation_measures_what_is_rewarded(lambda_seg):
    engine = engine_with(lambda_seg=lambda_seg)
    parts, expected = play(engine)
    assert (engine.rewarded - engine.initial_quality - 2 * expected[0]).allclose(sum(parts.values()).sum(0))
    engine.begin(torch.arange(COUNT), engine.draw(torch.arange(10, 10 + COUNT)))
    episodes = Episodes(engine.samples.clone(), torch.full((COUNT,), 5), engine.keys.clone())
    levels = []

    def choose(seen, legal):
        levels.append(engine.quality + 2 * engine.expectation)
        return legal.double().argmax(1)

    found = validate(engine, episodes, choose)
    levels.append(engine.quality + 2 * engine.expectation)
    assert found["mean_quality"] == pytest.approx(float(torch.stack(levels[1:]).mean()))
    assert found["quality"] == pytest.approx(float(levels[-1].mean()))
    assert found["quality"] > 2 * float(expected[-1].mean()) - 1e-9 > 0


def test_expected_dice_by_hand():
    """An oracle expects the true Dice where wrong labels are background or foreground; certainty of nothing is 0."""
    truths = torch.zeros(2, 12, 12, dtype=torch.uint8)
    truths[:, 3:9, 3:9] = 1
    masks = truths.roll((2, 1), (1, 2))
    oracle = (masks == truths).float()
    shared = ((masks > 0) & (truths > 0)).sum((1, 2))
    assert torch.allclose(expected_dice(oracle, masks), 2 * shared / (36 + 36))
    assert expected_dice(torch.ones(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)).tolist() == [0]
    half = expected_dice(torch.full((1, 2, 2), 0.5), torch.ones(1, 2, 2))
    assert half.item() == pytest.approx(2 * 2 / (4 + 2))


def test_the_part_telescopes_beside_the_quality():
    parts, levels = play(engine_with(budget=5))
    gains = 2.0 * levels.diff(dim=0)
    assert torch.allclose(parts["error_net"], gains)
    assert gains.abs().max() > 1e-3
    plain, _ = play(engine_with(expected=False, budget=5))
    assert torch.equal(parts["quality"], plain["quality"])
    assert set(plain) == {"quality"}


def test_a_terminal_reward_is_the_whole_gain():
    parts, levels = play(engine_with(budget=5, reward="terminal"))
    assert not parts["error_net"][:-1].any()
    dense, _ = play(engine_with(budget=5))
    assert torch.allclose(parts["error_net"][-1], dense["error_net"].sum(0))
    assert torch.allclose(levels[-1] - levels[0], parts["error_net"][-1] / 2)


def test_alone_it_is_bit_identical_whatever_the_labels():
    """No leak: lambda_seg=0 leaves nothing of the labels in the reward."""
    own, _ = play(engine_with(budget=5, lambda_seg=0.0))
    other, _ = play(engine_with(lambda labels: labels.flip(0, 1), budget=5, lambda_seg=0.0))
    assert torch.equal(own["error_net"], other["error_net"])
    assert not own["quality"].any()
    assert not other["quality"].any()


def test_resume_goes_on_exactly():
    first, second = engine_with(budget=6), engine_with(budget=6)
    play(first, 3)
    second.load_state_dict(first.state_dict())
    actions = first.action_mask().double().argmax(1)
    results = [engine.step(actions) for engine in (first, second)]
    for name, values in results[0].parts.items():
        assert torch.equal(values, results[1].parts[name])
    plain = engine_with(expected=False, budget=6)
    assert "expectation" not in plain.state_dict()


def net_in(folder, labelled, names=CLASSES, cohort="phantom"):
    net = ErrorNet(names, (4, 8))
    net.patients = net.labelled = labelled
    net.save(folder, cohort=cohort)
    return str(folder)


def test_an_error_net_is_opened_and_checked(tmp_path):
    def opened(folder, patients=("p1", "p2")):
        settings = KSpaceSettings("phantom", reward_model="phantom", lambda_error=1.0, error_net=folder)
        return load_expected_dice(settings, CLASSES, patients, torch.device("cpu"))

    good = opened(net_in(tmp_path / "good", ("p7",)))
    found = good(torch.rand(3, 16, 16, dtype=torch.float64), torch.ones(3, 16, 16, dtype=torch.uint8))
    assert found.dtype == torch.float64
    assert found.shape == (3,)
    assert opened(net_in(tmp_path / "foreign", ("p1",), cohort="camus")) is not None
    with pytest.raises(SeggymError, match="trained on labels of p1"):
        opened(net_in(tmp_path / "seen", ("p1",)))
    with pytest.raises(SeggymError, match="knows 2 classes"):
        opened(net_in(tmp_path / "two", (), ("background", "heart")))
    with pytest.raises(SeggymError, match="does not exist"):
        opened(str(tmp_path / "nothing"))


def test_settings_belong_together():
    json.dumps(KSpaceSettings("phantom", reward_model="phantom", lambda_error=1.0, error_net="here").error_net)
    for wrong in ({"lambda_error": 1.0}, {"error_net": "here"}):
        with pytest.raises(SeggymError, match="belong together"):
            KSpaceSettings("phantom", reward_model="phantom", **wrong)
    with pytest.raises(SeggymError, match="reward_model is missing"):
        KSpaceSettings("phantom", lambda_seg=0.0, lambda_error=1.0, error_net="here")
    with pytest.raises(SeggymError, match="one of them positive"):
        KSpaceSettings("phantom", lambda_seg=0.0)
    with pytest.raises(SeggymError, match=r"lambda_error=1\.0 is not offered"):
        VolumeSettings("phantom", reward_model="phantom", lambda_error=1.0, error_net="here")
