"""The benchmark of training on runs of seconds, and its table on runs that are written by hand."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from seggym.errors import SeggymError

SOURCE = Path(__file__).parents[2] / "benchmarks" / "training_time.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("training_time", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(tiny_run):
    kwargs = {**tiny_run.env_kwargs, "observation": ["energy", "acquired", "budget"], "device": "cpu"}
    return replace(tiny_run, env_kwargs=kwargs, prior_strength=0.0, total_steps=96)


def test_a_run_is_measured(benchmark, settings):
    run = benchmark.measure(settings, 32, benchmark.OPTIONS)
    curve = run["curve"]
    assert [point["steps"] for point in curve] == list(range(0, 32 * len(curve), 32))
    assert run["reached"] == (curve[-1]["area"] >= run["centre_out"])
    assert not any(point["area"] >= run["centre_out"] for point in curve[:-1])
    assert run["reached"] or curve[-1]["steps"] == 96
    for kind in ("wall", "cpu"):
        parts = run["seconds"][kind]
        assert all(value > 0 for value in parts.values())
        assert sum(parts.values()) <= curve[-1][f"{kind}_s"]
    # Energy in float32, the mask of measured lines in bytes, budget in float32; steps of four environments.
    sizes = {"energy": 128, "acquired": 32, "budget": 4, "action_masks": 32, "rewards": 4}
    assert run["transitions"] == 32
    assert {name: run["buffer_bytes"][name] for name in sizes} == {name: 32 * size for name, size in sizes.items()}


def test_with_the_prior_centre_out_is_there_from_the_start(benchmark, settings):
    run = benchmark.measure(replace(settings, prior_strength=24.0), 32, benchmark.OPTIONS)
    assert abs(run["curve"][0]["area"] - run["centre_out"]) < 0.05
    poor = benchmark.measure(replace(settings, total_steps=32), 32, benchmark.OPTIONS)
    assert poor["curve"][0]["area"] < run["curve"][0]["area"]


def make_run(seed, reached, steps, observation=("energy", "budget")):
    seconds = {"environment": 6.0, "rest of collection": 1.0, "learning": 3.0}
    point = {"steps": steps, "wall_s": steps / 50, "cpu_s": steps / 100, "area": 0.6 if reached else 0.4}
    return {
        "observation": list(observation),
        "prior_strength": 0.0,
        "seed": seed,
        "reached": reached,
        "centre_out": 0.5,
        "curve": [{"steps": 0, "wall_s": 0.0, "cpu_s": 0.0, "area": 0.1}, point],
        "seconds": {"wall": seconds, "cpu": seconds},
        "buffer_bytes": {"energy": 2**20, "actions": 2**20},
        "transitions": 2**10,
    }


def row(text, number):
    return [cell.strip() for cell in text.splitlines()[number].strip("|").split("|")]


def test_table_counts_censored_runs_as_slower_than_all(benchmark, tmp_path):
    runs = [make_run(0, True, 1000), make_run(1, False, 5000), make_run(2, True, 2000)]
    text = benchmark.table([*runs, *(make_run(seed, seed == 0, 5000, ("image",)) for seed in range(3))])
    cells = dict(zip(row(text, 1), row(text, 3), strict=True))
    assert cells["reached"] == "2 of 3"
    assert (cells["steps"], cells["wall s"], cells["CPU s"]) == ("2000", "40", "20")
    assert cells["area at the end"] == "0.4000 to 0.6000"
    assert cells["steps per CPU s"] == "267"
    assert [cells[part] for part in ("environment", "rest of collection", "learning")] == ["60%", "10%", "30%"]
    assert (cells["buffer MiB"], cells["bytes of a transition"]) == ("2.0", "2048")
    censored = dict(zip(row(text, 1), row(text, 4), strict=True))
    assert (censored["reached"], censored["steps"]) == ("1 of 3", "> 5000")
    benchmark.plot(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_finished_runs_are_read(benchmark, tmp_path, monkeypatch, capsys):
    options = [f"out={tmp_path}", "observations=energy,budget", "seeds=0,1", "steps=100"]
    measured = []

    def measure(settings, every, given):
        measured.append(settings.seed)
        return {**make_run(settings.seed, True, 64), "settings": benchmark._identity(settings, given)}

    monkeypatch.setattr(benchmark, "measure", measure)
    benchmark.main(*options)
    first = capsys.readouterr().out
    benchmark.main(*options)
    assert capsys.readouterr().out == first
    assert measured == [0, 1]
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 2
    settings = benchmark._settings({**benchmark.OPTIONS, "out": str(tmp_path), "steps": "200"}, ["energy", "budget"], 0)
    with pytest.raises(SeggymError, match="measured with other settings"):
        benchmark._finished(Path(settings.run_dir), settings, benchmark.OPTIONS)
    with pytest.raises(SeggymError, match="step: no such option"):
        benchmark._read_options(("step=3",))
