"""What RLlib's workers do beside sampling: seed their environments, and report what the scans came to."""

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

# What the info at the end of an episode adds to the sums of an iteration.
_LAST_INFO = ("lines", "illegal_actions", "quality")
SUMS = "scans"  # the key of those sums among RLlib's metrics


def environment_seeds(run_seed: int, worker: int, num_envs: int) -> list[int]:
    """Seeds of the environments of ``worker``: 64 bits of ``SeedSequence([run_seed, environment])`` each.

    Environments are numbered through all workers, so that W workers with N environments run the episodes of one
    process with W * N. RLlib counts workers from 1; 0 is the process that trains, where there are no others.
    """
    first = max(worker - 1, 0) * num_envs
    states = (np.random.SeedSequence([run_seed, first + slot]) for slot in range(num_envs))
    return [int(state.generate_state(1, np.uint64)[0]) for state in states]


class SeededBatch(VectorWrapper):
    """A batch that takes ``seeds``, one for each environment, for whatever seed it is reset with.

    RLlib resets with run_seed + worker, and Gymnasium counts on from there: worker 1 and worker 2 would share all
    episodes but one.
    """

    def __init__(self, env: VectorEnv, seeds: list[int]) -> None:
        super().__init__(env)
        self.seeds = seeds

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Begin new episodes; without a seed the streams go on."""
        # A list is what Gymnasium's vector environments take, and what their annotation leaves out.
        seeds: Any = None if seed is None else self.seeds
        return self.env.reset(seed=seeds, options=options)


def seed_environments(run_seed: int, *, env_runner: Any, **_: Any) -> None:
    """RLlib's ``on_environment_created``: give the batch of this worker its seeds."""
    seeds = environment_seeds(run_seed, env_runner.worker_index or 0, env_runner.num_envs)
    env_runner.env = SeededBatch(env_runner.env, seeds)


def report_scan(*, episode: Any, prev_episode_chunks: Any, metrics_logger: Any, **_: Any) -> None:
    """RLlib's ``on_episode_end``: add this episode to the sums of the iteration."""
    chunks = [*prev_episode_chunks, episode]
    info = episode.get_infos(-1)
    values = {
        "episodes": 1,
        "return": sum(chunk.get_return() for chunk in chunks),
        "length": sum(len(chunk) for chunk in chunks),
        **{name: float(info[name]) for name in _LAST_INFO},
    }
    for name, value in values.items():
        metrics_logger.log_value((SUMS, name), value, reduce="sum")
