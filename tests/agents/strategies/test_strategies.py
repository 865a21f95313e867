"""What holds for every strategy, and what each of the simple ones is for."""

import numpy as np
import pytest
import torch
from synthetic_state import SIZE, FakeState, table

from seggym.agents.strategies import STRATEGIES, make_strategy
from seggym.agents.strategies.metadata import van_der_corput
from seggym.agents.strategies.privileged import balanced_error
from seggym.agents.strategies.strategy import choose_best, strata
from seggym.errors import SeggymError

QUICK = {
    "coreclr": {"steps": 2, "size": 16},
    "vaal": {"steps": 2, "size": 8},
    "coregcn": {"epochs": 5},
    "error_net": {"iterations": 2},
}
NAMES = sorted(STRATEGIES)


def make(name):
    if name == "skactiveml":
        pytest.importorskip("skactiveml", reason="scikit-activeml is not installed")
    return make_strategy(name, **QUICK.get(name, {}))


def state_for(name, **changes):
    return FakeState(**{"labelled": np.asarray([3, 17, 41]), "allowed": STRATEGIES[name].privileged, **changes})


def require_order(query, candidates):
    """The indices are those that the utilities say, in their order."""
    where = np.searchsorted(candidates, query.indices)
    assert query.indices.dtype == np.int64
    assert query.utilities.dtype == np.float64
    assert not np.isnan(query.utilities).any()
    assert (candidates[where] == query.indices).all()
    assert len(set(query.indices.tolist())) == len(query.indices)
    if query.utilities.ndim == 1:
        assert query.utilities.shape == candidates.shape
        assert (query.utilities[where] >= np.sort(query.utilities)[-len(where)]).all()
        assert (np.diff(query.utilities[where]) <= 0).all()
    else:
        assert query.utilities.shape == (len(where), len(candidates))
        for row, position, before in zip(query.utilities, where, range(len(where)), strict=True):
            assert row[position] == row.max()
            assert (row[where[:before]] == -np.inf).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_query_is_repeatable_and_follows_its_utilities(name):
    state = state_for(name)
    global_state = torch.random.get_rng_state()
    query = make(name).query(state, 7)
    with torch.inference_mode():
        again = make(name).query(state, 7)
    require_order(query, state.candidates)
    assert not np.isin(query.indices, state.labelled).any()
    np.testing.assert_array_equal(query.indices, again.indices)
    np.testing.assert_array_equal(query.utilities, again.utilities)
    assert torch.equal(global_state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_some_candidates_of_the_pool_all_of_them_and_too_many(name):
    withheld = np.setdiff1d(np.arange(60), [2, 9, 30, 31, 55])
    state = state_for(name, withheld=withheld)
    require_order(make(name).query(state, 2), state.candidates)
    assert sorted(make(name).query(state, 5).indices) == [2, 9, 30, 31, 55]
    for number in (6, 0):
        with pytest.raises(SeggymError, match=rf"{name} is asked for {number} samples, expected 1 to 5"):
            make(name).query(state, number)


@pytest.mark.parametrize("name", NAMES)
def test_a_cold_start_a_pool_of_one_image_and_labels_without_foreground(name):
    require_order(make(name).query(state_for(name, labelled=np.zeros(0, dtype=np.int64)), 3), np.arange(60))
    same = state_for(
        name,
        all_images=torch.full((60, 1, SIZE, SIZE), 0.5),
        all_embeddings=torch.ones(60, 8),
        all_labels=torch.zeros(60, SIZE, SIZE, dtype=torch.uint8),
        all_probabilities=torch.tensor([1.0, 0, 0, 0])[:, None, None].expand(60, 4, 4, 4),
    )
    require_order(make(name).query(same, 57), same.candidates)


@pytest.mark.parametrize("name", [name for name in NAMES if STRATEGIES[name].privileged])
def test_privileged_strategies_fail_without_the_right(name):
    with pytest.raises(SeggymError, match="not annotated"):
        make(name).query(state_for(name, allowed=False), 3)


@pytest.mark.parametrize("name", [name for name in NAMES if not STRATEGIES[name].privileged])
def test_the_others_do_not_depend_on_labels_of_the_pool(name):
    state = state_for(name)
    poisoned = state.all_labels.clone()
    hidden = np.setdiff1d(np.arange(60), state.labelled)
    poisoned[hidden] = poisoned[hidden].flip(0)
    np.testing.assert_array_equal(
        make(name).query(state, 5).indices, make(name).query(state.but(all_labels=poisoned), 5).indices
    )


@pytest.mark.parametrize("name", NAMES)
def test_identity_is_plain_json_and_makes_the_same_strategy(name):
    strategy = make(name)
    assert make_strategy(name, **strategy.identity) == strategy


def test_mistyped_names_and_options_name_the_nearest():
    with pytest.raises(SeggymError, match="'entorpy' is unknown; did you mean entropy"):
        make_strategy("entorpy")
    with pytest.raises(SeggymError, match="bald has no option 'member'; did you mean members"):
        make_strategy("bald", member=3)
    with pytest.raises(SeggymError, match="random has no option 'seed'; it has none"):
        make_strategy("random", seed=3)
    with pytest.raises(SeggymError, match=r"bald\.members='3' is a str, expected int"):
        make_strategy("bald", members="3")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bald", {"members": 1}),
        ("foreground_random", {"foreground": 1.5}),
        ("kcenter", {"features": "pixel"}),
        ("coreclr", {"groups": ["patients"], "weights": [0.1]}),
        ("coreclr", {"groups": ["slice"], "weights": []}),
        ("coregcn", {"features": "pixels"}),
        ("clasp_pe", {"beta_first": 0.0}),
        ("stochastic_batches", {"uncertainty": "random"}),
        ("typiclust", {"neighbours": 0}),
        ("probcover", {"purity": 1.0}),
        ("probcover", {"deltas": []}),
        ("vaal", {"size": 30}),
        ("metadata_kcenter", {"phase": -1.0}),
    ],
)
def test_values_out_of_range_are_refused(name, options):
    with pytest.raises(SeggymError, match="expected"):
        make_strategy(name, **options)


