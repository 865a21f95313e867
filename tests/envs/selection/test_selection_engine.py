"""Episodes of annotation: rewards, candidates, costs, illegal actions, leaks, resume."""

import numpy as np
import pytest
import torch
from conftest import POOL, made_up_slices

from seggym.envs.selection.engine import Episodes
from seggym.envs.selection.environment import SelectionEnv, SelectionVectorEnv
from seggym.envs.selection.view import EpisodeView
from seggym.errors import SeggymError


def begin(engine, budgets, keys):
    engine.begin(torch.arange(len(keys)), Episodes(torch.tensor(budgets), torch.tensor(keys)))


def play(engine, rows):
    """Step with candidate ``rows`` (modulo those that are legal); what each step gave, one after the other."""
    return list(steps(engine, rows))


def steps(engine, rows):
    for row in rows:
        mask = engine.action_mask()
        legal = [np.flatnonzero(one) for one in mask.numpy()]
        actions = torch.tensor([int(free[row % len(free)]) if len(free) else 0 for free in legal])
        yield engine.step(actions, engine.remaining > 0)


@pytest.mark.parametrize("objective", ["final", "area"])
@pytest.mark.parametrize("query", [1, 3])
def test_rewards_telescope(make_selection, objective, query):
    engine = make_selection(3, objective=objective, samples_per_query=query)
    begin(engine, [3, 5, 8], [1, 2, 3])
    first = engine.quality.clone()
    levels, total = [], torch.zeros(3, dtype=torch.float64)
    for result in steps(engine, [0, 1, 2, 3, 4, 0, 1, 2]):
        total += result.parts["quality"]
        levels.append(engine.quality.clone())
    for slot, budget in enumerate([3, 5, 8]):
        curve = torch.stack(levels)[:budget, slot]
        expected = curve[-1] if objective == "final" else curve.mean()
        assert float(total[slot]) == pytest.approx(float(expected - first[slot]), abs=1e-12)
    assert float((engine.quality - first).abs().max()) > 0.01


def test_quality_is_dice_of_volumes(make_selection):
    """Against labels upsampled and counted in numpy, without anything of the engine's."""
    engine = make_selection(1)
    begin(engine, [5], [7])
    play(engine, [1, 1, 1])
    probabilities = engine.learner.predict(torch.tensor([0]), torch.arange(POOL, POOL + 8)[None])[0].numpy()
    chosen = np.kron(probabilities.argmax(1), np.ones((4, 4), int))
    truth = made_up_slices(POOL + 8)[1][POOL:].numpy()
    cases = []
    for volume in (slice(0, 4), slice(4, 8)):
        dice = [
            2
            * ((chosen[volume] == label) & (truth[volume] == label)).sum()
            / ((chosen[volume] == label).sum() + (truth[volume] == label).sum())
            for label in (1, 2)
            if (truth[volume] == label).any()
        ]
        cases.append(np.mean(dice))
    assert float(engine.quality[0]) == pytest.approx(np.mean(cases), abs=1e-12)
    np.testing.assert_allclose(np.nanmean(np.nanmean(engine.evaluate(0, "reward"), 1)), np.mean(cases), atol=1e-12)


def test_the_learner_learns(make_selection):
    engine = make_selection(8, budget=15, initial=1)
    begin(engine, [15] * 8, list(range(8)))
    before = engine.quality.mean()
    play(engine, list(range(15)))
    assert float(engine.quality.mean()) > float(before) + 0.05


@pytest.mark.parametrize("query", [1, 2])
def test_batched_equals_single(make_selection, query):
    """Bit for bit: a probe in float64."""
    settings = {"samples_per_query": query}
    batch = make_selection(3, **settings)
    episodes = batch.draw(torch.tensor([11, 12, 13]))
    batch.begin(torch.arange(3), episodes)
    together = [batch.observe()]
    results = []
    for _ in range(3):
        results.append(batch.step(torch.tensor([2, 3, 4])))
        together.append(batch.observe())
    for slot in range(3):
        engine = make_selection(1, **settings)
        engine.begin(torch.tensor([0]), Episodes(episodes.budgets[slot : slot + 1], episodes.keys[slot : slot + 1]))
        alone = [engine.observe()]
        for step in range(3):
            result = engine.step(torch.tensor([2 + slot]))
            alone.append(engine.observe())
            assert result.parts["quality"][0] == results[step].parts["quality"][slot]
            assert result.terminated[0] == results[step].terminated[slot]
        for one, many in zip(alone, together, strict=True):
            for name, value in one.items():
                torch.testing.assert_close(value[0], many[name][slot], rtol=0, atol=1e-6)
        assert torch.equal(engine.order[0], batch.order[slot])
        assert torch.equal(engine.candidates[0], batch.candidates[slot])
        assert engine.quality[0] == batch.quality[slot]


