"""What per-pixel training is told, checked in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from stable_baselines3.common.utils import LinearSchedule

from seggym.configs.checking import require_at_least, require_choices, require_types
from seggym.errors import SeggymError

ALGORITHMS = ("ppo", "reinforce")
# A number, or [first, last], linear over the training.
Course = float | Sequence[float]


@dataclass(frozen=True)
class PixelSettings:
    """Settings of :func:`seggym.agents.pixel.training.train_pixel_ppo`; plain JSON values.

    ``images`` are seen in all, ``batch`` of them in a rollout, which is learned from in ``epochs`` passes of
    ``minibatch`` images (None: the whole rollout). ``actor_rate``, ``critic_rate``, ``entropy`` (weight of the entropy,
    nats per pixel) and ``beta`` (weight of the divergence from the reference) are numbers, or [first, last] of a linear
    course. ``clip`` is PPO's clip range. ``actor_grad_norm`` and ``critic_grad_norm`` are what gradients are clipped
    to. ``normalize_advantage`` over the pixels of a minibatch. ``critic_options`` are those of the critic's network
    where there is none to start from (None: the actor's).
    Anchors: before every rollout ``anchor_steps`` supervised steps on ``anchor_batch`` of them with rate
    ``anchor_rate``. ``algorithm`` is "ppo" or "reinforce".

    Defaults are RL4Seg's, where it has one.
    """

    images: int = 2000
    batch: int = 32
    minibatch: int | None = None
    epochs: int = 5
    actor_rate: Course = 5e-4
    critic_rate: Course = 5e-4
    clip: float = 0.2
    entropy: Course = 0.05
    beta: Course = 0.05
    actor_grad_norm: float = 0.5
    critic_grad_norm: float = 0.5
    normalize_advantage: bool = False
    critic_options: Mapping[str, Any] | None = None
    anchor_steps: int = 1
    anchor_batch: int = 16
    anchor_rate: float = 5e-4
    algorithm: str = "ppo"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        types = {**get_type_hints(PixelSettings), **dict.fromkeys(_COURSES, float | list | tuple)}
        require_types({entry.name: getattr(self, entry.name) for entry in fields(self)}, types)
        require_choices(self, {"algorithm": ALGORITHMS})
        require_at_least(self, images=1, batch=2, epochs=1, anchor_batch=1, anchor_steps=0)
        if self.minibatch is not None and not 1 <= self.minibatch <= self.batch:
            raise SeggymError(f"minibatch={self.minibatch} must be 1 to batch={self.batch}, or null for all of it")
        for name in ("clip", "actor_grad_norm", "critic_grad_norm", "anchor_rate"):
            if getattr(self, name) <= 0:
                raise SeggymError(f"{name}={getattr(self, name)} must be positive")
        for name in _COURSES:
            ends = self.ends(name)
            if len(ends) != 2 or not all(isinstance(value, (int, float)) and value >= 0 for value in ends):
                raise SeggymError(
                    f"{name}={getattr(self, name)!r} must be a number of 0 or more, or [first, last] of a linear course"
                )

    def ends(self, name: str) -> list[Any]:
        """First and last value of the course ``name``."""
        value = getattr(self, name)
        return [value, value] if isinstance(value, (int, float)) else list(value)

    def course(self, name: str) -> LinearSchedule:
        """The value of ``name`` as a function of the remaining progress, 1 to 0."""
        first, last = (float(value) for value in self.ends(name))
        return LinearSchedule(first, last, end_fraction=1.0)


def published(iteration: int) -> dict[str, Any]:
    """RL4Seg's settings of its outer ``iteration``, from 1: larger batches, less entropy, less divergence."""
    if iteration < 1:
        raise SeggymError(f"the iteration is {iteration}, expected 1 or more: iteration 0 is the supervised network")
    return {"batch": 8 * iteration, "entropy": 0.3 / (2 * iteration), "beta": 0.1 / (2 * iteration)}


_COURSES = ("actor_rate", "critic_rate", "entropy", "beta")
