"""What makes a reward net good, and how its uncertainty compares: the tables of docs/reward_net.md.

python benchmarks/reward_net.py [cohort=echo|camus] [severity=3] [size=48] [iterations=250] [seeds=2]

A policy is trained on source patients; the target are other patients with shifted images. Reward nets learn from pairs
that differ in where their truth comes from and in how they are trained, and are scored against the labels of the
target's test patients: on the policy's masks, and on per-pixel samples of it, which is what reinforcement learning
shows them.
CAMUS is read from SEGGYM_CAMUS_ROOT. One thread; 15 minutes of a free core.
"""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.shifts import Shift
from seggym.cohorts.validity.rules import load_rules
from seggym.reward_models import distortions
from seggym.reward_models.calibration import correlation, score_pixels
from seggym.reward_models.correctors import MorphologyCorrector
from seggym.reward_models.error_net import ErrorNet, expected_dice
from seggym.reward_models.error_training import ErrorNetSettings, train_error_net
from seggym.reward_models.labelled_slices import prepared
from seggym.reward_models.networks import UNet
from seggym.reward_models.reward_dataset import RewardDataset, join_reward_datasets
from seggym.reward_models.reward_pairs import PairSettings, build_reward_pairs, policy_logits
from seggym.reward_models.uncertainty import (
    augmented,
    dropping,
    ensemble,
    evaluate_uncertainty,
    mc_dropout,
    of_probabilities,
    of_reward,
    softmax,
)

DEFAULTS = {"cohort": "echo", "severity": "3", "size": "48", "iterations": "250", "seeds": "2"}
TARGET = ("gain", "gamma", "speckle", "attenuation")
FAMILY = ("gain", "gamma", "speckle", "attenuation", "blur", "bias")
WIDTHS = (8, 16, 32, 64)
# What RL4Seg stores: no true mask, no samples, no distortion of masks.
PUBLISHED = PairSettings(identity=False, temperatures=(), morphological=(), elastic=(), patches=(), missing=False)


class Part(NamedTuple):
    images: Tensor
    masks: Tensor
    patients: tuple[str, ...]
    names: tuple[str, ...]


def looked(part: Part, shift: Callable[[int], Shift]) -> Part:
    """The same patients in another look, image number i changed by ``shift(i)``."""
    changed = [
        shift(number).apply(image[0].numpy(), name)
        for number, (image, name) in enumerate(zip(part.images, part.names, strict=True))
    ]
    return part._replace(images=torch.from_numpy(np.stack(changed))[:, None])


def any_look(seed: int) -> Callable[[int], Shift]:
    """Shifts of the family at random, one for every image; the target's own seed is not among them."""

    def draw(number: int) -> Shift:
        rng = np.random.default_rng([seed, number])
        kinds = tuple(rng.permutation(FAMILY)[: rng.integers(1, 4)])
        return Shift(kinds, int(rng.integers(1, 6)), int(rng.integers(1, 10**6)))

    return draw