def test_same_key_same_episode_and_other_key_another(make_selection):
    engine = make_selection(4)
    begin(engine, [5, 5, 5, 8], [21, 21, 22, 21])
    assert torch.equal(engine.order[0], engine.order[1])
    assert torch.equal(engine.candidates[0], engine.candidates[1])
    # The budget is no part of what is drawn.
    assert torch.equal(engine.order[0], engine.order[3])
    assert not torch.equal(engine.order[0], engine.order[2])
    play(engine, [1, 1])
    assert torch.equal(engine.candidates[0], engine.candidates[1])


def test_candidates_are_unlabelled_ascending_and_padded(make_selection):
    engine = make_selection(2, budget=22, candidates=6)
    begin(engine, [22, 22], [1, 2])
    for left in range(22, 0, -1):
        for slot in range(2):
            candidates = engine.candidates[slot]
            real = candidates[candidates >= 0]
            assert len(real) == min(6, left)
            assert (real.diff() > 0).all()
            assert not engine.labelled[slot, real].any()
            assert torch.equal(engine.action_mask()[slot], candidates >= 0)
            rows = engine.observe()["candidates"][slot]
            assert (rows[candidates < 0] == 0).all()
            assert (rows[candidates >= 0].abs().sum(1) > 0).all()
        play(engine, [0])
    assert engine.labelled.all()
    assert (engine.remaining == 0).all()


def test_a_query_keeps_its_candidates(make_selection):
    engine = make_selection(1, samples_per_query=3, budget=7)
    begin(engine, [7], [5])
    first, quality = engine.candidates.clone(), engine.quality.clone()
    for pick in range(2):
        result = play(engine, [pick])[0]
        assert torch.equal(engine.candidates, first)
        assert int(engine.action_mask().sum()) == 5 - pick
        assert torch.equal(engine.quality, quality)
        assert float(result.parts["quality"]) == 0
    play(engine, [0])
    assert not torch.equal(engine.candidates, first)
    assert int(engine.rounds) == 2
    # Seven picks are two queries of three and one of one, which teaches because the episode ends.
    play(engine, [0, 0, 0, 0])
    assert int(engine.rounds) == 4
    assert int(engine.taught) == int(engine.count) == 9


def test_the_whole_pool_under_a_mask(make_selection):
    engine = make_selection(1, action="pool")
    begin(engine, [3], [1])
    assert engine.num_actions == POOL
    assert torch.equal(engine.candidates[0], torch.arange(POOL))
    assert torch.equal(engine.action_mask(), ~engine.labelled)
    sample = int((~engine.labelled[0]).nonzero()[3])
    engine.step(torch.tensor([sample]))
    assert engine.labelled[0, sample]


@pytest.mark.parametrize("action", ["noop", "penalty"])
def test_an_illegal_action_uses_budget_and_gains_nothing(make_selection, action):
    engine = make_selection(2, illegal_action=action, budget=4, illegal_penalty=0.3)
    begin(engine, [4, 4], [1, 2])
    taken = engine.candidates.clone()
    engine.step(torch.tensor([0, 0]))
    before, quality = engine.candidates.clone(), engine.quality.clone()
    result = engine.step(torch.tensor([99, -1]))
    assert result.illegal.all()
    assert (engine.remaining == 2).all()
    assert torch.equal(engine.candidates, before)
    assert not torch.equal(taken, before)
    assert torch.equal(engine.quality, quality)
    assert (result.parts["quality"] == 0).all()
    if action == "penalty":
        assert torch.equal(result.parts["illegal"], torch.full((2,), -0.3, dtype=torch.float64))


def test_an_illegal_action_can_be_an_error(make_selection):
    engine = make_selection(1, illegal_action="raise", samples_per_query=2)
    begin(engine, [4], [1])
    engine.step(torch.tensor([1]))
    with pytest.raises(SeggymError, match=r"action 1 of environment 0 is illegal.*annotated already"):
        engine.step(torch.tensor([1]))


