"""Protocol K1: who scores whom, what is frozen, and every stage of a tiny run, killed and resumed."""
# ruff: noqa: E402  (benchmarks are no part of the package: the repository's root has to be on the path first)

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks.k1 import evaluating, networks, protocol, sharing, table
from benchmarks.k1.__main__ import run_stages
from seggym.agents.curves import load_curves
from seggym.cohorts.splits import make_folds
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import open_reward_model

TINY = ("preset=tiny", "progress=false", "device=cpu")


@pytest.mark.parametrize("number", [3, 5])
def test_no_network_scores_a_patient_that_it_saw(number):
    groups = {f"p{i:02d}": "ab"[i % 2] for i in range(31)}
    folds = make_folds(groups, groups, number, seed=3)
    trained = {m: networks.member_split(m, folds, groups, seed=i) for i, m in enumerate(networks.members(number))}
    assert len(trained) == number * (number - 1) // 2 + 2 * number
    for outer in range(number):
        scoring = networks.scoring_members(number, outer)
        assert set(scoring) == {"full", "independent", *(f"fold{i}" for i in range(number - 1))}
        saw = {name: {*trained[m].train, *trained[m].val} for name, m in scoring.items()}
        # Nobody who is tested in this fold was seen by anything that is used in it.
        assert all(not seen & set(folds[outer]) for seen in saw.values())
        # Training and validation patients are scored by the network of their fold.
        for i, fold in enumerate(networks.other_folds(number, outer)):
            assert not saw[f"fold{i}"] & set(folds[fold])
            assert trained[scoring[f"fold{i}"]].val
        assert saw["full"] == saw["independent"] == set(groups) - set(folds[outer])


def test_every_patient_is_tested_once_and_never_in_two_roles(tmp_path):
    frozen = protocol.freeze([*TINY, f"out={tmp_path}"])
    tested = [patient for split in frozen.splits for patient in split.test]
    assert sorted(tested) == frozen.cohort.patients
    for split in frozen.splits:
        roles = [*split.train, *split.val, *split.test]
        assert sorted(roles) == frozen.cohort.patients
        assert split.train
        assert split.val


def test_a_protocol_is_frozen(tmp_path):
    arguments = [*TINY, f"out={tmp_path}"]
    first = protocol.freeze(arguments)
    assert json.loads((tmp_path / "protocol.json").read_text()) == first.content
    assert first.content["version"] == protocol.VERSION
    assert protocol.freeze([*arguments, "threads=2"]).content == first.content
    with pytest.raises(SeggymError, match=r"frozen with other evaluation\.budget, training\.total_steps"):
        protocol.freeze([*arguments, "evaluation.budget=3", "training.total_steps=64"])


def test_the_baselines_are_those_of_the_day_that_the_protocol_was_frozen(tmp_path, monkeypatch):
    arguments = [*TINY, f"out={tmp_path}"]
    names = protocol.freeze(arguments).content["evaluation"]["baselines"]
    assert {"random", "centre_out", "one_step_greedy"} <= set(names)
    monkeypatch.setattr(protocol, "offered", lambda trajectory: [*names, "one_more"])
    assert protocol.freeze(arguments).content["evaluation"]["baselines"] == names
    with pytest.raises(SeggymError, match=r"other evaluation\.baselines"):
        protocol.freeze([*arguments, "evaluation.baselines=[random]"])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("preset=none", "preset=none is unknown"),
        ("budget=3", "budget"),
        ("evaluation.budget=99", "eval_range"),
        ("agent=none", "agent=none is unknown"),
        ("reward.kind=guess", "reward.kind='guess'"),
        ("reward.kind=given", "reward.name is missing"),
        ("reward.kind=population", "reward.population is missing"),
        ("folds.number=2", "at least 3"),
        ("stage=all_of_it", "stage='all_of_it'"),
        ("reward.independent.architecture=unet", "network A's own"),
        ("seeds.first_fold=0", "at least 1"),
    ],
)
def test_what_cannot_run_is_refused_at_once(tmp_path, wrong, named):
    with pytest.raises(SeggymError, match=named) as refused:
        protocol.freeze([*TINY, f"out={tmp_path}", wrong])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "protocol.json").exists()


@pytest.mark.parametrize("preset", sorted(path.stem for path in protocol.PRESETS.glob("*.yaml")))
def test_presets_hold_together(preset, tmp_path, request):
    if preset == "default":
        pytest.skip("not a preset of its own")
    if preset.startswith("acdc"):
        request.getfixturevalue("acdc_root")
    runtime, values = protocol.read_options([f"preset={preset}"])
    assert runtime["preset"] == preset
    settings = protocol._check(protocol.plain(values))
    assert protocol.agent_settings(protocol.plain(values))["algorithm"]
    _, high = settings.budget_range
    assert high == values.evaluation.budget, "a policy is evaluated at the largest budget that it was trained for"
    assert settings.observation
    assert values.seeds.first_fold >= (2 if preset == "tiny" else 5)


