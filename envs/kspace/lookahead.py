"""What a line would bring if it were measured now: scored without touching the running episodes.

Only label-using references and the search for fixed orders on training data look ahead; no policy that is compared as
honest may.
"""

import torch

from seggym.envs.batched import read_rows
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.reward import quality, segment

# Images held at a time: a complex and a real one of each, and the network's activations beside them.
_CHUNK = 64


def try_lines(engine: KSpaceEngine, slots: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Quality float (B,) that environment ``slots[i]`` would have with line ``lines[i]`` added; both int64 (B,).

    The lines must not be measured yet: adding a measured one would count it twice.
    """
    parts = zip(slots.split(_CHUNK), lines.split(_CHUNK), strict=True)
    return torch.cat([_try_chunk(engine, some, candidates) for some, candidates in parts])


def _try_chunk(engine: KSpaceEngine, slots: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    crop = engine.acquisition.crop
    first_row = engine.num_lines // 2 - crop // 2
    signal = engine.signal[slots, lines, first_row : first_row + crop]
    image = engine.image[slots] + signal[:, :, None] * engine._phases[lines][:, None, :]
    magnitude = torch.sqrt(image.real.square() + image.imag.square())
    if engine.reconstructor is not None:
        magnitude = engine.reconstructor(magnitude).to(engine.dtype)
    prediction = None
    if engine.settings.needs_network:
        prediction = segment(engine.networks, engine.routing[engine.samples[slots]], magnitude)
    assert engine.truth is not None
    return quality(engine.settings, prediction, magnitude, read_rows(engine.truth, slots))
