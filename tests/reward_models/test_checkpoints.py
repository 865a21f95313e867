"""Networks and reward models on disk: round trips, who may score whom, and one sentence for every kind of bad file."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seggym.errors import SeggymError
from seggym.reward_models import checkpoints
from seggym.reward_models.checkpoints import (
    CARD,
    INDEX,
    WEIGHTS,
    ModelCard,
    load_network,
    open_reward_model,
    read_card,
    require_classes,
    save_network,
    weights_hash,
)
from seggym.reward_models.networks import build_network

CLASSES = ["background", "cavity"]


def save(folder: Path, patients: list[str], **changes: Any) -> ModelCard:
    card = ModelCard("unet", {"widths": [4, 6]}, 2, CLASSES, "segmentation", 32, patients, "phantom", "abc")
    card = replace(card, **changes)
    return save_network(folder, build_network(card.architecture, card.num_outputs, **card.options), card)


def save_reward_model(folder: Path) -> Path:
    save(folder / "full", ["a", "b", "c", "d"])
    save(folder / "fold0", ["c", "d"])
    save(folder / "fold1", ["a", "b"])
    save(folder / "independent", ["a", "b", "c", "d"], architecture="unext", options={"widths": [4, 4, 5, 5, 5]})
    index = {
        "folds": [["a", "b"], ["c", "d"]],
        "cohort": "phantom",
        "fingerprint": "abc",
        "acquisition": {"matrix": 128},
    }
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("architecture", ["unet", "unetpp", "unext"])
def test_what_is_saved_is_loaded(tmp_path: Path, architecture: str) -> None:
    network = build_network(architecture, 2)
    card = ModelCard(architecture, {}, 2, CLASSES, "segmentation", 64, ["a"], "phantom", "abc", {"dice": 0.9})
    written = save_network(tmp_path, network, card)
    loaded, read = load_network(tmp_path)
    assert read == written
    assert replace(read, weights="") == card
    assert read.weights == weights_hash(tmp_path) == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()[:16]
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(loaded(x)[0], network.eval()(x)[0])


def test_damaged_or_foreign_weights_are_one_sentence(tmp_path: Path) -> None:
    save(tmp_path / "net", ["a"])
    save(tmp_path / "other", ["a"])
    weights = tmp_path / "net" / WEIGHTS
    good = weights.read_bytes()
    for content, message in (
        (good[:-100], "damaged or cut short"),
        (b"", "damaged or cut short"),
        ((tmp_path / "other" / WEIGHTS).read_bytes(), "describes weights"),
    ):
        weights.write_bytes(content)
        with pytest.raises(SeggymError, match=message):
            load_network(tmp_path / "net")
    weights.unlink()
    with pytest.raises(SeggymError, match=WEIGHTS):
        load_network(tmp_path / "net")
    with pytest.raises(SeggymError, match="does not exist"):
        load_network(tmp_path / "nothing")


@pytest.mark.parametrize("options", [{"widths": [4, 8]}, {"widths": [4, 6, 8]}])
def test_weights_of_another_shape_are_one_sentence(tmp_path: Path, options: dict[str, Any]) -> None:
    save(tmp_path, ["a"])
    change(tmp_path / CARD, options=options)
    with pytest.raises(SeggymError, match="does not fit architecture unet"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown key colour"),
        ({"crop": "large"}, "crop is 'large', expected int"),
        ({"num_outputs": True}, "num_outputs"),
        ({"patients": [3]}, "entry of patients"),
        ({"task": "dancing"}, "segmentation or reconstruction"),
        ({"class_names": ["background"]}, "1 class_names for num_outputs 2"),
        ({"options": {"widths": [4, 6], "extra": [{"_target_": "os.system"}]}}, "_target_"),
    ],
)
def test_bad_cards_are_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(tmp_path, ["a"])
    change(tmp_path / CARD, **changes)
    with pytest.raises(SeggymError, match=message):
        read_card(tmp_path)


def test_a_card_that_lacks_a_key_or_is_no_object_is_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, ["a"])
    content = json.loads((tmp_path / CARD).read_text())
    del content["patients"]
    (tmp_path / CARD).write_text(json.dumps(content))
    with pytest.raises(SeggymError, match="lacks patients"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("[]")
    with pytest.raises(SeggymError, match="expected an object"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("{")
    with pytest.raises(SeggymError, match="readable JSON"):
        read_card(tmp_path)


def test_a_wrong_class_count_names_both_counts(tmp_path: Path) -> None:
    card = save(tmp_path, ["a"])
    require_classes(card, 2, tmp_path)
    with pytest.raises(SeggymError, match=r"has 2 classes \(background, cavity\).*4"):
        require_classes(card, 4, tmp_path)


def test_every_patient_is_scored_by_a_network_that_never_saw_it(tmp_path: Path) -> None:
    model = open_reward_model(save_reward_model(tmp_path))
    keys = [model.network_for(patient, "phantom") for patient in "abcdz"]
    assert keys == ["fold0", "fold0", "fold1", "fold1", "full"]
    for patient in "abcdz":
        key = model.network_for(patient, "phantom")
        assert patient not in load_network(model.path(key))[1].patients
    assert model.independent == tmp_path / "independent"
    assert model.acquisition == {"matrix": 128}
    model.require_unseen("independent", ["y", "z"], "phantom")
    with pytest.raises(SeggymError, match=r"was trained on a, b,"):
        model.require_unseen("independent", ["b", "z", "a"], "phantom")
    with pytest.raises(SeggymError, match="fold7"):
        model.path("fold7")


def test_a_single_network_is_a_reward_model_without_folds(tmp_path: Path) -> None:
    save(tmp_path, ["a"])
    model = open_reward_model(tmp_path)
    assert (model.folds, model.independent, model.path("full")) == ([], None, tmp_path)
    assert model.network_for("z", "phantom") == "full"
    with pytest.raises(SeggymError, match="was trained on a"):
        model.network_for("a", "phantom")


def test_a_patient_of_another_cohort_is_somebody_else(tmp_path: Path) -> None:
    model = open_reward_model(save_reward_model(tmp_path))
    assert [model.network_for(patient, "acdc") for patient in "ad"] == ["full", "full"]
    model.require_unseen("independent", ["a", "b"], "acdc")


def test_a_reward_model_whose_fold_saw_its_held_out_patients_is_refused(tmp_path: Path) -> None:
    save_reward_model(tmp_path)
    save(tmp_path / "fold1", ["a", "b", "c"])
    with pytest.raises(SeggymError, match="fold 1 is said to hold out c"):
        open_reward_model(tmp_path)


def test_incomplete_and_inconsistent_reward_models_are_refused(tmp_path: Path) -> None:
    save_reward_model(tmp_path)
    save(tmp_path / "fold1", ["a", "b"], crop=64)
    with pytest.raises(SeggymError, match=r"fold1.*class_names and crop"):
        open_reward_model(tmp_path)
    change(tmp_path / INDEX, folds=[["a", "b"], ["c"], ["d"]])
    with pytest.raises(SeggymError, match="fold2 does not exist"):
        open_reward_model(tmp_path)
    change(tmp_path / INDEX, acquisition={"_target_": "os.system"})
    with pytest.raises(SeggymError, match="_target_"):
        open_reward_model(tmp_path)


def test_names_are_published_or_packaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(checkpoints.PACKAGED, "phantom", save_reward_model(tmp_path / "packaged"))
    save_reward_model(tmp_path / "home" / "reward_models" / "acdc")
    assert open_reward_model("acdc").folder == tmp_path / "home" / "reward_models" / "acdc"
    assert open_reward_model("phantom").folder == tmp_path / "packaged"
    published = save_reward_model(tmp_path / "home" / "reward_models" / "phantom")
    assert open_reward_model("phantom").folder == published, "what the user published wins"
    with pytest.raises(SeggymError, match=r"no reward model at .*mscmr.*train_reward_model.sh cohort=mscmr.* minutes"):
        open_reward_model("mscmr")
    with pytest.raises(SeggymError, match="cohort=<cohort>"):
        open_reward_model(tmp_path / "nowhere")
