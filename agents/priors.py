"""What every MR physicist knows before the first scan: the low frequencies come first.

An untrained policy measures lines at random and needs tens of thousands of episodes to find the centre of k-space. The
prior puts that knowledge into the bias of the last layer, where training is free to overrule it.
"""

import torch
from torch import nn

# Small against the bias, so that the untrained policy is the prior; the gain that SB3 uses for its actors.
_HEAD_GAIN = 0.01


def low_frequency_prior(num_lines: int, strength: float, num_actions: int | None = None) -> torch.Tensor:
    """-strength * |k - dc| / num_lines for every line, float32 (num_actions,).

    Sampled with these as logits, lines scatter about DC with an exponential profile whose decay length is
    ``num_lines / strength`` lines. Actions after the lines (stopping) get the lowest value of all; where the actions
    are lines of several slices, a multiple of ``num_lines``, every slice has the same prior.
    """
    line = torch.arange(num_lines, dtype=torch.float32)
    values = -strength * (line - num_lines // 2).abs() / num_lines
    slices, extra = divmod(num_actions or num_lines, num_lines)
    if not extra:
        return values.repeat(slices)
    return torch.cat([values, values.min().expand(extra)])


def start_head(head: nn.Linear, prior: torch.Tensor, passed: int = 0) -> None:
    """Make ``prior`` (A,) what the untrained ``head`` says: it becomes the bias, and the weights become small.

    The first ``passed`` features are scores of the first actions already (see
    :class:`seggym.agents.extractors.LineExtractor`); they are added to the prior as they are.
    """
    with torch.no_grad():
        if passed:
            head.weight.zero_()
            head.weight[:passed, :passed].fill_diagonal_(1.0)
        else:
            nn.init.orthogonal_(head.weight, _HEAD_GAIN)
        head.bias.copy_(prior)
