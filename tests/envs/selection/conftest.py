"""A small made-up pool: discs and bars on noise, in volumes of a few patients; learners on plain features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.pool import Oracle, Pool, gather_targets, group_slices
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.state import SampleTable
from seggym.reward_models.checkpoints import ModelCard, save_network
from seggym.reward_models.encoders import Encoder
from seggym.reward_models.learners import UNLABELLED, ScoredSet
from seggym.reward_models.network_learner import NetworkOptions
from seggym.reward_models.probe import ProbeLearner, position_features
from seggym.reward_models.unet_learner import UNetLearner

SIZE, DEPTH, POOL, REWARD = 32, 4, 24, 8
CLASSES = 3


def made_up_slices(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images float32 (n, 1, 32, 32) and labels uint8 (n, 32, 32): a bright disc is class 1, a grey bar class 2."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((SIZE, SIZE))
    images, labels = [], []
    for index in range(count):
        label = np.zeros((SIZE, SIZE), np.uint8)
        row, column = rng.uniform(8, 24, 2)
        if index % DEPTH:  # the first slice of a volume is empty
            label[np.hypot(y - row, x - column) < rng.uniform(4, 7)] = 1
            if index % 3:
                top = int(rng.integers(0, 26))
                label[top : top + 5, :][label[top : top + 5, :] == 0] = 2
        images.append(np.array([0.2, 0.9, 0.55])[label] + 0.05 * rng.normal(size=label.shape))
        labels.append(label)
    return torch.tensor(np.stack(images), dtype=torch.float32)[:, None], torch.tensor(np.stack(labels))


def plain_features(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean, maximum and spread of the pixels beneath each position, with what the probe adds to encoder features."""
    mean, square = functional.avg_pool2d(images, 4), functional.avg_pool2d(images.square(), 4)
    encoded = torch.cat([mean, functional.max_pool2d(images, 4), (square - mean.square()).clamp_min(0).sqrt()], 1)
    return position_features(encoded, torch.arange(POOL)).to(dtype)


def scribbled(labels: Tensor) -> Tensor:
    """Every fifth column of the labels is drawn, the rest is not."""
    drawn = torch.full_like(labels, UNLABELLED)
    drawn[:, :, ::5] = labels[:, :, ::5]
    return drawn


@pytest.fixture
def make_selection() -> Callable[..., SelectionEngine]:
    """``make_selection(num_envs, dtype=, labels=, learner=, **settings)``: an engine on the made-up pool.

    ``labels`` replaces the pool's labels uint8 (24, 32, 32), to poison them; ``learner`` is "probe" or "unet".
    """

    def make(
        num_envs: int = 1,
        *,
        dtype: torch.dtype = torch.float64,
        labels: Tensor | None = None,
        learner: str = "probe",
        unit: str = "slice",
        options: dict[str, Any] | None = None,
        **chosen: Any,
    ) -> SelectionEngine:
        settings = SelectionSettings(
            **{"cohort": "made-up", "size": SIZE, "initial": 2, "budget": [3, 8], "candidates": 6, **chosen},
            unit=unit,
            learner=learner,
        )
        images, truth = made_up_slices(POOL + REWARD)
        number = np.arange(POOL)
        volume = number // DEPTH
        groups = {"slice": number, "volume": volume, "patient": volume // 2}[unit]
        slices, shown = group_slices(groups, number)
        first = np.unique(groups, return_index=True)[1]
        table = SampleTable(
            names=tuple(f"sample{index:02d}" for index in range(len(first))),
            patient=(volume // 2)[first],
            volume=(groups if unit == "patient" else volume)[first],
            phase=(volume % 2)[first],
            position=(number % DEPTH / (DEPTH - 1))[first],
            slice_index=(number % DEPTH)[first],
        )
        generator = torch.Generator().manual_seed(1)
        pool = Pool(
            table=table,
            images=images,
            slices=slices,
            shown=shown,
            state=torch.arange(3),
            embeddings=torch.randn(len(first), 20, generator=generator),
            class_names=("background", "disc", "bar"),
            initial=torch.zeros(0, dtype=torch.int64),
            opened=torch.full((len(first),), 2 if unit == "patient" else 1),
        )
        reward = torch.arange(POOL, POOL + REWARD)
        cases = torch.arange(REWARD) // DEPTH
        scored = {"reward": ScoredSet(reward, truth[reward], cases, ("first", "second"))}
        given = truth[:POOL] if labels is None else labels
        masks = gather_targets(given, slices)
        targets = gather_targets(scribbled(given), slices) if settings.ann_type == "scribble" else masks
        taught: Any
        if learner == "probe":
            taught = ProbeLearner(plain_features(images, dtype), scored, CLASSES, num_envs)
        else:
            network = NetworkOptions(**{"iterations": 4, "batch": 4, "widths": (4, 8), **(options or {})})
            taught = UNetLearner(images, scored, CLASSES, num_envs, network, settings.ann_type == "scribble")
        oracle = Oracle(masks, targets, CLASSES, lambda part: taught.digest(slices, part))
        return SelectionEngine(pool, oracle, taught, settings, num_envs, dtype=dtype)

    return make


@pytest.fixture(scope="session")
def untrained_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an encoder that has seen no patient."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    card = ModelCard("encoder", {"width": 8}, 6, [], "encoding", 32, [], "none", "none")
    save_network(folder, Encoder(6, width=8), card)
    return str(folder)
