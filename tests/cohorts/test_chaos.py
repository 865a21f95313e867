"""CHAOS: slices, windows and organs against what pydicom and Pillow read; faults are sentences."""

import shutil

import h5py
import numpy as np
import pydicom
import pytest
from PIL import Image

from seggym.cohorts import chaos
from seggym.cohorts.checks import check_command, check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError

CT, MR = "Train_Sets/CT", "Train_Sets/MR"


@pytest.fixture
def root(tmp_path):
    return chaos.write_example(tmp_path, patients=2)


def edit(path, **elements):
    """Set elements of a DICOM file."""
    header = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(header, name, value)
    header.save_as(path)


def test_ct_is_windowed_and_in_the_order_of_the_file_names(root):
    """Window 40/200: -60 HU is 0 and 140 HU is 1. The positions in the header run the other way."""
    cohort = open_cohort("chaos", root)
    assert (cohort.patients, cohort.class_names) == (["CT01", "CT02"], ("background", "liver"))
    volume = next(cohort.volumes())
    assert volume.image.dtype == np.float32
    for position, (image, label) in enumerate(zip(volume.image, volume.label, strict=True)):
        header = pydicom.dcmread(root / CT / "1" / "DICOM_anon" / f"i{position:04d},0000b.dcm")
        hounsfield = header.pixel_array.astype(float) + float(header.RescaleIntercept)
        np.testing.assert_allclose(image, np.clip((hounsfield + 60) / 200, 0, 1), atol=1e-6)
        mask = Image.open(root / CT / "1" / "Ground" / f"liver_GT_{position:03d}.png")
        np.testing.assert_array_equal(label, np.asarray(mask) == 255)
    assert volume.spacing == (3.0, 0.75, 0.75)


def test_masks_of_one_bit_are_read(root):
    before = next(open_cohort("chaos", root).volumes())
    for path in (root / CT / "1" / "Ground").iterdir():
        Image.open(path).convert("1").save(path)
    after = next(open_cohort("chaos", root).volumes())
    assert set(np.unique(after.label)) == {0, 1}
    np.testing.assert_array_equal(after.label, before.label)


def test_mr_has_four_organs_and_its_phases_share_masks(root):
    cohort = open_cohort("chaos", root, modality="mr", sequences=["t1in", "t1out", "t2spir"])
    volumes = {volume.name: volume for volume in cohort.volumes(["MR02"])}
    assert sorted(volumes) == ["MR02_t1in", "MR02_t1out", "MR02_t2spir"]
    folder = root / MR / "2" / "T1DUAL"
    for name, first in (("InPhase", 2), ("OutPhase", 1)):
        stored = [
            pydicom.dcmread(folder / "DICOM_anon" / name / f"IMG-0004-{first + 2 * position:05d}.dcm").pixel_array
            for position in range(3)
        ]
        np.testing.assert_array_equal(volumes["MR02_t1in" if first == 2 else "MR02_t1out"].image, stored)
    np.testing.assert_array_equal(volumes["MR02_t1in"].label, volumes["MR02_t1out"].label)
    stored = np.asarray(Image.open(folder / "Ground" / "IMG-0004-00004.png"))
    for organ, value in (("liver", 63), ("right kidney", 126), ("left kidney", 189), ("spleen", 252)):
        expected = volumes["MR02_t1in"].label[1] == cohort.class_names.index(organ)
        assert expected.any()
        np.testing.assert_array_equal(expected, stored == value)
    assert len(list(open_cohort("chaos", root, modality="mr").volumes(["MR01"]))) == 2


@pytest.mark.parametrize("place", ["Train_Sets", "Train_Sets/CT"])
def test_the_root_may_be_a_folder_further_in(root, place):
    assert open_cohort("chaos", root / place).patients == ["CT01", "CT02"]


def test_z_spacing_is_that_of_the_positions(root):
    for path in (root / CT / "1" / "DICOM_anon").iterdir():
        edit(path, SliceThickness=5.0)
    assert next(open_cohort("chaos", root).volumes()).spacing[0] == 3.0
    for path in (root / CT / "1" / "DICOM_anon").iterdir():
        header = pydicom.dcmread(path)
        del header.ImagePositionPatient
        header.save_as(path)
    assert next(open_cohort("chaos", root).volumes()).spacing[0] == 5.0


def test_h5_files_by_their_folder_and_their_lists(tmp_path):
    for modality, folder in (("ct", "CT_LIVER"), ("mr", "MRI")):
        chaos.write_example(tmp_path / folder, "h5", patients=4, modalities=[modality])
    liver, organs = open_cohort("chaos", tmp_path), open_cohort("chaos", tmp_path, modality="mr")
    assert liver.patients == ["CT01", "CT02", "CT03", "CT04"]
    assert [volume.name for volume in organs.volumes()] == [f"MR0{number}_t2spir" for number in (1, 2, 3, 4)]
    assert {int(volume.label.max()) for volume in liver.volumes()} == {1}
    assert {int(volume.label.max()) for volume in organs.volumes()} == {4}
    split = split_cohort(organs)
    assert (split.train, split.val, split.test) == (("MR01", "MR02"), ("MR03",), ("MR04",))
    assert check_data(tmp_path, cohort="chaos") == []
    with h5py.File(tmp_path / "CT_LIVER" / "val_volumes" / "patient_03_volume.h5", "a") as file:
        file["label"][0, 0, 0] = 2
    (problem,) = check_data(tmp_path, cohort="chaos")
    assert problem.message.startswith("holds label 2, expected one of 0 to 1, 255")


