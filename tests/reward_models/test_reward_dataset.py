"""Reward pairs on disk: what was written is read again, and what was damaged is one sentence."""

import csv
import shutil

import nibabel
import numpy as np
import pytest
import torch
from drawn_hearts import NAMES, hearts, people

from seggym.errors import SeggymError
from seggym.reward_models.reward_dataset import RewardDataset, join_reward_datasets, load_reward_dataset


def dataset(count=6, prefix="", seed=0):
    """Every image with its truth and with that of the next one."""
    images, truths = hearts(count, seed)
    patients, names = people(count)
    return RewardDataset(
        images,
        truths,
        tuple(prefix + name for name in names),
        tuple(prefix + patient for patient in patients),
        ("labels", "policy", "correction", *("labels",) * (count - 3)),
        torch.cat([truths, truths.roll(1, 0)]),
        torch.arange(count).repeat(2),
        ("identity",) * count + ("swap",) * count,
        NAMES,
    )


def assert_equal(first, second):
    for name in ("images", "truths", "predictions", "items"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in ("names", "patients", "origins", "kinds", "class_names"):
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize("form", ["npz", "nifti"])
def test_what_was_written_is_read(tmp_path, form, monkeypatch):
    monkeypatch.setattr("seggym.reward_models.reward_dataset._SHARD", 4)
    pairs = dataset()
    pairs.save(tmp_path, form)
    assert_equal(load_reward_dataset(tmp_path), pairs)
    # And over an older one, with the same bytes.
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pairs.save(tmp_path, form)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_nifti_form_is_the_layout_of_rl4seg(tmp_path):
    pairs = dataset()
    pairs.save(tmp_path, "nifti")
    assert len(list(tmp_path.rglob("**/images/*.nii.gz"))) == len(pairs)
    with open(tmp_path / "index.csv") as file:
        row = list(csv.DictReader(file))[7]
    assert (row["name"], row["patient"], row["kind"]) == ("image1", "p0", "swap")
    predicted = np.asarray(nibabel.load(tmp_path / "pred" / "000007.nii.gz").dataobj)
    np.testing.assert_array_equal(predicted.T, pairs.truths[0].numpy())


def test_a_patient_is_on_one_side_of_the_split():
    pairs = dataset(12)
    train, val = pairs.split(0.3, seed=4)
    assert set(train.patients) | set(val.patients) == set(pairs.patients)
    assert not set(train.patients) & set(val.patients)
    assert len(set(val.patients)) == 2
    assert len(train) + len(val) == len(pairs)
    for part in (train, val):
        for number in range(len(part)):
            pair = part[number]
            whole = pairs.names.index(part.names[int(part.items[number])])
            assert torch.equal(pair.image, pairs.images[whole])
            assert pair.patient == pairs.patients[whole]
            source = whole if pair.kind == "identity" else whole - 1
            assert torch.equal(pair.prediction, pairs.truths[source])
    assert_equal(pairs.split(0.3, seed=4)[1], val)
    with pytest.raises(SeggymError, match="1 patients cannot be split"):
        pairs.of(["p1"]).split(0.3, seed=0)


def test_joined_pairs_keep_their_images():
    first, second = dataset(), dataset(4, "other-", seed=1)
    joined = join_reward_datasets([first, second])
    assert len(joined) == len(first) + len(second)
    pair, alone = joined[len(first) + 5], second[5]
    assert all(torch.equal(a, b) for a, b in zip(pair[:3], alone[:3], strict=True))
    assert pair.patient == alone.patient
    with pytest.raises(SeggymError, match="6 different names"):
        join_reward_datasets([first, first])


def _cut(folder):
    path = next(folder.glob("shard-*.npz"))
    path.write_bytes(path.read_bytes()[:-20])


def _rewrite_index(folder):
    path = folder / "index.csv"
    path.write_text(path.read_text().replace("swap", "identity", 1))


DAMAGES = {
    "a shard was cut": (_cut, "shard-0000.npz is damaged or was changed"),
    "a shard is gone": (lambda folder: (folder / "shard-0000.npz").unlink(), "cannot read .*shard-0000.npz"),
    "the index was edited": (_rewrite_index, "index.csv is damaged or was changed"),
    "it was interrupted": (lambda folder: (folder / "dataset.json").unlink(), "dataset.json does not exist"),
    "no JSON": (lambda folder: (folder / "dataset.json").write_text("{"), "not readable JSON"),
    "other JSON": (lambda folder: (folder / "dataset.json").write_text("[]"), "does not describe a reward data set"),
    "nothing there": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_sentence(tmp_path, damage):
    folder = tmp_path / "pairs"
    dataset().save(folder)
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(SeggymError, match=message) as caught:
        load_reward_dataset(folder)
    assert "\n" not in str(caught.value)
    assert "again" in str(caught.value) or "mend" in str(caught.value)


def test_arrays_that_do_not_fit_are_refused():
    pairs = dataset()
    parts = {name: getattr(pairs, name) for name in RewardDataset.__dataclass_fields__}

    def changed(**other):
        return RewardDataset(**{**parts, **other})

    with pytest.raises(SeggymError, match="hold label 2, expected 0 to 1"):
        changed(class_names=("background", "heart"))
    with pytest.raises(SeggymError, match="predictions are"):
        changed(predictions=pairs.predictions[:3])
    with pytest.raises(SeggymError, match="NaN"):
        changed(images=pairs.images.clone().fill_(torch.nan))
    with pytest.raises(SeggymError, match="outside 0 to 5"):
        changed(items=pairs.items + 1)
    with pytest.raises(SeggymError, match="there are none"):
        changed(predictions=pairs.predictions[:0], items=pairs.items[:0], kinds=())
    with pytest.raises(SeggymError, match="unknown, expected npz or nifti"):
        pairs.save("/nowhere", "png")
