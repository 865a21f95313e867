"""Episodes over volumes: what is scored, what is legal, and that slices are scans of the 2-D engine."""

import dataclasses

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from volume_episodes import DEPTHS, MODES, begin, legal_action, prediction_of, rows_of

from seggym.envs.kspace.engine import Episodes
from seggym.errors import SeggymError

# --- quality and reward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", MODES)
def test_quality_is_the_soft_dice_of_the_volume(make_volumes, stack, slices):
    """By hand, in numpy: sums over all voxels, mean over the classes of the volume, less what absent ones are given."""
    engine = make_volumes(4, slices=slices)
    begin(engine, [0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        engine.step(legal_action(engine, generator))
    for env, volume in enumerate(engine.episode_names):
        rows = rows_of(stack, volume)
        probabilities = prediction_of(engine, env, len(rows)).numpy()
        labels = stack.labels[rows].numpy()
        scores, absent = [], 0.0
        for label in (1, 2, 3):
            predicted, true = probabilities[:, label], labels == label
            if true.any():
                scores.append((2 * predicted[true].sum() + 1) / (predicted.sum() + true.sum() + 1))
            else:
                absent += predicted.sum()
        expected = np.mean(scores or [0]) - 10 * absent / labels.size
        assert engine.quality[env].item() == pytest.approx(expected, abs=1e-6)


def test_a_class_that_the_volume_lacks_costs_its_share_of_the_volume(make_volumes, stack):
    """Class 2 is taken out of the first volume."""
    labels = stack.labels.clone()
    rows = rows_of(stack, "patient001_frame01")
    labels[rows] = torch.where(labels[rows] == 2, 0, labels[rows])
    engine = make_volumes(1)
    engine.slices.stack = dataclasses.replace(stack, labels=labels)
    begin(engine, [0])
    probabilities = prediction_of(engine, 0, len(rows))
    dice = []
    for label in (1, 3):
        true = labels[rows] == label
        predicted = probabilities[:, label]
        dice.append((2 * predicted[true].sum() + 1) / (predicted.sum() + true.sum() + 1))
    expected = torch.stack(dice).mean() - 10 * probabilities[:, 2].sum() / labels[rows].numel()
    assert engine.quality[0].item() == pytest.approx(expected.item(), abs=1e-6)
    assert engine.dice()[0][0].isnan().tolist() == [False, True, False]
    assert engine.dice()[1][0, 1] == (probabilities.argmax(1) == 2).sum()


def test_hard_dice_is_that_of_monai(make_volumes, stack):
    engine = make_volumes(4)
    begin(engine, [0, 1, 2, 3])
    engine.step(torch.tensor([20, 21, 26, 27]))
    for env, volume in enumerate(engine.episode_names):
        rows = rows_of(stack, volume)
        found = prediction_of(engine, env, len(rows)).argmax(1)
        classes = torch.arange(1, 4).view(1, -1, 1, 1, 1)
        reference = compute_dice(found[None, None] == classes, stack.labels[rows][None, None] == classes)[0]
        torch.testing.assert_close(engine.dice()[0][env].float(), reference.float(), equal_nan=True)


@pytest.mark.parametrize("objective", ["final", "area"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("slices", MODES)
def test_rewards_telescope(make_volumes, slices, pair, objective):
    engine = make_volumes(2, slices=slices, pair=pair, objective=objective, budget=6)
    begin(engine, [0, 1], budget=6)
    generator = torch.Generator().manual_seed(1)
    total, curve = torch.zeros(2, dtype=torch.float64), []
    for step in range(6):
        result = engine.step(legal_action(engine, generator))
        total += result.parts["quality"]
        curve.append(engine.quality.clone())
        assert result.terminated.all() == (step == 5)
    reached = curve[-1] if objective == "final" else torch.stack(curve).mean(0)
    torch.testing.assert_close(total, reached - engine.initial_quality)
    assert total.abs().min() > 1e-6


def test_a_pair_is_the_mean_of_its_volumes(make_volumes, stack):
    """The same keys give the end-diastolic slices the same scans alone and in the pair."""
    pair, alone = make_volumes(2, pair=True), make_volumes(2)
    begin(pair, [0, 1], keys=[5, 6])
    begin(alone, [0, 2], keys=[5, 6])
    pair.step(torch.tensor([20, 27])), alone.step(torch.tensor([20, 27]))
    first = [prediction_of(pair, env, depth[0]) for env, depth in enumerate(DEPTHS.values())]
    assert all(torch.equal(a, prediction_of(alone, env, len(a))) for env, a in enumerate(first))
    # End-systole alone, from the images that the pair has of it.
    for env, (patient, depths) in enumerate(DEPTHS.items()):
        whole = prediction_of(pair, env, sum(depths))[depths[0] :]
        labels = stack.labels[rows_of(stack, f"{patient}_frame09")]
        dice = []
        for label in (1, 2, 3):
            true = labels == label
            assert true.any()
            predicted = whole[:, label]
            dice.append((2 * predicted[true].sum() + 1) / (predicted.sum() + true.sum() + 1))
        expected = (alone.quality[env] + torch.stack(dice).mean()) / 2
        torch.testing.assert_close(pair.quality[env], expected.double())


# --- scans ----------------------------------------------------------------------------------------------------------


def test_shared_is_the_2d_engine_with_the_same_line_in_every_slice(make_volumes, make_engine, stack):
    engine = make_volumes(2, max_slices=5)
    begin(engine, [0, 3], keys=[11, 12])
    keys = engine.slice_keys(torch.tensor([11, 12]))
    rows = rows_of(stack, "patient001_frame01") + rows_of(stack, "patient002_frame09")
    slots = [0, 1, 2, 5, 6, 7, 8]
    scans = make_engine(len(rows), stack=stack, budget=9)
    own = torch.cat([keys[0, :3], keys[1, :4]])
    assert len(set(own.tolist())) == 7
    scans.begin(torch.arange(7), Episodes(torch.tensor(rows), torch.full((7,), 9), own))
    for line in (21, 30, 22, 40):
        engine.step(torch.tensor([line, line + 1]))
        scans.step(torch.tensor([line] * 3 + [line + 1] * 4))
        assert torch.equal(engine.slices.magnitude[slots], scans.magnitude)
        assert torch.equal(engine.segmentation.labels[slots], scans.segmentation.labels)
    # One volume, one amplitude of the phase: it is the patient's.
    assert engine.stack.phase_amplitude is scans.stack.phase_amplitude


def test_every_slice_is_scored_by_its_own_network(make_volumes, stack):
    """Cross-fitting: patient002 is routed to a network that finds nothing."""
    engine = make_volumes(2)

    class Blind:
        num_outputs, num_features = 4, 2

        def __call__(self, magnitude):
            found = engine.networks[0](magnitude)
            nothing = torch.zeros_like(found.probabilities)
            nothing[:, 0] = 1
            return found._replace(probabilities=nothing)

    engine.slices.networks = [engine.networks[0], Blind()]
    engine.slices.routing = torch.tensor([int(patient == "patient002") for patient in stack.patients])
    begin(engine, [0, 2])
    engine.step(torch.tensor([20, 20]))
    assert engine.segmentation.labels[:3].any()
    assert not engine.segmentation.labels[4:8].any()
    assert engine.dice()[0][1].max() == 0


@pytest.mark.parametrize("slices", MODES)
def test_slots_without_a_slice_influence_nothing(make_volumes, slices):
    """More of them change nothing, nor does what a deeper volume left there, nor what is not a number."""
    lean, wide = make_volumes(1, slices=slices, max_slices=4), make_volumes(1, slices=slices, max_slices=7)
    begin(lean, [1])
    begin(wide, [2], keys=[99])
    wide.step(torch.tensor([20]))
    begin(wide, [1])
    wide.slices.segmentation.overlap[2:] = torch.nan
    wide.slices.scanner.magnitude[2:] = torch.nan
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        action = legal_action(lean, generator)
        one, two = lean.step(action), wide.step(action)
        assert torch.equal(one.parts["quality"], two.parts["quality"])
        assert torch.equal(one.terminated, two.terminated)
        assert torch.equal(wide.dice()[0], lean.dice()[0])
        seen, more = lean.observe(), wide.observe()
        for part in seen:
            if part == "budget" and slices != "shared":
                assert more[part] == pytest.approx(seen[part] * 4 / 7)
            elif part == "images":
                assert torch.equal(more[part][:, :4], seen[part])
                assert not more[part][:, 4:].any()
            else:
                length = seen[part].shape[1]
                assert torch.equal(more[part][:, :length], seen[part]), part
                assert not more[part][:, length:].any(), part
    assert not wide.lines_per_slice()[0, 2:].any()


# --- actions --------------------------------------------------------------------------------------------------------


def test_allocate_offers_the_unmeasured_lines_of_real_slices(make_volumes):
    engine = make_volumes(2, slices="allocate", candidates=[10, 40])
    begin(engine, [0, 1])  # 3 and 2 slices in 4 slots
    expected = torch.zeros(2, 4, 48, dtype=torch.bool)
    expected[0, :3, 10:41] = expected[1, :2, 10:41] = True
    expected[:, :, 23:26] = False
    assert torch.equal(engine.action_mask(), expected.flatten(1))
    before = engine.slices.acquired.clone()
    engine.step(torch.tensor([2 * 48 + 12, 48 + 30]))
    expected[0, 2, 12] = expected[1, 1, 30] = False
    assert torch.equal(engine.action_mask(), expected.flatten(1))
    changed = (engine.slices.acquired & ~before).nonzero().tolist()
    assert changed == [[2, 12], [5, 30]]
    assert engine.lines_per_slice().tolist() == [[3, 3, 4, 0], [3, 4, 0, 0]]


@pytest.mark.parametrize("action", [48 * 2 + 20, 24, 48 * 4, -1])
def test_an_illegal_action_uses_budget_and_gains_nothing(make_volumes, action):
    """A slot without a slice, a measured line, and numbers that are no actions."""
    engine = make_volumes(1, slices="allocate", illegal_action="penalty")
    begin(engine, [1], budget=2)
    before = engine.quality.clone()
    result = engine.step(torch.tensor([action]))
    assert result.illegal.all()
    assert torch.equal(engine.quality, before)
    assert [result.parts[name].item() for name in ("quality", "illegal")] == [0, -0.01]
    assert engine.remaining.item() == 1
    strict = make_volumes(1, slices="allocate", illegal_action="raise")
    begin(strict, [1], budget=2)
    with pytest.raises(SeggymError, match="belongs to no slice"):
        strict.step(torch.tensor([action]))


def test_sequential_gives_every_slice_its_share(make_volumes):
    engine = make_volumes(2, slices="sequential", budget=7)
    begin(engine, [0, 2], budget=7)  # 3 and 4 slices: 3 + 2 + 2 and 2 + 2 + 2 + 1 lines
    order = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        order.append(engine.current().tolist())
        result = engine.step(legal_action(engine, generator))
    assert result.terminated.all()
    first, second = zip(*order, strict=True)
    assert (first, second) == ((0, 0, 0, 1, 1, 2, 2), (0, 0, 1, 1, 2, 2, 3))
    assert engine.lines_per_slice().tolist() == [[6, 5, 5, 0], [5, 5, 5, 4]]


def test_a_slice_without_candidates_is_left(make_volumes):
    """Two lines may be measured in each slice, more than that is owed: the episode ends when nothing is left."""
    engine = make_volumes(1, slices="sequential", candidates=[10, 11], budget=8)
    begin(engine, [1], budget=8)
    seen = []
    for _ in range(4):
        seen.append(engine.current().item())
        result = engine.step(engine.action_mask().byte().argmax(1))
    assert (seen, result.terminated.item(), engine.remaining.item()) == ([0, 0, 1, 1], True, 4)


# --- function -------------------------------------------------------------------------------------------------------


def test_ejection_fraction_by_hand(make_volumes, stack):
    engine = make_volumes(2, pair=True)
    begin(engine, [0, 1])
    engine.step(torch.tensor([20, 27]))
    predicted, true = engine.ejection_fractions()
    for env, (patient, depths) in enumerate(DEPTHS.items()):
        found = prediction_of(engine, env, sum(depths)).argmax(1) == 3
        volumes = [found[: depths[0]].sum().item(), found[depths[0] :].sum().item()]
        assert predicted[env].item() == pytest.approx(100 * (volumes[0] - volumes[1]) / volumes[0])
        truth = [
            (stack.labels[rows_of(stack, f"{patient}_{frame}")] == 3).sum().item() for frame in ("frame01", "frame09")
        ]
        assert true[env].item() == pytest.approx(100 * (truth[0] - truth[1]) / truth[0])
