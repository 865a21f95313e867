"""The picks of scikit-activeml on the same features and start."""

import numpy as np
import pytest
import torch
from synthetic_state import FakeState

from seggym.agents.strategies import make_strategy
from seggym.agents.strategies.strategy import draw_seed
from seggym.errors import SeggymError

pool = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
LABELLED = np.asarray([3, 17, 41])


def known(state):
    """One class per annotated sample, NaN elsewhere."""
    classes = np.full(len(state.samples), np.nan)
    classes[state.labelled] = np.arange(len(state.labelled)) % 2
    return classes


def features_of(state, kind):
    found = state.all_embeddings if kind == "embeddings" else state.all_images.flatten(1)
    return found.double().numpy()


@pytest.mark.parametrize("kind", ["embeddings", "pixels"])
@pytest.mark.parametrize("withheld", [None, np.arange(20, 40)])
def test_k_center(kind, withheld):
    state = FakeState(labelled=LABELLED, withheld=withheld)
    query = make_strategy("kcenter", features=kind).query(state, 12)
    theirs, utilities = pool.CoreSet(random_state=0).query(
        features_of(state, kind), known(state), candidates=state.candidates, batch_size=12, return_utilities=True
    )
    np.testing.assert_array_equal(query.indices, theirs)
    ours = np.where(np.isinf(query.utilities), 0, query.utilities)
    np.testing.assert_allclose(ours, np.nan_to_num(utilities[:, state.candidates]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", [4, 11])
def test_typiclust(number):
    """As sets: clusters of equal size may come in another order."""
    state = FakeState(labelled=LABELLED)
    strategy = make_strategy("typiclust", neighbours=5, min_cluster_size=1)
    theirs = pool.TypiClust(k=5, random_state=draw_seed(state.generator)).query(
        features_of(state, "embeddings"), known(state), batch_size=number
    )
    assert set(strategy.query(state, number).indices) == set(theirs)


def test_probcover():
    """Pick by pick, because numbers of covered samples tie: what we take is among their best."""
    state = FakeState(labelled=LABELLED)
    features = features_of(state, "embeddings")
    deltas = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    strategy = make_strategy("probcover", deltas=list(deltas), purity=0.5, clusters=3)
    ours = strategy.query(state, 8)
    theirs = pool.ProbCover(n_classes=3, deltas=deltas, alpha=0.5, random_state=draw_seed(state.generator))
    chosen = LABELLED
    for index, row in zip(ours.indices, ours.utilities, strict=True):
        classes = known(state)
        classes[chosen] = 0
        _, utilities = theirs.query(features, classes, batch_size=1, return_utilities=True)
        expected = np.nan_to_num(utilities[0, state.candidates], nan=-np.inf)
        np.testing.assert_array_equal(row, expected)
        assert utilities[0, index] == np.nanmax(utilities)
        chosen = np.append(chosen, index)
    assert 0.5 < theirs.delta_max_ < 3.0  # the choice of the radius was put to the test


@pytest.mark.parametrize(
    ("name", "method"),
    [("least_confidence", "least_confident"), ("margin", "margin_sampling"), ("entropy", "entropy")],
)
def test_uncertainties(name, method):
    from skactiveml.pool import uncertainty_scores

    probabilities = torch.randn(60, 4, 1, 1, generator=torch.Generator().manual_seed(1)).mul(2).softmax(1)
    state = FakeState(labelled=LABELLED, all_probabilities=probabilities)
    theirs = uncertainty_scores(probabilities[state.candidates, :, 0, 0].double().numpy(), method=method)
    query = make_strategy(name).query(state, 10)
    np.testing.assert_allclose(query.utilities, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(query.indices, state.candidates[np.argsort(-theirs)[:10]])


def test_uncertainty_of_an_image_is_the_mean_over_its_pixels():
    from skactiveml.pool import uncertainty_scores

    state = FakeState()
    pixels = state.all_probabilities.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    theirs = uncertainty_scores(pixels, method="entropy").reshape(60, -1).mean(1)
    np.testing.assert_allclose(make_strategy("entropy").query(state, 1).utilities, theirs, rtol=1e-5)


def test_bald_of_single_pixels():
    from skactiveml.pool import batch_bald  # noqa: F401  the same module
    from skactiveml.pool._query_by_committee import variation_ratios

    state = FakeState()
    members = state.member_probabilities(np.arange(60), 5)
    entropy = -(members * members.log()).sum(2).mean((2, 3))
    mean = members.mean(0)
    expected = -(mean * mean.log()).sum(1).mean((1, 2)) - entropy.mean(0)
    np.testing.assert_allclose(make_strategy("bald", members=5).query(state, 1).utilities, expected, rtol=1e-4)
    votes = members.argmax(2).permute(1, 2, 3, 0).reshape(-1, 5).numpy()
    ratios = variation_ratios(votes).reshape(60, -1).mean(1)
    np.testing.assert_allclose(make_strategy("ensemble_variance").query(state, 1).utilities, ratios, rtol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("CoreSet", {}),
        ("MaxHerding", {}),
        ("UncertaintySampling", {"method": "margin_sampling"}),
        ("DiscriminativeAL", {"greedy_selection": True}),
        ("Clue", {}),
    ],
)
def test_the_adapter_runs_their_strategies(strategy, options):
    state = FakeState(labelled=LABELLED)
    adapter = make_strategy("skactiveml", strategy=strategy, options=options)
    query = adapter.query(state, 4)
    assert np.isin(query.indices, state.candidates).all()
    assert query.utilities.shape == (4, len(state.candidates))
    if strategy == "CoreSet":
        np.testing.assert_array_equal(query.indices, make_strategy("kcenter").query(state, 4).indices)


def test_the_adapter_refuses_what_it_cannot_run():
    state = FakeState(labelled=LABELLED)
    for options, sentence in [
        ({"strategy": "CoreSets"}, "did you mean CoreSet"),
        ({"strategy": "QueryByCommittee"}, "asks for ensemble"),
        ({"options": {"metrics": "cosine"}}, "no option 'metrics'; did you mean metric"),
    ]:
        with pytest.raises(SeggymError, match=sentence):
            make_strategy("skactiveml", **options).query(state, 2)
