"""Policy networks named by registry keys, as configs and snapshots do."""

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from seggym.agents.algorithms import ALGORITHMS, Algorithm
from seggym.agents.candidate_extractor import CandidateExtractor
from seggym.agents.echo_extractor import EchoExtractor
from seggym.agents.extractors import DictExtractor, LineExtractor
from seggym.agents.view_extractors import PointExtractor, SpokeExtractor
from seggym.errors import SeggymError

EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    "dict": DictExtractor,
    "lines": LineExtractor,
    "echo": EchoExtractor,
    "spokes": SpokeExtractor,
    "points": PointExtractor,
    "candidates": CandidateExtractor,
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_KEYS = {"extractor", "extractor_kwargs", "net_arch", "activation"}


def find_algorithm(name: Any) -> Algorithm:
    """The entry of :data:`ALGORITHMS`; raises :class:`SeggymError` for an unknown name."""
    if name not in ALGORITHMS:
        raise SeggymError(f"algorithm {name!r} is unknown, expected one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def policy_kwargs(algorithm: str, network: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a stable-baselines3 policy.

    ``network`` has ``extractor`` and ``activation`` (registry keys), ``extractor_kwargs`` and ``net_arch`` (sizes of
    the hidden layers; actor and critic each get their own, different ones as ``{"pi": [...], "vf": [...]}``).
    """
    entry = find_algorithm(algorithm)
    if set(network) != _KEYS:
        raise SeggymError(f"the policy network has the keys {sorted(network)}, expected exactly {sorted(_KEYS)}")
    for key, known in (("extractor", EXTRACTORS), ("activation", ACTIVATIONS)):
        if network[key] not in known:
            raise SeggymError(f"network.{key}={network[key]!r} is unknown, expected one of {', '.join(known)}")
    sizes = network["net_arch"]
    return {
        "features_extractor_class": EXTRACTORS[network["extractor"]],
        "features_extractor_kwargs": dict(network["extractor_kwargs"]),
        "net_arch": dict(sizes) if isinstance(sizes, Mapping) else list(sizes),
        "activation_fn": ACTIVATIONS[network["activation"]],
        **entry.policy_kwargs,
    }
