"""A reconstruction network that goes back to the measured lines after every step."""

import itertools

import torch
from torch import nn

from seggym.errors import SeggymError
from seggym.kspace.reconstruction.lines import centre_phase, keep_lines
from seggym.kspace.transforms import ifftc


class Unrolled(nn.Module):
    """Cascades of a small network and data consistency (Schlemper et al., IEEE TMI 2018).

    ``cascades`` times a residual network of ``layers`` convolutions with ``width`` channels corrects the real and the
    imaginary part of each coil's image, without the phase of the symmetric centre, so that it sees much the same image
    whatever the phase is; then its lines are mixed with the measured ones, by a share that is learned per cascade, as
    they are noisy. It begins as the zero-filled image. There is no pooling and no batch norm: any size.
    """

    def __init__(self, num_outputs: int = 1, cascades: int = 4, width: int = 24, layers: int = 4) -> None:
        super().__init__()
        if num_outputs != 1:
            raise SeggymError(f"num_outputs of unrolled is {num_outputs}, expected 1: it only reconstructs")
        for name, value, least in (("cascades", cascades, 1), ("width", width, 1), ("layers", layers, 2)):
            if not isinstance(value, int) or value < least:
                raise SeggymError(f"{name} of unrolled is {value!r}, expected a whole number of at least {least}")
        self.refine = nn.ModuleList(_corrector(width, layers) for _ in range(cascades))
        # A share of 0.95 to begin with.
        self.trust = nn.Parameter(torch.full((cascades,), 3.0))

    def forward(self, rows: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor:
        """Complex images (B, J, C, M) of ``rows`` (B, J, C, M) whose measured lines are ``acquired`` bool (B, M).

        Rows and columns as in :mod:`seggym.kspace.reconstruction.lines`; unmeasured lines are zero.
        """
        phase = centre_phase(rows, acquired)
        measured = ifftc(rows, (-1,))
        scale = measured.abs().square().sum(1, keepdim=True).sqrt().mean((2, 3), keepdim=True)
        measured = measured / torch.where(scale > 0, scale, 1)
        image = measured
        for refine, trust in zip(self.refine, self.trust.to(rows.real.dtype).sigmoid(), strict=True):
            parts = torch.view_as_real(image * phase.conj()).flatten(0, 1).movedim(-1, 1)
            correction = refine(parts.to(self.trust.dtype).contiguous(memory_format=torch.channels_last))
            corrected = (parts + correction.to(parts.dtype)).movedim(1, -1).contiguous().view(*image.shape, 2)
            image = torch.view_as_complex(corrected) * phase
            image = image + trust * (measured - keep_lines(image, acquired))
        return image * scale


def _corrector(width: int, layers: int) -> nn.Sequential:
    """Convolutions from two channels over ``width`` to two; the last begins as zero."""
    channels = [2, *[width] * (layers - 1)]
    blocks: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    last = nn.Conv2d(width, 2, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has one
    return nn.Sequential(*blocks, last)
