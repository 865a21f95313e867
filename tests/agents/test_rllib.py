"""Training with RLlib: the episodes of one process, no illegal action, and a snapshot like any other.

What needs Ray is skipped where it is missing; `bash tests/run.sh --ray` runs it in an environment that has it.
"""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import seggym
from seggym.agents.algorithms.scores import action_scores
from seggym.agents.models import TrainSettings, make_batch, make_model
from seggym.agents.rllib.workers import environment_seeds
from seggym.agents.snapshots import load_policy
from seggym.agents.vec_env import BatchedVecEnv
from seggym.errors import SeggymError

ROOT = Path(__file__).parents[2]
WORKERS, ENVS, LINES, SCRIPTED_STEPS = 2, 4, 32, 120
NO_RAY = "Ray is not installed: bash tests/run.sh --ray"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Scans of 32 lines on six phantoms; a network that leaves lines at the same distance from the centre equal."""
    return TrainSettings(
        run_dir=str(tmp_path_factory.mktemp("run")),
        env_id="KSpaceRecon-Phantom-v0",
        env_kwargs={
            "cohort_options": {"patients": 6, "test_patients": 1},
            "acquisition": {"matrix": LINES, "crop": 32},
            "budget": [2, 5],
            "observation": ["image", "energy", "acquired", "budget", "action_mask"],
        },
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 8, "batch_size": 16},
        network={"extractor": "lines", "extractor_kwargs": {}, "net_arch": {"pi": [], "vf": [8]}, "activation": "tanh"},
        prior_strength=8.0,
        num_envs=ENVS,
    )


@pytest.fixture(scope="module")
def sampled(settings):
    """What two workers sampled: as the untrained policy thinks best, then at random after an iteration of training."""
    ray = pytest.importorskip("ray", reason=NO_RAY)
    from seggym.agents.rllib.training import algorithm_config

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    algorithm = algorithm_config(settings, WORKERS, LINES).build_algo()
    scripted = sample(algorithm, SCRIPTED_STEPS, explore=False)
    algorithm.train()
    explored = sample(algorithm, 10_000 // WORKERS, explore=True)
    algorithm.stop()
    ray.shutdown()
    return scripted, explored


def sample(algorithm, steps, explore):
    """The episodes of both workers, at least ``steps`` each: {worker: [episode]}."""
    return dict(
        algorithm.env_runner_group.foreach_env_runner(
            lambda runner: (runner.worker_index, runner.sample(num_timesteps=steps, explore=explore)),
            local_env_runner=False,
        )
    )


def played_alone(env, seeds, steps):
    """The same scripted policy without RLlib, until ``steps`` lines are measured: {key: [observation]}."""
    lines = env.single_action_space.n
    distance = np.abs(np.arange(lines) - lines // 2)
    observation, info = env.reset(seed=seeds)
    ended, count, episodes = np.zeros(env.num_envs, bool), 0, {}
    while True:
        for slot, key in enumerate(info["key"].tolist()):
            episodes.setdefault(key, []).append({name: part[slot].copy() for name, part in observation.items()})
        if count >= steps:
            return episodes
        count += int((~ended).sum())
        actions = np.where(info["action_mask"] != 0, -distance, -lines).argmax(1)
        observation, _, ended, _, info = env.step(actions)


def test_workers_have_the_seeds_of_one_process(settings):
    single = BatchedVecEnv(make_batch(settings.env_id, settings.env_kwargs, WORKERS * ENVS))
    seeds = [environment_seeds(7, worker, ENVS) for worker in (1, 2)]
    assert seeds[0] + seeds[1] == list(single.seed(7))
    assert environment_seeds(7, 0, ENVS) == seeds[0]  # sampling in the process that learns
    # A neighbouring run shares nothing.
    assert not {*seeds[0], *seeds[1]} & {*environment_seeds(8, 1, ENVS), *environment_seeds(6, 2, ENVS)}


def test_scripted_episodes_are_those_of_one_process(sampled, settings):
    scripted, _ = sampled
    assert set(scripted) == {1, 2}
    seen = set()
    for worker, episodes in scripted.items():
        env = gymnasium.make_vec(
            settings.env_id, num_envs=ENVS, vectorization_mode="vector_entry_point", **settings.env_kwargs
        )
        alone = played_alone(env, environment_seeds(settings.seed, worker, ENVS), SCRIPTED_STEPS)
        found = {int(episode.get_infos(0)["key"]): episode.get_observations() for episode in episodes}
        assert len(found) == len(episodes) > ENVS
        # RLlib returns no episode without a step.
        assert set(found) == {key for key, observations in alone.items() if len(observations) > 1}
        for key, observations in found.items():
            assert set(observations) == set(settings.env_kwargs["observation"])
            for name, part in observations.items():
                expected = np.stack([observation[name] for observation in alone[key]])
                assert part.dtype == expected.dtype
                np.testing.assert_array_equal(part, expected)
        assert not seen & set(found)
        seen |= set(found)


def test_ten_thousand_steps_without_an_illegal_action(sampled):
    steps, illegal, choices = 0, 0, set()
    for episodes in sampled[1].values():
        for episode in episodes:
            actions = np.asarray(episode.get_actions())
            masks = episode.get_observations()["action_mask"][: len(actions)]
            illegal += int((masks[np.arange(len(actions)), actions] == 0).sum())
            illegal += int(episode.get_infos(-1)["illegal_actions"])
            steps += len(actions)
            choices |= set(actions.tolist())
    assert steps >= 10_000
    assert illegal == 0
    assert len(choices) > LINES // 2


def test_module_computes_what_the_policy_of_stable_baselines3_does(settings):
    pytest.importorskip("ray", reason=NO_RAY)
    from ray.rllib.core.columns import Columns

    from seggym.agents.rllib.module import MaskedPolicyModule

    twin = make_model(settings)
    module = MaskedPolicyModule(
        observation_space=twin.observation_space,
        action_space=twin.action_space,
        model_config={"network": settings.network, "prior_strength": 8.0, "num_lines": LINES},
    )
    assert set(module.policy.state_dict()) == set(twin.policy.state_dict())
    with torch.no_grad():
        for parameter in twin.policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    module.policy.load_state_dict(twin.policy.state_dict())
    seen = {name: torch.as_tensor(part) for name, part in twin.env.reset().items()}
    legal = seen["action_mask"] != 0
    assert not legal.all()
    logits = module.forward_exploration({Columns.OBS: seen})[Columns.ACTION_DIST_INPUTS]
    trained = module.forward_train({Columns.OBS: seen})[Columns.ACTION_DIST_INPUTS]
    probabilities = action_scores(twin.policy, seen).masked_fill(~legal, -torch.inf).softmax(1)
    torch.testing.assert_close(logits.softmax(1), probabilities)
    torch.testing.assert_close(trained.softmax(1), probabilities)
    assert trained.requires_grad
    assert not logits.softmax(1)[~legal].any()
    torch.testing.assert_close(module.compute_values({Columns.OBS: seen}), twin.policy.predict_values(seen)[:, 0])


def test_a_run_leaves_a_snapshot_that_is_evaluated_like_any_other(tmp_path):
    """The command itself, in a process of its own: the run folder, and what anyone may do with it."""
    pytest.importorskip("ray", reason=NO_RAY)
    command = [sys.executable, "agents/train_rllib.py", "env=krecon_phantom", "num_workers=1", f"num_envs={ENVS}"]
    command += [f"run_dir={tmp_path}/run", "total_steps=64", "eval_every=32", "eval_episodes=3", "seed=3"]
    command += ["agent.hyperparameters.n_steps=8", "agent.hyperparameters.batch_size=16", "env.kwargs.budget=[2,5]"]
    command += ["+env.kwargs.cohort_options.patients=6", "+env.kwargs.cohort_options.test_patients=1"]
    command += ["+env.kwargs.acquisition.matrix=32", "+env.kwargs.acquisition.crop=32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.csv", "best", "last"}
    assert (run / "last" / "rllib" / "rllib_checkpoint.json").is_file()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {row["phase"] for row in rows} == {"train", "validation"}
    trained = [row for row in rows if row["phase"] == "train"]
    assert all(float(row["illegal_actions"]) == 0 for row in trained)
    assert all(2 <= float(row["length"]) <= 5 for row in trained)
    assert int(trained[-1]["step"]) >= 64
    policy = load_policy(run / "last")
    assert policy.card["steps"] == int(trained[-1]["step"])
    assert policy.card["seed"] == 3
    result = seggym.evaluate(run, eval_range=[1, 2], baselines=["centre_out"], progress=False)
    assert "centre_out" in result.table()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "dqn"}, "agent.algorithm=dqn"),
        ({"group_size": 8}, "agent.group_size=8"),
        ({"hyperparameters": {"n_steps": 2, "batch_size": 10**6}}, "batch_size=1000000 is more than"),
        ({"hyperparameters": {"buffer_size": 10}}, "buffer_size"),
        ({"hyperparameters": {"normalize_advantage": False}}, "normalize_advantage"),
        ({"env_kwargs": {"observation": ["acquired", "budget"]}}, "action_mask"),
    ],
)
def test_what_rllib_does_not_have_is_refused(settings, changes, words):
    pytest.importorskip("ray", reason=NO_RAY)
    from seggym.agents.rllib.training import algorithm_config

    with pytest.raises(SeggymError, match=words):
        algorithm_config(replace(settings, **changes), WORKERS, LINES)


def test_pins_differ_from_those_of_the_other_environment_in_gymnasium_alone():
    pins = [
        {line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")}
        for name in ("constraints.txt", "constraints-ray.txt")
    ]
    assert {line.partition("==")[0] for line in pins[0] ^ pins[1]} == {"gymnasium", "ray"}


def test_without_ray_the_command_says_where_it_is(tmp_path):
    code = "import sys, runpy; sys.modules['ray'] = None; sys.argv[1:] = sys.argv[2:]; "
    code += "runpy.run_path('agents/train_rllib.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "x", f"run_dir={tmp_path}/run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Ray RLlib cannot be imported")
    assert "tests/run.sh --ray" in done.stderr
    assert not any((tmp_path / "run").iterdir())
