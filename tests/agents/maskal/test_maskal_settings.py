"""The file of maskAL: what it may say, what is told about what it may not, and the experiments that follow."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from seggym.agents.maskal.bench import training_settings
from seggym.agents.maskal.experiments import experiments
from seggym.agents.maskal.settings import MaskalSettings, check, read_settings
from seggym.errors import SeggymError

CONFIGS = Path(__file__).parents[3] / "configs" / "maskal"
CLASSES = {"classes": ["leaf", "stem", "root"]}


def made(**values: Any) -> MaskalSettings:
    return check({**CLASSES, **values})[0]


def test_the_file_of_maskal_loads_as_it_is() -> None:
    settings, notes = read_settings(CONFIGS / "maskAL.yaml")
    assert settings == MaskalSettings(
        classes=["healthy", "damaged", "matured", "cateye", "headrot"],
        minority_classes=["damaged", "matured", "cateye", "headrot"],
    )
    # What has no effect is said.
    assert [note.split("=")[0].removeprefix("note: ") for note in notes] == ["num_workers", "al_batch_size"]
    (one,) = experiments(settings)
    assert (one.name, one.queries, one.seed) == ("uncertainty_mean_0.25_10_200", (200,) * 5, 0)


def test_the_file_of_generated_images_loads() -> None:
    settings, notes = read_settings(CONFIGS / "generated.yaml", ["loops=2", "backend_options.width=16", "seed=[5]"])
    assert notes == []
    assert (settings.loops, settings.backend_options, settings.seed) == (2, {"width": 16}, [5])


def test_later_files_of_maskal_load_too() -> None:
    later = {
        "strategy": "random",
        "duplicate_initial_model_and_data": False,
        "use_initial_train_dir": False,
        "initial_train_dir": "./datasets/train",
        "network_config": "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml",
        "pretrained_weights": "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml",
        "supervisely_meta_json": "",
        "export_format": "darwin",
    }
    settings, notes = check({**CLASSES, **later})
    assert (settings.strategies, settings.duplicate_initial_model, settings.export_format) == (
        "random",
        False,
        "darwin",
    )
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rat": 0.1}, r"learning_rat is unknown; did you mean learning_rate"),
        ({"learning_rate": "fast"}, r"learning_rate='fast' is a str, expected float"),
        ({"learning_rate": True}, r"learning_rate=True is a bool, expected float"),
        ({"confidence_threshold": 1.5}, r"confidence_threshold=1.5 is out of range, expected 0 to 1"),
        ({"loops": 0}, r"loops=0 is out of range, expected 1 or more"),
        ({"loops": [3, "two"]}, r"loops='two' is out of range"),
        ({"pool_size": 2.5}, r"pool_size=2.5 is a float, expected int or list"),
        ({"pool_size": [2.5]}, r"pool_size=2.5 is no whole number"),
        ({"mode": "meen"}, r"mode='meen' is unknown; did you mean mean"),
        ({"mode": ["min", "max"]}, r"mode='max' is unknown"),
        ({"export_format": "supervisely"}, r"export_format='supervisely' cannot be had: choose one of labelme"),
        ({"export_format": "labelm"}, r"did you mean labelme"),
        ({"use_initial_train_dir": True}, r"put its images into traindir and name them in initial_train_file"),
        ({"strategy": "random", "strategies": "random"}, r"says again what strategies says|says again what strategy"),
        ({"classes": ["leaf", "leaf"]}, r"classes=.* must be different names"),
        ({"classes": []}, r"at least one"),
        ({"step_ratios": [0.8, 0.5]}, r"step_ratios=.* ascending"),
        ({"experiment_name": "../up"}, r"experiment_name='../up' must be the name of a folder"),
        (
            {"train_sampler": "RepeatFactorTrainingSampler", "minority_classes": ["flower"]},
            r"minority_classes names flower, expected some of leaf, stem, root",
        ),
        ({"strategy_options": {"kcenter": 3}}, r"strategy_options.kcenter=3 must be keys and values"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SeggymError, match=words):
        check({**CLASSES, **values})


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "maskAL.yaml"
    path.write_text("learning_rat: 0.1\nloops: many\nnms_threshold: 3\n")
    with pytest.raises(SeggymError) as found:
        read_settings(path)
    for words in (str(path), "learning_rat is unknown", "loops='many'", "nms_threshold=3", "classes is missing"):
        assert words in str(found.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SeggymError, match="does not exist; mend --config"):
        read_settings(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("classes: [a\n")
    with pytest.raises(SeggymError, match="is not readable YAML"):
        read_settings(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(SeggymError, match="expected keys and values"):
        read_settings(tmp_path / "list.yaml")


def test_lists_are_experiments_and_single_values_are_for_all() -> None:
    settings = made(strategies=["uncertainty", "random"], mode=["min", "mean"], loops=3, pool_size=[5, 10], seed=[1, 4])
    found = experiments(settings)
    assert [(one.name, one.seed) for one in found] == [
        ("uncertainty_min_0.25_10_5", 1),
        ("random_10", 1),
        ("uncertainty_min_0.25_10_5", 4),
        ("random_10", 4),
    ]
    assert [one.queries for one in found[:2]] == [(5,) * 3, (10,) * 3]


def test_schedules_of_queries() -> None:
    one = made(equal_pool_size=False, pool_size=[50, 100, 200], loops=[8, 4, 8])
    assert [(found.name, found.queries) for found in experiments(one)] == [
        ("uncertainty_mean_0.25_10_hybrid01", (50,) * 8 + (100,) * 4 + (200,) * 8)
    ]
    two = made(equal_pool_size=False, pool_size=[[1, 2], [4]], loops=[[2, 1], [3]], strategies="random")
    assert [found.queries for found in experiments(two)] == [(1, 1, 2), (4, 4, 4)]
    assert [found.name for found in experiments(two)] == ["random_hybrid01", "random_hybrid02"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strategies": ["random", "certainty"], "mode": ["mean"] * 3}, "one value for each experiment"),
        ({"strategies": ["random", "random"]}, "two experiments are the same"),
        ({"seed": [1, 1]}, "two experiments are the same"),
        ({"strategies": []}, "one value for each experiment"),
        ({"pool_size": [[1, 2]]}, "set equal_pool_size to False"),
        ({"equal_pool_size": False, "pool_size": [1, 2], "loops": [1]}, "equally many entries"),
        ({"equal_pool_size": False, "pool_size": [1, [2]], "loops": [1, 2]}, "mixes numbers and lists"),
    ],
)
def test_lists_that_do_not_match(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SeggymError, match=words):
        experiments(made(**values))


def test_iterations_grow_with_the_images_as_in_maskal() -> None:
    """base + (ceil(images / step) - 1) * step size; the rate falls at shares of that."""
    settings = made(train_iterations_base=100, train_iterations_step_size=40, step_image_number=10, step_ratios=[0.5])
    found = {images: training_settings(settings, images) for images in (1, 10, 11, 35)}
    assert [one.iterations for one in found.values()] == [100, 100, 140, 220]
    assert found[35].steps == (110,)
    repeated = made(
        train_sampler="RepeatFactorTrainingSampler", minority_classes=["root"], repeat_factor_smallest_class=1.5
    )
    assert training_settings(repeated, 5).repeat_factor == 1.5
    assert training_settings(repeated, 5).minority == (3,)
    assert training_settings(made(), 5).repeat_factor is None


TABLE = """
weightsroot resultsroot dataroot traindir valdir testdir cuda_visible_devices classes learning_rate confidence_threshold
nms_threshold initial_datasize pool_size loops auto_annotate export_format
transfer_learning_on_previous_models train_complete_trainset duplicate_initial_model warmup_iterations
train_iterations_base train_iterations_step_size step_image_number step_ratios eval_period checkpoint_period
weight_decay
learning_policy gamma train_batch_size num_workers train_sampler minority_classes repeat_factor_smallest_class
experiment_name strategies mode equal_pool_size dropout_probability mcd_iterations dropout_method al_batch_size
iou_thres
resume
"""


def test_every_setting_of_the_table_is_in_the_file_and_known() -> None:
    given = OmegaConf.to_container(OmegaConf.load(CONFIGS / "maskAL.yaml"))
    assert isinstance(given, dict)
    assert set(given) == set(TABLE.split())
    for key in TABLE.split():
        # Each is known by itself, or set aside with a reason.
        check({**CLASSES, **({} if key in ("classes", "minority_classes") else {key: given[key]})})
