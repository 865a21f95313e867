"""RL4Seg as a whole on tiny phantoms: results, exact resume, labels that stay unread, baselines, bad input."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_adaptations import quiet, small_adaptation, written

from seggym.agents.rl4seg import loop, stages, test_time
from seggym.agents.rl4seg.baselines import registry
from seggym.agents.rl4seg.baselines.registry import BASELINES
from seggym.agents.rl4seg.report import finished_runs, summarise, write_report
from seggym.agents.rl4seg.results import pooled, read_evaluations
from seggym.agents.rl4seg.severity import find_severity
from seggym.agents.rl4seg.supervised import label_maps
from seggym.agents.rl4seg.trial import load_masks, open_trial
from seggym.envs.adaptation import domains
from seggym.envs.adaptation.domains import deal_patients
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.reward_models import statistics
from seggym.reward_models.error_net import load_error_net
from seggym.reward_models.metrics import dice_per_class, encode_truth


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with all baselines, and its folder; nobody writes to it."""
    folder = tmp_path_factory.mktemp("rl4seg") / "seed0"
    loop.run(small_adaptation(folder, baselines="all"), say=quiet)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to be spoilt."""
    shutil.copytree(finished, tmp_path / "seed0")
    return tmp_path / "seed0"


# --- results ----------------------------------------------------------------------------------------------------------


def test_folders_are_those_of_the_stages(finished):
    for name in ("0/actor", "0/prior", "1/rewards", "1/reward_net", "1/actor/critic", "2/actor/critic"):
        assert (finished / name).is_dir()
    for name in BASELINES:
        assert (finished / "baselines" / name / "masks.npz").is_file()


def test_scores_are_those_of_the_networks_in_the_folders(finished):
    trial = open_trial(small_adaptation(finished, baselines="all"))
    content = read_json(finished / "evaluation.json")
    test = trial.pair.target_test
    for name, stage in (("rl4seg_0", "0/actor"), ("rl4seg_2", "2/actor"), ("rl4seg", "2/actor")):
        masks = label_maps(trial.load(stage), test.images)
        dice = dice_per_class(masks, encode_truth(test.masks.long(), 4))
        np.testing.assert_allclose(np.array(content["methods"][name]["test"]["dice"], float), dice, atol=1e-6)
        assert content["methods"][name]["test"]["patients"] == list(test.patients)
    supervised = load_masks(finished / "baselines/source_only")["test"]
    assert torch.equal(supervised, label_maps(trial.load("0/actor"), test.images))
    corrected = load_masks(finished / "baselines/source_corrector")["test"]
    assert torch.equal(corrected, trial.correct(supervised).masks)


def test_comparisons_are_paired_by_patient(finished):
    content = read_json(finished / "evaluation.json")
    rows = {(row["other"], row["metric"]): row for row in content["comparisons"]}
    ours, others = (
        np.array(content["methods"][name]["test"]["dice"], float).mean(1) for name in ("rl4seg", "source_only")
    )
    patients = np.array(content["methods"]["rl4seg"]["test"]["patients"])
    means = [float((ours - others)[patients == name].mean()) for name in sorted(set(patients))]
    assert rows["source_only", "dice"]["mean"] == pytest.approx(np.mean(means))
    assert rows["source_only", "dice"]["patients"] == len(means)
    assert {name for name, _ in rows} == set(BASELINES)


def test_trained_baselines_take_as_many_steps_as_the_policy(finished):
    settings = small_adaptation(finished, baselines="all")
    # 16 images are 2 rollouts of 2 minibatches and a step on anchors each, in 2 iterations.
    steps = 2 * 2 * (2 + 1)
    assert stages.updates(open_trial(settings)) == steps
    facts = {name: read_json(finished / "baselines" / name / "finished.json")["facts"] for name in BASELINES}
    for name in ("source_augmented", "histogram_matching", "fda"):
        assert facts[name]["updates"] == steps
    # Self-training shares them among its rounds, and ends with the first one that has no pseudo label.
    for name in ("self_training_corrector", "self_training_validated"):
        assert facts[name]["updates"] == steps // 2 * np.count_nonzero(facts[name]["pseudo_labels"])
    assert facts["self_training_corrector"]["updates"] > 0
    assert {name for name in BASELINES if facts[name]["privileged"]} == {"oracle_reward", "supervised_target"}


def test_monitors_and_uncertainty_are_written(finished):
    content = read_json(finished / "evaluation.json")
    assert content["methods"]["rl4seg_0"]["summary"]["test"]["dice"] > 0.4  # a network that has learned something
    found = [(row["iteration"], row["phase"], row["part"]) for row in content["monitors"]]
    assert found == [(i, phase, part) for part in ("val", "test") for i in (1, 2) for phase in ("before", "after")]
    assert content["monitors"][0]["kl"] == pytest.approx(0, abs=1e-6)
    for name in ("reward_map", "maximum_softmax", "mc_dropout", "test_time_augmentation", "ensemble_of_iterations"):
        assert 0 <= content["uncertainty"][name]["ece"] <= 1
        assert content["uncertainty"][name]["accuracy"] == content["uncertainty"]["reward_map"]["accuracy"]
    assert set(content["gap"]) == {"source_only", "supervised_target", "gap"}
    for method in content["methods"].values():
        assert method["test_corrected"]["names"] == method["test"]["names"]
        assert method["summary"]["test_corrected"]["valid"] >= method["summary"]["test"]["valid"]
    # What has been corrected already is corrected no further.
    corrected = content["methods"]["source_corrector"]
    assert corrected["test_corrected"]["dice"] == corrected["test"]["dice"]
    assert len((finished / "metrics.csv").read_text().splitlines()) == 9


# --- resume -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_does_nothing_again(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
    loop.run(small_adaptation(run, baselines="all"), say=quiet)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")} == before


@pytest.mark.parametrize("stage", ["predict", "reward", "ppo"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch, stage):
    """Stopped in the second iteration, in the middle of a stage, with half of its files written."""
    name = {"predict": "build_reward_pairs", "reward": "train_error_net", "ppo": "train_pixel_ppo"}[stage]
    original, calls = getattr(stages, name), []
    first = {"predict": 2, "reward": 1, "ppo": 1}[stage]  # calls of the first iteration

    def stopped(*arguments, **options):
        calls.append(stage)
        if len(calls) > first:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    settings = small_adaptation(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(stages, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            loop.run(settings, say=quiet)
    assert not (tmp_path / "run/2/actor/finished.json").exists()
    loop.run(settings, say=quiet)
    again, once = written(tmp_path / "run"), written(finished)
    assert {name for name in again if name.startswith(("0", "1", "2"))} == {
        name for name in once if name.startswith(("0", "1", "2")) and "twin" not in name
    }
    assert all(content == once[name] for name, content in again.items() if "evaluation" not in name)


def test_a_deleted_stage_is_made_again_to_the_same_bits(run, finished):
    shutil.rmtree(run / "1/reward_net")
    (run / "evaluation.json").unlink()
    loop.run(small_adaptation(run, baselines="all"), say=quiet)
    assert written(run) == written(finished)


def test_stages_one_by_one_are_the_whole(finished, tmp_path):
    settings = small_adaptation(tmp_path / "run")
    for stage in ("pretrain", "predict", "reward", "ppo", "predict", "reward", "ppo"):
        loop.run(settings, stage, say=quiet)
    assert (tmp_path / "run/2/actor/model.safetensors").read_bytes() == (
        finished / "2/actor/model.safetensors"
    ).read_bytes()
    assert not (tmp_path / "run/evaluation.json").exists()


def test_another_seed_gives_other_networks(finished, tmp_path):
    loop.run(small_adaptation(tmp_path / "run", seed=1), "pretrain", say=quiet)
    assert (tmp_path / "run/0/actor/model.safetensors").read_bytes() != (
        finished / "0/actor/model.safetensors"
    ).read_bytes()


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_of_the_targets_training_part_change_nothing(finished, tmp_path, monkeypatch):
    """Poisoned: other labels for those patients, and a function that refuses to give them out."""
    settings = small_adaptation(tmp_path / "run", baselines=["self_training_corrector", "tent", "fda"])
    spoilt = set(deal_patients(loop.open_trial(small_adaptation(tmp_path / "plan")).domain_settings)["target_train"])
    original = domains.open_cohort

    def poisoned(*arguments, **options):
        cohort = original(*arguments, **options)

        def read(patient):
            for volume in cohort.read(patient):
                yield replace(volume, label=volume.label * 0 + 200) if patient in spoilt else volume

        return replace(cohort, read=read, fingerprint="")

    def refused(settings):
        raise AssertionError("nobody may ask")

    monkeypatch.setattr(domains, "open_cohort", poisoned)
    monkeypatch.setattr(registry, "target_train_labels", refused)
    loop.run(settings, say=quiet)
    again, once = written(tmp_path / "run"), written(finished)
    assert all(content == once[name] for name, content in again.items() if "evaluation" not in name)


def test_labels_of_validation_choose_no_checkpoint(finished, tmp_path, monkeypatch):
    """Of the target's validation patients labels are for the tables alone."""
    settings = small_adaptation(tmp_path / "run", baselines=["self_training_validated"])
    original = domains.open_domains

    def poisoned(given):
        pair = original(given)
        return replace(pair, target_val=replace(pair.target_val, masks=pair.target_val.masks.flip(2)))

    monkeypatch.setattr("seggym.agents.rl4seg.trial.open_domains", poisoned)
    loop.run(settings, say=quiet)
    again, once = written(tmp_path / "run"), written(finished)
    kept = [name for name in again if name.endswith((".safetensors", "choice.json"))]
    assert all(again[name] == once[name] for name in kept)
    assert again["metrics.csv"] != once["metrics.csv"]


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_of_several_seeds(finished, tmp_path):
    second = tmp_path / "seed1"
    loop.run(small_adaptation(second, seed=1, domains={"domain_seed": 1}, baselines=["source_only"]), say=quiet)
    runs = [finished, second]
    page = write_report(runs, tmp_path / "report").read_text()
    assert "Seeds 0, 1" in page
    assert page.count("<img") >= 4
    summary = summarise(read_evaluations(runs))
    assert set(summary["differences"]) == {"source_only"}  # what all seeds have
    values, patients, seeds = pooled(read_evaluations(runs), "rl4seg", "dice/myocardium")
    expected = statistics.bootstrap_interval(values, patients, runs=seeds)
    assert summary["methods"]["rl4seg"]["dice/myocardium"]["low"] == expected.low
    assert finished_runs(tmp_path) == [second]


