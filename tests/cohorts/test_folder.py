"""Image-plus-mask folders in both layouts and all formats."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.folder import open_folder, write_example
from seggym.errors import SeggymError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(1, 200, (3, 12, 10)).astype(np.uint8)
MASKS = RNG.integers(0, 3, (3, 12, 10)).astype(np.uint8)


def save(path, values):
    """Write ``values`` in the format of the suffix, with the format's own library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(values.transpose(), np.diag([0.5, 0.7, 3.0, 1.0])), path)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def save_pair(root, name, image=PIXELS[0], mask=MASKS[0], mask_name=None):
    save(root / "images" / name, image)
    save(root / "masks" / (mask_name or name), mask)


def read_all(root, **options):
    return list(open_folder(root, **{"num_classes": 3, **options}).volumes())


def test_by_patient_slices_form_one_volume_in_natural_order(tmp_path):
    for number, position in ((2, 0), (9, 1), (10, 2)):
        save_pair(tmp_path / "anna", f"slice{number}.png", PIXELS[position], MASKS[position])
    save_pair(tmp_path / "bert", "a.png")
    save_pair(tmp_path / "bert", "b.png", PIXELS[1, :8], MASKS[1, :8])
    anna, *bert = read_all(tmp_path)
    assert anna.name == "anna_stack"
    np.testing.assert_array_equal(anna.image, PIXELS)
    np.testing.assert_array_equal(anna.label, MASKS)
    assert [(volume.name, volume.image.shape) for volume in bert] == [
        ("bert_stack8x10", (1, 8, 10)),
        ("bert_stack12x10", (1, 12, 10)),
    ]


def test_labels_is_another_name_for_masks(tmp_path):
    save_pair(tmp_path / "anna", "0.png")
    (tmp_path / "anna" / "masks").rename(tmp_path / "anna" / "labels")
    assert len(read_all(tmp_path)) == 1


def test_flat_names_give_patient_and_frame(tmp_path):
    for name in ("p1_a_2.png", "p1_b.png", "p2.png"):
        save_pair(tmp_path, name)
    cohort = open_cohort("folder", tmp_path, num_classes=3, class_names=["nothing", "vessel", "plaque"])
    assert cohort.groups == {"p1": "all", "p2": "all"}
    assert [(volume.patient, volume.frame) for volume in cohort.volumes()] == [
        ("p1", "a_2"),
        ("p1", "b"),
        ("p2", "image"),
    ]
    assert cohort.class_names == ("nothing", "vessel", "plaque")


def test_a_table_overrides_the_names(tmp_path):
    for name in ("x_1.png", "x_2.png", "y.png"):
        save_pair(tmp_path, name)
    table = tmp_path / "patients.csv"
    table.write_text("file,patient,group\nx_1.png,anna,ill\nx_2,bert,well\ny.png,anna,ill\n")
    cohort = open_folder(tmp_path, num_classes=3)
    assert cohort.groups == {"anna": "ill", "bert": "well"}
    assert [volume.name for volume in cohort.volumes()] == ["anna_x_1", "anna_y", "bert_x_2"]
    for text, sentence in (
        ("file,patient\nx_1,anna\nx_2,bert\n", r"y\.png has no row in patients\.csv"),
        ("file,patient\nx_1,a\nx_2,b\ny,c\nz,d\n", r"patients\.csv names z, but"),
        ("file,patient\nx_1,a\nx_1,b\nx_2,b\ny,c\n", r"patients\.csv names x_1 twice"),
        ("file,patient,group\nx_1,a,g\nx_2,a,h\ny,c,g\n", r"puts patient a into the groups g, h"),
        ("file,patient\nx_1,\nx_2,b\ny,c\n", r"has a row with an empty file or patient \(x_1\)"),
        ("name;who\n", r"has the columns name;who, expected file,patient"),
    ):
        table.write_text(text)
        with pytest.raises(SeggymError, match=sentence):
            open_folder(tmp_path, num_classes=3)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".nii", ".nii.gz"])
def test_single_slice_in_every_format(tmp_path, suffix):
    save_pair(tmp_path, f"p_1{suffix}")
    (volume,) = read_all(tmp_path)
    np.testing.assert_array_equal(volume.image, PIXELS[:1])
    np.testing.assert_array_equal(volume.label, MASKS[:1])


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz"])
def test_files_that_hold_a_stack(tmp_path, suffix):
    save_pair(tmp_path / "anna", f"scan1{suffix}", PIXELS, MASKS)
    save_pair(tmp_path / "anna", f"scan2{suffix}", PIXELS, MASKS)
    volumes = read_all(tmp_path)
    assert [volume.frame for volume in volumes] == ["scan1", "scan2"]
    np.testing.assert_array_equal(volumes[0].image, PIXELS)
    np.testing.assert_array_equal(volumes[0].label, MASKS)
    expected = (3.0, 0.7, 0.5) if suffix == ".nii.gz" else (1.0, 1.0, 1.0)
    np.testing.assert_allclose(volumes[0].spacing, expected, rtol=1e-6)


