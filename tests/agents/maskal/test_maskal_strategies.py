"""Sampling by certainty, images without detections, and the strategies that apply to instances."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from seggym.agents.maskal.data import FolderImages
from seggym.agents.maskal.state import PoolState
from seggym.agents.maskal.strategies import INSTANCE_STRATEGIES, make_instance_strategy
from seggym.cohorts.annotations.model import Annotation, Instance, Shape
from seggym.errors import SeggymError
from seggym.reward_models.instances.segmenter import Detections, McDropout

NAN = float("nan")


def chosen(certainties: list[float], n: int, strategy: str = "uncertainty", **options: Any) -> list[int]:
    candidates = np.arange(10, 10 + len(certainties))
    state: Any = SimpleNamespace(
        candidates=candidates,
        generator=torch.Generator().manual_seed(0),
        certainty=lambda indices, *_: np.array(certainties)[indices - 10],
    )
    return (make_instance_strategy(strategy, options, {}).query(state, n).indices - 10).tolist()


def test_least_and_most_certain() -> None:
    assert chosen([0.5, 0.1, 0.9, 0.3], 2) == [1, 3]
    assert chosen([0.5, 0.1, 0.9, 0.3], 3, "certainty") == [2, 0, 3]


def test_images_without_detections_are_most_uncertain_but_capped() -> None:
    certainties = [0.5, NAN, NAN, 0.3, NAN, 0.2]
    first = chosen(certainties, 4, empty_share=0.5)
    assert len(first) == 4
    assert {3, 5} < set(first)
    assert sum(index in (1, 2, 4) for index in first) == 2
    assert set(first[:2]) <= {1, 2, 4}
    # A share of less than one image is none.
    assert chosen(certainties, 3, empty_share=0.2) == [5, 3, 0]
    # Where there are too few others, they fill the query.
    assert set(chosen(certainties, 5, empty_share=0.0)) > {0, 3, 5}
    assert set(chosen(certainties, 6, empty_share=0.0)) == set(range(6))


def test_images_without_detections_are_least_wanted_by_certainty() -> None:
    assert chosen([NAN, 0.1, 0.2], 2, "certainty") == [2, 1]


def test_skip_never_chooses_them() -> None:
    assert chosen([0.5, NAN, 0.1], 3, empty="skip") == [2, 0]
    assert chosen([NAN, NAN], 1, empty="skip") == []
    assert chosen([NAN, 0.1, 0.2], 3, "certainty", empty="skip") == [2, 1]


def test_ties_are_broken_at_random() -> None:
    assert chosen([0.5] * 12, 4) != [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("uncertanty", "did you mean uncertainty"),
        ("greedy", "does not apply to instances: it sees labels of the pool"),
        ("evenly_spaced", "does not apply to instances: it goes by patients"),
    ],
)
def test_names_that_cannot_be_had(name: str, words: str) -> None:
    with pytest.raises(SeggymError, match=words):
        make_instance_strategy(name, {}, {})


def test_options_are_checked() -> None:
    with pytest.raises(SeggymError, match=r"strategy_options\.uncertainty\.passs is unknown"):
        make_instance_strategy("uncertainty", {}, {"passs": 3})
    with pytest.raises(SeggymError, match="empty_share=2"):
        make_instance_strategy("uncertainty", {"empty_share": 2}, {})
    with pytest.raises(SeggymError, match="has no option 'feature'"):
        make_instance_strategy("kcenter", {}, {"feature": "pixels"})


class Folder:
    """Ten images of different greys and sizes, as an :class:`ImageFolder` gives them."""

    def __init__(self) -> None:
        self.names = [f"image_{number}.png" for number in range(10)]

    def image(self, name: str) -> np.ndarray:
        number = self.names.index(name)
        generator = np.random.default_rng(number)
        return (generator.random((40 + number, 50, 3)) * 20 + 20 * number).astype(np.uint8)


class Stub:
    """A segmenter that sees a square in every second image, its class by the brightness of the image."""

    def detect(
        self, images: FolderImages, dropout: McDropout | None = None, generator: torch.Generator | None = None
    ) -> list[Detections]:
        passes, found = dropout.passes if dropout is not None else 1, []
        for number in range(len(images)):
            image = images[number]
            count = passes if round(float(image.mean()) * 255 / 20) % 2 else 0
            masks = torch.zeros(count, *image.shape[-2:], dtype=torch.bool)
            masks[:, 5:20, 5:20] = True
            sure = 0.5 + 0.5 * image.mean()
            shaken = sure - 0.3 * torch.rand(count, 1, generator=generator) * (dropout is not None)
            rows = torch.cat([0.1 * (1 - shaken), 0.9 * (1 - shaken), shaken], 1)
            labels = torch.full((count,), 2)
            boxes = torch.tensor([5.0, 5, 20, 20]).repeat(count, 1)
            found.append(Detections(boxes, labels, rows[:, 2], rows, masks, torch.arange(count)))
        return found

    def features(self, images: FolderImages) -> torch.Tensor:
        return torch.stack([images[number].mean((1, 2)) for number in range(len(images))])


def pool(seed: int = 3) -> PoolState:
    folder: Any = Folder()
    square = Shape("rectangle", np.array([[5, 5], [20, 20]], float))
    annotations = {
        name: Annotation(name, 50, 40 + folder.names.index(name), (Instance("b", (square,)),))
        for name in ("image_3.png", "image_0.png")
    }
    segmenter: Any = Stub()
    return PoolState(FolderImages(folder, folder.names), annotations, segmenter, ("a", "b"), seed, 0)


@pytest.mark.parametrize("name", [name for name in INSTANCE_STRATEGIES if name != "skactiveml"])
def test_strategies_choose_among_the_candidates(name: str) -> None:
    options = {"coregcn": {"epochs": 3}, "vaal": {"steps": 2}}.get(name, {})
    common = {"passes": 3, "empty_share": 1.0}
    known = {key: value for key, value in options.items() if hasattr(make_instance_strategy(name, common, {}), key)}
    strategy = make_instance_strategy(name, common, known)
    query = strategy.query(pool(), 4)
    assert len(set(query.indices.tolist())) == 4
    assert not set(query.indices.tolist()) & {0, 3}
    assert query.indices.tolist() == strategy.query(pool(), 4).indices.tolist()


def test_skactiveml_works_on_the_pool() -> None:
    pytest.importorskip("skactiveml", reason="scikit-activeml is not installed")
    query = make_instance_strategy("skactiveml", {}, {"strategy": "CoreSet"}).query(pool(), 3)
    assert len(set(query.indices.tolist())) == 3


def test_what_a_strategy_may_see() -> None:
    state = pool()
    assert state.labelled.tolist() == [3, 0]
    assert state.candidates.tolist() == [1, 2, 4, 5, 6, 7, 8, 9]
    everything = np.arange(10)
    probabilities = state.probabilities(everything)
    assert probabilities.shape == (10, 3, 64, 64)
    assert torch.allclose(probabilities.sum(1), torch.ones(10, 64, 64))
    assert bool((probabilities[2, 0] == 1).all()), "an image without detections is background"
    assert 0 < float((probabilities[1, 2] > 0.3).float().mean()) < 0.2
    assert state.member_probabilities(np.array([1, 2]), 4).shape == (4, 2, 3, 64, 64)
    labels = state.labels(np.array([3]))
    assert labels.shape == (1, 64, 64)
    assert set(labels.unique().tolist()) == {0, 2}
    with pytest.raises(SeggymError, match=r"image_1.png was asked for before"):
        state.labels(np.array([3, 1]))
    with pytest.raises(SeggymError, match="labels of the pool"):
        state.lookahead(np.array([1]))
    certainty = state.certainty(everything, McDropout(5), 0.5, "mean")
    assert np.isnan(certainty[[0, 2, 4, 6, 8]]).all()
    assert not np.isnan(certainty[[1, 3, 5, 7, 9]]).any()
    np.testing.assert_array_equal(certainty, pool().certainty(everything, McDropout(5), 0.5, "mean"))
    assert not np.array_equal(certainty[1], pool(seed=4).certainty(everything, McDropout(5), 0.5, "mean")[1])