def test_reports_of_what_does_not_go_together_are_one_sentence(finished, run, tmp_path):
    with pytest.raises(SeggymError, match=r"have seeds \[0, 0\], expected different ones"):
        read_evaluations([finished, run])
    with pytest.raises(SeggymError, match="holds no finished run"):
        finished_runs(tmp_path / "nothing")
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(SeggymError, match="is no evaluation of RL4Seg"):
        read_evaluations([run])


# --- severity ---------------------------------------------------------------------------------------------------------


def test_severity_is_the_lowest_with_the_gap(tmp_path):
    said = []
    settings = small_adaptation(tmp_path / "run", pretrain={"iterations": 20})
    chosen = find_severity(settings, margin=-1.0, say=said.append)
    assert chosen == 1
    assert said[-1] == "domains.shift.severity=1"
    content = read_json(tmp_path / "run/severity.json")
    (row,) = content["validation"]
    assert row["gap"] == pytest.approx(row["ceiling"] - row["source_only"])
    assert find_severity(settings, margin=2.0, say=quiet) is None
    assert [row["severity"] for row in read_json(tmp_path / "run/severity.json")["validation"]] == [1, 2, 3, 4, 5]
    with pytest.raises(SeggymError, match=r"stage=severity needs domains\.shift"):
        find_severity(small_adaptation(tmp_path / "run", domains={"shift": None}))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_network_of_other_classes_is_one_sentence(run, tmp_path):
    other = small_adaptation(tmp_path / "other", domains={"classes": ["left ventricle", "myocardium"]})
    loop.run(other, "pretrain", say=quiet)
    for name in ("model.safetensors", "model.json"):
        shutil.copy(tmp_path / "other/0/actor" / name, run / "0/actor" / name)
    trial = open_trial(small_adaptation(run, baselines="all"))
    with pytest.raises(SeggymError, match=r"has 3 classes .* but the domains have 4"):
        trial.load("0/actor")


