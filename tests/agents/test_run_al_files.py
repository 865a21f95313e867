"""Presets, and files of other programs: what they say is what is run."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module

from seggym.agents.al.settings import loop_settings
from seggym.agents.al.translation import translated
from seggym.agents.strategies import STRATEGIES
from seggym.configs.checking import plain
from seggym.errors import SeggymError

PRESETS = Path(__file__).parents[2] / "configs" / "selection"
EXPERIMENTS = sorted(path.stem for path in (PRESETS / "experiment").glob("*.yaml"))
CHOOSERS = sorted(path.stem for path in (PRESETS / "strategy").glob("*.yaml"))


def settings_of(*arguments):
    # Their defaults have names that only Hydra's own run knows.
    named = ["run_dir=nowhere", "agent.algorithm=none"]
    with initialize_config_module("seggym.configs.selection", version_base="1.3"):
        return loop_settings(plain(compose("run_al", [*arguments, *named])))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_run(name):
    settings = settings_of(f"experiment={name}")
    assert settings.name == name
    assert settings.selection().cohort == settings.cohort
    assert settings.model.ann_type == ("scribble" if name.endswith("weak") else "mask")


def test_every_strategy_has_a_preset_with_its_defaults():
    found = {name: settings_of(f"strategy={name}").strategy for name in CHOOSERS}
    assert {strategy.name for strategy in found.values()} == set(STRATEGIES)
    for name, strategy in found.items():
        if not name.startswith("kcenter_"):
            assert strategy == STRATEGIES[name](), name


def test_experiments_strategies_and_models_are_combined():
    settings = settings_of("experiment=mscmr_weak", "strategy=coreclr", "model=wsl4mis", "data_geometry.steps=7")
    assert (settings.cohort, settings.model.ann_type) == ("mscmr", "scribble")
    assert settings.model.options["iterations"] == 60000
    assert settings.model.iterations_by == "fraction"
    assert settings.strategy.steps == 7


# --- exp.yml ----------------------------------------------------------------------------------------------------------

POLICY = {"policy_type": "ranked", "seed": 3, "rounds": [[0.01, 0], [0.01, 0], [0.03, 0]]}
WEAK = {"model_type": "dmpls", "ann_type": "scribble", "ensemble_size": 1, "gpus": "cuda:0"}
STRONG = {"model_type": "strong", "ann_type": "label", "dataset": "ACDC", "ensemble_size": 5}
# The headline experiment of CoreCLR, without the group that it asks for.
OURS = {
    "data_geometry_type": "kcenter_greedy",
    "contrastive": True,
    "feature_model": True,
    "use_uncertainty": True,
    "use_labels": True,
    "label_wt": 1.0,
    "pos_wt": 500,
    "default_pos_val": 0,
    "normalize_pos_by_label_ct": True,
    "feature_model_params": {
        "encoder": "resnet18",
        "batch_size": 8,
        "fuse_image_data": True,
        "use_slice_pos": True,
        "use_phase": True,
        "use_patient": True,
        "pos_loss1": True,
        "pos_loss1_wt": 0.2,
        "pos_loss1_mask": [2, 3],
        "pos_loss2": True,
        "pos_loss2_wt": 0.1,
        "pos_loss2_mask": [3],
        "pos_loss3": True,
        "pos_loss3_wt": 0.05,
        "reset_sampler_every_epoch": True,
    },
}


def experiment(folder, **groups):
    content = {"model": WEAK, "policy": POLICY, **groups, "exp_dir": "somewhere"}
    (folder / "exp.yml").write_text(yaml.safe_dump(content))
    arguments, notes = translated([f"exp_dir={folder}"])
    return arguments, notes


def test_the_headline_experiment_of_coreclr(tmp_path):
    arguments, notes = experiment(tmp_path, data_geometry=OURS)
    settings = settings_of(*arguments)
    assert settings.strategy.name == "coreclr"
    assert settings.strategy.groups == ("slice", "volume", "patient")
    assert settings.strategy.weights == (0.2, 0.1, 0.05)
    assert settings.strategy.groups_per_batch == 2  # 8 images in groups of 4
    assert (settings.cohort, settings.model.ann_type, settings.seed) == ("acdc", "scribble", 3)
    assert list(settings.policy.budgets) == [0.01, 0.02, 0.05]
    assert settings.data.size == 256
    assert (settings.model.options["iterations"], settings.model.iterations_by) == (60000, "fraction")
    assert any("use_labels" in note for note in notes)


def test_groups_of_three(tmp_path):
    parameters = {"batch_size": 9, "use_phase": True, "use_patient": True, "pos_loss1": True, "pos_loss1_wt": 0.35}
    parameters |= {"pos_loss1_mask": [2], "pos_loss2": True, "pos_loss2_wt": 0.05}
    arguments, _ = experiment(tmp_path, data_geometry={**OURS, "feature_model_params": parameters})
    strategy = settings_of(*arguments).strategy
    assert (strategy.groups, strategy.weights) == (("volume", "patient"), (0.35, 0.05))
    assert strategy.groups_per_batch == 3


ENSEMBLE = {"model_uncertainty_type": "ensemble"}
DROPOUT = {"model_type": "db_strong", "ann_type": "label"}


@pytest.mark.parametrize(
    ("groups", "strategy", "options"),
    [
        ({"policy": {**POLICY, "policy_type": "random"}}, "random", {}),
        ({"data_geometry": {"data_geometry_type": "kcenter_greedy"}}, "kcenter", {"features": "pixels"}),
        (
            {"data_geometry": {"data_geometry_type": "kcenter_greedy", "use_model_features": True}},
            "kcenter",
            {"features": "learner"},
        ),
        (
            {"data_geometry": {"data_geometry_type": "coregcn", "hidden_units": 64, "starting_sample": 10}},
            "coregcn",
            {"hidden": 64},
        ),
        ({"data_geometry": {"data_geometry_type": "vaal", "latent_dim": 8, "lr": "5e-4"}}, "vaal", {"latent": 8}),
        ({"data_geometry": {"data_geometry_type": "typiclust", "k_nn": 9}}, "typiclust", {"neighbours": 9}),
        ({"model_uncertainty": {**ENSEMBLE, "score_func": "entropy_w_label_probs"}}, "entropy", {}),
        (
            {"model": STRONG, "model_uncertainty": {**ENSEMBLE, "score_func": "entropy_w_label_probs"}},
            "ensemble_entropy",
            {"members": 5},
        ),
        (
            {"model": STRONG, "model_uncertainty": {**ENSEMBLE, "score_func": "ensemble_variance_ratio"}},
            "ensemble_variance",
            {"members": 5},
        ),
        (
            {"model": {**DROPOUT, "db_score_func": "bald_score"}, "model_uncertainty": ENSEMBLE},
            "bald",
            {"members": 40},
        ),
        (
            {"model": STRONG, "model_uncertainty": {"model_uncertainty_type": "stochastic", "sbatch_size": 10}},
            "stochastic_batches",
            {"uncertainty": "ensemble_entropy"},
        ),
    ],
)
def test_what_an_experiment_says_is_run(tmp_path, groups, strategy, options):
    settings = settings_of(*experiment(tmp_path, **groups)[0])
    assert settings.strategy.name == strategy
    assert {key: getattr(settings.strategy, key) for key in options} == options


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"data_geometry": {"data_geometry_type": "kcentre"}}, "one of pass, kcenter_greedy"),
        ({"data_geometry": {**OURS, "contrastiv": True}}, "did you mean contrastive"),
        ({"data_geometry": {**OURS, "patient_wt": 10}}, "metadata_kcenter"),
        ({"data_geometry": {**OURS, "metric": "cosine"}}, "expected euclidean"),
        ({"data_geometry": {"data_geometry_type": "kcenter_greedy", "alg_string": "pkcenter_greedy"}}, "temperature"),
        ({"data_geometry": OURS, "model_uncertainty": ENSEMBLE}, "expected one of them"),
        ({}, "ranked without"),
        ({"model": {**WEAK, "model_type": "lvm_med"}}, "one of dmpls"),
        ({"model": {**WEAK, "dataset": "LVSC"}}, "one of ACDC"),
        ({"model": {**WEAK, "ensemblesize": 5}}, "did you mean ensemble_size"),
        ({"policy": {**POLICY, "rounds": [[0.01, 0.5]]}}, "pseudo labels"),
        ({"policy": {**POLICY, "rank_type": "inc"}}, "desc"),
        ({"modell": {}}, "did you mean model"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(tmp_path, groups, said):
    with pytest.raises(SeggymError, match=said) as caught:
        experiment(tmp_path, **groups)
    assert str(tmp_path / "exp.yml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_counts_more_than_the_file(tmp_path):
    experiment(tmp_path, data_geometry=OURS)
    arguments, _ = translated([f"exp_dir={tmp_path}", "model=unet", "seed=8", "data_geometry.steps=5"])
    settings = settings_of(*arguments)
    assert settings.seed == 8
    assert settings.strategy.steps == 5
    assert settings.model.options["widths"] == [16, 32, 64, 128]


def test_a_file_that_is_no_yaml_is_one_sentence(tmp_path):
    (tmp_path / "exp.yml").write_text("model: [1, 2\npolicy: }")
    with pytest.raises(SeggymError, match="not readable YAML") as caught:
        translated([f"exp_dir={tmp_path}"])
    assert "\n" not in str(caught.value)


# --- the simulation ---------------------------------------------------------------------------------------------------

MODEL = """
model_name: SimCNN
architecture:
  num_classes: 2
  input_channels: 1
  conv_layers:
    - {out_channels: 4, kernel_size: 3, stride: 1, padding: 1}
    - {out_channels: 8, kernel_size: 3, stride: 1, padding: 1}
  fc_layers:
    - {out_features: 32}
