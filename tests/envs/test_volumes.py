"""Episodes over volumes: what is scored, what is legal, and that slices are scans of the 2-D engine."""

import dataclasses
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from monai.metrics import compute_dice

from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.envs.kspace.volumes.environment import KSpaceVolumeEnv, KSpaceVolumeVectorEnv
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.kspace.volumes.table import paired_volumes, single_volumes
from seggym.errors import SeggymError
from seggym.testing import check_seg_env

SCAN = {"matrix": 48, "crop": 32}
# Patients with an end-diastolic and an end-systolic volume each: slices of both.
DEPTHS = {"patient001": (3, 2), "patient002": (4, 4)}
PHASES = {f"{patient}_{frame}": phase for patient in DEPTHS for frame, phase in (("frame01", "ED"), ("frame09", "ES"))}
ALL_PARTS = (
    *("acquired", "energy", "budget", "slices", "slice_probabilities", "probability_grid", "images", "action_mask"),
)
MODES = ("shared", "sequential", "allocate")


@pytest.fixture(scope="session")
def stack(make_stack):
    """The synthetic slices as four volumes of two patients; one slice has no label."""
    members = [
        (patient, f"{patient}_{frame}", z)
        for patient, depths in DEPTHS.items()
        for frame, depth in zip(("frame01", "frame09"), depths, strict=True)
        for z in range(depth)
    ]
    patients, volumes, positions = zip(*members, strict=True)
    settings = VolumeSettings(cohort="acdc", reward_model="stub", acquisition=SCAN)
    made = make_stack(settings.scan, len(members))
    spacing = torch.tensor([10.0, 1.5, 1.5]).repeat(len(members), 1)
    return dataclasses.replace(made, patients=patients, volumes=volumes, positions=positions, spacing=spacing)


@pytest.fixture(scope="session")
def make_volumes(make_engine, stack):
    """``make_volumes(num_envs, network=, **settings)``: an engine on those volumes."""

    def make(num_envs=1, network=None, **options):
        chosen = {"slices": "shared", "max_slices": 4, "budget": 5, "observation": ALL_PARTS, **options}
        settings = VolumeSettings(cohort="acdc", reward_model="stub", acquisition=SCAN, **chosen)
        scans = make_engine(num_envs * settings.slots, network=network, stack=stack, **vars(settings.slice_settings))
        if settings.pair:
            table = paired_volumes(stack, settings.max_slices, PHASES)
        else:
            table = single_volumes(stack, settings.max_slices)
        return VolumeEngine(scans, settings, table, num_envs, left_ventricle=3)

    return make


def begin(engine, samples, budget=5, keys=None):
    count = len(samples)
    keys = torch.arange(count) + 17 if keys is None else torch.tensor(keys)
    engine.begin(torch.arange(count), Episodes(torch.tensor(samples), torch.full((count,), budget), keys))


def legal_action(engine, generator):
    scores = torch.rand(engine.num_envs, engine.num_actions, generator=generator)
    return torch.where(engine.action_mask(), scores, -1.0).argmax(1)


def rows_of(stack, volume):
    return [row for row, name in enumerate(stack.volumes) if name == volume]


def prediction_of(engine, env, depth):
    """What the network makes of the slices of environment ``env``: probabilities (Z, K, C, C)."""
    first = env * engine.num_slots
    return engine.networks[0](engine.slices.magnitude[first : first + depth]).probabilities


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