def test_a_policy_of_background_alone_is_one_sentence(run):
    settings = replace(small_adaptation(run, domains={"rules": "camus"}, loop={"source_looks": []}), prior={})
    shutil.rmtree(run)
    loop.run(settings, "pretrain", say=quiet)
    trial = open_trial(settings)
    network = trial.load("0/actor")
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([5.0, 0, 0, 0]))
    shutil.rmtree(run / "0/actor")
    trial.folder.stage("0/actor", [], lambda folder: trial.save(folder, network, ("nobody",)) or {})
    with pytest.raises(SeggymError, match="no reward pair results"):
        loop.run(settings, "predict", say=quiet)
    assert not (run / "1/rewards/finished.json").exists()
    score = trial.score(label_maps(network, trial.pair.target_test.images), trial.pair.target_test)
    assert (np.nan_to_num(score.dice) == 0).all()
    assert not score.valid.any()


def test_without_a_mask_to_believe_the_source_says_what_an_error_is(tmp_path):
    settings = small_adaptation(tmp_path / "run", pairs={"agreement": 1.0, "corrections": False})
    for stage in ("pretrain", "predict", "reward", "ppo"):
        loop.run(settings, stage, say=quiet)
    facts = read_json(tmp_path / "run/1/rewards/finished.json")["facts"]
    assert (facts["used"], facts["anchors"]) == (0, 0)
    assert facts["pairs"] > 0
    assert stages.load_anchors(open_trial(settings), 1) is None
    assert read_json(tmp_path / "run/1/actor/choice.json")["candidates"]["supervised"]["agreement"] is None