def test_the_reference_scans_as_many_patients_as_it_can():
    class Stack:
        patients = tuple(p for p in "abc" for _ in range(4))
        volumes = tuple(f"{p}{f}" for p in "abc" for f in (1, 1, 2, 2))

    assert evaluating.greedy_volumes(Stack, 3) == ["a1", "b2", "c1"]
    assert sorted(evaluating.greedy_volumes(Stack, None)) == sorted(set(Stack.volumes))
    assert evaluating.greedy_volumes(Stack, 4) == ["a1", "b2", "c1", "a2"]


def test_a_task_runs_once_and_again_after_it_failed(tmp_path):
    calls = []

    def run():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("killed")

    tasks = [sharing.Task(tmp_path / "stage" / "one", run)]
    with pytest.raises(RuntimeError):
        sharing.work_through(tasks)
    assert not tasks[0].done
    sharing.work_through(tasks)
    sharing.work_through(tasks)
    assert len(calls) == 2
    assert tasks[0].seconds >= 0


def test_networks_of_a_population_know_no_patient_of_the_protocol(tmp_path):
    options = [
        *TINY, f"out={tmp_path}", "reward.kind=population", "reward.training.iterations=2",
        "reward.population={patients: 4, test_patients: 1, seed: 9}",
    ]  # fmt: skip
    frozen = protocol.freeze(options)
    sharing.work_through(networks.network_tasks(frozen))
    model = open_reward_model(networks.reward_model(frozen, 0))
    assert not set(model.cards["full"].patients) & set(frozen.cohort.patients)
    clash = protocol.freeze([*options[:1], *options[1:2], *options[2:3], f"out={tmp_path / 'clash'}", *options[4:6],
                             "reward.population={patients: 4, test_patients: 1, seed: 5}"])  # fmt: skip
    with pytest.raises(SeggymError, match="patients of the protocol"):
        sharing.work_through(networks.network_tasks(clash))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run from beginning to end."""
    out = tmp_path_factory.mktemp("k1") / "straight"
    frozen = protocol.freeze([*TINY, f"out={out}"])
    run_stages(frozen, protocol.STAGES.index("all"))
    return frozen, table.write_table(frozen, out / "docs.md")


@pytest.mark.slow
def test_every_stage_of_a_tiny_run(finished):
    frozen, text = finished
    content = json.loads((frozen.out / "k1.json").read_text())
    assert content["patients"] == frozen.cohort.patients
    names = {row["method"] for row in content["results"]}
    assert {"learned", "blind_twin", "swapped_observation", "static_learned", "fixed_sets", "best_fixed_order"} <= names
    assert {"random", "one_step_greedy", "energy_following"} <= names
    assert {row["net"] for row in content["results"]} == {"A", "B"}
    for contrast in content["contrasts"]:
        outside = contrast["other"] in ("one_step_greedy", "swapped_observation")
        assert (contrast["p_holm"] is None) == outside
    assert all(name in text for name in ("lines to 95 %", "commit", "seeds", "wall minutes", "6 patients"))
    assert (frozen.out / "docs.md").read_text().startswith(text)
    assert (frozen.out / "docs.png").read_bytes() == (frozen.out / "k1.png").read_bytes()
    curves = load_curves(frozen.out)
    assert {curves.folds[curves.patients.index(p)] for p in frozen.splits[1].test} == {1}
    # Two runs in the first fold, one in the others; the reference on three volumes of every fold.
    counts = (~np.isnan(curves.method("learned").curves["A"][:, -1])).sum(0)
    assert set(counts[np.asarray(curves.folds) == 0]) == {2}
    assert set(counts[np.asarray(curves.folds) > 0]) == {1}
    assert np.isfinite(curves.method("one_step_greedy").curves["A"][0, -1]).sum() == 9
    for outer, split in enumerate(frozen.splits):
        model = open_reward_model(frozen.out / "reward_models" / f"fold{outer}")
        for patient in (*split.train, *split.val, *split.test):
            key = model.network_for(patient, frozen.cohort.name)
            assert (key == "full") == (patient in split.test)
            saw = json.loads((frozen.out / "networks" / networks.scoring_members(3, outer)[key].name
                              / networks.MEMBERS).read_text())  # fmt: skip
            assert patient not in (*saw["train"], *saw["val"])
        model.require_unseen("independent", split.test, frozen.cohort.name)


@pytest.mark.slow
def test_killed_at_any_time_it_gives_the_same_result(finished, tmp_path):
    frozen, _ = finished
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "benchmarks.k1", *TINY, f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for stage, seconds in product(("networks", "policies", "all"), (6, 9)):
        try:
            subprocess.run([*command, f"stage={stage}"], cwd=ROOT, env=environment, timeout=seconds, check=True,
                           capture_output=True)  # fmt: skip
        except subprocess.TimeoutExpired:
            continue
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    mine, theirs = load_curves(out), load_curves(frozen.out)
    for method in theirs.methods:
        for net in theirs.nets:
            np.testing.assert_array_equal(mine.method(method.name).curves[net], method.curves[net], err_msg=method.name)
    shutil.rmtree(out)
