"""What a step of training costs with RLlib and with stable-baselines3: same environment, policy and hyperparameters.

    bash tests/run.sh --ray                             # makes .venv-ray
    .venv-ray/bin/python benchmarks/rllib_cost.py

CPU seconds of all processes are counted, Ray's own included; start-up is left out and told apart.
"""

import time
from statistics import median
from tempfile import mkdtemp

import ray  # brings psutil along
import torch
from hydra import compose, initialize_config_module

from seggym.agents.models import TrainSettings, make_model
from seggym.agents.rllib.training import algorithm_config
from seggym.agents.train_asmr import env_kwargs
from seggym.configs.checking import plain

import psutil  # isort: skip

WORKERS, ENVS, STEPS, ITERATIONS = 2, 32, 32, 3
SMALL = ["+env.kwargs.acquisition.matrix=32", "+env.kwargs.acquisition.crop=32"]
CASES = {
    "32 lines, reward SSIM": ["env=krecon_phantom", *SMALL],
    "128 lines, reward Dice by a U-Net": ["env=kspace_phantom"],
}


def settings_of(overrides: list[str]) -> TrainSettings:
    """The run that ``train_rllib.py`` would make of ``overrides``, with all environments in one process."""
    with initialize_config_module("seggym.configs", version_base="1.3"):
        values = plain(compose("train_rllib", [*overrides, f"agent.hyperparameters.n_steps={STEPS}", "precision=fp32"]))
    kwargs = env_kwargs(values)
    kwargs["observation"] = [*kwargs["observation"], "action_mask"]
    agent = {key: values["agent"][key] for key in ("algorithm", "hyperparameters", "network", "prior_strength")}
    return TrainSettings(
        run_dir=mkdtemp(), env_id=values["env"]["id"], env_kwargs=kwargs, num_envs=WORKERS * ENVS, device="cpu", **agent
    )


def cpu_seconds() -> float:
    """CPU time of this process and of all that it started, Ray's included."""
    here = psutil.Process()
    times = []
    for process in [here, *here.children(recursive=True)]:
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        times.append(spent.user + spent.system)
    return sum(times)


def resident_gib() -> float:
    """Memory of the same processes; what they share counts once for each."""
    here = psutil.Process()
    return sum(process.memory_info().rss for process in [here, *here.children(recursive=True)]) / 2**30


def with_sb3(settings: TrainSettings) -> dict[str, float]:
    """Environment steps per CPU-second, and memory."""
    model = make_model(settings)
    rollout = STEPS * settings.num_envs
    model.learn(rollout)
    rates = []
    for _ in range(ITERATIONS):
        before = cpu_seconds()
        model.learn(rollout, reset_num_timesteps=False)
        rates.append(rollout / (cpu_seconds() - before))
    return {"steps per CPU-second": median(rates), "GiB": resident_gib()}


def with_rllib(settings: TrainSettings) -> dict[str, float]:
    """The same, and the seconds until the first step."""
    began = time.monotonic()
    spent = cpu_seconds()
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    share = TrainSettings(**{**vars(settings), "num_envs": ENVS})
    lines = settings.env_kwargs["acquisition"]["matrix"] if "acquisition" in settings.env_kwargs else 128
    algorithm = algorithm_config(share, WORKERS, lines).build_algo()
    ready, cost = time.monotonic() - began, cpu_seconds() - spent
    algorithm.train()
    rates, steps = [], 0.0
    for _ in range(ITERATIONS):
        before = cpu_seconds()
        steps = algorithm.train()["env_runners"]["num_env_steps_sampled"]
        rates.append(steps / (cpu_seconds() - before))
    memory = resident_gib()
    algorithm.stop()
    ray.shutdown()
    return {"steps per CPU-second": median(rates), "GiB": memory, "start-up s": ready, "start-up CPU-s": cost}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, overrides in CASES.items():
        settings = settings_of(overrides)
        sb3, rllib = with_sb3(settings), with_rllib(settings)
        for trainer, figures in (("stable-baselines3", sb3), ("RLlib", rllib)):
            print(
                f"{name}: {trainer}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True
            )
        ratio = sb3["steps per CPU-second"] / rllib["steps per CPU-second"]
        print(f"{name}: RLlib takes {ratio:.2f} times the CPU time of stable-baselines3", flush=True)