def test_ties_are_broken_without_favour_for_the_first():
    generator = torch.Generator().manual_seed(0)
    first = [choose_best(np.zeros(10), np.arange(10), 1, generator).indices[0] for _ in range(300)]
    assert set(first) == set(range(10))


def test_strata_are_within_one_of_their_share():
    generator, weights = torch.Generator().manual_seed(0), np.asarray([0.22, 0.22, 0.22, 0.34])
    for number in (1, 2, 7, 50):
        for _ in range(20):
            counts = np.bincount(strata(number, weights, generator), minlength=4)
            assert (np.abs(counts - number * weights) < 1).all()
    single = np.bincount([strata(1, weights, generator)[0] for _ in range(2000)], minlength=4) / 2000
    np.testing.assert_allclose(single, weights, atol=0.05)


def test_foreground_random_shows_each_class_equally_often():
    labels = torch.zeros(60, SIZE, SIZE, dtype=torch.uint8)
    labels[:4, 0, 0], labels[4:8, 0, 0], labels[8:12, 0, 0] = 1, 2, 3
    state = FakeState(all_labels=labels, allowed=True)
    chosen = make_strategy("foreground_random", foreground=1.0).query(state, 6).indices
    assert [((4 * c <= chosen) & (chosen < 4 * c + 4)).sum() for c in range(3)] == [2, 2, 2]
    predicted = torch.nn.functional.one_hot(labels.long(), 4).permute(0, 3, 1, 2).float()
    twin = make_strategy("predicted_foreground_random", foreground=1.0)
    np.testing.assert_array_equal(twin.query(state.but(all_probabilities=predicted, allowed=False), 6).indices, chosen)


def test_values_that_mark_unlabelled_pixels_are_no_class():
    labels = torch.full((60, SIZE, SIZE), 255, dtype=torch.uint8)
    labels[5, 0, 0] = 2
    state = FakeState(all_labels=labels, allowed=True)
    assert make_strategy("foreground_random", foreground=1.0).query(state, 1).indices == [5]


def test_stochastic_batches_choose_the_batch_with_the_highest_mean():
    state = FakeState()
    strategy = make_strategy("stochastic_batches", rounds=30)
    query = strategy.query(state, 4)
    scores = make_strategy("entropy").query(state, 1).utilities
    assert query.utilities[query.indices] == pytest.approx(scores[query.indices].mean())
    assert query.utilities.max() == pytest.approx(scores[query.indices].mean())
    greedy = make_strategy("entropy").query(state, 4).indices
    assert scores.mean() < scores[query.indices].mean() < scores[greedy].mean()


