"""Raw k-space of fastMRI and ISMRMRD: what is read is what was measured, and every fault is a sentence."""

import re

import h5py
import ismrmrd
import numpy as np
import pytest

from seggym.cohorts import ismrmrd_files, raw_kspace, raw_kspace_fastmri
from seggym.cohorts.checks import check_command, check_data
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.raw_kspace_example import example_header
from seggym.cohorts.raw_kspace_scan import kspace_faults
from seggym.errors import SeggymError

SHAPE = (2, 3, 12, 10)  # slices, coils, oversampled readout, lines


@pytest.fixture
def kspace():
    """Random k-space whose readout oversampling holds nothing: its image is zero outside of the central half."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)
    image[:, :, :3] = image[:, :, 9:] = 0
    return centred(np.fft.fft2, image).astype(np.complex64)


def centred(transform, values):
    axes = (-2, -1)
    return np.fft.fftshift(transform(np.fft.ifftshift(values, axes=axes), norm="ortho"), axes=axes)


def image_of(kspace):
    """Root sum of squares of the central half of the readout, by numpy's two-dimensional transform."""
    return np.sqrt((np.abs(centred(np.fft.ifft2, kspace)[:, :, 3:9]) ** 2).sum(1))


def header(last=SHAPE[3] - 1, centre=SHAPE[3] // 2, shape=SHAPE):
    return example_header(shape, "patient007", last, centre)


def only_volume(root):
    cohort = open_cohort("raw", root)
    (volume,) = cohort.volumes()
    return cohort, volume


def found(root):
    """The problems as {path below root: message}."""
    return {problem.path.relative_to(root).as_posix(): problem.message for problem in check_data(root)}


@pytest.mark.parametrize("layout", raw_kspace.LAYOUTS)
def test_examples_have_no_problem(tmp_path, layout, capsys):
    assert check_command(str(raw_kspace.write_example(tmp_path, layout, patients=3))) == 0
    assert capsys.readouterr().out == "3 patients, 3 volumes, no problem found\n"
    cohort = open_cohort("raw", tmp_path)
    assert cohort.measured
    assert cohort.class_names == ("background",)
    missing = {"fastmri": 1, "ismrmrd": 20}[layout]
    for volume in cohort.volumes():
        assert volume.kspace.shape == (2, 5, 160, 176)
        assert (~volume.kspace.any((0, 1, 2))).nonzero()[0].tolist() == list(range(missing))
        assert not volume.label.any()


def test_fastmri_is_read_as_it_was_measured(tmp_path, kspace):
    raw_kspace_fastmri.write_scan(tmp_path / "file1.h5", kspace, header(), "patient007", "CORPD_FBK")
    cohort, volume = only_volume(tmp_path)
    assert dict(cohort.groups) == {"patient007": "CORPD_FBK"}
    assert volume.name == "patient007_file1"
    np.testing.assert_allclose(volume.image, image_of(kspace), rtol=1e-5)
    np.testing.assert_allclose(
        centred(np.fft.ifft2, volume.kspace), centred(np.fft.ifft2, kspace)[:, :, 3:9], atol=1e-5
    )
    assert volume.spacing == (10.0, 1.5625, 1.5625)


def test_fastmri_of_a_single_coil_with_the_header_as_attribute_and_lines_first(tmp_path, kspace):
    with h5py.File(tmp_path / "file1.h5", "w") as file:
        file["kspace"] = kspace[:, 0].swapaxes(1, 2)
        file["reconstruction_esc"] = np.zeros((2, 6, 6), np.float32)
        file.attrs["ismrmrd_header"] = header()
    _, volume = only_volume(tmp_path)
    assert volume.patient == "file1"  # nothing says whose it is
    np.testing.assert_allclose(volume.image, image_of(kspace[:, :1]), rtol=1e-5)


def test_fastmri_beyond_the_measured_range_is_padding(tmp_path, kspace):
    # Lines 0..6 with DC at 4 of 10 lines: columns 1..7.
    raw_kspace_fastmri.write_scan(tmp_path / "file1.h5", kspace, header(last=6, centre=4), "p", "a")
    _, volume = only_volume(tmp_path)
    assert volume.kspace.any((0, 1, 2)).nonzero()[0].tolist() == list(range(1, 8))


def test_ismrmrd_puts_every_line_where_its_number_says(tmp_path, kspace):
    columns = {column: column - 2 for column in range(2, 10)}
    ismrmrd_files.write_scan(tmp_path / "scan.h5", kspace, header(last=7, centre=3), columns, averages=2)
    cohort, volume = only_volume(tmp_path)
    assert cohort.patients == ["patient007"]
    expected = kspace.copy()
    expected[..., :2] = 0
    np.testing.assert_allclose(volume.image, image_of(expected), rtol=1e-5)
    np.testing.assert_allclose(
        centred(np.fft.ifft2, volume.kspace), centred(np.fft.ifft2, expected)[:, :, 3:9], atol=1e-5
    )


def append(data, samples, line, **fields):
    readout = ismrmrd.Acquisition.from_array(np.ascontiguousarray(samples, np.complex64))
    readout.center_sample = SHAPE[2] // 2
    readout.idx.kspace_encode_step_1 = line
    for name, value in fields.items():
        if name == "flag":
            readout.set_flag(value)
        elif hasattr(readout.idx, name):
            setattr(readout.idx, name, value)
        else:
            setattr(readout, name, value)
    data.append_acquisition(readout)


def write_lines(path, kspace, xml=None, change=lambda line: {}):
    """A slice of ``kspace`` as ISMRMRD; ``change(line)`` are fields of a readout."""
    with ismrmrd.Dataset(str(path), mode="w") as data:
        data.write_xml_header((xml or header()).encode())
        for line in range(SHAPE[3]):
            fields = change(line)
            append(data, fields.pop("samples", kspace[0, :, :, line]), line, **fields)


def test_ismrmrd_averages_partial_echoes_and_scans_that_are_no_image(tmp_path, kspace):
    path = tmp_path / "scan.h5"
    write_lines(path, kspace)
    with ismrmrd.Dataset(str(path), mode="r+") as data:
        append(data, 3 * kspace[0, :, :, 4], 4, average=1)
        append(data, 1e6 * kspace[0, :, :, 5], 5, flag=ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        append(data, 1e6 * kspace[0, :, :, 5], 5, flag=ismrmrd.ACQ_IS_NAVIGATION_DATA)
        # The echo of an asymmetric readout, its first samples not sampled and its last one to be thrown away.
        append(data, kspace[0, :, 4:, 0], 0, slice=1, center_sample=2, discard_post=1)
    _, volume = only_volume(tmp_path)
    expected = np.stack([kspace[0], np.zeros_like(kspace[0])])
    expected[0, :, :, 4] *= 2
    expected[1, :, 4:-1, 0] = kspace[0, :, 4:-1, 0]
    np.testing.assert_allclose(
        centred(np.fft.ifft2, volume.kspace), centred(np.fft.ifft2, expected)[:, :, 3:9], atol=1e-5
    )


def test_ismrmrd_cardiac_phases_are_volumes_of_their_own(tmp_path, kspace):
    path = tmp_path / "cine.h5"
    write_lines(path, kspace)
    with ismrmrd.Dataset(str(path), mode="r+") as data:
        for line in range(SHAPE[3]):
            append(data, kspace[1, :, :, line], line, phase=1)
    cohort = open_cohort("raw", tmp_path)
    volumes = list(cohort.volumes())
    assert [volume.name for volume in volumes] == ["patient007_cine_phase0", "patient007_cine_phase1"]
    np.testing.assert_allclose(volumes[1].image, image_of(kspace)[1:], rtol=1e-5)


def test_all_problems_of_fastmri_files_at_once(tmp_path, kspace, capsys):
    def write(name, content, xml=header(), attribute=False):  # noqa: B008
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in content.items():
                file[key] = value
            if xml is not None:
                file["ismrmrd_header"] = xml

    raw_kspace_fastmri.write_scan(tmp_path / "good.h5", kspace, header(), "p", "a")
    dead, broken = kspace.copy(), kspace.copy()
    dead[:, 1] = 0
    broken[0, 0, 0, 0] = np.nan
    write("dead.h5", {"kspace": dead})
    write("nan.h5", {"kspace": broken})
    write("real.h5", {"kspace": np.abs(kspace)})
    write("flat.h5", {"kspace": kspace[0, 0]})
    write("none.h5", {"kspace": kspace[:, :0]})
    write("other.h5", {"kspace": kspace[..., :-1]})
    write("slices.h5", {"kspace": kspace, "reconstruction_rss": np.zeros((3, 6, 6))})
    write("headless.h5", {"kspace": kspace}, xml=None)
    write("xml.h5", {"kspace": kspace}, xml="<ismrmrdHeader>")
    write("bomb.h5", {"kspace": kspace}, xml='<!DOCTYPE x [<!ENTITY a "b">]>' + header()[38:])
    write("field.h5", {"kspace": kspace}, xml=re.sub("<fieldOfView_mm>.*?</fieldOfView_mm>", "", header()))
    write("keys.h5", {"image": np.zeros(3)})
    (tmp_path / "cut.h5").write_bytes((tmp_path / "good.h5").read_bytes()[:3000])
    problems = found(tmp_path)
    expected = {
        "dead.h5": "no signal in coil 1 of 3",
        "nan.h5": "NaN or infinite samples",
        "real.h5": "type float32, expected complex",
        "flat.h5": r"shape \(12, 10\), expected",
        "none.h5": "no empty axis",
        "other.h5": "12 x 9 samples, but its header encodes 12 x 10",
        "slices.h5": "3 slices in reconstruction_rss and 2 in kspace",
        "headless.h5": "has no ismrmrd_header",
        "xml.h5": "no readable XML",
        "bomb.h5": "no readable XML",
        "field.h5": "without a usable encodedSpace/fieldOfView_mm/x",
        "keys.h5": "neither kspace .* found image",
        "cut.h5": "truncated, damaged",
    }
    assert problems.keys() == expected.keys()
    for name, pattern in expected.items():
        assert re.search(pattern, problems[name]), (name, problems[name])
    assert check_command(str(tmp_path)) == 2
    assert capsys.readouterr().out.endswith("13 problems found\n")
    with pytest.raises(SeggymError, match="check-data"):
        list(open_cohort("raw", tmp_path).volumes())


def test_all_problems_of_ismrmrd_files_at_once(tmp_path, kspace):
    write_lines(tmp_path / "good.h5", kspace)
    write_lines(tmp_path / "radial.h5", kspace, header().replace("cartesian", "radial"))
    write_lines(tmp_path / "volume.h5", kspace, header().replace("<z>1</z>", "<z>4</z>"))
    write_lines(tmp_path / "noise.h5", kspace, change=lambda line: {"flag": ismrmrd.ACQ_IS_NOISE_MEASUREMENT})
    write_lines(tmp_path / "epi.h5", kspace, change=lambda line: {"flag": ismrmrd.ACQ_IS_REVERSE} if line % 2 else {})
    write_lines(tmp_path / "coils.h5", kspace, change=lambda line: {"samples": kspace[0, : 2 + line % 2, :, line]})
    write_lines(tmp_path / "long.h5", kspace, change=lambda line: {"samples": np.ones((3, 14))})
    write_lines(tmp_path / "lines.h5", kspace, header(last=9, centre=2))
    write_lines(tmp_path / "bare.h5", kspace)
    with h5py.File(tmp_path / "bare.h5", "r+") as file:
        del file["dataset/data"]
    with h5py.File(tmp_path / "floats.h5", "w") as file:
        file["dataset/data"], file["dataset/xml"] = np.zeros(4), header()
    (tmp_path / "empty.h5").touch()
    problems = found(tmp_path)
    expected = {
        "radial.h5": "holds a radial scan",
        "volume.h5": "holds a three-dimensional scan",
        "noise.h5": "no readout of an image among 10",
        "epi.h5": "both directions",
        "coils.h5": "readouts of 2, 3 coils",
        "long.h5": "14 samples of line 0 from position 0, but its header states 12",
        "lines.h5": "holds line 7, 8, 9, but its header states 10 lines with number 2",
        "bare.h5": "has no usable data in /dataset",
        "floats.h5": "has no usable xml and no usable data in /dataset",
        "empty.h5": "cannot be read",
    }
    assert problems.keys() == expected.keys()
    for name, pattern in expected.items():
        assert pattern in problems[name], (name, problems[name])


def test_a_folder_without_raw_files_is_a_sentence(tmp_path):
    with pytest.raises(SeggymError, match="holds no volume of cohort raw"):
        open_cohort("raw", tmp_path)
    assert "holds no volume of cohort raw" in str(check_data(tmp_path, "raw")[0])


def test_a_slice_without_samples_is_a_fault(kspace):
    kspace[1] = 0
    assert "no sample in slice 1" in kspace_faults(kspace)[0]
