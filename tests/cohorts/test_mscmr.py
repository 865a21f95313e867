"""MS-CMRSeg: sequences, codes and scribbles against what nibabel reads; faults are sentences."""

import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest

from seggym.cohorts import mscmr
from seggym.cohorts.checks import check_command, check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def rewrite(path, change):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine), path)


def test_codes_of_the_challenge_become_the_classes_of_acdc(tmp_path):
    """200 is the myocardium, 500 the left, 600 the right ventricle."""
    mscmr.write_example(tmp_path, patients=2)
    cohort = open_cohort("mscmr", tmp_path, sequences=["LGE", "C0", "T2"])
    volumes = {volume.name: volume for volume in cohort.volumes()}
    assert sorted(volumes) == [f"patient0{n}_{sequence}" for n in (1, 2) for sequence in ("C0", "LGE", "T2")]
    for sequence in ("C0", "T2", "LGE"):
        volume = volumes[f"patient02_{sequence}"]
        stored = voxels(tmp_path / f"{sequence.lower()}gt" / f"patient2_{sequence}_manual.nii.gz").transpose()
        for name, code in (("myocardium", 200), ("left ventricle", 500), ("right ventricle", 600)):
            np.testing.assert_array_equal(volume.label == cohort.class_names.index(name), stored == code)
        image = voxels(tmp_path / "c0t2lge" / f"patient2_{sequence}.nii.gz").transpose()
        np.testing.assert_array_equal(volume.image, image)
        assert volume.spacing == (10.0, 1.5625, 1.5625)
        assert (volume.scribble is not None) == (sequence == "LGE")


def test_scribbles_are_those_of_the_release(tmp_path):
    mscmr.write_example(tmp_path, patients=1)
    (volume,) = open_cohort("mscmr", tmp_path).volumes()
    stored = voxels(tmp_path / "MSCMR_scribbles" / "subject1_DE_scribble.nii.gz").transpose()
    np.testing.assert_array_equal(volume.scribble, stored)


def test_the_layout_of_cyclemix_sets_patients_apart(tmp_path):
    mscmr.write_example(tmp_path, "cyclemix", patients=8)
    with pytest.raises(SeggymError, match=r"subject1_DE\.nii\.gz has no mask.*unmasked=skip"):
        open_cohort("mscmr", tmp_path)
    cohort = open_cohort("mscmr", tmp_path, unmasked="skip")
    assert cohort.patients == ["patient03", "patient04", "patient07", "patient08"]
    # With the masks of the challenge beside them, the training patients have both.
    mscmr.write_example(tmp_path / "challenge", patients=8)
    shutil.rmtree(tmp_path / "challenge" / "MSCMR_scribbles")
    cohort = open_cohort("mscmr", tmp_path)
    split = split_cohort(cohort)
    assert (split.val, split.test) == (("patient03", "patient07"), ("patient04", "patient08"))
    assert split.train == ("patient01", "patient02", "patient05", "patient06")
    assert all(volume.scribble is not None for volume in cohort.volumes(split.train))


def test_h5_files_with_and_without_masks(tmp_path):
    mscmr.write_example(tmp_path, "h5", patients=4)
    with h5py.File(tmp_path / "val_volumes" / "patient_3.h5", "a") as file:
        file["image"][...] -= 500  # WSL4MIS has images of zero mean there
        stored = file["image"][...]
    (volume,) = open_cohort("mscmr", tmp_path).volumes(["patient03"])
    np.testing.assert_allclose(volume.image, stored + 500, atol=1e-3)
    for path in (tmp_path / "training_slices").glob("patient_1_*.h5"):
        with h5py.File(path, "a") as file:
            del file["label"]
    with pytest.raises(SeggymError, match=r"patient_1_slice_0\.h5 holds a scribble but no mask.*unmasked=skip"):
        open_cohort("mscmr", tmp_path)
    assert open_cohort("mscmr", tmp_path, unmasked="skip").patients == ["patient02", "patient03", "patient04"]


@pytest.mark.parametrize("layout", ["nifti", "h5"])
def test_examples_have_no_problem(tmp_path, layout, capsys):
    mscmr.write_example(tmp_path, layout)
    assert check_command(str(tmp_path), "auto" if layout == "nifti" else "mscmr") == 0
    expected = "2 patients, 6 volumes" if layout == "nifti" else "2 patients, 2 volumes"
    assert capsys.readouterr().out == f"{expected}, no problem found\n"


def test_all_problems_at_once(tmp_path):
    mscmr.write_example(tmp_path, patients=6)
    images, masks, scribbles = tmp_path / "c0t2lge", tmp_path / "lgegt", tmp_path / "MSCMR_scribbles"
    (masks / "patient1_LGE_manual.nii.gz").unlink()
    path = images / "patient2_T2.nii.gz"
    path.write_bytes(path.read_bytes()[:4000])
    rewrite(masks / "patient3_LGE_manual.nii.gz", lambda values: np.where(values == 500, 550, values))
    rewrite(tmp_path / "c0gt" / "patient4_C0_manual.nii.gz", lambda values: values[:-3])
    rewrite(scribbles / "subject5_DE_scribble.nii.gz", lambda values: values + 1)
    (images / "patient6_T2.nii.gz").unlink()
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(images / "patient6_C0.nii.gz", tmp_path / "copy")
    rewrite(copy, lambda values: values + 1)
    found = {problem.path.relative_to(tmp_path).as_posix(): problem.message for problem in check_data(tmp_path)}
    expected = {
        "c0t2lge/patient1_LGE.nii.gz": "has no mask, expected patient1_LGE_manual.nii.gz",
        "c0t2lge/patient2_T2.nii.gz": "cannot be read, it is truncated",
        "lgegt/patient3_LGE_manual.nii.gz": "holds label 550, expected one of 0 to 3, 200, 500, 600",
        "c0gt/patient4_C0_manual.nii.gz": "has shape (3, 160, 173) (z, y, x), expected (3, 160, 176)",
        "MSCMR_scribbles/subject5_DE_scribble.nii.gz": "holds label 5, expected 0 to 4",
        "t2gt/patient6_T2_manual.nii.gz": "has no image of patient 6 (T2)",
        "copy/patient6_C0.nii.gz": "differs from",
    }
    assert found.keys() == expected.keys()
    for path, start in expected.items():
        assert found[path].startswith(start)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layout": "dicom"}, "layout 'dicom' is unknown"),
        ({"sequences": ["DE"]}, r"sequences=\['DE'\] are not known, expected some of LGE, C0, T2"),
        ({"unmasked": "guess"}, "unmasked='guess' is unknown, expected refuse or skip"),
        ({}, "holds no MS-CMRSeg data"),
    ],
)
def test_wrong_options_and_no_data(tmp_path, options, sentence):
    with pytest.raises(SeggymError, match=sentence):
        open_cohort("mscmr", tmp_path, **options)
    with pytest.raises(SeggymError, match="SEGGYM_MSCMR_ROOT"):
        open_cohort("mscmr", tmp_path / "absent")
