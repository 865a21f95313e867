"""DAVIS: frames and objects against what Pillow reads; faults are sentences."""

import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from seggym.cohorts import davis
from seggym.cohorts.checks import check_command, check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError

IMAGES, MASKS = "JPEGImages/480p", "Annotations/480p"


def test_frames_are_luminance_and_every_object_is_class_one(tmp_path):
    cohort = open_cohort("davis", davis.write_example(tmp_path, patients=4))
    assert cohort.class_names == ("background", "object")
    assert cohort.official_test == {"video-03", "video-04"}
    volume = next(cohort.volumes(["video-02"]))
    assert volume.name == "video-02_480p"
    assert volume.spacing == (1.0, 1.0, 1.0)
    for position in range(3):
        colour = np.asarray(Image.open(tmp_path / IMAGES / "video-02" / f"{position:05d}.jpg")).astype(float)
        np.testing.assert_allclose(volume.image[position], colour @ [0.299, 0.587, 0.114], atol=0.51)
        objects = np.asarray(Image.open(tmp_path / MASKS / "video-02" / f"{position:05d}.png"))
        assert objects.max() == 3
        np.testing.assert_array_equal(volume.label[position], objects > 0)


def test_h5_files_have_colour_and_split_lists(tmp_path):
    cohort = open_cohort("davis", davis.write_example(tmp_path, "h5", patients=4))
    split = split_cohort(cohort)
    assert (split.train, split.val, split.test) == (("video-01", "video-02"), ("video-03",), ("video-04",))
    for volume in cohort.volumes(["video-03"]):
        with h5py.File(tmp_path / "val_volumes" / "video-03.h5") as file:
            np.testing.assert_allclose(volume.image, file["image"][...] @ [0.299, 0.587, 0.114], rtol=1e-5)
            np.testing.assert_array_equal(volume.label, file["label"][...] > 0)
    path = tmp_path / "training_slices" / "video-01_slice_00001.h5"
    with h5py.File(path, "a") as file:
        grey = file["image"][..., 0]
        del file["image"]
        file["image"] = grey
    with pytest.raises(SeggymError, match=r"video-01_slice_00001\.h5 holds 'image' of shape \(160, 176\), expected"):
        list(cohort.volumes(["video-01"]))
    path.unlink()
    with pytest.raises(SeggymError, match=r"slice_00001\.h5 is missing, but train\.txt names it"):
        open_cohort("davis", tmp_path)


def test_examples_have_no_problem(tmp_path, capsys):
    assert check_command(str(davis.write_example(tmp_path / "frames"))) == 0
    assert check_command(str(davis.write_example(tmp_path / "h5", "h5")), "davis") == 0
    assert capsys.readouterr().out == "2 patients, 2 volumes, no problem found\n" * 2


def test_all_problems_at_once(tmp_path):
    davis.write_example(tmp_path, patients=6)
    frame = tmp_path / IMAGES / "video-01" / "00001.jpg"
    frame.write_bytes(frame.read_bytes()[:900])
    (tmp_path / MASKS / "video-02" / "00002.png").unlink()
    Image.open(tmp_path / MASKS / "video-03" / "00000.png").convert("RGB").save(
        tmp_path / MASKS / "video-03" / "00000.png"
    )
    shutil.rmtree(tmp_path / MASKS / "video-04")
    for position in range(3):
        Image.new("L", (100, 160), 1).save(tmp_path / MASKS / "video-05" / f"{position:05d}.png")
    with open(tmp_path / "ImageSets" / "2017" / "train.txt", "a") as file:
        file.write("video-03\n")
    found = {problem.path.relative_to(tmp_path).as_posix(): problem.message for problem in check_data(tmp_path)}
    expected = {
        f"{IMAGES}/video-01/00001.jpg": "cannot be read, it is truncated",
        f"{MASKS}/video-02/00002.png": "is missing, expected one mask for each frame",
        f"{MASKS}/video-03/00000.png": "cannot be read",
        f"{MASKS}/video-04": "is missing, but val.txt names the video",
        f"{MASKS}/video-05/00000.png": "has shape (3, 160, 100) (z, y, x), expected (3, 160, 176)",
        "ImageSets/2017/val.txt": "names video-03, and so does train.txt",
    }
    assert found.keys() == expected.keys()
    for path, start in expected.items():
        assert found[path].startswith(start)


def test_missing_lists_and_no_data(tmp_path):
    with pytest.raises(SeggymError, match="holds no DAVIS data"):
        open_cohort("davis", tmp_path)
    with pytest.raises(SeggymError, match="layout 'video' is unknown"):
        open_cohort("davis", tmp_path, layout="video")
    davis.write_example(tmp_path)
    (tmp_path / "ImageSets" / "2017" / "train.txt").unlink()
    with pytest.raises(SeggymError, match=r"train\.txt is missing, expected the name of one video a line"):
        open_cohort("davis", tmp_path)
