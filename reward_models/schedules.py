"""How a learning rate changes while a network is trained."""

import math
from collections.abc import Callable


def rise_and_fall(iterations: int, rise: float = 0.1) -> Callable[[int], float]:
    """Share of the learning rate by iteration, from 0: it rises over ``rise`` of them and falls as a cosine."""
    rising = max(1, int(iterations * rise))

    def share(iteration: int) -> float:
        return min((iteration + 1) / rising, 0.5 * (1 + math.cos(math.pi * iteration / iterations)))

    return share
