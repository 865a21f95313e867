"""The command that makes a reward without labels for the k-space environments."""

import gymnasium as gym
import numpy as np
import pytest

from seggym.agents import train_error_net
from seggym.agents.bench import settings_of
from seggym.errors import SeggymError
from seggym.reward_models.error_net import load_error_net

ENV = "KSpaceSeg-Phantom-v0"
SMALL = [
    "env=kspace_phantom",
    *(f"+env.kwargs.cohort_options.{key}" for key in ("patients=8", "test_patients=3", "seed=3")),
    *("scans=6", "training.iterations=2", "training.widths=[4,8]", "training.batch=2", "training.validate_every=1"),
]


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["train_error_net.py", *arguments])
    train_error_net.main()


def test_its_net_rewards_other_patients_and_is_refused_for_those_it_learned_from(monkeypatch, tmp_path, capsys):
    run(monkeypatch, *SMALL, "role=test", f"output={tmp_path / 'net'}")
    assert "AUROC of errors" in capsys.readouterr().out
    net = load_error_net(tmp_path / "net")
    assert len(net.labelled) == 3
    assert (tmp_path / "net" / "config.yaml").is_file()

    kwargs = {"cohort_options": {"patients": 8, "test_patients": 3, "seed": 3}, "budget": 2, "device": "cpu"}
    reward = {"lambda_seg": 0.0, "lambda_error": 1.0, "error_net": str(tmp_path / "net")}
    env = gym.make(ENV, **kwargs, **reward)
    _, info = env.reset(seed=0)
    line = int(np.flatnonzero(info["action_mask"])[0])
    _, gain, *_, info = env.step(line)
    assert gain == pytest.approx(info["reward_parts"]["error_net"])
    with pytest.raises(SeggymError, match="without labels"):
        gym.make(ENV, role="test", **kwargs, **reward)


def test_scans_are_shared_among_patients_and_named_once():
    settings = settings_of(ENV, {"cohort_options": {"patients": 8, "test_patients": 3, "seed": 3}, "role": "train"})
    pairs, cohort, _ = train_error_net.pairs_of(settings, scans=5, seed=0)
    assert cohort == "phantom"
    assert len(pairs.names) == len(set(pairs.names)) == 5
    assert set(pairs.origins) == {"labels"}
    again = train_error_net.pairs_of(settings, scans=5, seed=0)[0]
    assert again.predictions.equal(pairs.predictions)
    assert not train_error_net.pairs_of(settings, scans=5, seed=1)[0].predictions.equal(pairs.predictions)


def test_an_environment_that_segments_nothing_is_a_sentence(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *SMALL, "env=krecon_phantom", f"output={tmp_path / 'net'}")
    assert ended.value.code == 2
    assert "env.kwargs.reward_model is missing" in capsys.readouterr().err
    assert not (tmp_path / "net").exists()
