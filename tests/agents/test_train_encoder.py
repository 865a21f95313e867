"""The command that publishes an encoder."""

import pytest

from seggym.agents import train_encoder
from seggym.reward_models.checkpoints import open_reward_model

PHANTOMS = ["cohort=phantom", "+cohort.options.patients=6", "+cohort.options.test_patients=2"]
SMALL = ["shares=[0.25,0.5,0.25]", "size=32", "spacing=6.0", "recipe.iterations=2", "recipe.batch=4"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["train_encoder.py", *arguments])
    train_encoder.main()


def test_it_publishes_and_names_the_patients_it_saw(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    run(monkeypatch, *PHANTOMS, *SMALL, "roles=[pool]", "name=mine")
    card = open_reward_model("mine").cards["full"]
    assert (card.task, card.crop, card.metrics["spacing"]) == ("encoding", 32, 6.0)
    assert 0 < len(card.patients) < 4


def test_unknown_roles_are_a_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *PHANTOMS, "roles=[reward]")
    assert ended.value.code == 2
    assert "roles=['reward'] must hold some of state and pool, or all" in capsys.readouterr().err
