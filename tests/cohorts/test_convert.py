"""NIfTI to PNG and back."""

import numpy as np
import pytest

from seggym.cohorts.acdc import open_acdc, write_example
from seggym.cohorts.convert import convert_acdc_to_png
from seggym.errors import SeggymError


def assert_round_trip(source, destination, patients):
    original, converted = open_acdc(source), open_acdc(destination)
    assert converted.groups == {patient: original.groups[patient] for patient in patients}
    for before, after in zip(original.volumes(patients), converted.volumes(), strict=True):
        assert (after.name, after.spacing) == (before.name, before.spacing)
        np.testing.assert_array_equal(after.label, before.label)
        assert np.abs(after.image / 255 - before.image / before.image.max()).max() <= 1 / 255


def test_round_trip_of_an_example(tmp_path):
    source = write_example(tmp_path / "nifti", patients=3)
    assert convert_acdc_to_png(source, tmp_path / "png") == 6
    images = sorted(path.name for path in (tmp_path / "png" / "patient002" / "images").iterdir())
    assert images == [f"{number}.png" for number in range(6)]
    assert_round_trip(source, tmp_path / "png", ["patient001", "patient002", "patient003"])


def test_round_trip_of_real_patients(tmp_path, acdc_root):
    source, patients = tmp_path / "nifti", ["patient003", "patient100"]
    source.mkdir()
    for patient in patients:
        (source / patient).symlink_to((acdc_root / patient).resolve())
    assert convert_acdc_to_png(source, tmp_path / "png") == 4
    assert_round_trip(source, tmp_path / "png", patients)


def test_a_description_that_does_not_fit_is_refused(tmp_path):
    convert_acdc_to_png(write_example(tmp_path / "nifti", patients=1), tmp_path / "png")
    for folder in ("images", "labels"):
        (tmp_path / "png" / "patient001" / folder / "5.png").unlink()
    with pytest.raises(SeggymError, match=r"volume\.json states 6 slices, found 5 pairs"):
        open_acdc(tmp_path / "png")
    (tmp_path / "png" / "patient001" / "volume.json").write_text('{"volumes": 3}')
    with pytest.raises(SeggymError, match=r"volume\.json is not a readable description"):
        open_acdc(tmp_path / "png")


def test_an_occupied_destination_stays_as_it_is(tmp_path):
    source = write_example(tmp_path, patients=1)
    with pytest.raises(SeggymError, match="is not an empty folder"):
        convert_acdc_to_png(source, source)
