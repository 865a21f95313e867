"""Rules of anatomical validity: which structures a label map must have, and bounds of what is measured in them.

Rules are YAML files: ``camus.yaml`` (left ventricle, myocardium, left atrium in apical echocardiography), ``acdc.yaml``
(both ventricles and myocardium in short-axis MR), ``topology.yaml`` (connectedness, for any set of labels), or one's
own, of the form of these.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seggym.cohorts.validity.measures import ONE, TWO, LabelMap
from seggym.configs.checking import build, require_types
from seggym.errors import SeggymError

PACKAGED = ("acdc", "camus", "topology")
_BACKGROUND = "background"
_KEYS = {"classes": list, "optional": list, "rules": dict, "each": dict}


@dataclass(frozen=True)
class RuleSpec:
    """A rule as a file has it: ``min`` and ``max`` bound the ``measure`` of ``of`` (relative to ``to``, if it has two).

    Structures are class names, or lists of them that count as one. The rule is left out where a class of ``needs`` is
    absent.
    """

    measure: str
    of: str | list | None = None
    to: str | list | None = None
    needs: str | list | None = None
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Rule:
    """A rule with labels in place of names."""

    name: str
    measure: str
    of: tuple[int, ...]
    to: tuple[int, ...]
    needs: tuple[int, ...]
    low: float
    high: float

    def accepts(self, value: float) -> bool:
        """Whether ``value`` is within the bounds; NaN, of an absent structure, is not."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class ValidityReport:
    """What the rules say of one label map.

    ``values`` has every rule's measure, NaN where a structure is absent; ``failed`` names the rules that it breaks.
    """

    valid: bool
    values: dict[str, float]
    failed: tuple[str, ...]


