"""Every strategy by its name."""

from dataclasses import fields
from typing import Any, get_type_hints

from seggym.agents.strategies.adapter import SkactivemlStrategy
from seggym.agents.strategies.coverage import KCenter, ProbCover, TypiClust
from seggym.agents.strategies.error_net import ErrorNetUncertainty
from seggym.agents.strategies.learned import VAAL, CoreCLR, CoreGCN
from seggym.agents.strategies.metadata import EvenlySpaced, MetadataKCenter, PatientStratified
from seggym.agents.strategies.naming import nearest
from seggym.agents.strategies.privileged import Greedy, LabelGreedy
from seggym.agents.strategies.randomised import ForegroundRandom, PredictedForegroundRandom, Random
from seggym.agents.strategies.strategy import Strategy
from seggym.agents.strategies.uncertainty import UNCERTAINTIES, ClaspPE, StochasticBatches
from seggym.configs.checking import require_types
from seggym.errors import SeggymError

_KINDS: tuple[type[Strategy], ...] = (
    *(Random, ForegroundRandom, PredictedForegroundRandom),
    *UNCERTAINTIES.values(),
    *(ErrorNetUncertainty, StochasticBatches, ClaspPE, KCenter, CoreCLR, CoreGCN, VAAL, TypiClust, ProbCover),
    *(PatientStratified, EvenlySpaced, MetadataKCenter, Greedy, LabelGreedy, SkactivemlStrategy),
)
STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in _KINDS}


def make_strategy(name: str, **options: Any) -> Strategy:
    """The strategy called ``name`` with ``options``, which are fields of its class.

    Raises :class:`SeggymError` for an unknown name or option, with the nearest ones, and for a value of a wrong type.
    """
    if name not in STRATEGIES:
        raise SeggymError(f"strategy {name!r} is unknown; {nearest(name, STRATEGIES)}")
    kind = STRATEGIES[name]
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise SeggymError(f"strategy {name} has no option {key!r}; {nearest(key, known)}")
    require_types(options, {key: hint for key, hint in get_type_hints(kind).items() if key in known}, f"{name}.")
    # YAML and JSON have lists where the options are tuples.
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
