"""N scans in one batch are N single scans."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from seggym.envs.kspace.environment import KSpaceVectorEnv
from seggym.reward_models.frozen import FrozenNetwork
from seggym.reward_models.networks import build_network

EXACT = {"sample", "key", "budget", "lines", "illegal_actions", "action_mask"}
OBSERVED = ["image", "acquired", "budget", "image_float", "probabilities", "features", "kspace", "action_mask"]


def as_rows(value, count):
    """A batched answer as a list of nested dictionaries, one per environment."""
    if isinstance(value, dict):
        split = {key: as_rows(part, count) for key, part in value.items()}
        return [{key: split[key][row] for key in split} for row in range(count)]
    return [value[row] for row in range(count)]


def assert_same(one, other, compare, path=""):
    assert type(one) is type(other) or not isinstance(one, dict), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], compare, f"{path}/{key}")
    elif one is None or other is None:
        assert one is other, path
    else:
        compare(np.asarray(one), np.asarray(other), path)


def bitwise(one, other, path):
    assert one.dtype == other.dtype, path
    assert one.tobytes() == other.tobytes(), f"{path} differs by {np.nanmax(np.abs(one.astype(float) - other))}"


def close(one, other, path):
    name = path.rsplit("/", 1)[-1]
    if one.dtype.kind in "ib" and name not in ("image", "probabilities"):
        np.testing.assert_array_equal(one, other, path)
    elif name in ("image", "probabilities"):
        assert np.abs(one.astype(int) - other.astype(int)).max(initial=0) <= 1, path
    elif name in ("dice", "absent_area"):
        # Hard decisions: a pixel or two on the border between two classes may fall on the other side.
        np.testing.assert_allclose(one, other, atol=0.05 if name == "dice" else 4, err_msg=path)
    else:
        scale = max(1.0, float(np.nanmax(np.abs(other), initial=0)))
        np.testing.assert_allclose(one, other, atol=1e-5 * scale, err_msg=path)


def compare_batch_with_singles(make_engine, compare, steps, mode, count=5, **settings):
    seeds = [int(seed) for seed in np.random.SeedSequence(7).generate_state(count)]
    settings = {"observation": OBSERVED, **settings}
    batch = KSpaceVectorEnv(count, engine=make_engine(count, **settings), autoreset_mode=mode)
    singles = [KSpaceVectorEnv(1, engine=make_engine(1, **settings), autoreset_mode=mode) for _ in range(count)]
    observation, info = batch.reset(seed=seeds)
    rows = list(zip(as_rows(observation, count), as_rows(info, count), strict=True))
    for row, single, seed in zip(rows, singles, seeds, strict=True):
        observation, info = single.reset(seed=[seed])
        assert_same((as_rows(observation, 1)[0]), row[0], compare)
        assert_same((as_rows(info, 1)[0]), row[1], compare)
    assert len({int(row[1]["budget"]) for row in rows}) > 1
    rng = np.random.default_rng(0)
    endings = np.zeros(count, int)
    for _ in range(steps):
        # Mostly legal lines, now and then any line: an illegal one must be treated alike as well.
        masks = batch.action_masks()
        legal = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        actions = np.where(rng.random(count) < 0.1, rng.integers(0, masks.shape[1], count), legal)
        *batched, infos = batch.step(actions)
        endings += batched[2]
        batched_rows = [as_rows(part, count) for part in batched]
        info_rows = as_rows(infos, count)
        for slot, single in enumerate(singles):
            *alone, info = single.step(actions[slot : slot + 1])
            for part, rows_of_part in zip(alone, batched_rows, strict=True):
                assert_same(as_rows(part, 1)[0], rows_of_part[slot], compare)
            row = info_rows[slot]
            if "final_obs" in row and not row["_final_obs"]:
                # Another scan of the batch has ended; this one has nothing to report.
                row = {key: part for key, part in row.items() if "final" not in key}
            assert_same(as_rows(info, 1)[0], row, compare)
    assert (endings >= 2).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    "settings",
    [
        {"budget": [2, 7]},
        {"budget": [2, 7], "stop_action": True, "objective": "area", "lambda_recon": 0.5},
        {"budget": [2, 7], "seg_metric": "dice", "candidates": [8, 39], "illegal_action": "penalty"},
        {"budget": [2, 7], "seg_metric": "iou", "reward": "terminal", "observation": ["image", "action_mask"]},
    ],
    ids=["default", "stop", "candidates", "terminal"],
)
def test_batched_equals_single_bit_for_bit(make_engine, mode, settings):
    compare_batch_with_singles(make_engine, bitwise, 24, mode, **settings)


def test_batched_equals_single_with_a_real_network(make_engine):
    torch.manual_seed(0)
    network = FrozenNetwork(build_network("unet", 4, widths=(8, 16, 16, 16)))
    compare_batch_with_singles(
        make_engine, close, 20, AutoresetMode.SAME_STEP, network=network, dtype=torch.float32, budget=[2, 7]
    )


def test_networks_are_routed_to_their_slices(make_engine, make_stack):
    """Each slice is scored by the network of its index, whatever else is in the batch."""
    engine = make_engine(4, observation=["image", "features"])
    first, second = (FrozenNetwork(build_network("unet", 4, widths=(4, 8, 8, 8)), precision="fp64") for _ in range(2))
    engine.networks = [first, second]
    engine.routing = torch.arange(len(engine.stack)) % 2
    engine.begin(torch.arange(4), engine.draw(torch.tensor([1, 2, 3, 4])))
    assert len(set(engine.routing[engine.samples].tolist())) == 2
    for slot in range(4):
        network = (first, second)[int(engine.samples[slot]) % 2]
        expected = network(engine.magnitude[slot : slot + 1])
        torch.testing.assert_close(engine.segmentation.features[slot], expected.features[0].float())
        assert torch.equal(engine.segmentation.labels[slot].long(), expected.probabilities[0].argmax(0))
