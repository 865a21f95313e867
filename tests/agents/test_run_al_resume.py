"""A run of active learning that is killed at any moment, or loses files, ends as if nothing had happened."""

import os
import signal
from pathlib import Path

import pytest
import torch
from small_runs import TINY_UNET, quiet, run, small_run, written

from seggym.agents.al import loop
from seggym.agents.al.folders import locked
from seggym.errors import SeggymError


def killed_at(settings, moment):
    """Run ``settings`` in a process that is killed as it is about to replace its ``moment``-th file.

    True if it was killed, False if it ended before that.
    """
    child = os.fork()
    if child == 0:
        replace, count = os.replace, 0

        def counted(*given):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(*given)

        os.replace = counted
        try:
            loop.run(settings, quiet)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("strategy", "model", "every"),
    [("entropy", {"learner": "probe"}, 1), ("bald", TINY_UNET, 5), ("coregcn", TINY_UNET, 7)],
)
def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, encoder, home, strategy, model, every):
    if strategy == "bald":
        model = {**model, "options": {**model["options"], "start": "fine_tune", "ensemble": 2}}
    expected_in = tmp_path / "whole"
    run(expected_in, encoder, strategy, model=model)
    expected = written(expected_in)
    kills = 0
    for moment in range(1, 100, every):
        settings = small_run(tmp_path / f"killed{moment}", encoder, strategy, model=model)
        if not killed_at(settings, moment):
            break
        kills += 1
        loop.run(settings, quiet)
        assert written(Path(settings.run_dir)) == expected
    assert kills >= 3


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, encoder, home):
    run(tmp_path / "whole", encoder, "kcenter")
    settings = small_run(tmp_path / "killed", encoder, "kcenter")
    kills = 0
    while killed_at(settings, 4):
        kills += 1
        assert kills < 50
    assert kills >= 4
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def test_lost_networks_are_trained_again(tmp_path, encoder, home):
    run(tmp_path / "run", encoder, "margin", model=TINY_UNET)
    expected = written(tmp_path / "run")
    for path in [*(tmp_path / "run").rglob("state.pt"), *(home / "cache" / "al").glob("*.pt")]:
        path.unlink()
    (tmp_path / "run" / "round_2" / "scores.json").unlink()
    run(tmp_path / "run", encoder, "margin", model=TINY_UNET)
    assert written(tmp_path / "run") == expected


def test_only_the_last_networks_are_kept(tmp_path, encoder):
    run(tmp_path, encoder, "margin")
    assert [path.parent.name for path in tmp_path.rglob("state.pt")] == ["round_2"]


def test_a_damaged_cache_is_made_again(tmp_path, encoder, home):
    run(tmp_path / "a", encoder, "random")
    for path in (home / "cache" / "al").iterdir():
        if path.suffix != ".lock":
            path.write_bytes(b"{")
    run(tmp_path / "b", encoder, "random")
    assert written(tmp_path / "a") == written(tmp_path / "b")


def shorten(path):
    path.write_bytes(path.read_bytes()[:20])


def another_name(path):
    path.write_text(path.read_text().replace("patient", "nobody"))


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("round_1/query.json", shorten),
        ("round_1/query.json", another_name),
        ("round_1/query.json", lambda path: path.write_text("[]")),
        ("round_1/query.json", Path.unlink),
        ("round_1/scores.json", shorten),
        ("round_1/scores.json", lambda path: path.write_text('{"samples": 4}')),
        ("round_1/scores.json", Path.unlink),
        ("round_2/state.pt", shorten),
        ("round_2/state.pt", lambda path: torch.save({"budgets": torch.zeros(1), "learner": {}}, path)),
    ],
)
def test_a_damaged_round_is_one_sentence(tmp_path, encoder, file, harm):
    run(tmp_path, encoder, "entropy")
    harm(tmp_path / file)
    with pytest.raises(SeggymError) as caught:
        run(tmp_path, encoder, "entropy")
    text = str(caught.value)
    assert str(tmp_path / file.partition("/")[0]) in text
    assert "delete" in text
    assert "\n" not in text


def test_what_the_sentence_says_helps(tmp_path, encoder):
    run(tmp_path, encoder, "entropy")
    expected = written(tmp_path)
    shorten(tmp_path / "round_1" / "scores.json")
    for number in (1, 2):
        for path in (tmp_path / f"round_{number}").iterdir():
            path.unlink()
        (tmp_path / f"round_{number}").rmdir()
    run(tmp_path, encoder, "entropy")
    assert written(tmp_path) == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 1}, "settings.seed"), ({"policy": {"budgets": [3, 5, 9]}}, "counts")],
)
def test_a_folder_of_another_run_is_refused(tmp_path, encoder, changed, named):
    run(tmp_path, encoder, "random")
    with pytest.raises(SeggymError, match="another run_dir") as caught:
        run(tmp_path, encoder, "random", **changed)
    assert named in str(caught.value)


def test_rounds_of_another_program_are_refused(tmp_path, encoder):
    (tmp_path / "round_0").mkdir()
    with pytest.raises(SeggymError, match=r"rounds but no run\.json"):
        run(tmp_path, encoder, "random")


def test_two_processes_do_not_share_a_folder(tmp_path, encoder):
    with locked(tmp_path), pytest.raises(SeggymError, match="in use by another process"):
        run(tmp_path, encoder)
    run(tmp_path, encoder)
