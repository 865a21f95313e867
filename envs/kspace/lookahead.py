"""What a line would bring if it were measured now: scored without touching the running episodes.

Only label-using references and the search for fixed orders on training data look ahead; no policy that is compared as
honest may.
"""

import torch
from tqdm import tqdm

from seggym.envs.batched import pieces, read_rows
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.reward import quality
from seggym.envs.kspace.segmentation import segment


def try_lines(engine: KSpaceEngine, slots: torch.Tensor, lines: torch.Tensor, title: str | None = None) -> torch.Tensor:
    """Quality float (B,) that environment ``slots[i]`` would have with line ``lines[i]`` added; both int64 (B,).

    A line that is measured already is measured again. With a ``title`` a bar shows how long it will take.
    """
    found = torch.empty(len(slots), dtype=engine.dtype, device=engine.device)
    # By network, so that the batches that each of them gets are full.
    order = engine.routing[engine.samples[slots]].argsort(stable=True)
    with tqdm(total=len(slots), desc=title, unit="line", disable=title is None, leave=False) as bar:
        for part in pieces(order, engine.micro_batch):
            found[part] = _try(engine, slots[part], lines[part])
            bar.update(len(part))
    return found


def _try(engine: KSpaceEngine, slots: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    magnitude = engine.scanner.tried(slots, lines)
    prediction = None
    if engine.settings.needs_network:
        prediction = segment(engine.networks, engine.routing[engine.samples[slots]], magnitude)
    assert engine.truth is not None
    return quality(engine.settings, prediction, magnitude, read_rows(engine.truth, slots))
