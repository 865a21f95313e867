"""Scores for lines, seen from where the echo is: for scans that shift it and corrupt lines."""

import math

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from seggym.agents.extractors import DictExtractor, LineConvolution
from seggym.errors import SeggymError

# Decades of the observation ``energy`` between 0 and 1.
_DECADES = 6.0
_NEEDED = ("acquired", "budget", "energy")


class EchoExtractor(BaseFeaturesExtractor):
    """One score per line from a network that all lines share, in coordinates centred on the echo.

    An echo shift moves the whole spectrum, so that an absolute line index says little. The measured amplitudes tell
    where the echo is (:func:`amplitude_centre`); distances and mirror images are taken about it, and a scan and its
    mirror image get mirrored scores. They start from a rule, ``-strength * distance / M``: measure the line nearest to
    the echo that is not measured, or corrupted; lines that are measured well come last. Training corrects the rule line
    by line.

    Input: a Dict with ``acquired`` (N, M), ``budget`` (N, 1), ``energy`` (N, M) and optionally ``corrupted`` (N, M) and
    whatever :class:`DictExtractor` takes. Output: float32 (N, M + context): scores, which the head passes on
    (:func:`seggym.agents.priors.start_head`), then the context, which the critic works with. ``width`` is the number of
    channels, ``neighbours`` how many lines are seen on either side.
    """

    def __init__(
        self, observation_space: spaces.Dict, strength: float = 48.0, width: int = 32, neighbours: int = 6
    ) -> None:
        parts = observation_space.spaces
        missing = [name for name in _NEEDED if name not in parts]
        if missing:
            raise SeggymError(
                f"the extractor 'echo' needs {', '.join(missing)} among the parts of the observation, found "
                f"{', '.join(parts)}: add them to env.kwargs.observation or choose the extractor 'dict'"
            )
        # What is known of single lines is seen by the shared network; the rest is context.
        rest = {name: space for name, space in parts.items() if name not in ("acquired", "energy", "corrupted")}
        context = DictExtractor(spaces.Dict(rest), embedding=width)
        self.num_scores = math.prod(parts["acquired"].shape or ())
        # Beside the parts: share of lines measured, of lines corrupted, and the position of the echo.
        super().__init__(observation_space, self.num_scores + context.features_dim + 3)
        self.context = context
        self.strength, self.knows_corruption = strength, "corrupted" in parts
        self.line: torch.Tensor
        self.register_buffer("line", torch.arange(self.num_scores, dtype=torch.float32), persistent=False)
        channels = 2 * (2 + self.knows_corruption) + 3
        self.local = LineConvolution(channels, width, 2 * neighbours + 1, padding=neighbours)
        self.shared = nn.Linear(context.features_dim + 3, width)
        self.score = nn.Sequential(nn.ReLU(), LineConvolution(width, width, 1), nn.ReLU(), LineConvolution(width, 1, 1))
        # Training starts from the rule: corrections of zero everywhere.
        last = self.score[-1]
        assert isinstance(last, nn.Conv1d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, features_dim): scores, then context."""
        acquired, energy = observations["acquired"].float(), observations["energy"]
        corrupted = observations["corrupted"].float() if self.knows_corruption else torch.zeros_like(acquired)
        echo = echo_position(acquired, energy)[:, None]
        offset = (self.line - echo) / self.num_scores
        seen = [acquired, energy, corrupted] if self.knows_corruption else [acquired, energy]
        mirror = (2 * echo - self.line).round()
        inside = (mirror >= 0) & (mirror < self.num_scores)
        index = mirror.clamp(0, self.num_scores - 1).long()
        mirrored = [torch.where(inside, part.gather(1, index), 0) for part in seen]
        shares = torch.stack([acquired.mean(1), corrupted.mean(1), (echo[:, 0] / self.num_scores - 0.5).abs()], 1)
        context = torch.cat([self.context(observations), shares], 1)
        # A line that there is no reason to measure again comes after all others; training may overrule it.
        rule = -(offset.abs() + acquired * (1 - corrupted))
        # In tens of lines of 128, so that neighbours differ by a tenth.
        lines = torch.stack([*seen, *mirrored, 12.8 * offset, 12.8 * offset.abs(), rule], 1)
        # A scan and its mirror image are equally likely. A network that may prefer a side does so by chance, and what
        # tells the sides apart at the start, a little more signal on one of them, drowns in it: both are averaged.
        reflected = torch.cat([lines[:, :-3], -lines[:, -3:-2], lines[:, -2:]], 1).flip(-1)
        corrections = (self._correct(lines, context) + self._correct(reflected, context).flip(-1)) / 2
        # The rule's own choice is at 0, at every step: stopping, which has no rule, is as likely early as late.
        prior = self.strength * (rule - rule.amax(1, keepdim=True))
        return torch.cat([prior + corrections, context], 1)

    def _correct(self, lines: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Corrections (N, M) of the rule, from features (N, channels, M) of the lines and the context."""
        return self.score(self.local(lines) + self.shared(context)[:, :, None])[:, 0]


def echo_position(acquired: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Centre of the measured amplitudes in lines, float32 (N,), from observations ``acquired`` and ``energy`` (N, M).

    ``energy`` is on a log scale relative to the strongest line; the amplitude is the root of what it stands for.
    """
    return amplitude_centre(10 ** (_DECADES / 2 * (energy - 1)) * acquired.float())


def amplitude_centre(amplitude: torch.Tensor) -> torch.Tensor:
    """Centre of the lines' amplitudes (N, M), zero where none is measured, in lines: float (N,)."""
    line = torch.arange(amplitude.shape[1], dtype=amplitude.dtype, device=amplitude.device)
    return (amplitude * line).sum(1) / amplitude.sum(1).clamp_min(1e-12)
