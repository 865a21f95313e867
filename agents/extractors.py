"""From the Dict observation of an environment to one feature vector, cheap enough for a CPU."""

import math

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

# Vectors up to this length go through as they are; longer real-valued ones are standardised and projected.
_SHORT = 16


class DictExtractor(BaseFeaturesExtractor):
    """Images through a small strided network, long real vectors through a standardised projection, the rest as it is.

    Input: a Dict with parts (N, channels, height, width), (N, length) or binary (N, length). ``action_mask`` is left
    out: it says what may be done, and the algorithms apply it themselves. Output: float32 (N, features_dim).
    ``image_width`` is the number of channels of the first convolution, ``embedding`` the size of each embedded part.
    """

    def __init__(self, observation_space: spaces.Dict, image_width: int = 16, embedding: int = 128) -> None:
        parts: dict[str, nn.Module] = {}
        size = 0
        for name, space in observation_space.spaces.items():
            if name == "action_mask":
                continue
            shape = space.shape or ()
            if len(shape) == 3:
                parts[name] = _image_network(shape, image_width, embedding)
                size += embedding
            elif isinstance(space, spaces.Box) and shape[0] > _SHORT:
                parts[name] = nn.Sequential(nn.LayerNorm(shape[0]), nn.Linear(shape[0], embedding), nn.ReLU())
                size += embedding
            else:
                parts[name] = nn.Flatten()
                size += math.prod(shape)
        super().__init__(observation_space, size)
        self.parts = nn.ModuleDict(parts)

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, features_dim), parts in the order of the space."""
        return torch.cat([part(observations[name].float()) for name, part in self.parts.items()], 1)


def _image_network(shape: tuple[int, ...], width: int, embedding: int) -> nn.Sequential:
    """About 1.5 million multiplications for 128 x 128 pixels at width 16; the first stride of 4 saves most of them."""
    convolutions = nn.Sequential(
        nn.Conv2d(shape[0], width, 7, stride=4, padding=3),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=4),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    with torch.no_grad():
        flat = convolutions(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(convolutions, nn.Linear(flat, embedding), nn.ReLU())


# What a snapshot may name.
EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {"dict": DictExtractor}