def taught(part: Part, classes: int, seed: int, dropout: float = 0.0, iterations: int = 300) -> UNet:
    """A policy trained on ``part``."""
    torch.manual_seed(seed)
    network = UNet(classes, WIDTHS, norm="group")
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=iterations + 1)
    with dropping(network, dropout) if dropout else nullcontext():
        for _ in range(iterations):
            chosen = torch.randint(len(part.images), (8,))
            loss = functional.cross_entropy(network(part.images[chosen])[0], part.masks[chosen].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def row(name: str, found: Sequence[dict[str, float]], keys: Sequence[str]) -> str:
    """A row of a Markdown table, means over seeds."""
    return "| " + " | ".join([name, *(f"{np.nanmean([one[key] for one in found]):.3f}" for key in keys)]) + " |"


def table(*columns: str) -> None:
    """The head of one."""
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def main(options: dict[str, str]) -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    size, seeds, iterations = (int(options[key]) for key in ("size", "seeds", "iterations"))
    cohort = open_cohort("echo", patients=120, size=64) if options["cohort"] == "echo" else open_cohort("camus")
    classes, people = cohort.class_names, np.random.default_rng(0).permutation(cohort.patients).tolist()
    cuts = (np.cumsum([0, 1, 1, 0.5, 0.5]) / 3 * len(people)).astype(int)
    shift = Shift(TARGET, int(options["severity"]), 0)
    parts = []
    for first, last in itertools.pairwise(cuts.tolist()):
        slices = prepared(cohort, people[first:last], size, None)
        parts.append(Part(slices.images, slices.masks, slices.patients, slices.names))
    source, target, val, test = parts[0], *(looked(part, lambda _: shift) for part in parts[1:])
    policy = taught(source, len(classes), 0)
    rules = load_rules("camus", class_names=classes)
    corrector = MorphologyCorrector(rules)

    def of_target(settings: PairSettings) -> RewardDataset:
        return build_reward_pairs(
            policy, target.images, target.patients, target.names, corrector, rules, settings, class_names=classes
        )[0]

    def of_source(seed: int | None) -> RewardDataset:
        part = source if seed is None else looked(source, any_look(seed))
        names = [f"{seed} {name}" for name in part.names]
        return build_reward_pairs(policy, part.images, part.patients, names, class_names=classes, truths=part.masks)[0]

    logits = policy_logits(policy, test.images)
    generator = torch.Generator().manual_seed(0)
    shown = {"": logits.argmax(1).to(torch.uint8), "samples ": distortions.sample(logits, 1.0, generator)}
    full = [of_target(PairSettings()), of_source(0), of_source(1)]
    variants: dict[str, tuple[list[RewardDataset], dict[str, float]]] = {
        "RL4Seg's pairs of the target": ([of_target(PUBLISHED)], {}),
        "all kinds, target": ([full[0]], {}),
        "all kinds, target and source as it is": ([full[0], of_source(None)], {}),
        "all kinds, source in other looks": (full[1:], {}),
        "**all kinds, target and source in other looks**": (full, {}),
        "the same, true label not learned": (full, {"label_weight": 0.0}),
        "the same, masks never hidden": (full, {"hidden": 0.0}),
        "the same, nothing drawn anew": (full, {"fresh": 0.0}),
        "the same, no weights of foreground and boundary": (full, {"foreground_weight": 0.0, "boundary_weight": 0.0}),
    }
    columns = [
        *("auroc", "brier", "band_auroc", "band_brier", "ece"),
        "pearson_dice",
        "expected_dice",
        *(f"samples {key}" for key in ("auroc", "brier", "band_auroc")),
    ]
    table("pairs", *columns, "s")
    nets: list[ErrorNet] = []
    for name, (datasets, changes) in variants.items():
        found, begun = [], time.perf_counter()
        joined = join_reward_datasets(datasets)
        for seed in range(seeds):
            settings = ErrorNetSettings(iterations=iterations, widths=WIDTHS, seed=seed, **changes)  # type: ignore[arg-type]
            net = train_error_net(joined, settings)
            if name.startswith("**"):
                nets.append(net)
            scores: dict[str, float] = {}
            for prefix, masks in shown.items():
                reward = net(test.images, masks)
                scores |= {prefix + key: value for key, value in score_pixels(reward, masks, test.masks).items()}
            expected = expected_dice(net(test.images, shown[""]), shown[""])
            scores["expected_dice"] = of_dice(expected, shown[""], test)
            found.append(scores)
        print(row(name, found, columns)[:-1] + f"| {(time.perf_counter() - begun) / seeds:.0f} |", flush=True)

    twin = taught(source, len(classes), 0, dropout=0.3)
    others = [policy, *(taught(source, len(classes), seed) for seed in (1, 2, 3))]
    of: dict[str, Callable[[Tensor], Tensor]] = {
        "maximum softmax": lambda images: softmax(policy, images),
        "Monte Carlo dropout (a twin trained with it)": lambda images: mc_dropout(twin, images),
        "ensemble of 4": lambda images: ensemble(others, images),
        "test-time augmentation": lambda images: augmented(policy, images),
    }
    keys = ("temperature", "ece", "mce", "ace", "nmi", "auroc", "brier", "pearson_dice", "accuracy")
    table("confidence", *keys)
    for name, probabilities in of.items():
        two = [of_probabilities(probabilities(part.images)) for part in (val, test)]
        print(row(name, [evaluate_uncertainty(two[0], val.masks, two[1], test.masks)], keys), flush=True)
    rewarded = []
    for net in nets:
        two = [of_reward(net, policy, part.images) for part in (val, test)]
        rewarded.append(evaluate_uncertainty(two[0], val.masks, two[1], test.masks))
    print(row("**reward map**", rewarded, keys), flush=True)


def of_dice(expected: Tensor, masks: Tensor, test: Part) -> float:
    """Pearson correlation of the expected with the true Dice of the foreground as a whole."""
    first, second = (masks > 0).flatten(1), (test.masks > 0).flatten(1)
    right = ((masks == test.masks).flatten(1) & first).sum(1)
    true = 2 * right / (first.sum(1) + second.sum(1))
    return correlation(expected, true)


if __name__ == "__main__":
    main({**DEFAULTS, **dict(argument.split("=", 1) for argument in sys.argv[1:])})
