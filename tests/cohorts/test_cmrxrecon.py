"""CMRxRecon: k-space and labels lie on each other, patients of all sets are told apart, faults are sentences."""

import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest

from seggym.cohorts import cmrxrecon
from seggym.cohorts.checks import check_command, check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.raw_kspace_example import example_volume
from seggym.errors import SeggymError

FULL = "MultiCoil/Cine/TrainingSet/FullSample"
LABELS = "SingleCoil/Cine/TrainingSet/SegmentROI"


@pytest.fixture
def root(tmp_path):
    return cmrxrecon.write_example(tmp_path, patients=3)


def test_examples_have_no_problem(root, capsys):
    assert check_command(str(root)) == 0
    assert capsys.readouterr().out == "3 patients, 3 volumes, no problem found\n"


def test_labels_lie_on_the_image(root):
    cohort = open_cohort("cmrxrecon", root)
    assert cohort.measured
    assert cohort.num_classes == 4
    for index, volume in enumerate(cohort.volumes(), start=1):
        drawn = example_volume(index)
        assert volume.name == f"P{index:03d}_frame00"
        np.testing.assert_array_equal(volume.label, drawn.label)
        # Coils shade the image, but within a small neighbourhood it is that of the example.
        inside = (slice(0, 1), slice(70, 90), slice(78, 98))
        assert np.corrcoef(volume.image[inside].ravel(), drawn.image[inside].ravel())[0, 1] > 0.98
        assert volume.spacing == drawn.spacing


def test_kspace_is_that_of_the_file(root):
    """Against numpy on what h5py reads: (frame, slice, coil, ky, kx) with pairs of real and imag."""
    volume = next(iter(open_cohort("cmrxrecon", root, frame=1).volumes()))
    with h5py.File(root / FULL / "P001" / "cine_sax.mat") as file:
        stored = file["kspace_full"][1]
    values = stored["real"] + 1j * stored["imag"]
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(values, axes=axes), norm="ortho"), axes=axes)
    expected = np.sqrt((np.abs(images) ** 2).sum(1)).swapaxes(1, 2)[:, 80:240]
    np.testing.assert_allclose(volume.image, expected, atol=1e-5)
    assert volume.name == "P001_frame01"


def test_sets_are_told_apart_and_undersampled_copies_left_out(root):
    for other in ("ValidationSet", "TestSet"):
        for part in (FULL, LABELS):
            shutil.copytree(root / part / "P002", root / part.replace("TrainingSet", other) / "P001")
    shutil.copytree(root / FULL / "P001", root / FULL.replace("FullSample", "AccFactor04") / "P001")
    cohort = open_cohort("cmrxrecon", root)
    assert cohort.patients == ["P001", "P002", "P003", "TestSet-P001", "ValidationSet-P001"]
    assert cohort.official_test == {"TestSet-P001"}


def test_patients_right_in_the_folder_with_labels_beside(root, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(root / FULL / "P001", plain / "P001")
    shutil.copy(root / LABELS / "P001" / "cine_sax_label.nii.gz", plain / "P001")
    (plain / "P001" / "cine_sax_info.csv").write_text(
        "Parameter,Value\nFOVx,320\nFOVy,264\nReconMatrix_X,160\nReconMatrix_Y,176\nSliceThickness,8\n"
    )
    (volume,) = open_cohort("cmrxrecon", plain).volumes()
    assert volume.label.any()
    assert volume.spacing == (8.0, 2.0, 1.5)
    assert check_data(plain) == []


def test_without_labels_everything_is_background(root):
    shutil.rmtree(root / "SingleCoil")
    with pytest.raises(SeggymError, match=r"P001/cine_sax\.mat has no label.*labels=false"):
        open_cohort("cmrxrecon", root)
    cohort = open_cohort("cmrxrecon", root, labels=False)
    assert cohort.num_classes == 1
    assert not next(iter(cohort.volumes())).label.any()


def test_options_out_of_range_are_sentences(root):
    with pytest.raises(SeggymError, match="at least 1"):
        open_cohort("cmrxrecon", root, readout_oversampling=0.5)
    with pytest.raises(SeggymError, match="2 frames, expected one of number 2"):
        list(open_cohort("cmrxrecon", root, frame=2).volumes())


def test_all_problems_at_once(tmp_path):
    root = cmrxrecon.write_example(tmp_path, patients=10)

    def scan(index):
        return root / FULL / f"P{index:03d}" / "cine_sax.mat"

    def label(index):
        return root / LABELS / f"P{index:03d}" / "cine_sax_label.nii.gz"

    def rewrite(index, change, name="kspace_full"):
        with h5py.File(scan(index), "r+") as file:
            values = change(file["kspace_full"][()])
            del file["kspace_full"]
            file[name] = values

    def nan(values):
        values["imag"][0, 0, 0, 0, 0] = np.nan
        return values

    def relabel(index, change):
        image = nib.load(label(index))
        nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine), label(index))

    rewrite(2, lambda values: values, name="kspace_sub04")
    rewrite(3, lambda values: values[0])
    rewrite(4, lambda values: values["real"])
    rewrite(5, nan)
    scan(6).write_bytes(scan(6).read_bytes()[:5000])
    relabel(7, lambda values: values[:, :-2])
    relabel(8, lambda values: values + 7 * (values == 3).astype(np.uint8))
    label(9).write_bytes(label(9).read_bytes()[:50])
    label(10).unlink()
    problems = {str(problem.path): problem.message for problem in check_data(root)}
    expected = {
        scan(2): "no variable kspace_full, found kspace_sub04",
        scan(3): "expected (frame, slice, coil, ky, kx)",
        scan(4): "without real and imag parts",
        scan(5): "NaN or infinite samples",
        scan(6): "truncated, damaged",
        label(7): "has shape (2, 160, 174) (slices, readout, lines), expected (2, 160, 176)",
        label(8): "holds label 10",
        label(9): "cannot be read",
        scan(10): "has no label",
    }
    assert problems.keys() == {str(path) for path in expected}
    for path, pattern in expected.items():
        assert pattern in problems[str(path)], (path, problems[str(path)])