def test_clasp_takes_the_class_each_slice_is_about_and_grows_greedy():
    probabilities = torch.full((60, 4, 4, 4), 0.01)
    probabilities[:, 0] = 0.97
    for number in (1, 2, 3):
        # Doubtful between the background and one class: slices 10, 20, 30.
        probabilities[10 * number, :, :2] = 0.01
        probabilities[10 * number, 0, :2] = 0.5
        probabilities[10 * number, number, :2] = 0.48
    state = FakeState(all_probabilities=probabilities, round=9)
    strategy = make_strategy("clasp_pe", stratified=1.0)
    assert sorted(strategy.query(state, 3).indices) == [10, 20, 30]
    assert [strategy.beta(r) for r in (0, 2, 4, 9)] == pytest.approx([1, 10, 100, 100])
    early = [tuple(sorted(strategy.query(state.but(round=0, seed=s), 3).indices)) for s in range(20)]
    assert len(set(early)) > 1


def test_patient_stratified_takes_patients_in_turn():
    state = FakeState(labelled=np.asarray([0, 1, 10]))
    chosen = make_strategy("patient_stratified").query(state, 9).indices
    counts = np.bincount(state.samples.patient[np.concatenate([state.labelled, chosen])], minlength=6)
    assert counts.tolist() == [2, 2, 2, 2, 2, 2]


def test_evenly_spaced_takes_volumes_in_turn_and_heights_all_over():
    assert [van_der_corput(n) for n in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    state = FakeState(samples=table(patients=4, volumes=2, slices=9))
    chosen = make_strategy("evenly_spaced").query(state, 8).indices
    assert sorted(state.samples.volume[chosen]) == list(range(8))
    np.testing.assert_allclose(state.samples.position[chosen][:7], [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875])
    one = FakeState(samples=table(patients=1, volumes=1, slices=9), labelled=np.asarray([4]))
    assert set(make_strategy("evenly_spaced").query(one, 2).indices) == {0, 8}


def test_metadata_kcenter_sees_no_image():
    state = FakeState(labelled=np.asarray([0]))
    strategy = make_strategy("metadata_kcenter")
    query = strategy.query(state, 4)
    other = state.but(all_images=torch.zeros(60, 1, SIZE, SIZE), all_embeddings=torch.zeros(60, 8))
    np.testing.assert_array_equal(query.indices, strategy.query(other, 4).indices)
    # Another patient, the other end of the heart, the other phase: farthest by all three.
    first = query.indices[0]
    assert state.samples.patient[first] != 0
    assert state.samples.position[first] == 1
    assert state.samples.phase[first] == 1
    assert query.utilities[0].max() == pytest.approx(np.sqrt(3))


def test_greedy_takes_what_gains_most_and_says_where_it_cannot():
    state = FakeState(allowed=True)
    gains = (state.all_labels == 3).double().mean((1, 2)).numpy()
    np.testing.assert_array_equal(make_strategy("greedy").query(state, 3).indices, np.argsort(-gains)[:3])

    class Blind:
        candidates, generator = state.candidates, state.generator

    with pytest.raises(SeggymError, match="use the learner probe, or label_greedy"):
        make_strategy("greedy").query(Blind(), 3)


def test_balanced_error_by_hand():
    probabilities = torch.tensor([[[[0.9, 0.8], [0.7, 0.2]], [[0.1, 0.2], [0.3, 0.8]]]])
    labels = torch.tensor([[[0, 0], [255, 1]]], dtype=torch.uint8)
    # Background pixels are 0.1 and 0.2 wrong, the only pixel of class 1 is 0.2 wrong, one pixel has no label.
    assert balanced_error(probabilities, labels).item() == pytest.approx((0.15 + 0.2) / 2)
    fine = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert balanced_error(probabilities, fine).item() == pytest.approx((0.15 + 0.2) / 2)
    assert balanced_error(probabilities, torch.full_like(labels, 255)).item() == 0
    classes = torch.tensor([[[[0.3]], [[0.7]]], [[[0.3]], [[0.7]]]])
    np.testing.assert_allclose(balanced_error(classes, torch.tensor([1, 0])), [0.3, 0.7], rtol=1e-6)


def test_learned_strategies_find_what_they_are_for():
    """Unlabelled images unlike the labelled ones come first."""
    odd = np.arange(50, 60)
    images = torch.zeros(60, 1, 16, 16)
    images[odd, :, 4:12, 4:12] = 1
    embeddings = torch.zeros(60, 8)
    embeddings[:, 0], embeddings[odd, 0], embeddings[odd, 1] = 1, 0, 1
    noise = torch.Generator().manual_seed(0)
    images += 0.1 * torch.rand(images.shape, generator=noise)
    embeddings += 0.1 * torch.rand(embeddings.shape, generator=noise)
    state = FakeState(labelled=np.arange(20), all_images=images, all_embeddings=embeddings)
    assert set(make_strategy("vaal", size=16, steps=60).query(state, 5).indices) <= set(odd)
    assert make_strategy("coregcn").query(state, 1).indices[0] in odd
