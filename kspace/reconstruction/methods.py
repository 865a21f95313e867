"""The methods by name, and their options as an environment's keyword argument gives them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import torch

from seggym.configs.checking import require_types
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.grappa import grappa
from seggym.kspace.reconstruction.homodyne import homodyne
from seggym.kspace.reconstruction.pocs import pocs
from seggym.kspace.reconstruction.sense import sense
from seggym.kspace.reconstruction.sensitivities import SENSITIVITIES
from seggym.kspace.reconstruction.total_variation import total_variation
from seggym.kspace.simulation import zero_filled

# Hybrid space complex (B, J, M, M), measured lines bool (B, M) and acquisition to the magnitude float (B, C, C).
Reconstruction = Callable[[torch.Tensor, torch.Tensor, Acquisition], torch.Tensor]

METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "zero_filled": zero_filled,
    "homodyne": homodyne,
    "pocs": pocs,
    "total_variation": total_variation,
    "sense": sense,
    "grappa": grappa,
}
_PARALLEL = ("sense", "grappa")
_CHOICES = {"sensitivities": SENSITIVITIES}


def parse_reconstruction(value: object) -> tuple[str, dict[str, Any]]:
    """Name and options of ``"pocs"`` or ``{"method": "pocs", "iterations": 10}``; the name is not checked here."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping) or not isinstance(value.get("method"), str):
        raise SeggymError(
            f'reconstruction={value!r} is no reconstruction, expected a name or {{"method": name, ...}} with the '
            "options of the method"
        )
    return value["method"], {str(key): option for key, option in value.items() if key != "method"}


def make_reconstruction(method: str, options: Mapping[str, Any], acquisition: Acquisition) -> Reconstruction:
    """The function ``method`` of :data:`METHODS` with its ``options``, checked for scans with ``acquisition``."""
    if method not in METHODS:
        raise SeggymError(
            f"reconstruction method {method!r} is unknown, expected one of {', '.join((*METHODS, 'network'))}"
        )
    if method in _PARALLEL and acquisition.coils < 2:
        raise SeggymError(
            f"reconstruction method {method} combines coils, acquisition.coils is {acquisition.coils}; set it to 2 or "
            "more, or choose another method"
        )
    function = METHODS[method]
    hints = get_type_hints(function)
    named = inspect.signature(function).parameters.values()
    known = {option.name: hints[option.name] for option in named if option.kind is option.KEYWORD_ONLY}
    require_types(options, known, "reconstruction.")
    for key, value in options.items():
        if key in _CHOICES and value not in _CHOICES[key]:
            raise SeggymError(f"reconstruction.{key}={value!r} is unknown, expected {' or '.join(_CHOICES[key])}")
        if isinstance(value, (int, float)) and not value > 0:
            raise SeggymError(f"reconstruction.{key}={value} must be positive")
    if options.get("readout", 1) % 2 == 0:
        raise SeggymError(f"reconstruction.readout={options['readout']} must be odd: the kernel is centred")
    return functools.partial(function, **options)
