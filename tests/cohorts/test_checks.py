"""`seggym check-data`: a sound cohort has no problem, and every kind of damage is told, all of it at once."""

import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from seggym.cohorts import acdc, folder
from seggym.cohorts.checks import check_command, check_data
from seggym.errors import SeggymError


def rewrite(path, change=lambda voxels: voxels, affine=None):
    """Replace the voxels of a NIfTI file by ``change(voxels)``, and its affine if one is given."""
    image = nib.load(path)
    voxels = change(np.asanyarray(image.dataobj))
    nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), path)


def found(root, **options):
    """The problems as {path below root: message}."""
    return {problem.path.relative_to(root).as_posix(): problem.message for problem in check_data(root, **options)}


def test_real_data_have_no_problem(acdc_root, capsys):
    assert check_command(str(acdc_root)) == 0
    assert capsys.readouterr().out == "30 patients, 60 volumes, no problem found\n"


@pytest.mark.parametrize("layout", acdc.LAYOUTS)
def test_examples_of_acdc_have_no_problem(tmp_path, layout):
    assert check_data(acdc.write_example(tmp_path, layout)) == []


@pytest.mark.parametrize("layout", ["patients", "flat"])
def test_examples_of_folders_have_no_problem(tmp_path, layout):
    assert check_data(folder.write_example(tmp_path, layout)) == []
    assert check_data(tmp_path, cohort="folder", num_classes=4) == []


def test_all_problems_of_a_nifti_cohort_at_once(tmp_path, capsys):
    acdc.write_example(tmp_path, patients=12)

    def file(patient, suffix=""):
        return tmp_path / f"patient{patient:03d}" / f"patient{patient:03d}_frame01{suffix}.nii.gz"

    file(1, "_gt").unlink()
    file(2).write_bytes(file(2).read_bytes()[:-4000])
    rewrite(file(3, "_gt"), lambda voxels: voxels[:, :-2])
    rewrite(file(4, "_gt"), affine=np.diag([-1.5625, 1.5625, 10, 1]))
    rewrite(file(5, "_gt"), lambda voxels: voxels + 4 * (voxels == 3).astype(np.uint8))
    rewrite(file(6), lambda voxels: np.where(voxels > 900, np.inf, voxels))
    rewrite(file(7), np.zeros_like)
    rewrite(file(8, "_gt"), lambda voxels: voxels * np.float32(0.5))
    rewrite(file(9), lambda voxels: voxels.astype(np.complex64))
    (tmp_path / "patient010" / "Info.cfg").write_text("ED: 1\nES: nine\nGroup: RV\n")
    shutil.copyfile(file(12), file(11))
    rewrite(file(12, "_scribble"), lambda voxels: voxels + 1)
    (tmp_path / "training").mkdir()
    shutil.copytree(tmp_path / "patient012", tmp_path / "training" / "patient012")

    problems = found(tmp_path)
    expected = {
        "patient001/patient001_frame01_gt.nii.gz": "is missing",
        "patient002/patient002_frame01.nii.gz": "cannot be read, it is truncated",
        "patient003/patient003_frame01_gt.nii.gz": "has shape (3, 158, 176)",
        "patient004/patient004_frame01_gt.nii.gz": "has another affine",
        "patient005/patient005_frame01_gt.nii.gz": "holds label 7, expected 0 to 3",
        "patient006/patient006_frame01.nii.gz": "holds NaN or infinite values",
        "patient007/patient007_frame01.nii.gz": "is empty",
        "patient008/patient008_frame01_gt.nii.gz": "holds values that are no integers (such as",
        "patient009/patient009_frame01.nii.gz": "holds complex64 values",
        "patient010/Info.cfg": "states ES: nine",
        "patient012/patient012_frame01.nii.gz": "is byte for byte",
        "patient012/patient012_frame01_scribble.nii.gz": "holds label 5, expected 0 to 4",
        "training/patient012": "is a second folder of the patient",
    }
    assert problems.keys() == expected.keys()
    for path, start in expected.items():
        assert problems[path].startswith(start)

    assert check_command(str(tmp_path)) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected) + 1
    assert lines[-1] == "11 patients, 21 volumes, 13 problems found"


def test_all_problems_of_a_png_cohort_at_once(tmp_path):
    acdc.write_example(tmp_path, "png", patients=3)
    one, two, three = (tmp_path / f"patient00{patient}" for patient in (1, 2, 3))
    (one / "labels" / "4.png").unlink()
    Image.open(two / "images" / "0.png").convert("RGB").save(two / "images" / "0.png")
    Image.new("L", (176, 100)).save(two / "images" / "4.png")
    Image.new("L", (176, 160), 9).save(three / "labels" / "2.png")
    (three / "images" / "3.png").write_bytes((three / "images" / "3.png").read_bytes()[:900])
    problems = found(tmp_path)
    assert problems["patient001/labels/4.png"].startswith("is missing")
    assert problems["patient001/volume.json"].startswith("states 6 slices, found 5")
    assert "it is a colour picture (RGB)" in problems["patient002/images/0.png"]
    assert problems["patient002/images/4.png"].startswith("has shape (1, 100, 176), expected (1, 160, 176)")
    assert problems["patient003/labels/2.png"].startswith("holds label 9")
    assert problems["patient003/images/3.png"].startswith("cannot be read")
    assert len(problems) == 6


def test_all_problems_of_an_h5_cohort_at_once(tmp_path):
    acdc.write_example(tmp_path, "h5", patients=2)
    base = tmp_path / "ACDC_training_volumes"
    with h5py.File(base / "patient001_frame01.h5", "a") as file:
        del file["label"]
    (base / "patient001_frame09.h5").write_bytes((base / "patient001_frame09.h5").read_bytes()[:3000])
    with h5py.File(base / "patient002_frame01.h5", "a") as file:
        file["image"][0, 0, 0] = np.nan
    problems = found(tmp_path)
    assert problems.keys() == {
        f"ACDC_training_volumes/patient00{name}.h5" for name in ("1_frame01", "1_frame09", "2_frame01")
    }
    assert "no dataset 'label', found image, scribble" in problems["ACDC_training_volumes/patient001_frame01.h5"]
    assert "truncated" in problems["ACDC_training_volumes/patient001_frame09.h5"]
    assert "NaN" in problems["ACDC_training_volumes/patient002_frame01.h5"]


def test_all_problems_of_a_folder_at_once(tmp_path):
    folder.write_example(tmp_path, patients=3)
    (tmp_path / "patient001" / "masks" / "0.png").unlink()
    Image.new("L", (176, 160)).save(tmp_path / "patient002" / "images" / "1.png")
    shutil.copyfile(tmp_path / "patient001" / "images" / "1.png", tmp_path / "patient003" / "images" / "1.png")
    assert found(tmp_path).keys() == {"patient001/images/0.png", "patient003/images/1.png"}
    assert found(tmp_path, num_classes=3)["patient002/masks/2.png"].startswith("holds label 3, expected 0 to 2")


def test_folders_that_hold_nothing_known(tmp_path):
    assert "is not a folder" in check_data(tmp_path / "absent")[0].message
    assert "no known layout" in check_data(tmp_path)[0].message
    assert "neither images/ and masks/" in check_data(tmp_path, cohort="folder")[0].message
    with pytest.raises(SeggymError, match="cohort 'brats' cannot be checked"):
        check_data(tmp_path, cohort="brats")
    with pytest.raises(SeggymError, match="num_classes is 1"):
        check_data(tmp_path, num_classes=1)