def test_sixteen_bits_survive(tmp_path):
    save_pair(tmp_path, "p.png", PIXELS[0].astype(np.uint16) * 300)
    np.testing.assert_array_equal(read_all(tmp_path)[0].image[0], PIXELS[0].astype(np.float32) * 300)


def test_colour_becomes_luminance_and_jpeg_images_are_read(tmp_path):
    colour = np.zeros((12, 10, 3), np.uint8)
    colour[:] = (200, 100, 50)
    save_pair(tmp_path, "p_1.png", colour)
    save_pair(tmp_path, "p_2.jpg", colour, mask_name="p_2.png")
    for volume in read_all(tmp_path):
        np.testing.assert_allclose(volume.image, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=2)


def test_black_and_white_masks_are_binary(tmp_path):
    white = np.where(MASKS > 0, 255, 0).astype(np.uint8)
    save_pair(tmp_path, "p_1.png", mask=white[0])
    save_pair(tmp_path, "p_2.png", mask=white[1] // 255)
    first, second = read_all(tmp_path, num_classes=2)
    np.testing.assert_array_equal(first.label[0], MASKS[0] > 0)
    np.testing.assert_array_equal(second.label[0], MASKS[1] > 0)
    with pytest.raises(SeggymError, match=r"p_1\.png holds label 255, expected 0 to 2"):
        read_all(tmp_path, num_classes=3)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda root: (root / "masks" / "p.png").unlink(), r"images.p\.png has no mask of the same stem"),
        (lambda root: (root / "images" / "p.png").unlink(), r"masks.p\.png has no image of the same stem"),
        (lambda root: save(root / "masks" / "p.png", MASKS[0] + 5), r"holds label 5, 6, 7, expected 0 to 2"),
        (lambda root: save(root / "masks" / "p.png", MASKS[0, :9]), r"has shape \(1, 9, 10\) \(z, y, x\), expected"),
        (lambda root: save(root / "masks" / "p.png", np.dstack(3 * [MASKS[0]])), r"it is a colour picture \(RGB\)"),
        (lambda root: (root / "images" / "p.png").write_bytes(b"\x89PNG"), r"p\.png cannot be read"),
        (lambda root: save(root / "images" / "p.jpg", PIXELS[0]), r"p\.png has the same stem as p\.jpg"),
        (lambda root: (root / "masks" / "p.png").rename(root / "masks" / "p.jpg"), r"masks.p\.jpg is a JPEG"),
        (lambda root: save_pair(root, "q.npy", np.array([{}])), r"q\.npy cannot be read"),
        (lambda root: save_pair(root, "q.npy", np.ones((2, 3, 4, 5))), r"has shape \(2, 3, 4, 5\), expected two or"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_file(tmp_path, break_it, sentence):
    save_pair(tmp_path, "p.png")
    break_it(tmp_path)
    with pytest.raises(SeggymError, match=sentence) as raised:
        read_all(tmp_path)
    assert "\n" not in str(raised.value)


def test_wrong_arguments(tmp_path):
    save_pair(tmp_path, "p.png")
    with pytest.raises(SeggymError, match="num_classes is 1"):
        open_folder(tmp_path, num_classes=1)
    with pytest.raises(SeggymError, match="class_names has 2 entries, expected 3"):
        open_folder(tmp_path, num_classes=3, class_names=["a", "b"])
    with pytest.raises(SeggymError, match="has neither images/ and masks/"):
        open_folder(tmp_path / "images", num_classes=3)
    with pytest.raises(SeggymError, match="SEGGYM_FOLDER_ROOT"):
        open_folder(tmp_path / "absent", num_classes=3)


@pytest.mark.parametrize(("layout", "slices"), [("patients", [3, 3]), ("flat", 6 * [1])])
def test_the_example_reads_back(tmp_path, layout, slices):
    cohort = open_folder(write_example(tmp_path, layout), num_classes=4)
    assert cohort.patients == ["patient001", "patient002"]
    assert [len(volume.image) for volume in cohort.volumes()] == slices
    assert cohort.class_names == ("background", "class 1", "class 2", "class 3")
