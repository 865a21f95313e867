"""Features that a strategy learned once from a pool, kept under a hash of all that decided them."""

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seggym.cohorts.cohort import seggym_home
from seggym.errors import SeggymError
from seggym.files import write_atomic

# Pools whose features this process remembers.
_REMEMBERED = 8
_memory: OrderedDict[str, Tensor] = OrderedDict()


def cached_features(
    what: Mapping[str, Any], arrays: Sequence[Tensor | np.ndarray], make: Callable[[], Tensor]
) -> Tensor:
    """What ``make()`` returns, float32 (P, D) on the CPU, or what lies in ``$SEGGYM_HOME/cache/features`` instead.

    ``what`` (plain JSON) and the content of ``arrays`` are all that the result depends on. One of several processes
    makes it while the others wait. Where the folder cannot be written it is made for this process alone.
    """
    key = content_key(what, arrays)
    if key not in _memory:
        _memory[key] = _from_disk(seggym_home() / "cache" / "features" / f"{key}.safetensors", make)
    _memory.move_to_end(key)
    while len(_memory) > _REMEMBERED:
        _memory.popitem(last=False)
    return _memory[key].clone()


def content_key(what: Mapping[str, Any], arrays: Sequence[Tensor | np.ndarray]) -> str:
    """A hash of ``what`` and of the shapes, types and contents of ``arrays``, with the version of torch."""
    digest = hashlib.blake2b(json.dumps({**what, "torch": torch.__version__}, sort_keys=True).encode(), digest_size=16)
    for array in arrays:
        content = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)
        digest.update(f"{content.dtype}{content.shape}".encode())
        digest.update(content.data)
    return digest.hexdigest()


def _from_disk(path: Path, make: Callable[[], Tensor]) -> Tensor:
    stored = _read(path)
    if stored is not None:
        return stored
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            stored = _read(path)
            if stored is None:
                stored = make().cpu().contiguous()
                write_atomic(path, lambda temporary: save_file({"features": stored}, temporary))
            return stored
    except (OSError, NotImplementedError, SeggymError) as error:
        # NotImplementedError: a file system without locks. What could be made but not written is used all the same.
        warnings.warn(f"learned features cannot be kept in {path.parent} ({error}): they are made again", stacklevel=2)
        return stored if stored is not None else make().cpu()


def _read(path: Path) -> Tensor | None:
    """The features at ``path``, None where they are missing or damaged."""
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
