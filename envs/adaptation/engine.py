"""The batched episodes behind every adaptation environment: one image, one label map, one reward map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seggym.envs.adaptation.rewards import OracleReward
from seggym.envs.batched import StepResult
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import uniform
from seggym.reward_models.error_net import RewardMap
from seggym.reward_models.metrics import dice_per_class, encode_truth

# Streams of an episode's key; part of the definition of an episode.
_SAMPLE = 0


@dataclass(frozen=True)
class Episodes:
    """Episodes as data: image and key of each, int64 (B,)."""

    samples: Tensor
    keys: Tensor


class AdaptationEngine:
    """N episodes of one step in parallel: an image is shown, its label map is the action, its correctness the reward.

    ``images`` float32 (n, 1, H, W) in [0, 1]; a label map has values 0 to ``num_classes`` - 1. ``truth`` integer
    (n, H, W), where it is known, is what infos report metrics against; it is part of the reward only where ``reward``
    is an :class:`~seggym.envs.adaptation.rewards.OracleReward`.
    """

    part_names = ("adaptation",)

    def __init__(
        self,
        images: Tensor,
        reward: RewardMap | OracleReward,
        num_classes: int,
        num_envs: int,
        truth: Tensor | None = None,
        names: Sequence[str] = (),
        class_names: Sequence[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        if images.ndim != 4 or images.shape[1] != 1 or not len(images):
            raise SeggymError(f"images have shape {tuple(images.shape)}, expected (n, 1, height, width) with n above 0")
        if truth is not None and truth.shape != (len(images), *images.shape[2:]):
            raise SeggymError(
                f"the truth has shape {tuple(truth.shape)}, expected {(len(images), *images.shape[2:])}, one label map "
                "for each image"
            )
        self.num_envs, self.num_classes, self.device = num_envs, num_classes, torch.device(device)
        self.images, self.size = images.to(self.device, torch.float32), tuple(images.shape[2:])
        self.truth = None if truth is None else truth.to(self.device)
        self.reward = reward.to(self.device) if isinstance(reward, OracleReward) else reward
        self.names = tuple(names) or tuple(f"image_{index}" for index in range(len(images)))
        self.class_names = tuple(class_names) or tuple(f"class_{label}" for label in range(num_classes))
        self.pixels = self.size[0] * self.size[1]
        self.num_actions = self.pixels * num_classes
        zeros = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.keys, self.samples = zeros, zeros.clone()
        self.quality = zeros.to(torch.float32)
        self.answered = zeros.to(torch.bool)
        self.actions = torch.zeros(num_envs, *self.size, dtype=torch.uint8, device=self.device)
        self.maps = torch.zeros(num_envs, *self.size, device=self.device)

    # --- episodes -----------------------------------------------------------------------------------------------

    def draw(self, keys: Tensor) -> Episodes:
        """The episodes that belong to ``keys`` int64 (B,): every image is equally likely."""
        keys = keys.to(self.device)
        count = len(self.images)
        # A draw may be rounded up to 1.
        return Episodes((uniform(keys, _SAMPLE, 1)[:, 0] * count).long().clamp_(max=count - 1), keys)

    def begin(self, slots: Tensor, episodes: Episodes) -> None:
        """Show the images of ``episodes`` in the environments ``slots`` int64 (B,)."""
        samples = episodes.samples
        if len(samples) and not (int(samples.min()) >= 0 and int(samples.max()) < len(self.images)):
            raise SeggymError(f"an episode names an image outside 0..{len(self.images) - 1}; info['sample'] has them")
        self.samples[slots], self.keys[slots] = samples, episodes.keys
        self.quality[slots], self.maps[slots], self.actions[slots] = 0, 0, 0
        self.answered[slots] = False

    def action_mask(self) -> Tensor:
        """Every label is legal at every pixel: bool (N, pixels * classes)."""
        return torch.ones(self.num_envs, self.num_actions, dtype=torch.bool, device=self.device)

    def step(self, actions: Tensor, active: Tensor | None = None) -> StepResult:
        """Label maps int64 (N, pixels), rows first, for the environments that are ``active`` bool (N,) (default: all).

        Labels are 0 to ``num_classes`` - 1, which :meth:`check` makes sure of: that waits for the device, a step does
        not.
        """
        active = torch.ones(self.num_envs, dtype=torch.bool, device=self.device) if active is None else active
        masks = actions.reshape(self.num_envs, *self.size)
        maps = self.reward_maps(self.samples, masks)
        chosen = active[:, None, None]
        self.maps = torch.where(chosen, maps, self.maps)
        self.actions = torch.where(chosen, masks.to(torch.uint8), self.actions)
        self.quality = torch.where(active, maps.mean(dim=(1, 2)), self.quality)
        self.answered = self.answered | active
        parts = {"adaptation": torch.where(active, self.quality, 0)}
        return StepResult(parts, active.clone(), torch.zeros_like(active))

    def check(self, actions: Tensor) -> None:
        """Raise :class:`SeggymError` for label maps with a value outside 0 to ``num_classes`` - 1."""
        low, high = (int(value) for value in actions.aminmax())
        if low < 0 or high >= self.num_classes:
            raise SeggymError(
                f"a label map holds values from {low} to {high}, expected 0 to {self.num_classes - 1} "
                f"({', '.join(self.class_names)})"
            )

    def reward_maps(self, samples: Tensor, masks: Tensor) -> Tensor:
        """Reward of label maps integer (B, H, W) of the images ``samples`` int64 (B,), float32 (B, H, W)."""
        with torch.inference_mode():
            if isinstance(self.reward, OracleReward):
                maps = self.reward.of(samples, masks)
            else:
                maps = self.reward(self.images[samples], masks)
        if maps.shape != masks.shape:
            raise SeggymError(
                f"the reward of {tuple(masks.shape)} label maps has shape {tuple(maps.shape)}, expected the same"
            )
        # An ordinary tensor again: the state of the engine is written in place.
        return maps.float().clone()

    def observe(self) -> Tensor:
        """The images, a fresh float32 (N, 1, H, W)."""
        return self.images[self.samples]

    def metrics(self) -> dict[str, Tensor]:
        """``accuracy`` (N,) and ``dice`` (N, K - 1), NaN for classes that the image lacks; {} without a truth.

        Before the step they are NaN.
        """
        if self.truth is None:
            return {}
        truth = self.truth[self.samples]
        accuracy = (self.actions == truth).float().mean(dim=(1, 2)).masked_fill(~self.answered, torch.nan)
        dice = dice_per_class(self.actions, encode_truth(truth, self.num_classes))
        return {"accuracy": accuracy, "dice": dice.masked_fill(~self.answered[:, None], torch.nan)}

    # --- exact resume -------------------------------------------------------------------------------------------

    _STATE = ("keys", "samples", "quality", "answered", "actions", "maps")

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        return {name: getattr(self, name).clone() for name in self._STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state`` of an engine with the same images and number of environments."""
        for name in self._STATE:
            mine, given = getattr(self, name), state.get(name)
            if given is None or given.shape != mine.shape:
                found = "nothing" if given is None else f"shape {tuple(given.shape)}"
                raise SeggymError(
                    f"the state of the environments holds {found} for {name}, expected shape {tuple(mine.shape)}; make "
                    "the environments with the same data, size and num_envs"
                )
        for name in self._STATE:
            getattr(self, name).copy_(state[name])
