"""CAMUS: views and instants against what nibabel reads, splits of both kinds, and faults as sentences."""

import csv
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from seggym.cohorts import camus
from seggym.cohorts.checks import check_command, check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError


@pytest.fixture(scope="session")
def camus_root():
    default = Path(__file__).parents[2] / ".." / "shared" / "data" / "camus"
    root = Path(os.environ.get("SEGGYM_CAMUS_ROOT") or default)
    if not root.is_dir():
        pytest.skip(f"no CAMUS data at {root}: set SEGGYM_CAMUS_ROOT")
    return root


def rewrite(path, change):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine), path)


def table(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_real_data(camus_root, capsys):
    assert check_command(str(camus_root)) == 0
    assert capsys.readouterr().out == "50 patients, 200 volumes, no problem found\n"
    cohort = open_cohort("camus", camus_root)
    first = cohort.patients[0]
    volumes = {volume.frame: volume for volume in cohort.volumes([first])}
    assert tuple(volumes) == camus.FRAMES
    for frame, volume in volumes.items():
        stored = np.asanyarray(nib.load(camus_root / first / f"{first}_{frame}_gt.nii.gz").dataobj)
        np.testing.assert_array_equal(volume.label[0], stored.T)
        # Apex up: the atrium lies below the ventricle.
        rows = [np.nonzero(volume.label[0] == label)[0].mean() for label in (1, 3)]
        assert rows[0] < rows[1]


def test_views_and_instants_are_volumes(tmp_path):
    camus.write_example(tmp_path, patients=2, size=48)
    cohort = open_cohort("camus", tmp_path)
    assert cohort.class_names == ("background", "left ventricle", "myocardium", "left atrium")
    volumes = list(cohort.volumes())
    assert [v.name for v in volumes] == [f"patient000{n}_{frame}" for n in (1, 2) for frame in camus.FRAMES]
    assert cohort.phases == {volume.name: volume.frame[-2:] for volume in volumes}
    path = tmp_path / "database_nifti" / "patient0002" / "patient0002_4CH_ES.nii.gz"
    np.testing.assert_array_equal(volumes[-1].image[0], np.asanyarray(nib.load(path).dataobj)[..., 0].T)
    assert volumes[-1].image.shape == (1, 48, 48)
    assert volumes[-1].spacing == pytest.approx((1, 160 / 48, 160 / 48))
    assert cohort.groups == {"patient0001": "EF 45-55", "patient0002": "EF >= 55"}


def test_the_folder_of_patients_may_be_the_root(tmp_path):
    camus.write_example(tmp_path, patients=4, size=48)
    cohort = open_cohort("camus", tmp_path / "database_nifti")
    assert cohort.official_test == {"patient0004"}


def test_lists_of_the_release_set_patients_apart(tmp_path):
    camus.write_example(tmp_path, patients=8, size=48)
    split = split_cohort(open_cohort("camus", tmp_path))
    assert split.val == ("patient0003", "patient0007")
    assert split.test == ("patient0004", "patient0008")
    shutil.rmtree(tmp_path / "database_split")
    assert open_cohort("camus", tmp_path).official_test == frozenset()


def test_a_table_sets_patients_apart(tmp_path):
    camus.write_example(tmp_path, patients=4, size=48)
    rows = [("", "id", "split_0", "split_1")]
    for n, (first, second) in enumerate([("test", "train"), ("train", "test"), ("val", "train"), ("pred", "val")], 1):
        rows += [(n, f"patient000{n}_{frame}", first, second) for frame in camus.FRAMES]
    table(tmp_path / "split.csv", rows)
    cohort = open_cohort("camus", tmp_path, split="split.csv")
    assert (cohort.official_test, cohort.official_val) == ({"patient0001"}, {"patient0003"})
    other = open_cohort("camus", tmp_path, split="split.csv", split_column="split_1")
    assert (other.official_test, other.official_val) == ({"patient0002"}, {"patient0004"})
    # The table decides what trains, so it is part of the data's fingerprint.
    table(tmp_path / "split.csv", rows[:-4])
    assert open_cohort("camus", tmp_path, split="split.csv").fingerprint != cohort.fingerprint


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("id", "fold"), ("patient0001", "1")], "has the columns id, fold, expected patient or id, and split"),
        ([("id", "split"), ("subject1", "train")], r"line 2: id='subject1', split='train', expected a name"),
        ([("id", "split"), ("patient0001", "dev")], "one of train, pred, val, test"),
        (
            [("id", "split"), ("patient0001_2CH_ED", "train"), ("patient0001_4CH_ED", "test")],
            "patient0001 is for test here and for train above, expected one role for both views",
        ),
        ([], "has the columns none"),
    ],
)
def test_wrong_tables(tmp_path, rows, sentence):
    camus.write_example(tmp_path, patients=1, size=48)
    table(tmp_path / "split.csv", rows)
    with pytest.raises(SeggymError, match=sentence):
        open_cohort("camus", tmp_path, split="split.csv")