def test_the_reward_is_the_mean_of_the_nets_so_far_or_the_last_one(finished):
    settings = small_adaptation(finished, baselines="all")
    trial = open_trial(settings)
    images = trial.pair.target_val.images
    masks = label_maps(trial.load("0/actor"), images)
    single = [load_error_net(finished / f"{number}/reward_net")(images, masks) for number in (1, 2)]
    assert torch.allclose(stages.load_reward(trial, 2)(images, masks), (single[0] + single[1]) / 2)
    assert set(read_json(finished / "2/actor/finished.json")["inputs"]) >= {"1/reward_net", "2/reward_net"}
    alone = replace(trial, settings=replace(settings, loop=replace(settings.loop, ensemble=False)))
    assert torch.equal(stages.load_reward(alone, 2)(images, masks), single[1])


def test_test_time_optimisation_keeps_what_has_the_highest_reward(run, monkeypatch):
    """Against every label map that it saw on the way, the one before included."""
    settings = small_adaptation(run, baselines="all", tto="force")
    seen = []
    original = test_time.masked_mean

    def watched(values, where):
        seen.append(original(values, where))
        return seen[-1]

    monkeypatch.setattr(test_time, "masked_mean", watched)
    loop.run(settings, "evaluate", say=quiet)
    trial = open_trial(settings)
    images, net = trial.pair.target_val.images, stages.load_reward(trial, 2)
    before, after = label_maps(trial.load("2/actor"), images), load_masks(run / "tto/force")["val"]
    for place, tried in enumerate(np.array(seen).reshape(-1, 5)[: len(images)]):
        kept, image = after[place : place + 1], images[place : place + 1]
        where = test_time.region(kept, before[place : place + 1], settings.choice.band)
        assert original(net(image, kept), where) == pytest.approx(tried.max())
    assert "rl4seg_tto" in read_json(run / "evaluation.json")["methods"]
    valid = trial.valid(before.numpy())
    loop.run(replace(settings, tto="on"), "evaluate", say=quiet)
    assert torch.equal(load_masks(run / "tto/on")["val"][valid], before[valid])
    loop.run(replace(settings, tto="off"), "evaluate", say=quiet)
    assert "rl4seg_tto" not in read_json(run / "evaluation.json")["methods"]