# --- contracts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("slices", MODES)
def test_batched_equals_single(make_volumes, slices, pair):
    together = make_volumes(3, slices=slices, pair=pair, budget=[2, 5])
    together.begin(torch.arange(3), together.draw(torch.tensor([5, 6, 7])))
    alone = [make_volumes(1, slices=slices, pair=pair, budget=[2, 5]) for _ in range(3)]
    for env, key in enumerate((5, 6, 7)):
        alone[env].begin(torch.arange(1), alone[env].draw(torch.tensor([key])))
    running = torch.ones(3, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    while running.any():
        actions = legal_action(together, generator)
        result = together.step(actions, running)
        for env in running.nonzero()[:, 0].tolist():
            single = alone[env].step(actions[env : env + 1])
            assert torch.equal(single.parts["quality"][0], result.parts["quality"][env])
            assert single.terminated[0] == result.terminated[env]
            for part, value in alone[env].observe().items():
                assert torch.equal(value[0], together.observe()[part][env]), part
        running = running & ~result.terminated
    assert len(set(together.budgets.tolist())) > 1


@pytest.mark.parametrize("slices", MODES)
def test_an_observation_is_a_function_of_what_was_measured(make_volumes, stack, slices):
    """Everything that was not measured is replaced, and the labels are: nothing that a policy sees changes."""
    generator = torch.Generator().manual_seed(3)
    one, two = make_volumes(2, slices=slices), make_volumes(2, slices=slices)
    two.slices.stack = dataclasses.replace(stack, labels=stack.labels.flip(1, 2))
    actions = []
    for engine in (one, two):
        begin(engine, [0, 3])
    for _ in range(4):
        actions.append(legal_action(one, generator))
        one.step(actions[-1])
    # What the other will measure stays, the rest becomes noise.
    used = one.slices.acquired
    signal = two.slices.scanner.signal
    noise = torch.randn(signal.shape, dtype=torch.float64, generator=generator).to(signal.dtype)
    two.slices.scanner.signal = torch.where(used[:, :, None, None], signal, 1e3 * noise)
    for action in actions:
        two.step(action)
    for part, value in one.observe().items():
        assert torch.equal(value, two.observe()[part]), part
    assert not torch.equal(one.quality, two.quality)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("slices", MODES)
def test_autoreset_and_exact_resume(make_volumes, slices, mode):
    options = {"slices": slices, "budget": [2, 4]}
    env = KSpaceVolumeVectorEnv(3, engine=make_volumes(3, **options), autoreset_mode=mode)
    env.reset(seed=3)
    rng = np.random.default_rng(0)

    def advance(batch, draws):
        outcomes = []
        for draw in draws:
            actions = [np.flatnonzero(mask)[int(draw * mask.sum())] for mask in batch.action_masks()]
            outcomes.append(batch.step(np.array(actions)))
        return outcomes

    outcomes = advance(env, rng.random(9))
    assert any(result[2].any() for result in outcomes)
    for _, _, terminated, _, info in outcomes:
        for slot in np.flatnonzero(terminated):
            last = info["final_info"] if mode == "SameStep" else info
            assert last["action_mask"][slot].all()
            assert last["measurements"][slot] == last["budget"][slot]
    copy = KSpaceVolumeVectorEnv(3, engine=make_volumes(3, **options), autoreset_mode=mode)
    copy.load_state_dict(env.state_dict())
    draws = rng.random(8)
    for (seen, reward, *_), (again, same, *_) in zip(advance(env, draws), advance(copy, draws), strict=True):
        np.testing.assert_array_equal(reward, same)
        for part in seen:
            np.testing.assert_array_equal(seen[part], again[part])


def test_an_environment_without_an_episode_shows_zeros(make_volumes):
    """An evaluation may leave some of the last batch unused."""
    engine = make_volumes(2)
    engine.begin(torch.tensor([0]), engine.draw(torch.tensor([4])))
    engine.step(torch.tensor([20, 20]), torch.tensor([True, False]))
    assert not any(value[1].any() for part, value in engine.observe().items() if part != "acquired")


def test_replay_gives_the_same_episode(make_volumes):
    env = KSpaceVolumeEnv(engine=make_volumes(1, slices="allocate", budget=[3, 6]))
    observation, info = env.reset(seed=9)
    episode = {name: int(info[name]) for name in ("sample", "budget", "key")}
    again, _ = env.reset(options={"episodes": [episode]})
    for part in observation:
        np.testing.assert_array_equal(observation[part], again[part])


@pytest.mark.parametrize(("slices", "pair"), [("shared", True), ("sequential", False), ("allocate", False)])
def test_registered(slices, pair):
    """Gymnasium's and our own checks, without a warning, on phantoms with the packaged networks."""
    phantoms = {"cohort_options": {"patients": 6, "test_patients": 2}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "seggym:KSpaceSeg3D-Phantom-v0",
            slices=slices,
            pair=pair,
            budget=[2, 3],
            render_mode="rgb_array",
            observation=list(ALL_PARTS),
            **phantoms,
        )
        check_env(env.unwrapped)
        check_seg_env(env)
    assert env.action_space.n == 128 * (10 if slices == "allocate" else 1)
    _, info = env.reset(seed=0)
    before = env.render()
    assert ("ejection_fraction" in info, "slice" in info) == (pair, slices == "sequential")
    env.step(int(np.flatnonzero(info["action_mask"])[-1]))
    assert env.render().shape == before.shape
    assert (env.render() != before).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"slices": "all"}, "slices='all' is unknown, expected one of shared, sequential, allocate"),
        ({"max_slices": 3}, "has 4 slices and max_slices=3: set max_slices=4 or more"),
        ({"reward": "terminal"}, "reward='terminal' is not offered"),
        ({"lines_per_step": 2}, "lines_per_step=2 is not offered"),
        ({"budget": 46}, "budget=46 must lie in 1..45"),
        ({"slices": "allocate", "budget": 91}, "patient001_frame09 has 90 to measure"),
        ({"observation": ["image"]}, "must name parts among acquired, energy"),
        ({"pair": 1}, "pair=1 is a int, expected bool"),
    ],
)
def test_errors_are_sentences(make_volumes, options, sentence):
    with pytest.raises(SeggymError, match=sentence):
        make_volumes(1, **options)


def test_a_patient_without_both_phases_is_named(stack):
    with pytest.raises(SeggymError, match="patient002 has 1 volumes at end-diastole and 0 at end-systole"):
        paired_volumes(stack, 4, {name: phase for name, phase in PHASES.items() if name != "patient002_frame09"})


def test_slices_are_scans_of_an_engine(make_volumes):
    """The engine of a volume measures nothing itself."""
    assert type(make_volumes(2).slices) is KSpaceEngine