def test_missing_tables_and_data(tmp_path):
    with pytest.raises(SeggymError, match="holds no CAMUS data"):
        open_cohort("camus", tmp_path)
    with pytest.raises(SeggymError, match="SEGGYM_CAMUS_ROOT"):
        open_cohort("camus", tmp_path / "absent")
    camus.write_example(tmp_path, patients=1, size=48)
    with pytest.raises(SeggymError, match=r"split file .*absent\.csv cannot be read"):
        open_cohort("camus", tmp_path, split="absent.csv")


def test_a_view_without_an_atrium_is_sound(tmp_path):
    camus.write_example(tmp_path, patients=1, size=48)
    path = tmp_path / "database_nifti" / "patient0001" / "patient0001_2CH_ED_gt.nii.gz"
    rewrite(path, lambda voxels: np.where(voxels == 3, 0, voxels))
    assert check_data(tmp_path) == []
    assert not (next(iter(open_cohort("camus", tmp_path).volumes())).label == 3).any()


def test_all_problems_at_once(tmp_path):
    camus.write_example(tmp_path, patients=7, size=48)
    base = tmp_path / "database_nifti"

    def file(patient, suffix=""):
        return base / f"patient000{patient}" / f"patient000{patient}_2CH_ED{suffix}.nii.gz"

    file(1, "_gt").unlink()
    file(2).unlink()
    rewrite(file(3, "_gt"), lambda voxels: voxels + 1)
    file(4).write_bytes(file(4).read_bytes()[:700])
    shutil.copyfile(file(5), file(6))
    (base / "patient0007" / "Info_2CH.cfg").write_text("EF: good\n")
    shutil.copyfile(file(5), base / "patient0007" / "patient0005_2CH_ED.nii.gz")
    (base / "patient0009").mkdir()
    with open(tmp_path / "database_split" / "subgroup_testing.txt", "a") as lines:
        lines.write("patient0001\n")
    found = {problem.path.relative_to(tmp_path).as_posix(): problem.message for problem in check_data(tmp_path)}
    expected = {
        "patient0001/patient0001_2CH_ED.nii.gz": "has no mask, expected patient0001_2CH_ED_gt.nii.gz",
        "patient0002/patient0002_2CH_ED_gt.nii.gz": "has no image",
        "patient0003/patient0003_2CH_ED_gt.nii.gz": "holds label 4, expected 0 to 3",
        "patient0004/patient0004_2CH_ED.nii.gz": "cannot be read, it is truncated",
        "patient0006/patient0006_2CH_ED.nii.gz": "is byte for byte",
        "patient0007/Info_2CH.cfg": "states EF: good",
        "patient0007/patient0005_2CH_ED.nii.gz": "is named after patient0005",
        "patient0009": "holds no view (2CH, 4CH at ED or ES)",
    }
    expected = {f"database_nifti/{path}": start for path, start in expected.items()}
    expected["database_split/subgroup_testing.txt"] = "names patient0001, which is for train already"
    assert found.keys() == expected.keys()
    for path, start in expected.items():
        assert found[path].startswith(start)
