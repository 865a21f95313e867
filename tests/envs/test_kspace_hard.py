"""What a scanner meets: corrupted lines and their repetition, either axis, segments, time, rewards without labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_kspace_signal import centre, ifft_axis

from seggym.envs.kspace.engine import Episodes
from seggym.envs.kspace.environment import KSpaceVectorEnv
from seggym.envs.kspace.lookahead import try_lines
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition, prepare
from seggym.kspace.keyed_random import complex_normal, uniform

SCAN = {"matrix": 48, "crop": 32}
BEATS = {**SCAN, "corruption": 0.4}


def begin(engine, keys, budget=20):
    keys = torch.tensor(keys)
    episodes = Episodes(torch.arange(len(keys)) % len(engine.stack), torch.full_like(keys, budget), keys)
    engine.begin(torch.arange(engine.num_envs), episodes)


def direct(engine, slot, history):
    """The image (C, C) after the measurements ``history`` [(line, repetition)], from the definition, with NumPy."""
    scan, key = engine.acquisition, engine.keys[slot : slot + 1]
    sample = engine.samples[slot : slot + 1]
    clean = simulation.encode(engine.stack, sample, key, scan, torch.float64)[0, 0].numpy()
    sigma = float(engine.stack.signal[sample]) / scan.snr
    kept = np.zeros_like(clean)
    for line, repetition in history:
        number = repetition * scan.matrix**2 + np.arange(scan.matrix) * scan.matrix + line
        noise = sigma * complex_normal(key, simulation.NOISE_STREAM, torch.from_numpy(number))[0].numpy()
        measurement = torch.tensor([line + repetition * scan.matrix])
        corrupted, factor = simulation.corruption(key, measurement, scan)
        assert bool(corrupted) is (complex(factor) != 1)
        kept[:, line] = (clean[:, line] + noise) * complex(factor)
    image = np.abs(centre(ifft_axis(kept, 1), scan.crop))
    return image.T if bool(engine.scanner.transposed[slot]) else image


@pytest.mark.parametrize("axis", ["columns", "random"])
def test_measuring_again_equals_a_direct_transform_of_the_last_measurements(make_engine, axis):
    engine = make_engine(6, acquisition={**BEATS, "phase_encode": axis}, remeasure="any")
    begin(engine, [1, 2, 3, 4, 5, 6])
    repetition = [dict.fromkeys((23, 24, 25), 0) for _ in range(6)]
    rng = np.random.default_rng(0)
    for _ in range(12):
        lines = rng.integers(20, 29, 6)
        assert engine.action_mask()[range(6), lines].all()
        tried = engine.scanner.tried(torch.arange(6), torch.from_numpy(lines))
        engine.step(torch.from_numpy(lines))
        np.testing.assert_array_equal(tried.numpy(), engine.magnitude.numpy())
        for slot, line in enumerate(lines.tolist()):
            repetition[slot][line] = repetition[slot].get(line, -1) + 1
    assert max(max(counts.values()) for counts in repetition) >= 2
    if axis == "random":
        assert 0 < int(engine.scanner.transposed.sum()) < 6
    for slot in range(6):
        expected = direct(engine, slot, repetition[slot].items())
        np.testing.assert_allclose(engine.magnitude[slot].numpy(), expected, atol=1e-6 * expected.max())
        measured = engine.scanner.measured(slice(slot, slot + 1))[0, :, 0].numpy()
        image = np.abs(centre(ifft_axis(measured.T, 1), 32))
        np.testing.assert_allclose(
            image.T if bool(engine.scanner.transposed[slot]) else image, expected, atol=1e-6 * expected.max()
        )
        flags = {
            line: bool(
                simulation.corruption(engine.keys[[slot]], torch.tensor([line + 48 * count]), engine.acquisition)[0]
            )
            for line, count in repetition[slot].items()
        }
        assert set(engine.flagged[slot].nonzero()[:, 0].tolist()) == {line for line, bad in flags.items() if bad}


def test_corruption_has_its_rate_and_belongs_to_the_measurement():
    scan = Acquisition(**BEATS)
    keys = torch.arange(400)
    corrupted, factor = simulation.corruption(keys, torch.arange(480), scan)
    assert abs(corrupted.double().mean().item() - 0.4) < 0.005
    np.testing.assert_allclose(factor.abs().numpy(), 1, atol=1e-6)
    assert bool((factor[~corrupted] == 1).all())
    # Any angle is as likely as any other.
    assert abs(complex(factor[corrupted].mean())) < 0.01
    again, _ = simulation.corruption(keys[7:8], torch.tensor([[3, 300]]), scan)
    assert again[0].tolist() == corrupted[7, [3, 300]].tolist()


@pytest.mark.parametrize(("remeasure", "flagged"), [("never", True), ("flagged", True), ("any", True), ("any", False)])
def test_which_lines_may_be_measured_again(make_engine, remeasure, flagged):
    engine = make_engine(
        8, acquisition=BEATS, remeasure=remeasure, corruption_flagged=flagged, observation=["corrupted", "acquired"]
    )
    begin(engine, list(range(8)))
    for line in (20, 21, 26, 27):
        engine.step(torch.full((8,), line))
    acquired, known = engine.acquired, engine.observe()["corrupted"].bool()
    assert bool(known.any()) is flagged
    legal = engine.action_mask()
    assert bool(legal[~acquired].all())
    expected = {"never": torch.zeros_like(known), "flagged": known, "any": acquired}[remeasure]
    assert torch.equal(legal & acquired, expected)


def test_flags_need_to_be_known():
    with pytest.raises(SeggymError, match="needs corruption_flagged=true"):
        KSpaceSettings("acdc", reward_model="x", remeasure="flagged", corruption_flagged=False)


def test_a_batch_of_hard_scans_equals_single_ones(make_engine):
    options = {
        "acquisition": {**BEATS, "phase_encode": "random"},
        "remeasure": "any",
        "lines_per_step": 3,
        "observation": ["image_float", "acquired", "energy", "corrupted", "axis", "budget"],
    }
    keys, rng = [31, 32, 33, 34], np.random.default_rng(1)
    batch = make_engine(4, **options)
    singles = [make_engine(1, **options) for _ in keys]
    begin(batch, keys)
    for index, (engine, key) in enumerate(zip(singles, keys, strict=True)):
        engine.begin(torch.zeros(1, dtype=torch.int64), Episodes(*(torch.tensor([v]) for v in (index, 20, key))))
    for _ in range(5):
        actions = torch.from_numpy(rng.integers(15, 33, 4))
        results = batch.step(actions), [engine.step(actions[i : i + 1]) for i, engine in enumerate(singles)]
        seen = batch.observe()
        for slot, engine in enumerate(singles):
            assert torch.equal(results[0].parts["quality"][slot], results[1][slot].parts["quality"][0])
            for name, value in engine.observe().items():
                assert torch.equal(seen[name][slot], value[0]), name


def test_a_segment_holds_the_nearest_lines_and_ends_with_the_budget(make_engine):
    engine = make_engine(2, acquisition=SCAN, lines_per_step=4)
    begin(engine, [1, 2], budget=6)
    engine.step(torch.tensor([24, 30]))  # 24 is measured already, so the first action is illegal
    assert engine.acquired[0].sum() == 3
    assert engine.remaining.tolist() == [2, 2]
    # Two lines at the same distance: the higher index first.
    assert engine.acquired[1].nonzero()[:, 0].tolist() == [23, 24, 25, 29, 30, 31, 32]
    ended = engine.step(torch.tensor([27, 28])).terminated
    assert ended.tolist() == [True, True]
    assert engine.acquired[0].nonzero()[:, 0].tolist() == [23, 24, 25, 27, 28]
    assert engine.acquired[1].nonzero()[:, 0].tolist() == [23, 24, 25, 27, 28, 29, 30, 31, 32]
    assert engine.steps.tolist() == [6, 6]


def test_a_segment_repeats_the_line_that_was_chosen_and_no_other_good_one(make_engine):
    engine = make_engine(1, acquisition=SCAN, lines_per_step=3, remeasure="any")
    begin(engine, [1])
    engine.step(torch.tensor([24]))
    assert engine.acquired[0].nonzero()[:, 0].tolist() == [22, 23, 24, 25, 26]
    assert engine.scanner.attempts[0, 22:27].tolist() == [1, 1, 2, 1, 1]


@pytest.mark.parametrize("objective", ["final", "area"])
def test_segments_and_the_choice_of_the_axis_telescope(make_engine, objective):
    engine = make_engine(3, acquisition=BEATS, lines_per_step=2, choose_axis=True, objective=objective)
    begin(engine, [4, 5, 6], budget=5)
    start, total, curve = engine.initial_quality.clone(), 0.0, []
    for action in (engine.axis_index + 1, 20, 27, 30):
        total = total + engine.step(torch.full((3,), action)).parts["quality"]
        curve.append(engine.quality.clone())
    # One line of the first segment short of its end: the quality of the image before it.
    after = [curve[0], curve[1], curve[1], curve[2], curve[3]]
    expected = curve[-1] - start if objective == "final" else torch.stack([*after]).mean(0) - start
    np.testing.assert_allclose(total.numpy(), expected.numpy(), atol=1e-12)


def test_the_axis_is_the_first_choice_and_costs_no_budget(make_engine):
    engine = make_engine(4, acquisition=SCAN, choose_axis=True, stop_action=True, observation=["axis", "image_float"])
    begin(engine, [1, 2, 3, 4])
    assert engine.num_actions == 48 + 1 + 2
    legal = engine.action_mask()
    assert legal[0].nonzero()[:, 0].tolist() == [49, 50]
    engine.step(torch.tensor([49, 50, 50, 49]))
    assert engine.remaining.tolist() == [20, 20, 20, 20]
    assert engine.observe()["axis"][:, 0].tolist() == [0, 1, 1, 0]
    assert not bool(engine.action_mask()[:, 49:].any())
    assert bool(engine.action_mask()[:, 48].all())
    # The same scan with rows from the start.
    rows = make_engine(4, acquisition=SCAN, choose_axis=True)
    begin(rows, [1, 2, 3, 4])
    rows.scanner.turn(torch.tensor([1, 2]))
    assert torch.equal(rows.magnitude, engine.magnitude)


def test_rows_see_the_transposed_object(make_engine):
    engine = make_engine(1, acquisition={**SCAN, "snr": None, "phase": [0.0, 0.0], "echo_shift": 0.0}, choose_axis=True)
    begin(engine, [9])
    columns = engine.magnitude[0].clone()
    assert not torch.allclose(engine.magnitude[0], columns.T, atol=1e-3)
    engine.stack.images.copy_(engine.stack.images.mT.clone())
    begin(engine, [9])
    turned = engine.magnitude[0].clone()
    engine.stack.images.copy_(engine.stack.images.mT.clone())
    begin(engine, [9])
    engine.scanner.turn(torch.tensor([0]))
    np.testing.assert_allclose(engine.magnitude[0].numpy(), turned.T.numpy(), atol=1e-12)


def test_time_is_told_and_costs(make_engine):
    times = {"line_time": 3.0, "latency": 20.0, "time_cost": 0.5}
    env = KSpaceVectorEnv(1, engine=make_engine(1, acquisition=SCAN, lines_per_step=3, **times))
    _, info = env.reset(options={"episodes": [{"sample": 0, "budget": 7, "key": 1}]})
    assert info["time"][0] == 0
    for line, expected in ((30, 29.0), (20, 58.0), (10, 81.0)):
        _, reward, _, _, info = env.step([line])
        assert info["time"][0] == pytest.approx(expected)
        parts = {name: float(value[0]) for name, value in info["reward_parts"].items()}
        assert parts["time"] == pytest.approx(-0.0005 * (29.0 if line != 10 else 23.0))
        assert reward[0] == pytest.approx(parts["quality"] + parts["time"])
    assert info["measurements"][0] == 7


def test_a_reward_without_labels_compares_with_the_prediction_at_full_kspace(make_engine):
    engine = make_engine(3, acquisition=SCAN, reward_reference="full_prediction")
    begin(engine, [1, 2, 3])
    labels = engine.networks[0](engine.scanner.full(torch.arange(3))).probabilities.argmax(1)
    kept = engine.stack.labels.clone()
    engine.stack.labels.copy_(torch.randint_like(kept, 4))
    begin(engine, [1, 2, 3])
    blind = engine.quality.clone()
    supervised = make_engine(3, acquisition=SCAN)
    supervised.stack.labels[:3] = labels.to(torch.uint8)
    begin(supervised, [1, 2, 3])
    assert torch.equal(blind, supervised.quality)


def test_looking_ahead_at_a_second_measurement(make_engine):
    engine = make_engine(2, acquisition=BEATS, remeasure="any")
    begin(engine, [1, 2])
    seen = try_lines(engine, torch.tensor([0, 1]), torch.tensor([24, 30]))
    engine.step(torch.tensor([24, 30]))
    np.testing.assert_allclose(seen.numpy(), engine.quality.numpy(), atol=1e-12)


class Bar:
    """A volume of one slice: a bright bar along the columns in a dark field, labelled."""

    patient, name, spacing, kspace = "patient001", "patient001_frame01", (10.0, 1.0, 1.0), None

    def __init__(self):
        self.image = np.full((1, 80, 80), 10.0, np.float32)
        self.label = np.zeros((1, 80, 80), np.uint8)
        self.image[:, 20:60, 36:44], self.label[:, 20:60, 36:44] = 200.0, 1


def test_orientation_and_field_of_view_move_image_and_labels_alike():
    plain = {"matrix": 80, "crop": 80, "phase": (0.0, 0.0), "echo_shift": 0.0, "snr": None}
    stack = prepare([Bar()], Acquisition(**plain, orientation=90.0, field_of_view=(1.3, 1.6)), 2)
    straight = prepare([Bar()], Acquisition(**plain), 2)
    wider = float(stack.spacing[0, 1] / straight.spacing[0, 1])
    assert 1.3 <= wider <= 1.6
    # The area of the label shrinks with the square of the field of view, which spacing makes up for.
    assert float(stack.labels.sum()) * wider**2 == pytest.approx(float(straight.labels.sum()), rel=0.1)
    still = Acquisition(**plain)
    measured = simulation.encode(stack, torch.tensor([0]), torch.tensor([1]), still, torch.float64)
    bright = simulation.zero_filled(measured, None, still)[0] > 105
    label = stack.labels[0].bool()
    assert float(2 * (bright & label).sum() / (bright.sum() + label.sum())) > 0.9
    # The bar is tilted: its rows and columns are correlated.
    assert abs(np.corrcoef(label.nonzero().T.numpy())[0, 1]) > 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase_encode": "both"},
        {"corruption": 1.0},
        {"corruption": -0.1},
        {"orientation": 200.0},
        {"echo_shift": -1.0},
        {"field_of_view": (0.8, 1.0)},
        {"field_of_view": (1.2, 1.1)},
    ],
)
def test_what_a_protocol_cannot_be(wrong):
    with pytest.raises(SeggymError, match=next(iter(wrong))):
        Acquisition(**wrong)


def test_augmented_scans_are_patients_with_phase_and_shift_of_their_own(make_engine):
    """An augmented scan is a plain one of a patient whose phase amplitude and echo shift are those of the episode."""
    scan = {**SCAN, "echo_shift": 6.0, "phase": [0.5, 3.0]}
    plain, augmented = make_engine(40, acquisition=scan), make_engine(40, acquisition=scan, augment=True)
    begin(augmented, list(range(40)))
    drawn = uniform(torch.arange(40), simulation.PATIENT_STREAM, 2)
    amplitude, shift = 0.5 + 2.5 * drawn[:, 0], 12 * drawn[:, 1] - 6
    assert float(shift.min()) < -4
    assert float(shift.max()) > 4
    for slot in range(5):
        own = torch.full((len(plain.stack),), 1.0)
        plain.scanner.stack = replace(plain.stack, phase_amplitude=own * amplitude[slot], echo_shift=own * shift[slot])
        begin(plain, list(range(40)))
        assert torch.equal(plain.scanner.signal[slot], augmented.scanner.signal[slot])
        torch.testing.assert_close(
            plain.scanner.noise_free(slice(slot, slot + 1)), augmented.scanner.noise_free(slice(slot, slot + 1))
        )
    # All energy is measured of: its centre moves with the shift, whoever the patient is.
    line = torch.arange(48)
    energy = augmented.scanner.energy
    centres = (energy * line).sum(1) / energy.sum(1)
    assert np.corrcoef(centres.numpy(), shift.numpy())[0, 1] > 0.8