training_params:
  learning_rate: 0.005
  batch_size: 4
  num_epochs_initial: 2
  num_epochs_active_retraining: 1
  optimizer: Adam
  loss_function: CrossEntropyLoss
device: cpu
"""
LOOP = """
active_learning_strategy: UncertaintySampling
query_params:
  n_instances_per_query: 3
  uncertainty_method: {method}
simulation_params:
  num_total_queries: 4
  initial_labeled_size: 5
  unlabeled_pool_size: 50
"""


@pytest.mark.parametrize(
    ("method", "name"), [("least_confident", "least_confidence"), ("margin", "margin"), ("entropy", "entropy")]
)
def test_the_two_files_of_the_simulation(tmp_path, method, name):
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "al.yaml").write_text(LOOP.replace("{method}", method))
    arguments, _ = translated([f"model_config={tmp_path}/model.yaml", f"al_config={tmp_path}/al.yaml"])
    settings = settings_of(*arguments)
    assert settings.strategy.name == name
    policy, model = settings.policy, settings.model
    assert (policy.initial, policy.queries, policy.per_query) == (5, 4, 3)
    assert model.learner == "classifier"
    assert (model.iterations_by, model.first_iterations, model.options["iterations"]) == ("epochs", 2, 1)
    assert model.options["start"] == "fine_tune"
    assert model.options["widths"] == [4, 8]
    assert settings.cohort_options == {"classes": 2, "count": 83}


def test_the_simulation_may_be_written_flat_and_at_random(tmp_path):
    flat = "active_learning_strategy: RandomSampling\nquery_params:\nn_instances_per_query: 7\nnum_total_queries: 2\n"
    (tmp_path / "al.yaml").write_text(flat)
    settings = settings_of(*translated([f"al_config={tmp_path}/al.yaml"])[0])
    assert settings.strategy.name == "random"
    assert (settings.policy.queries, settings.policy.per_query) == (2, 7)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("entropy", "entropi", "one of least_confident"),
        ("num_total_queries", "num_total_querys", "did you mean num_total_queries"),
        ("UncertaintySampling", "Magic", "one of UncertaintySampling"),
    ],
)
def test_a_wrong_simulation_is_one_sentence(tmp_path, old, new, said):
    (tmp_path / "al.yaml").write_text(LOOP.replace("{method}", "entropy").replace(old, new))
    with pytest.raises(SeggymError, match=said):
        translated([f"al_config={tmp_path}/al.yaml"])
