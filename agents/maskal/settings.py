"""The settings of a maskAL file: every key, its type and range, what it means here, and what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from seggym.agents.strategies.naming import nearest
from seggym.cohorts.annotations.writing import FORMATS
from seggym.configs.checking import require_types
from seggym.errors import SeggymError
from seggym.reward_models.instances.backends import BACKENDS
from seggym.reward_models.instances.certainty import MODES
from seggym.reward_models.instances.segmenter import DROPOUT_METHODS

EMPTY = ("uncertain", "skip")
DEVICES = ("auto", "cpu", "cuda")
ANNOTATORS = ("folder", "simulated")
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
SCHEDULES = ("steps_with_decay", "cosine")


class Range(NamedTuple):
    """Numbers that a key, or each entry of its list, may have, the ends included; whole ones where ``low`` is."""

    low: float
    high: float = float("inf")


class Choices(NamedTuple):
    """What a key, or each entry of its list, may be."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class MaskalSettings:
    """A maskAL file. Keys of maskAL have its names and defaults; those after ``seed`` are ours (docs/maskal.md)."""

    classes: list[str]
    weightsroot: str = "./weights"
    resultsroot: str = "./results"
    dataroot: str = "./datasets"
    traindir: str = "./datasets/train"
    valdir: str = "./datasets/val"
    testdir: str = "./datasets/test"
    cuda_visible_devices: str | int | None = "0"
    transfer_learning_on_previous_models: bool = True
    train_complete_trainset: bool = False
    duplicate_initial_model: bool = True
    learning_rate: Annotated[float, Range(1e-9, 10.0)] = 0.01
    warmup_iterations: Annotated[int, Range(0)] = 500
    train_iterations_base: Annotated[int, Range(1)] = 2500
    train_iterations_step_size: Annotated[int, Range(0)] = 2500
    step_image_number: Annotated[int, Range(1)] = 500
    step_ratios: list[float] = field(default_factory=lambda: [0.5, 0.8])
    eval_period: Annotated[int, Range(1)] = 500
    checkpoint_period: Annotated[int, Range(-1)] = 500
    weight_decay: Annotated[float, Range(0.0)] = 1e-4
    learning_policy: Annotated[str, Choices(SCHEDULES)] = "steps_with_decay"
    gamma: Annotated[float, Range(0.0, 1.0)] = 0.1
    train_batch_size: Annotated[int, Range(1)] = 1
    train_sampler: Annotated[str, Choices(SAMPLERS)] = "TrainingSampler"
    minority_classes: list[str] = field(default_factory=list)
    repeat_factor_smallest_class: Annotated[float, Range(1.0)] = 1.0
    confidence_threshold: Annotated[float, Range(0.0, 1.0)] = 0.5
    nms_threshold: Annotated[float, Range(0.0, 1.0)] = 0.3
    experiment_name: str = "exp1"
    strategies: str | list[str] = "uncertainty"
    mode: Annotated[str | list[str], Choices(MODES)] = "mean"
    initial_datasize: Annotated[int, Range(1)] = 100
    initial_train_file: str | None = None
    pool_size: Annotated[int | list[Any], Range(1)] = 200
    equal_pool_size: bool = True
    loops: Annotated[int | list[Any], Range(1)] = 5
    dropout_probability: Annotated[float | list[float], Range(0.0, 0.99)] = 0.25
    mcd_iterations: Annotated[int | list[int], Range(1)] = 10
    dropout_method: Annotated[str, Choices(DROPOUT_METHODS)] = "head"
    iou_thres: Annotated[float, Range(0.0, 1.0)] = 0.5
    auto_annotate: bool = True
    export_format: Annotated[str, Choices(FORMATS)] = "labelme"
    # --- ours -----------------------------------------------------------------------------------------------------
    seed: Annotated[int | list[int], Range(0)] = 0
    backend: Annotated[str, Choices(BACKENDS)] = "small"
    backend_options: dict[str, Any] = field(default_factory=dict)
    device: Annotated[str, Choices(DEVICES)] = "auto"
    threads: Annotated[int, Range(1)] = 1
    annotator: Annotated[str, Choices(ANNOTATORS)] = "folder"
    wait: bool = True
    empty_images: Annotated[str, Choices(EMPTY)] = "uncertain"
    empty_share: Annotated[float, Range(0.0, 1.0)] = 0.2
    evaluation_confidence: Annotated[float | None, Range(0.0, 1.0)] = None
    strategy_options: dict[str, Any] = field(default_factory=dict)

    @property
    def minority_labels(self) -> tuple[int, ...]:
        """Numbers of ``minority_classes``, from 1."""
        return tuple(self.classes.index(name) + 1 for name in self.minority_classes)


# Other names of the same key, in later versions of maskAL.
_RENAMED = {
    "strategy": "strategies",
    "duplicate_initial_model_and_data": "duplicate_initial_model",
}
# Keys that have no effect here, and why.
_SET_ASIDE = {
    "num_workers": "images are read by this process",
    "al_batch_size": "the network's own batches are as large as is fast",
    "resume": "a run always goes on where it was stopped; delete its folders to begin again",
    "initial_train_dir": "the images of initial_train_file are taken from traindir",
    "network_config": "the network is chosen by backend and backend_options, not by a file of Detectron2",
    "pretrained_weights": "weights of Detectron2 do not fit; backend_options.pretrained has those of torchvision",
    "supervisely_meta_json": "the export has no Supervisely format",
}
# Values that are refused, and what to do.
_REFUSED = {
    ("use_initial_train_dir", True): "put its images into traindir and name them in initial_train_file, one in a line",
    ("export_format", "supervisely"): f"choose one of {', '.join(FORMATS)}, which Supervisely imports",
}
_HARMLESS = {"use_initial_train_dir"}
# maskAL's default has these in place of the classes of the user.
_BROCCOLI = ["healthy", "damaged", "matured", "cateye", "headrot"]


