"""Types of configuration values, told before anything is computed with them."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from seggym.errors import SeggymError

# OmegaConf takes 0.1 s to import and an environment's keyword arguments are plain: it is imported by those who need it.
if TYPE_CHECKING:
    from omegaconf import DictConfig

Record = TypeVar("Record")


def require_complete(config: "DictConfig") -> None:
    """Raise :class:`SeggymError` naming the keys of ``config`` that still need a value (``???``)."""
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise SeggymError(f"the configuration has no value for {', '.join(missing)}: pass {missing[0]}=...")


def plain(config: "DictConfig") -> dict[str, Any]:
    """The complete configuration, resolved, as plain values."""
    from omegaconf import OmegaConf

    require_complete(config)
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def build(record: type[Record], values: Mapping[str, Any], prefix: str = "") -> Record:
    """The dataclass ``record`` with ``values``, which must be among its fields and of their types."""
    plain: Any = values
    if not isinstance(values, dict):
        from omegaconf import OmegaConf

        plain = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values
    if not isinstance(plain, Mapping):
        raise SeggymError(f"{prefix.rstrip('.')}={plain!r} is a {type(plain).__name__}, expected keys and values")
    named = {str(key): value for key, value in plain.items()}
    require_types(named, get_type_hints(record), prefix)
    return record(**named)


def require_types(values: Mapping[str, Any], types: Mapping[str, Any], prefix: str = "") -> None:
    """Raise :class:`SeggymError` naming the first of ``values`` that is not of its type, or that ``types`` lacks.

    ``types`` maps a key to a type, a union, or a generic such as ``list[int]``, of which only the ``list`` is checked.
    A whole number is a ``float`` too, but true and false are no numbers. ``prefix`` goes before a key in the message.
    """
    for key, value in values.items():
        if key not in types:
            raise SeggymError(f"{prefix}{key} is unknown, expected some of {', '.join(types)}; leave it out")
        allowed = _classes(types[key])
        if type(value) not in allowed and not (isinstance(value, allowed) and not isinstance(value, bool)):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in dict.fromkeys(allowed))
            found = "null" if value is None else f"a {type(value).__name__}"
            raise SeggymError(f"{prefix}{key}={value!r} is {found}, expected {expected}; mend the key")


def require_at_least(record: object, prefix: str = "", **least: float) -> None:
    """Raise :class:`SeggymError` naming the first of the fields ``least`` of ``record`` that is below its limit.

    ``prefix`` goes before the field in the message.
    """
    for name, limit in least.items():
        value = getattr(record, name)
        if not value >= limit:
            expected = "not be negative" if limit == 0 else f"be at least {limit}"
            raise SeggymError(f"{prefix}{name}={value} must {expected}")


def require_choices(record: object, choices: Mapping[str, Collection[Any]]) -> None:
    """Raise :class:`SeggymError` naming the first field of ``record`` whose value is not among its ``choices``."""
    for name, allowed in choices.items():
        if getattr(record, name) not in allowed:
            raise SeggymError(
                f"{name}={getattr(record, name)!r} is unknown, expected one of {', '.join(map(str, allowed))}"
            )


def _classes(annotation: Any) -> tuple[type, ...]:
    """The classes whose instances ``annotation`` admits."""
    if annotation is None or annotation is type(None):
        return (type(None),)
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return (float, int) if annotation is float else (annotation,)
    origin = get_origin(annotation)
    if isinstance(origin, type) and not origin.__name__.startswith("Union"):
        # Sequences come from YAML as lists.
        return (tuple, list) if origin is tuple else (origin,)
    return tuple(kind for part in get_args(annotation) for kind in _classes(part))
