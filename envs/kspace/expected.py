"""A reward without labels: the Dice that an error net expects of what the segmentation network draws."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.reward_models.error_net import RewardMap, expected_dice, load_error_net


class ExpectedDice:
    """:func:`~seggym.reward_models.error_net.expected_dice` of images and what was drawn on them.

    It is a function of the current image alone. ``net`` is on the device of the images.
    """

    def __init__(self, net: RewardMap) -> None:
        self.net = net

    def __call__(self, magnitude: Tensor, labels: Tensor) -> Tensor:
        """Of magnitude images float (B, C, C) and label maps uint8 (B, C, C): float (B,)."""
        return expected_dice(self.net(magnitude[:, None].float(), labels), labels).to(magnitude.dtype)


def load_expected_dice(
    settings: KSpaceSettings, class_names: Sequence[str], patients: Collection[str], device: torch.device
) -> ExpectedDice | None:
    """What ``lambda_error`` weighs; None where it is 0.

    Raises :class:`SeggymError` where the error net knows other classes, or was trained on labels of one of ``patients``
    who are scored.
    """
    if not settings.lambda_error:
        return None
    assert settings.error_net is not None
    net = load_error_net(settings.error_net)
    net.require_classes(class_names)
    known = sorted(set(net.labelled) & set(patients)) if net.cohort in ("", settings.cohort) else []
    if known:
        raise SeggymError(
            f"the error net in {settings.error_net} was trained on labels of {', '.join(known)}, so its reward is not "
            f"without labels: use one of other patients, or another role than {settings.role}"
        )
    return ExpectedDice(net.to(device))
