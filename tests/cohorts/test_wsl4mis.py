"""The WSL4MIS form: split lists decide what is read and who tests, and contradictions are told."""

import shutil

import pytest

from seggym.cohorts import acdc, chaos, mscmr
from seggym.cohorts.checks import check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.cohorts.wsl4mis import write_lists
from seggym.errors import SeggymError


def problems(root, cohort):
    return {problem.path.relative_to(root).as_posix(): problem.message for problem in check_data(root, cohort)}


def test_lists_of_acdc(tmp_path):
    """As published: slices of the training patients, volumes of the others, some patients in no list."""
    acdc.write_example(tmp_path, "h5", patients=5)
    (tmp_path / "ACDC_testing_volumes").mkdir()
    for path in sorted((tmp_path / "ACDC_training_volumes").glob("patient004*")):
        shutil.move(path, tmp_path / "ACDC_testing_volumes")
    files = {path.name: path for path in tmp_path.rglob("*.h5")}
    train = [path for name, path in files.items() if name.startswith(("patient001", "patient002")) and "slice" in name]
    val, test = (
        [path for name, path in files.items() if name.startswith(patient) and "slice" not in name]
        for patient in ("patient003", "patient004")
    )
    before = {volume.name: volume.image for volume in open_cohort("acdc", tmp_path).volumes()}
    # Without lists the folder says who tests.
    assert open_cohort("acdc", tmp_path).official_test == {"patient004"}
    write_lists(tmp_path, {"train": train, "val": val, "test": test})
    cohort = open_cohort("acdc", tmp_path)
    split = split_cohort(cohort)
    assert (split.train, split.val, split.test) == (("patient001", "patient002"), ("patient003",), ("patient004",))
    assert all((volume.image == before[volume.name]).all() for volume in cohort.volumes())
    fingerprint = cohort.fingerprint
    write_lists(tmp_path, {"train": train[::-1]})
    assert open_cohort("acdc", tmp_path).fingerprint != fingerprint


def test_contradictions_are_told(tmp_path):
    mscmr.write_example(tmp_path, "h5", patients=4)
    lists = {role: (tmp_path / f"{role}.txt").read_text() for role in ("train", "val")}
    (tmp_path / "val.txt").write_text(lists["val"] + "training_slices/patient_1_slice_0.h5\nval_volumes/patient_9.h5\n")
    (tmp_path / "notes.h5").write_bytes(b"")
    (tmp_path / "train.txt").write_text(lists["train"].replace("training_slices/patient_1_slice_0.h5\n", "notes.h5\n"))
    found = problems(tmp_path, "mscmr")
    assert found["val_volumes/patient_9.h5"].startswith("is missing, but val.txt names it")
    assert found["notes.h5"].startswith("has a name that is none of this cohort's")
    assert "is for train, but other files of patient01 are for val" in found["training_slices/patient_1_slice_1.h5"]
    for role, text in lists.items():
        (tmp_path / f"{role}.txt").write_text(text)
    assert problems(tmp_path, "mscmr") == {}
    (tmp_path / "train.txt").write_text(lists["train"].replace("training_slices/patient_1_slice_1.h5\n", ""))
    with pytest.raises(SeggymError, match=r"patient_1_slice_1\.h5 is missing \(or in no split list\)"):
        open_cohort("mscmr", tmp_path)


def test_two_files_of_one_volume(tmp_path):
    chaos.write_example(tmp_path, "h5", patients=3)
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.txt").unlink()
    shutil.copy(tmp_path / "val_volumes" / "patient_03_volume.h5", tmp_path / "val_volumes" / "patient_3.h5")
    found = problems(tmp_path, "chaos")
    assert found["val_volumes/patient_3.h5"].startswith("is a second file of what")
    assert open_cohort("chaos", _without(tmp_path / "val_volumes" / "patient_3.h5", tmp_path)).official_val == {"CT03"}


def test_names_do_not_tell_the_cohort(tmp_path):
    mscmr.write_example(tmp_path, "h5")
    (message,) = problems(tmp_path, "auto").values()
    assert message.endswith("say it with --cohort mscmr, chaos or davis")


def _without(path, root):
    path.unlink()
    return root