def read_settings(path: Path, changes: Sequence[str] = ()) -> tuple[MaskalSettings, list[str]]:
    """The settings of the YAML file ``path`` with ``changes`` ("key=value"), and notes on keys without effect.

    Everything that is wrong is told at once, in a :class:`SeggymError`.
    """
    from omegaconf import OmegaConf

    try:
        # Not OmegaConf's own reader of dotted keys: a file of maskAL is flat.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        given = [OmegaConf.to_container(OmegaConf.from_dotlist([change])) for change in changes]
    except FileNotFoundError:
        raise SeggymError(f"{path} does not exist; mend --config") from None
    except Exception as error:  # whatever the YAML library makes of it
        reason = " ".join(str(error).split())
        raise SeggymError(f"{path} is not readable YAML ({reason}); mend the file") from None
    if not isinstance(content, Mapping):
        raise SeggymError(f"{path} is a {type(content).__name__}, expected keys and values; mend the file")
    values = {str(key): value for key, value in content.items()}
    for change in given:
        for key, value in dict(change).items():  # type: ignore[arg-type]
            old = values.get(key)
            values[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    try:
        return check(values)
    except SeggymError as error:
        raise SeggymError(f"{path}: {error}") from None


def check(values: Mapping[str, Any]) -> tuple[MaskalSettings, list[str]]:
    """Settings made of plain ``values``, and notes; raises :class:`SeggymError` that tells all that is wrong."""
    known = {entry.name for entry in fields(MaskalSettings)}
    hints, rules = get_type_hints(MaskalSettings), get_type_hints(MaskalSettings, include_extras=True)
    names = {*known, *_RENAMED, *_SET_ASIDE, *_HARMLESS}
    faults: list[str] = []
    notes: list[str] = []
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if (key, value if isinstance(value, (str, bool)) else None) in _REFUSED:
            faults.append(f"{key}={value!r} cannot be had: {_REFUSED[key, value]}")
        elif key in _SET_ASIDE:
            if value not in (None, "", False):
                notes.append(f"note: {key}={value!r} has no effect: {_SET_ASIDE[key]}")
        elif key in _HARMLESS:
            continue
        elif (name := _RENAMED.get(key, key)) not in known:
            faults.append(f"{key} is unknown; {nearest(key, names)}")
        elif name in kept:
            faults.append(f"{key} says again what {name} says; leave one out")
        else:
            try:
                require_types({key: value}, {key: hints[name]})
                kept[name] = value
                faults += _out_of_range(key, value, getattr(rules[name], "__metadata__", ()))
            except SeggymError as error:
                faults.append(str(error))
    if "classes" not in values:
        faults.append(f"classes is missing, expected the names of your classes, as in classes: {_BROCCOLI[:2]}")
    if not faults:
        settings = MaskalSettings(**kept)
        faults += _contradictions(settings)
    if faults:
        raise SeggymError("; ".join(faults))
    if settings.export_format == "coco" and settings.auto_annotate:
        notes.append("note: predictions of all images of a query come in one COCO file")
    return settings, notes


def _out_of_range(key: str, value: Any, rules: Sequence[Range | Choices]) -> list[str]:
    """What is wrong with ``value``, or with an entry of it where it is a list."""
    faults = []
    for one in [] if value is None else _leaves(value):
        for rule in rules:
            if isinstance(rule, Choices):
                if one not in rule.names:
                    faults.append(f"{key}={one!r} is unknown; {nearest(str(one), rule.names)}")
            elif isinstance(one, bool) or not isinstance(one, (int, float)) or not rule.low <= one <= rule.high:
                limits = f"{rule.low:g} or more" if rule.high == float("inf") else f"{rule.low:g} to {rule.high:g}"
                faults.append(f"{key}={one!r} is out of range, expected {limits}")
            elif isinstance(rule.low, int) and not isinstance(one, int):
                faults.append(f"{key}={one!r} is no whole number")
    return faults


def _leaves(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    return [leaf for part in value for leaf in _leaves(part)]


def _contradictions(settings: MaskalSettings) -> list[str]:
    """What each key allows, but not beside the others."""
    faults = []
    classes = settings.classes
    if (
        not classes
        or any(not isinstance(name, str) or not name for name in classes)
        or len(set(classes)) < len(classes)
    ):
        faults.append(f"classes={classes} must be different names, at least one")
    unknown = [name for name in settings.minority_classes if name not in classes]
    if unknown and settings.train_sampler == "RepeatFactorTrainingSampler":
        faults.append(f"minority_classes names {', '.join(map(str, unknown))}, expected some of {', '.join(classes)}")
    ratios = settings.step_ratios
    if any(isinstance(part, (bool, str)) or not 0 < part < 1 for part in ratios) or list(ratios) != sorted(ratios):
        faults.append(f"step_ratios={ratios} must be ascending parts of a training, between 0 and 1")
    if (
        settings.experiment_name in ("", ".", "..")
        or "/" in settings.experiment_name
        or "\\" in settings.experiment_name
    ):
        faults.append(f"experiment_name={settings.experiment_name!r} must be the name of a folder, without a path")
    for name, options in settings.strategy_options.items():
        if not isinstance(options, dict):
            faults.append(f"strategy_options.{name}={options!r} must be keys and values")
    return faults