@dataclass(frozen=True)
class ValidityRules:
    """The rules that a label map with the classes ``class_names`` (the first is the background) has to keep.

    The labels ``optional`` may be absent; rules about them are left out then.
    """

    name: str
    class_names: tuple[str, ...]
    optional: frozenset[int]
    rules: tuple[Rule, ...]

    def check(self, mask: NDArray[np.integer]) -> ValidityReport:
        """Measure everything in ``mask`` (H, W) of labels."""
        label_map, present = self._open(mask)
        values, failed = {}, []
        for rule in self.rules:
            applies = self._applies(rule, present)
            values[rule.name] = _measure(rule, label_map) if applies else float("nan")
            if applies and not rule.accepts(values[rule.name]):
                failed.append(rule.name)
        return ValidityReport(not failed, values, tuple(failed))

    def valid(self, masks: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of ``masks`` (n, H, W) keep all rules, bool (n,); a mask is left at the first rule that it breaks."""
        if np.ndim(masks) != 3:
            raise SeggymError(f"masks of shape {np.shape(masks)} cannot be checked, expected (number, height, width)")
        return np.array([self._is_valid(mask) for mask in np.asarray(masks)], bool)

    def _is_valid(self, mask: NDArray[np.integer]) -> bool:
        label_map, present = self._open(mask)
        applying = (rule for rule in self.rules if self._applies(rule, present))
        return all(rule.accepts(_measure(rule, label_map)) for rule in applying)

    def _open(self, mask: NDArray[np.integer]) -> tuple[LabelMap, frozenset[int]]:
        mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype.kind not in "iub":
            raise SeggymError(
                f"a mask of shape {mask.shape} and type {mask.dtype} cannot be checked, expected labels (height, width)"
            )
        present = np.unique(mask)
        if present.size and not (present[0] >= 0 and present[-1] < len(self.class_names)):
            raise SeggymError(
                f"a mask holds label {present[0] if present[0] < 0 else present[-1]}, but the rules {self.name} know 0 "
                f"to {len(self.class_names) - 1} ({', '.join(self.class_names)}); give the rules of these classes"
            )
        return LabelMap(mask), frozenset(present.tolist())

    def _applies(self, rule: Rule, present: frozenset[int]) -> bool:
        if not present.issuperset(rule.needs):
            return False
        # A required structure that is absent is measured as NaN, which breaks the rule. That nothing at all is there is
        # never optional.
        return not any(
            structure
            and present.isdisjoint(structure)
            and self.optional.issuperset(structure)
            and len(structure) < len(self.class_names) - 1
            for structure in (rule.of, rule.to)
        )


def load_rules(name: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> ValidityRules:
    """The rules ``name``: one of :data:`PACKAGED` or the path of a YAML file.

    ``class_names`` are those of the masks, in the order of their labels (a cohort's); by default the file's. Classes of
    the file that are optional may be missing among them, and the rules about these are dropped. Where the file lists no
    classes (``topology``), ``class_names`` are needed and its rules under ``each`` hold for every foreground class.
    """
    path = Path(__file__).with_name(f"{name}.yaml") if name in PACKAGED else Path(name)
    content = _read(path)
    require_types(content, _KEYS, f"{path}: ")
    names = list(class_names or content.get("classes", []))
    if len(names) < 2:
        raise SeggymError(f"rules {path} list no classes, so class_names is needed: background and one or more")
    optional = [str(entry) for entry in content.get("optional", [])]
    classes = [str(entry) for entry in content.get("classes", [])]
    missing = [entry for entry in classes if entry not in names]
    if set(missing) - set(optional) or (classes and set(classes[1:]) <= set(missing)):
        raise SeggymError(
            f"rules {path} are about {', '.join(missing)}, which is not among the classes {', '.join(names)}; give "
            "rules for these classes, such as topology"
        )
    specs = {key: _spec(path, key, values) for key, values in _entries(path, content, names)}
    rules = [rule for key, spec in specs.items() if (rule := _resolve(path, key, spec, names, missing)) is not None]
    if not rules:
        raise SeggymError(f"rules {path} hold no rule for the classes {', '.join(names)}; add one under `rules:`")
    labels = frozenset(names.index(entry) for entry in optional if entry in names)
    return ValidityRules(path.stem, tuple(names), labels, tuple(rules))


def _measure(rule: Rule, label_map: LabelMap) -> float:
    of = label_map.structure(rule.of)
    if not rule.to:
        return ONE[rule.measure](label_map, of)
    return TWO[rule.measure](label_map, of, label_map.structure(rule.to))


def _read(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise SeggymError(
            f"rules {path} cannot be read ({' '.join(str(error).split())}), expected a YAML file or one of "
            f"{', '.join(PACKAGED)}; mend the path or the file"
        ) from None
    if not isinstance(content, dict):
        raise SeggymError(f"rules {path} hold a {type(content).__name__}, expected {', '.join(_KEYS)}; mend the file")
    return {str(key): value for key, value in content.items()}


def _entries(path: Path, content: Mapping[str, Any], names: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """Name and values of every rule; those under ``each`` once for every foreground class."""
    for key, values in content.get("rules", {}).items():
        yield str(key), values
    for key, values in content.get("each", {}).items():
        for class_name in names[1:]:
            own = {**values, "of": class_name} if isinstance(values, dict) else values
            yield f"{key}_{class_name.replace(' ', '_')}", own


def _spec(path: Path, key: str, values: Any) -> RuleSpec:
    if not isinstance(values, dict) or "measure" not in values:
        raise SeggymError(f"rules {path}: {key} is {values!r}, expected measure, of, min and max and the like; mend it")
    spec = build(RuleSpec, values, f"{path}: {key}.")
    if spec.measure not in ONE and spec.measure not in TWO:
        raise SeggymError(f"{path}: {key}.measure={spec.measure} is unknown, expected one of {', '.join([*ONE, *TWO])}")
    if spec.of is None or (spec.to is not None) != (spec.measure in TWO):
        wanted = "`of` and `to`" if spec.measure in TWO else "`of` and no `to`"
        raise SeggymError(f"{path}: {key} measures {spec.measure}, expected {wanted}; mend the rule")
    if spec.min is None and spec.max is None:
        raise SeggymError(f"{path}: {key} has neither min nor max, expected at least one bound; add it")
    return spec


def _resolve(path: Path, key: str, spec: RuleSpec, names: Sequence[str], missing: Sequence[str]) -> Rule | None:
    """The rule with the labels of ``names``; None where it is about ``missing`` classes alone, or needs one."""
    of, to, needs = (_labels(path, key, part, names, missing) for part in (spec.of, spec.to, spec.needs))
    if not of or (spec.to is not None and not to) or len(needs) < len(_listed(spec.needs)):
        return None
    low = -np.inf if spec.min is None else float(spec.min)
    high = np.inf if spec.max is None else float(spec.max)
    return Rule(key, spec.measure, of, to, needs, low, high)


def _labels(
    path: Path, key: str, structure: str | list | None, names: Sequence[str], missing: Sequence[str]
) -> tuple[int, ...]:
    """Labels of the classes in ``structure``; those ``missing`` are left out."""
    chosen = _listed(structure)
    if "foreground" in chosen:
        return tuple(range(1, len(names)))
    unknown = [entry for entry in chosen if entry not in names and entry not in missing and entry != _BACKGROUND]
    if unknown:
        raise SeggymError(f"{path}: {key} is about {', '.join(unknown)}, expected some of {', '.join(names)}; mend it")
    return tuple(0 if entry == _BACKGROUND else names.index(entry) for entry in chosen if entry not in missing)


def _listed(structure: str | list | None) -> list[str]:
    return [] if structure is None else [structure] if isinstance(structure, str) else [str(part) for part in structure]
