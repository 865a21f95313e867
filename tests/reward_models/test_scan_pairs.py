"""Reward pairs of simulated scans of a few phantoms."""

import pytest
import torch

from seggym.cohorts.cohort import open_cohort
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.reward_models.checkpoints import open_reward_model
from seggym.reward_models.frozen import load_frozen
from seggym.reward_models.reward_pairs import PairSettings
from seggym.reward_models.scan_pairs import scan_reward_pairs
from seggym.reward_models.slices import prepared_slices


@pytest.fixture(scope="module")
def ground():
    model = open_reward_model("phantom")
    cohort = open_cohort("phantom")
    acquisition = Acquisition(**model.acquisition)
    return load_frozen(model.full), prepared_slices(cohort, cohort.patients[-2:], acquisition), acquisition, cohort


def test_pairs_of_scans_have_the_labels_as_truth(ground):
    network, stack, acquisition, cohort = ground
    settings = PairSettings(
        swap=0, weight_noise=(), contrast=(), noise=(), patches=(), elastic=(), morphological=(), missing=False
    )
    pairs = scan_reward_pairs(network, stack, acquisition, cohort.class_names, scans=5, settings=settings)
    assert set(pairs.origins) == {"labels"}
    assert set(pairs.patients) <= set(stack.patients)
    assert float(pairs.images.amax()) == 1
    for number, name in enumerate(pairs.names):
        slice_number = stack.names.index(name.rpartition("_scan_")[0])
        assert torch.equal(pairs.truths[number], stack.labels[slice_number])
    greedy = [number for number, kind in enumerate(pairs.kinds) if kind == "greedy"]
    shown = pairs.images[pairs.items[greedy]][:, 0]
    assert torch.equal(pairs.predictions[greedy].long(), network(shown).probabilities.argmax(1))
    again = scan_reward_pairs(network, stack, acquisition, cohort.class_names, scans=5, settings=settings)
    assert torch.equal(again.predictions, pairs.predictions)
    with pytest.raises(SeggymError, match="scans=0"):
        scan_reward_pairs(network, stack, acquisition, cohort.class_names, scans=0)
