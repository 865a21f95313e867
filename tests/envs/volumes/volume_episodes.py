"""What the tests of volumes share: a small scan, four volumes of two patients, and steps of an episode."""

import torch

from seggym.envs.kspace.engine import Episodes

SCAN = {"matrix": 48, "crop": 32}
# Patients with an end-diastolic and an end-systolic volume each: slices of both.
DEPTHS = {"patient001": (3, 2), "patient002": (4, 4)}
PHASES = {f"{patient}_{frame}": phase for patient in DEPTHS for frame, phase in (("frame01", "ED"), ("frame09", "ES"))}
ALL_PARTS = (
    *("acquired", "energy", "budget", "slices", "slice_probabilities", "probability_grid", "images", "action_mask"),
)
MODES = ("shared", "sequential", "allocate")


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
