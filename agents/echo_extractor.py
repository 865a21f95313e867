"""Scores for lines, seen from where the echo is: for scans that shift it and corrupt lines."""

import math
from collections.abc import Mapping

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional

from seggym.agents.extractors import DictExtractor
from seggym.errors import SeggymError

# Decades of the observation ``energy`` between 0 and 1.
_DECADES = 6.0
_NEEDED = ("acquired", "budget", "energy")

LINE_PARTS = ("acquired", "energy", "corrupted")
"""Parts of the observation that the scores of lines are made of; the others are context for the critic."""

FEATURES = (
    "adjacent", "dense", "dense_far", "covered_side", "covered_side_far", "strong_side", "even", "off_dc", "inner",
    "corrupted", "mirrored", "energy",
)  # fmt: skip
"""What the weights of :class:`EchoExtractor` stand for; :func:`line_features` says what each is."""


class EchoExtractor(BaseFeaturesExtractor):
    """One score per line: a rule, and what a dozen learned weights add to it, in coordinates centred on the echo.

    An echo shift moves the whole spectrum, so that an absolute line index says little. The measured amplitudes tell
    where the echo is (:func:`echo_position`); distances and mirror images are taken about it, and a scan and its mirror
    image get mirrored scores. The rule is ``-distance / M``: measure the line nearest to the echo that is not measured,
    or corrupted; lines that are measured well come last. ``weights``, zero at the start, add :func:`line_features`:
    few enough to be learned from the scans of 20 patients, and each can be read. ``start`` names weights that begin
    elsewhere: {"off_dc": -2} is close to centre-out, the better rule where the echo hardly moves.

    Input: a Dict with ``acquired`` (N, M), ``budget`` (N, 1), ``energy`` (N, M) and optionally ``corrupted`` (N, M) and
    whatever :class:`DictExtractor` takes. Output: float32 (N, M + context): ``strength`` times the scores, which the
    head passes on (:func:`seggym.agents.priors.start_head`), then the context, which the critic works with, in
    ``width`` numbers for each part. Raises :class:`SeggymError` for a weight that there is not.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        strength: float = 60.0,
        width: int = 32,
        start: Mapping[str, float] | None = None,
    ) -> None:
        parts = observation_space.spaces
        missing = [name for name in _NEEDED if name not in parts]
        if missing:
            raise SeggymError(
                f"the extractor 'echo' needs {', '.join(missing)} among the parts of the observation, found "
                f"{', '.join(parts)}: add them to env.kwargs.observation or choose the extractor 'dict'"
            )
        context = DictExtractor(
            spaces.Dict({name: space for name, space in parts.items() if name not in LINE_PARTS}), embedding=width
        )
        self.num_scores = math.prod(parts["acquired"].shape or ())
        # Beside the parts: share of lines measured, of lines corrupted, and the position of the echo.
        super().__init__(observation_space, self.num_scores + context.features_dim + 3)
        self.context, self.strength = context, strength
        begin = start or {}
        unknown = [name for name in begin if name not in FEATURES]
        if unknown:
            raise SeggymError(
                f"agent.network.extractor_kwargs.start names {', '.join(unknown)}, expected some of "
                f"{', '.join(FEATURES)}"
            )
        self.weights = nn.Parameter(torch.tensor([float(begin.get(name, 0)) for name in FEATURES]))

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, features_dim): scores, then context."""
        acquired, energy, corrupted = _line_parts(observations)
        echo = echo_position(acquired, energy)
        scores = self.scores(observations, self.weights)
        # The best line is at 0, at every step: stopping, which has no rule, is as likely early as late.
        scores = self.strength * (scores - scores.detach().amax(1, keepdim=True))
        away = (echo / self.num_scores - 0.5).abs()
        shares = torch.stack([acquired.mean(1), corrupted.mean(1), away], 1)
        return torch.cat([scores, self.context(observations), shares], 1)

    def scores(self, observations: dict[str, torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Scores (N, M) in units of the width of k-space, by ``weights`` (F,), or (N, F) of its own for every scan."""
        acquired, energy, corrupted = _line_parts(observations)
        echo = echo_position(acquired, energy)
        rule, features = line_features(acquired, energy, corrupted, echo)
        weights = weights if weights.ndim == 2 else weights[None]
        scores = rule + (weights[:, :, None] * features).sum(1)
        # Measured well comes last whatever the weights: where measuring again is legal, it would cost a line. The
        # constant of the rule is usually enough; it moves with the echo, how low others are depends on the edges.
        good = (acquired * (1 - corrupted)).bool()
        lowest = scores.detach().masked_fill(good, torch.inf).amin(1, keepdim=True)
        return torch.where(good, torch.minimum(scores, lowest - 1), scores)


def line_features(
    acquired: torch.Tensor, energy: torch.Tensor, corrupted: torch.Tensor, echo: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule (N, M), and what may be added to it, (N, F, M) in the order of :data:`FEATURES`.

    From ``acquired``, ``energy`` and ``corrupted`` float (N, M) and the position ``echo`` (N,) in lines. With d the
    distance from the echo over M, "good" for measured and not corrupted, and "covered side" for where the good lines
    lie (-1 to 1, the sign of a side is that of its offsets): whether the two neighbours are good; the share of good
    lines up to three away, and that times d; on the covered side or opposite to it, as a step at the echo and growing
    with d; d on the side with more measured amplitude; d of every second line; distance from DC; distance from the edge
    of k-space; corrupted; its mirror image good; mean energy of measured lines near by. Factors make a weight of 1
    worth some lines of 128. Lines that are good have zeros: there is nothing to add to "last".
    """
    number = acquired.shape[1]
    line = torch.arange(number, dtype=energy.dtype, device=energy.device)
    echo = echo[:, None]
    offset = (line - echo) / number
    distance, side = offset.abs(), offset.sign()
    good = acquired * (1 - corrupted)
    amplitude = _amplitude(acquired, energy)
    total = amplitude.sum(1, keepdim=True).clamp_min(1e-12)
    strong = (amplitude * side).sum(1, keepdim=True) / total
    covered = (good * offset).sum(1, keepdim=True) / good.sum(1, keepdim=True).clamp_min(1)
    covered = torch.tanh(covered * number / 3)
    mirror = (2 * echo - line).round()
    inside = (mirror >= 0) & (mirror < number)
    mirrored = torch.where(inside, good.gather(1, mirror.clamp(0, number - 1).long()), 0)
    dense = _smooth(good, (0.25, 0.5, 1.0, 0.0, 1.0, 0.5, 0.25)) / 3.5
    near = [math.exp(-abs(away) / 3) for away in range(-8, 9)]
    weight = _smooth(acquired, near)
    around = torch.where(weight > 0.05, _smooth(energy * acquired, near) / weight.clamp_min(0.05), 0)
    features = torch.stack(
        [
            0.05 * _smooth(good, (0.5, 0.0, 0.5)),
            0.05 * dense,
            dense * distance,
            0.01 * covered * side,
            0.5 * covered * offset,
            0.5 * strong * offset,
            0.5 * ((line - echo.round()) % 2 == 0) * distance,
            (line - number // 2).abs().expand_as(distance) / number,
            0.1 * torch.minimum(line, number - 1 - line).expand_as(distance) / number,
            0.03 * corrupted,
            0.03 * mirrored,
            0.1 * around,
        ],
        1,
    )
    return -(distance + 2 * good), features * (1 - good)[:, None]


def echo_position(acquired: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Centre of the measured amplitudes in lines, float32 (N,), from ``acquired`` and ``energy`` (N, M)."""
    return amplitude_centre(_amplitude(acquired, energy))


def amplitude_centre(amplitude: torch.Tensor) -> torch.Tensor:
    """Centre of the lines' amplitudes (N, M), zero where none is measured, in lines: float (N,)."""
    line = torch.arange(amplitude.shape[1], dtype=amplitude.dtype, device=amplitude.device)
    return (amplitude * line).sum(1) / amplitude.sum(1).clamp_min(1e-12)


def _line_parts(observations: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    acquired = observations["acquired"].float()
    corrupted = observations["corrupted"].float() if "corrupted" in observations else torch.zeros_like(acquired)
    return acquired, observations["energy"], corrupted


def _amplitude(acquired: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    # ``energy`` is on a log scale relative to the strongest line; the amplitude is the root of what it stands for.
    return 10 ** (_DECADES / 2 * (energy - 1)) * acquired.float()


def _smooth(values: torch.Tensor, kernel: tuple[float, ...] | list[float]) -> torch.Tensor:
    """Values (N, M) weighted by a symmetric kernel about each line."""
    weights = torch.tensor(kernel, dtype=values.dtype, device=values.device)[None, None]
    return functional.conv1d(values[:, None], weights, padding=len(kernel) // 2)[:, 0]
