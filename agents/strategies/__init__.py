"""Query strategies: which samples of a pool to annotate next."""

from seggym.agents.strategies.registry import STRATEGIES, make_strategy
from seggym.agents.strategies.strategy import Query, Strategy

__all__ = ["STRATEGIES", "Query", "Strategy", "make_strategy"]
