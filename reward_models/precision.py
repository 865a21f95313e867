"""Which precision a network may compute in: what ``"auto"`` means, and the record that a network is trusted by.

Rounding to bf16 changes a Dice in the third digit, which matters only where it changes a decision. So a network's
folder may hold ``precision.json``: how often the one-step greedy choice differs between fp32 and bf16, and what the
lines chosen in bf16 lose (:mod:`seggym.reward_models.regret` measures it). Without such a record "auto" is fp32.
"""

import os
import warnings
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_type_hints

import torch

from seggym.configs.checking import require_types
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.reward_models.checkpoints import read_card

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
RECORD = "precision.json"
LARGEST_REGRET = 0.01
"""Share of the greedy choice's gain that bf16 may lose where ``"auto"`` chooses it."""

HOW_TO_MEASURE = (
    "the command that trained the reward model (bash train_reward_model.sh ...), run again, measures it in minutes and "
    "leaves finished networks as they are"
)


@dataclass(frozen=True)
class PrecisionRecord:
    """What the choice of lines loses in bf16 instead of fp32, over many choices of one network.

    Attributes:
        weights: :func:`~seggym.reward_models.checkpoints.weights_hash` of the network that was measured.
        choices: how many choices of a line were compared.
        changed: share of them in which bf16 chose another line.
        regret: mean loss of quality per choice, by the fp32 network: that of its own choice less that of bf16's.
        gain: mean gain in quality of the fp32 choice over measuring no further line.
        relative: ``regret`` / ``gain``; None where there was nothing to gain.
        interval: 95 % interval of ``relative`` over patients; both None where there is a single one.
        device: what it was measured on.
        torch: version of torch.
    """

    weights: str
    choices: int
    changed: float
    regret: float
    gain: float
    relative: float | None
    interval: tuple[float | None, float | None]
    device: str
    torch: str

    @property
    def sentence(self) -> str:
        """For a person to read."""
        lost = "an unknown share" if self.relative is None else f"{self.relative:.2%}"
        return f"bf16 changes {self.changed:.0%} of {self.choices} greedy choices and loses {lost} of their gain"


class Verdict(NamedTuple):
    """The precision that ``"auto"`` is for one network, and why.

    ``unmeasured``: only for want of a record it is not bf16.
    """

    precision: str
    reason: str
    unmeasured: bool = False


def write_record(folder: str | os.PathLike[str], record: PrecisionRecord) -> None:
    """Write ``record`` beside the network in ``folder``, over an older one."""
    write_json(Path(folder) / RECORD, asdict(record))


def read_record(folder: str | os.PathLike[str]) -> PrecisionRecord | None:
    """The record of the network in ``folder``; None where there is none, or one of other weights.

    Raises :class:`SeggymError` where the file is damaged.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        return None
    content = read_json(path, "precision record")
    names = [field.name for field in fields(PrecisionRecord)]
    if not isinstance(content, dict) or set(content) != set(names):
        raise SeggymError(
            f"{path} is not a precision record, expected an object of {', '.join(names)}: remove the file"
        )
    require_types(content, get_type_hints(PrecisionRecord), f"{path}: ")
    if len(content["interval"]) != 2:
        raise SeggymError(f"{path}: interval={content['interval']}, expected two numbers: remove the file")
    record = PrecisionRecord(**{**content, "interval": tuple(content["interval"])})
    return record if record.weights == read_card(folder).weights else None


def native_precision(device: torch.device) -> str:
    """The fastest precision of ``device``: bf16 where the processor or GPU computes in it natively, else fp32.

    This is about speed alone; it is what the training of networks goes by, whose result is validated anyway.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    # torch has no public question for this; where a version lacks the private one, fp32 is merely slower.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    native = device.type == "cpu" and any(check() for check in checks if check is not None)
    return "bf16" if native else "fp32"


def judge(folder: str | os.PathLike[str], device: torch.device) -> Verdict:
    """What ``"auto"`` is for the network in ``folder`` on ``device``.

    bf16 where it is native and the network's record says that less than :data:`LARGEST_REGRET` of the gain is lost. A
    record counts wherever it was measured: the rounding is that of the format, not of the machine.
    """
    if native_precision(device) == "fp32":
        return Verdict("fp32", f"the {device.type} has no native bf16, which would only be slower")
    if read_card(folder).task != "segmentation":
        return Verdict("fp32", "for a reconstruction network nothing says what bf16 loses")
    record = read_record(folder)
    if record is None:
        return Verdict("fp32", "there is no record of what bf16 loses", unmeasured=True)
    if record.relative is not None and record.relative < LARGEST_REGRET:
        return Verdict("bf16", record.sentence)
    return Verdict("fp32", f"{record.sentence}, of which less than {LARGEST_REGRET:.0%} is allowed")


def resolve_precision(precision: str, device: torch.device, *folders: Path) -> str:
    """``"auto"`` is bf16 where :func:`judge` says so of all networks in ``folders``, else fp32; other keys stay.

    A network that is in no folder has no record, so for it "auto" is fp32. Where only the record is missing, a warning
    says once how to make it. Raises :class:`SeggymError` for an unknown precision or a damaged record.
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise SeggymError(f"precision is {precision!r}, expected auto, {', '.join(PRECISIONS)}")
        return precision
    verdicts = [judge(folder, device) for folder in folders]
    for folder, verdict in zip(folders, verdicts, strict=True):
        if verdict.unmeasured:
            _warn_of_missing_record(folder.resolve().parent)
    return "bf16" if verdicts and all(verdict.precision == "bf16" for verdict in verdicts) else "fp32"


@cache
def _warn_of_missing_record(model: Path) -> None:
    """Once per process and reward model."""
    warnings.warn(
        f"precision=auto computes in fp32, because no {RECORD} in {model} says what bf16 would lose there; "
        f"{HOW_TO_MEASURE}",
        stacklevel=4,
    )
