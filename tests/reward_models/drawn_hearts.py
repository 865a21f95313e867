"""Small images with rings as myocardium and discs as ventricle, and a policy that knows them, for tests."""

import numpy as np
import torch
from torch.nn import functional

from seggym.reward_models.networks import UNet

NAMES = ("background", "ventricle", "myocardium")


def hearts(count, seed=0, size=32, slope=0.0):
    """Images float32 (n, 1, size, size) and masks uint8 (n, size, size); ``slope`` shifts the domain."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size))
    images, masks = [], []
    for _ in range(count):
        centre = rng.uniform(0.35, 0.65, 2) * size
        radius, wall = rng.uniform(0.12, 0.2) * size, rng.uniform(0.08, 0.13) * size
        distance = np.hypot((y - centre[0]) * rng.uniform(0.8, 1.2), x - centre[1])
        mask = np.where(distance < radius, 1, np.where(distance < radius + wall, 2, 0))
        image = np.choose(mask, [0.35, 0.2, 0.7]) + slope * (y / size - 0.5)
        images.append((image + 0.1 * rng.standard_normal((size, size))).clip(0, 1))
        masks.append(mask)
    return torch.tensor(np.stack(images), dtype=torch.float32)[:, None], torch.tensor(
        np.stack(masks), dtype=torch.uint8
    )


def people(count, per_person=2):
    """Patients and names of ``count`` images."""
    return [f"p{number // per_person}" for number in range(count)], [f"image{number}" for number in range(count)]


def taught_policy(images, masks, iterations=80, seed=0):
    """A small U-Net trained on them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = UNet(len(NAMES), (8, 16), norm="group")
        optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
        for _ in range(iterations):
            chosen = torch.randint(len(images), (8,))
            loss = functional.cross_entropy(policy(images[chosen])[0], masks[chosen].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy.eval()