def test_what_is_not_there_yet_or_at_all_is_one_sentence(tmp_path):
    settings = small_adaptation(tmp_path / "run")
    with pytest.raises(SeggymError, match=r"stage 0/actor of .* is not finished"):
        loop.run(settings, "predict", say=quiet)
    with pytest.raises(SeggymError, match=r"iteration=3, expected 1 to loop\.iterations=2"):
        loop.run(settings, "ppo", 3, say=quiet)
    with pytest.raises(SeggymError, match="iteration=1 is for stage=predict, reward or ppo"):
        loop.run(settings, "pretrain", 1, say=quiet)
    with pytest.raises(SeggymError, match="has no supervised network yet"):
        loop.run(settings, "evaluate", say=quiet)
    with pytest.raises(SeggymError, match="baselines names 'tend'; did you mean tent"):
        small_adaptation(tmp_path, baselines=["tend"])
    with pytest.raises(SeggymError, match=r"loop\.iteration is unknown"):
        small_adaptation(tmp_path, loop={"iteration": 2})
    with pytest.raises(SeggymError, match="start='augmentet' is unknown; did you mean augmented"):
        small_adaptation(tmp_path, start="augmentet")


@pytest.mark.parametrize("content", [b"damaged", b"", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_one_sentence(run, content):
    (run / "1/rewards/anchors.npz").write_bytes(content)
    trial = open_trial(small_adaptation(run, baselines="all"))
    with pytest.raises(SeggymError, match="delete its folder, then run the same command again"):
        stages.load_anchors(trial, 1)
    (run / "baselines/adabn/masks.npz").write_bytes(content)
    with pytest.raises(SeggymError, match="then run the same command again"):
        load_masks(run / "baselines/adabn")


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"ppo": {"minibach": 8}}, r"ppo\.minibach is unknown"),
        ({"pairs": {"temperatures": ["a"]}}, r"pairs\.temperatures=\['a'\] must be numbers"),
        ({"reward": {"batch": 0}}, "batch=0"),
        ({"prior": {"widths": [6, 12]}}, r"prior\.widths=\[6, 12\] must be multiples of 4"),
        ({"prior": {"latent": 0}}, r"prior\.latent=0 must be at least 1"),
        ({"augmentation": {"shere": 0.5}}, r"augmentation\.shere is unknown"),
        ({"augmentation": {"severities": [5, 1]}}, r"augmentation\.severities=\[5, 1\], expected \[lowest, highest\]"),
        ({"augmentation": {"kinds": ["gian"]}}, "augmentation.kinds names 'gian'; did you mean gain"),
        ({"baselines": 5}, "baselines=5, expected all, or a list"),
        ({"baselines": "tent"}, "baselines='tent', expected all, or a list"),
    ],
)
def test_settings_are_checked_before_a_folder_is_made(tmp_path, group, said):
    with pytest.raises(SeggymError, match=said):
        loop.run(small_adaptation(tmp_path / "run", **group), say=quiet)
    assert not (tmp_path / "run").exists()


def test_runs_that_went_unlike_far_are_not_pooled(run, finished):
    loop.run(replace(small_adaptation(run, baselines="all"), tto="off"), "evaluate", say=quiet)
    content = read_json(run / "evaluation.json")
    write_json(run / "evaluation.json", {**content, "seed": 1, "iterations": 1})
    with pytest.raises(SeggymError, match=r"differ in iterations, expected seeds of one experiment"):
        read_evaluations([finished, run])
    domains = {**content["domains"], "domain_seed": 7}
    write_json(run / "evaluation.json", {**content, "seed": 1, "domains": domains})
    assert len(read_evaluations([finished, run])) == 2


def test_labels_that_changed_are_noticed(run, monkeypatch):
    original = domains._read

    def relabelled(settings, plan, role, labels):
        domain = original(settings, plan, role, labels)
        return replace(domain, masks=domain.masks.flip(-1)) if role == "source_train" else domain

    monkeypatch.setattr(domains, "_read", relabelled)
    with pytest.raises(SeggymError, match=r"another data\.source_train"):
        open_trial(small_adaptation(run, baselines="all"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu(tmp_path):
    loop.run(small_adaptation(tmp_path / "run", baselines="all", device="cuda", tto="force"), say=quiet)
    assert read_json(tmp_path / "run/evaluation.json")["iterations"] == 2