@pytest.mark.parametrize("learner", ["probe", "unet"])
@pytest.mark.parametrize("ann_type", ["mask", "scribble"])
def test_labels_of_the_pool_leak_nowhere(make_selection, learner, ann_type):
    """Garbage for every label that nobody annotated: observations, masks, rewards and views stay, bit by bit."""
    settings = {"learner": learner, "ann_type": ann_type, "budget": 3, "samples_per_query": 1}
    clean = make_selection(2, **settings)
    begin(clean, [3, 3], [31, 32])
    actions = [torch.tensor([2, 3]), torch.tensor([0, 1])]
    for row in actions:
        clean.step(row)
    annotated = clean.labelled.any(0)
    assert not annotated.all()
    labels = made_up_slices(POOL + 8)[1][:POOL]
    poison = torch.randint(3, labels.shape, generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    poisoned = torch.where(annotated[:, None, None], labels, poison)
    engines = [make_selection(2, **settings), make_selection(2, labels=poisoned, **settings)]
    for engine in engines:
        begin(engine, [3, 3], [31, 32])
    for step in range(3):
        one, other = engines
        for name, value in one.observe().items():
            assert torch.equal(value, other.observe()[name]), name
        assert torch.equal(one.action_mask(), other.action_mask())
        assert torch.equal(one.quality, other.quality)
        some = np.array([3, 5, 8])
        for mine, theirs in [(EpisodeView(one, 1), EpisodeView(other, 1))]:
            assert torch.equal(mine.probabilities(some), theirs.probabilities(some))
            assert torch.equal(mine.member_probabilities(some, 3), theirs.member_probabilities(some, 3))
            assert torch.equal(mine.learner_features(some), theirs.learner_features(some))
            assert torch.equal(mine.labels(mine.labelled), theirs.labels(theirs.labelled))
        if step < 2:
            for engine in engines:
                engine.step(actions[step])


def test_a_view_gives_no_label_away(make_selection):
    engine = make_selection(1)
    begin(engine, [3], [4])
    view = EpisodeView(engine)
    hidden = view.candidates[:2]
    with pytest.raises(SeggymError, match=r"sample \d+ was asked for before it is annotated.*privileged"):
        view.labels(hidden)
    with pytest.raises(SeggymError, match="privileged"):
        view.lookahead(hidden)
    truth = made_up_slices(POOL + 8)[1][:POOL]
    assert torch.equal(view.labels(view.labelled), truth[view.labelled])
    assert torch.equal(EpisodeView(engine, privileged=True).labels(hidden), truth[hidden])


def test_looking_ahead_is_what_a_step_would_bring(make_selection):
    engine = make_selection(2)
    begin(engine, [5, 5], [1, 2])
    play(engine, [0])
    candidates = engine.candidates[1]
    expected = EpisodeView(engine, 1, privileged=True).lookahead(candidates.numpy())
    before = engine.quality.clone()
    for row in range(6):
        copy = engine.sibling(2)
        copy.take(engine, torch.arange(2))
        copy.step(torch.tensor([0, row]))
        assert float(copy.quality[1]) == expected[row]
    assert torch.equal(engine.quality, before)
    assert len(set(expected.tolist())) > 1


def test_quality_of_a_set_is_that_of_an_episode_with_it(make_selection):
    engine = make_selection(1)
    begin(engine, [3], [4])
    first = engine.order[0, :2].clone()
    found = engine.quality_of(torch.stack([first, first.flip(0), torch.tensor([1, 9])]), torch.tensor([7, 8, 9]))
    assert float(found[0]) == float(engine.quality[0])
    assert float(found[1]) == pytest.approx(float(found[0]), abs=1e-9)
    assert float(found[2]) != float(found[0])
    assert engine.order[0, :2].tolist() == first.tolist()


def test_minutes_by_hand(make_selection):
    """Volumes of four slices: 2 minutes a mask, 5 for opening a volume, once."""
    engine = make_selection(1, action="pool", costs={"mask": 2, "volume": 5}, cost_weight=6.0, reward="gain_per_cost")
    begin(engine, [8], [3])
    opened = {sample // 4 for sample in engine.order[0, :2].tolist()}
    assert float(engine.minutes) == 2 * 2 + 5 * len(opened)
    free = [sample for sample in range(POOL) if not engine.labelled[0, sample]]
    same = next(sample for sample in free if sample // 4 in opened)
    other = next(sample for sample in free if sample // 4 not in opened)
    for sample, minutes in ((same, 2), (other, 7)):
        before, quality = float(engine.minutes), float(engine.quality)
        result = engine.step(torch.tensor([sample]))
        assert float(engine.minutes) - before == minutes
        gain = float(engine.quality) - quality
        assert float(result.parts["gain_per_cost"]) == pytest.approx(gain / minutes, abs=1e-12)
        assert float(result.parts["cost"]) == pytest.approx(-6.0 * minutes / 60)


@pytest.mark.parametrize(("unit", "samples", "slices"), [("volume", 6, 4), ("patient", 3, 8)])
def test_samples_of_many_slices(make_selection, unit, samples, slices):
    engine = make_selection(1, unit=unit, initial=1, budget=2, action="pool", costs={"mask": 1, "volume": 10})
    begin(engine, [2], [1])
    assert engine.num_actions == samples
    assert float(engine.minutes) == slices + 10 * (2 if unit == "patient" else 1)
    view = EpisodeView(engine)
    some = view.candidates[:2]
    assert view.images(some).shape == (2, 1, slices * 32, 32)
    assert view.probabilities(some).shape == (2, 3, slices * 8, 8)
    truth = made_up_slices(POOL + 8)[1]
    first = int(view.labelled[0])
    assert torch.equal(view.labels(view.labelled)[0], truth[first * slices : (first + 1) * slices].flatten(0, 1))
    engine.step(torch.tensor([int(some[0])]))
    assert int(engine.count) == 2


@pytest.mark.parametrize("learner", ["probe", "unet"])
def test_resume_is_exact(make_selection, learner):
    settings = {"learner": learner, "samples_per_query": 2, "options": {"start": "fine_tune"}}
    straight = make_selection(2, **settings)
    begin(straight, [6, 8], [1, 2])
    play(straight, [0, 1, 2])
    state = straight.state_dict()
    play(straight, [1, 2])
    resumed = make_selection(2, **settings)
    resumed.load_state_dict(state)
    play(resumed, [1, 2])
    assert torch.equal(straight.order, resumed.order)
    assert torch.equal(straight.quality, resumed.quality)
    for name, value in straight.observe().items():
        assert torch.equal(value, resumed.observe()[name]), name


def test_a_state_of_other_environments_is_refused(make_selection):
    engine = make_selection(2)
    begin(engine, [3, 3], [1, 2])
    with pytest.raises(SeggymError, match="num_envs"):
        make_selection(3).load_state_dict(engine.state_dict())


def test_more_budget_than_pool_is_refused(make_selection):
    with pytest.raises(SeggymError, match=r"budget=23 goes up to 23, expected at most 22.*24 samples"):
        make_selection(1, budget=23)
    engine = make_selection(1)
    with pytest.raises(SeggymError, match=r"budget outside 1\.\.22"):
        begin(engine, [23], [1])


def test_a_class_that_nobody_annotated_is_not_predicted(make_selection):
    """Empty slices only, so both organs are missing from what is known: no error, and no prediction of them."""
    labels = torch.zeros(POOL, 32, 32, dtype=torch.uint8)
    engine = make_selection(1, labels=labels)
    begin(engine, [3], [1])
    predicted = engine.learner.predict(torch.tensor([0]), torch.arange(POOL)[None])[0].argmax(1)
    assert (predicted == 0).all()
    assert float(engine.quality) == 0


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_autoreset(make_selection, mode):
    env = SelectionVectorEnv(2, autoreset_mode=mode, engine=make_selection(2, budget=[2, 4]))
    env.reset(options={"episodes": [{"budget": 2, "key": 5}, {"budget": 4, "key": 6}]})
    first_keys = env.engine.keys.clone()
    env.step(np.array([0, 0]))
    observation, reward, terminated, truncated, info = env.step(np.array([1, 1]))
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    if mode == "SameStep":
        assert info["final_info"]["key"][0] == 5
        assert env.observation_space.contains(observation)
        assert int(env.engine.steps[0]) == 0
        assert int(env.engine.keys[0]) != int(first_keys[0])
    else:
        assert info["action_mask"][0].all()  # the end of an episode
        _, reward, terminated, _, info = env.step(np.array([3, 1]))
        assert reward[0] == 0
        assert not terminated[0]
        assert int(env.engine.steps[0]) == 0
    assert int(env.engine.keys[1]) == int(first_keys[1])


def test_single_environment_replays(make_selection):
    env = SelectionEnv(engine=make_selection(1))
    env.reset(seed=3)
    _, info = env.reset(options={"episodes": [{"budget": 4, "key": 77}]})
    assert (info["budget"], info["key"], info["sample"]) == (4, 77, 0)
    with pytest.raises(SeggymError, match="integers budget and key"):
        env.reset(options={"episodes": [{"key": 1}]})
    with pytest.raises(SeggymError, match="holds 2 episodes"):
        env.reset(options={"episodes": [{"budget": 1, "key": 1}] * 2})


def test_the_picture_shows_what_is_annotated(make_selection):
    env = SelectionEnv(engine=make_selection(1), render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(0)
    after = env.render()
    assert before.shape == after.shape
    assert before.dtype == np.uint8
    assert (before != after).any()
