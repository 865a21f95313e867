"""One episode as a moving or still picture."""

import os
from pathlib import Path
from typing import Any

import gymnasium
import torch
from PIL import Image

from seggym.agents.baselines import BASELINES, make_baselines
from seggym.agents.bench import open_bench
from seggym.agents.evaluation import resolve_policy
from seggym.agents.policies import Policy
from seggym.errors import SeggymError
from seggym.files import write_atomic
from seggym.kspace.trajectories import NOUNS

_LAST_FRAME_MS = 3000
# What a run folder says about training is no part of an evaluation.
_AS_EVALUATED = {"role": "test", "precision": "fp32", "train_sampler_filename": None}


def film(
    env_id: str, policy: str, out: str | os.PathLike[str], seed: int = 0, env_kwargs: dict[str, Any] | None = None
) -> tuple[Path, str]:
    """Play one episode of ``env_id`` and write it to ``out``; returns the file and a sentence about the end.

    ``policy`` is a baseline's name (tuned on the training role where it has something to tune), the folder of a
    training run, or ``"module:function"``. A ``.gif`` shows every step, a ``.png`` the last state. The role is "test"
    unless ``env_kwargs`` says otherwise. A run folder brings its own keyword arguments, which ``env_kwargs`` override.
    """
    out = Path(out)
    if out.suffix not in (".gif", ".png"):
        raise SeggymError(f"{out} must end in .gif (the episode) or .png (its last state)")
    env_kwargs = {**_AS_EVALUATED, **(env_kwargs or {})}
    chosen, env_kwargs = _resolve(env_id, policy, env_kwargs)
    env = gymnasium.make(env_id, render_mode="rgb_array", **env_kwargs)
    try:
        frames, end = _play(env, chosen, seed)
    finally:
        env.close()
    pictures = [Image.fromarray(frame) for frame in frames]
    if out.suffix == ".png":
        write_atomic(out, lambda path: pictures[-1].save(path, "PNG"))
    else:
        step = round(1000 / env.metadata["render_fps"])
        # One palette for all frames: otherwise greys flicker from frame to frame.
        palette = pictures[-1].quantize(255)
        reduced = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
        durations = [step] * (len(reduced) - 1) + [_LAST_FRAME_MS]
        write_atomic(
            out,
            lambda path: reduced[0].save(
                path, "GIF", save_all=True, append_images=reduced[1:], duration=durations, loop=0
            ),
        )
    return out, f"{chosen.name}, {end}"


def _resolve(env_id: str, policy: str, env_kwargs: dict[str, Any]) -> tuple[Policy, dict[str, Any]]:
    if policy in BASELINES:
        bench = open_bench(env_id, env_kwargs, role=env_kwargs["role"])
        length = bench.settings.budget_range[1]
        return make_baselines([policy], bench.ground(length))[0], env_kwargs
    if ":" not in policy and not Path(policy).is_dir():
        raise SeggymError(
            f"policy {policy!r} is no baseline ({', '.join(BASELINES)}), no folder of a training run and not of the "
            "form module:function"
        )
    learned, own_id, own_kwargs = resolve_policy(policy)
    if own_id is not None and own_id.rpartition(":")[2] != env_id.rpartition(":")[2]:
        raise SeggymError(f"the policy in {policy} was trained in {own_id}, not in {env_id}: render it in its own")
    return learned, {**own_kwargs, **env_kwargs}


def _play(env: gymnasium.Env, policy: Policy, seed: int) -> tuple[list[Any], str]:
    """The frames of one episode, and what came of it."""
    engine = env.unwrapped.engine  # type: ignore[attr-defined]
    env.reset(seed=seed)
    policy.begin(engine)
    frames, terminated = [env.render()], False
    info: dict[str, Any] = {}
    while not terminated:
        action = policy.act(engine, engine.observe(), engine.action_mask())
        _, _, terminated, _, info = env.step(int(torch.as_tensor(action)[0]))
        frames.append(env.render())
    noun = NOUNS[engine.settings.scan.trajectory]
    return frames, f"{info['lines']} of {engine.num_lines} {noun}, quality {float(info['quality']):.3f}"