def test_examples_have_no_problem(root, capsys):
    assert check_command(str(root)) == 0
    assert capsys.readouterr().out == "4 patients, 8 volumes, no problem found\n"


def test_all_problems_at_once(tmp_path):
    chaos.write_example(tmp_path, patients=6, modalities=["ct"])
    chaos.write_example(tmp_path, patients=3, modalities=["mr"])
    ct, mr = tmp_path / CT, tmp_path / MR
    shutil.rmtree(ct / "1" / "Ground")
    slices = ct / "2" / "DICOM_anon"
    (slices / "i0000,0000b.dcm").write_bytes((slices / "i0000,0000b.dcm").read_bytes()[:9000])
    (slices / "i0001,0000b.dcm").write_bytes(b"no DICOM at all")
    header = pydicom.dcmread(slices / "i0002,0000b.dcm")
    del header.PixelData
    header.save_as(slices / "i0002,0000b.dcm")
    mask = ct / "3" / "Ground" / "liver_GT_001.png"
    mask.write_bytes(mask.read_bytes()[:150])
    Image.new("L", (176, 160), 77).save(ct / "3" / "Ground" / "liver_GT_002.png")
    (ct / "4" / "Ground" / "liver_GT_002.png").unlink()
    shutil.move(ct / "5" / "DICOM_anon" / "i0002,0000b.dcm", ct / "5" / "DICOM_anon" / "i0003,0000b.dcm")
    for path in (ct / "6" / "Ground").iterdir():
        Image.new("L", (100, 160)).save(path)
    Image.new("L", (176, 160), 30).save(mr / "1" / "T2SPIR" / "Ground" / "IMG-0004-00001.png")
    shutil.rmtree(mr / "2" / "T1DUAL" / "DICOM_anon" / "OutPhase")
    shutil.copyfile(
        mr / "2" / "T2SPIR" / "DICOM_anon" / "IMG-0004-00001.dcm",
        mr / "3" / "T2SPIR" / "DICOM_anon" / "IMG-0004-00001.dcm",
    )
    found = {problem.path.relative_to(tmp_path).as_posix(): problem.message for problem in check_data(tmp_path)}
    expected = {
        f"{CT}/1/Ground": "is missing, expected slices and one mask for each",
        f"{CT}/2/DICOM_anon/i0000,0000b.dcm": "cannot be read, it is truncated",
        f"{CT}/2/DICOM_anon/i0001,0000b.dcm": "cannot be read, it is truncated",
        f"{CT}/2/DICOM_anon/i0002,0000b.dcm": "cannot be read, it is truncated",
        f"{CT}/3/Ground/liver_GT_001.png": "cannot be read, it is truncated",
        f"{CT}/3/Ground/liver_GT_002.png": "holds label 77, expected one of 0 to 1, 255",
        f"{CT}/4/Ground": "holds 2 PNG masks, expected one for each of 3 slices",
        f"{CT}/5/Ground": "is numbered with other gaps than",
        f"{CT}/6/Ground/liver_GT_000.png": "has shape (3, 160, 100) (z, y, x), expected (3, 160, 176)",
        f"{MR}/1/T2SPIR/Ground/IMG-0004-00001.png": "holds label 30, expected one of 0, 55 to 70, 110 to 135",
        f"{MR}/2/T1DUAL/DICOM_anon/OutPhase": "is missing",
        f"{MR}/3/T2SPIR/DICOM_anon/IMG-0004-00001.dcm": "is byte for byte",
    }
    assert found.keys() == expected.keys()
    for path, start in expected.items():
        assert found[path].startswith(start)
        assert "\n" not in found[path]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modality": "pet"}, "modality 'pet' is unknown, expected ct or mr"),
        ({"layout": "nifti"}, "layout 'nifti' is unknown"),
        ({"sequences": []}, r"sequences=\[\] are not known"),
        ({"modality": "mr"}, "holds no MR data of CHAOS"),
    ],
)
def test_wrong_options_and_no_data(tmp_path, options, sentence):
    with pytest.raises(SeggymError, match=sentence):
        open_cohort("chaos", tmp_path, **options)
    with pytest.raises(SeggymError, match="SEGGYM_CHAOS_ROOT"):
        open_cohort("chaos", tmp_path / "absent")


def test_a_missing_folder_of_masks_is_told_when_the_cohort_is_opened(root):
    shutil.rmtree(root / CT / "2" / "Ground")
    with pytest.raises(SeggymError, match=r"CT.2.Ground is missing.*CHAOS_Train_Sets") as raised:
        open_cohort("chaos", root)
    assert "\n" not in str(raised.value)
