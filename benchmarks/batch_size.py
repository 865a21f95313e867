"""Whether an image-step costs more in a batch of 1,024 environments than in one of 16, both stepped in turn.

``python benchmarks/batch_size.py`` prints the processor time per image of both and the median of the ratios of
neighbours, for the two reference environments of ``env_throughput.py``: a machine whose speed drifts cannot tell
otherwise.
"""

import numpy as np
import torch
from env_throughput import REFERENCES
from measuring import Case, Clock, legal_actions, make_env

SMALL, LARGE = 16, 1024
# Steps of the large batch; the small one makes as many rounds of steps between them.
PAIRS = 6
ROUNDS = 16


def main() -> None:
    """Print a line per environment."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for name, described in REFERENCES.items():
        kwargs = {**described["kwargs"], "budget": 120}
        case = {**described, "kwargs": kwargs, "precision": "bf16" if "reference_network" in described else "fp32"}
        envs = [make_env(Case(num_envs=count, **case))[0] for count in (SMALL, LARGE)]
        clocks = [Clock(env.engine.device) for env in envs]
        for env in envs:
            env.reset(seed=0)
            env.step(legal_actions(env, rng))
        for _ in range(PAIRS):
            for env, clock, rounds in zip(envs, clocks, (ROUNDS, 1), strict=True):
                chosen = [legal_actions(env, rng) for _ in range(rounds)]
                with clock.running():
                    for actions in chosen:
                        env.step(actions)
        small = np.array(clocks[0].cpu) / (SMALL * ROUNDS) * 1e6
        large = np.array(clocks[1].cpu) / LARGE * 1e6
        print(
            f"{name}: {np.median(small):.0f} us per image-step at N = {SMALL}, {np.median(large):.0f} at N = {LARGE}, "
            f"median ratio {np.median(large / small):.2f} ({(large / small).min():.2f} to {(large / small).max():.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
