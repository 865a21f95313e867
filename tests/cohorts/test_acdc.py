"""The three ACDC layouts, against arrays read with the libraries directly."""

import gzip
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from seggym.cohorts.acdc import LAYOUTS, open_acdc, write_example
from seggym.cohorts.cohort import open_cohort
from seggym.errors import SeggymError


def read_all(root):
    return list(open_acdc(root).volumes())


def rewrite(path, change):
    """Replace the voxels of a NIfTI file by ``change(voxels)`` and keep its affine."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine), path)


def test_real_cohort_loads_completely(acdc_root):
    cohort = open_cohort("acdc", acdc_root)
    volumes = list(cohort.volumes())
    assert len(cohort.patients) == 30
    assert len(volumes) == 60
    assert sorted(set(cohort.groups.values())) == ["DCM", "HCM", "MINF", "NOR", "RV"]
    assert {int(volume.label.max()) for volume in volumes} == {3}
    assert all(volume.scribble is not None and volume.scribble.max() == cohort.scribble_ignore for volume in volumes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_example_reads_back_in_every_layout(tmp_path, layout):
    cohort = open_acdc(write_example(tmp_path, layout, patients=2))
    volumes = list(cohort.volumes())
    assert cohort.patients == ["patient001", "patient002"]
    assert [volume.name for volume in volumes] == [f"patient00{p}_frame0{f}" for p in (1, 2) for f in (1, 9)]
    for volume in volumes:
        assert volume.image.dtype == np.float32
        assert volume.label.dtype == np.uint8
        assert volume.image.shape == volume.label.shape == (3, 160, 176)
        assert set(np.unique(volume.label)) == {0, 1, 2, 3}
        assert volume.spacing == ((1.0, 1.0, 1.0) if layout == "h5" else (10.0, 1.5625, 1.5625))
    assert cohort.fingerprint == open_acdc(tmp_path, layout=layout).fingerprint


def test_nifti_axes_spacing_and_group_come_from_the_files(tmp_path):
    write_example(tmp_path, patients=1)
    path = tmp_path / "patient001" / "patient001_frame01.nii.gz"
    voxels = np.asanyarray(nib.load(path).dataobj)
    affine = np.diag([1.25, 1.5, 8.0, 1.0])
    for suffix in ("", "_gt", "_scribble"):
        part = path.with_name(f"patient001_frame01{suffix}.nii.gz")
        nib.save(nib.Nifti1Image(np.asanyarray(nib.load(part).dataobj), affine), part)
    (tmp_path / "patient001" / "Info.cfg").write_text("ED: 1\r\nES: 9\r\nGroup: MINF\r\nHeight: 184.0\r\n")
    cohort = open_acdc(tmp_path)
    volume = next(cohort.volumes())
    assert cohort.groups == {"patient001": "MINF"}
    assert volume.spacing == (8.0, 1.5, 1.25)
    assert voxels.shape == (176, 160, 3)
    x, y, z = 100, 31, 2
    assert volume.image[z, y, x] == voxels[x, y, z]


def test_official_download_with_training_and_testing(tmp_path):
    write_example(tmp_path / "source", patients=2)
    for part, patient in (("training", "patient001"), ("testing", "patient002")):
        shutil.copytree(tmp_path / "source" / patient, tmp_path / "official" / part / patient)
    assert open_acdc(tmp_path / "official").patients == ["patient001", "patient002"]
    shutil.copytree(tmp_path / "source" / "patient001", tmp_path / "official" / "testing" / "patient001")
    with pytest.raises(SeggymError, match=r"testing.patient001 is a second folder of the patient"):
        open_acdc(tmp_path / "official")


def test_png_without_description_is_one_volume_in_natural_order(tmp_path):
    for number in range(12):
        for folder, value in (("images", 10 * number + 1), ("labels", number % 4)):
            path = tmp_path / "patient007" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 6), value, np.uint8)).save(path)
    cohort = open_acdc(tmp_path)
    (volume,) = cohort.volumes()
    assert volume.name == "patient007_png"
    assert volume.image[:, 0, 0].tolist() == [10 * number + 1 for number in range(12)]
    assert volume.label[:, 0, 0].tolist() == [number % 4 for number in range(12)]
    assert (volume.spacing, cohort.groups) == ((1.0, 1.0, 1.0), {"patient007": "all"})


def test_palette_of_a_label_picture_only_paints(tmp_path):
    write_example(tmp_path, "png", patients=1)
    path = tmp_path / "patient001" / "labels" / "0.png"
    values = np.asarray(Image.open(path))
    painted = Image.fromarray(values)
    painted.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    painted.save(path)
    assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(read_all(tmp_path)[0].label[0], values)


def test_h5_slices_equal_h5_volumes(tmp_path):
    write_example(tmp_path, "h5", patients=1)
    whole = read_all(tmp_path)
    with h5py.File(tmp_path / "ACDC_training_volumes" / "patient001_frame01.h5") as file:
        np.testing.assert_array_equal(whole[0].image, file["image"])
    shutil.rmtree(tmp_path / "ACDC_training_volumes")
    for one, other in zip(whole, read_all(tmp_path), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
        np.testing.assert_array_equal(one.scribble, other.scribble)
    (tmp_path / "ACDC_training_slices" / "patient001_frame01_slice_1.h5").unlink()
    with pytest.raises(SeggymError, match=r"patient001_frame01_slice_1\.h5 is missing"):
        open_acdc(tmp_path)


def test_fingerprint_follows_the_content(tmp_path):
    before = open_acdc(write_example(tmp_path)).fingerprint
    info = tmp_path / "patient001" / "Info.cfg"
    info.write_text(info.read_text().replace("NOR", "RV"))
    assert open_acdc(tmp_path).fingerprint != before


def test_patients_are_read_only_when_asked_for(tmp_path):
    write_example(tmp_path, patients=2)
    (tmp_path / "patient002" / "patient002_frame01.nii.gz").write_bytes(b"")
    cohort = open_acdc(tmp_path)
    assert len(list(cohort.volumes(["patient001"]))) == 2
    with pytest.raises(SeggymError, match=r"patient002_frame01\.nii\.gz cannot be read"):
        list(cohort.volumes(["patient002"]))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda f: f("").write_bytes(f("").read_bytes()[:5000]), r"frame01\.nii\.gz cannot be read, it is truncated"),
        (lambda f: f("").write_bytes(gzip.compress(b"no NIfTI at all")), r"frame01\.nii\.gz cannot be read"),
        (lambda f: f("_gt").unlink(), r"frame01_gt\.nii\.gz is missing, but Info\.cfg names ED as frame 1"),
        (lambda f: rewrite(f("_gt"), lambda v: v[:-1]), r"frame01_gt\.nii\.gz has shape \(3, 160, 175\)"),
        (lambda f: rewrite(f(""), lambda v: np.where(v > 900, np.nan, v)), r"frame01\.nii\.gz holds NaN"),
        (lambda f: rewrite(f(""), lambda v: v - 1000), r"frame01\.nii\.gz holds negative values"),
        (lambda f: rewrite(f(""), lambda v: 0 * v), r"frame01\.nii\.gz is empty"),
        (lambda f: rewrite(f(""), lambda v: v.astype(np.complex64)), r"frame01\.nii\.gz holds complex64 values"),
        (lambda f: rewrite(f("_gt"), lambda v: v + np.float32(0.5)), r"no integers \(such as 0\.5\)"),
        (lambda f: rewrite(f("_gt"), lambda v: v * 3), r"holds label 6, 9, expected 0 to 3"),
        (lambda f: f("").with_name("Info.cfg").unlink(), r"Info\.cfg is missing"),
        (lambda f: f("").with_name("Info.cfg").write_bytes(b"\xff\xfe\x00"), r"Info\.cfg cannot be read"),
        (lambda f: f("").with_name("Info.cfg").write_text("ED: 1\n"), r"Info\.cfg states no ES, Group"),
        (
            lambda f: f("").with_name("Info.cfg").write_text("ED: 1\nES: x\nGroup: RV"),
            r"states ES: x, expected a frame",
        ),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_file(tmp_path, break_it, sentence):
    write_example(tmp_path, patients=1)
    break_it(lambda suffix: tmp_path / "patient001" / f"patient001_frame01{suffix}.nii.gz")
    with pytest.raises(SeggymError, match=sentence) as raised:
        read_all(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_data_and_wrong_layout(tmp_path):
    with pytest.raises(SeggymError, match="SEGGYM_ACDC_ROOT"):
        open_acdc(tmp_path / "absent")
    with pytest.raises(SeggymError, match="holds no ACDC data"):
        open_acdc(tmp_path)
    with pytest.raises(SeggymError, match="layout 'dicom' is unknown"):
        open_acdc(tmp_path, layout="dicom")
