import dataclasses
import json
import multiprocessing
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from seggym.cohorts import phantoms
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.phantoms import (
    GROUPS,
    TEST_SETTINGS,
    TRAIN_SETTINGS,
    generate_patient,
    open_phantoms,
    phantom_roles,
    write_phantoms,
)
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError

SMALL = {"patients": 7, "test_patients": 2, "seed": 3}


@pytest.fixture(scope="module")
def patients():
    """Two patients of each group, one of each setting."""
    return {
        (group, settings.name): generate_patient(5, settings, group)
        for group in GROUPS
        for settings in (TRAIN_SETTINGS, TEST_SETTINGS)
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    open_phantoms(root, **SMALL)
    return root


def ejection_fraction(volumes, label):
    diastole, systole = (np.count_nonzero(volume.label == label) for volume in volumes)
    return 1 - systole / diastole


def test_same_seed_gives_the_same_arrays(patients):
    for first, second in zip(patients["NOR", "train"], generate_patient(5, TRAIN_SETTINGS, "NOR"), strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
        assert (first.frame, first.spacing) == (second.frame, second.spacing)


def test_another_seed_gives_another_patient(patients):
    other = generate_patient(6, TRAIN_SETTINGS, "NOR")[0]
    same = patients["NOR", "train"][0]
    assert other.image.shape != same.image.shape or not np.array_equal(other.image, same.image)


def test_volumes_have_the_promised_form(patients):
    for volumes in patients.values():
        diastole, systole = volumes
        assert diastole.frame == "frame01"
        assert systole.frame != "frame01"
        for volume in volumes:
            assert volume.image.dtype == np.float32
            assert volume.label.dtype == np.uint8
            assert volume.image.shape == volume.label.shape == diastole.image.shape
            slices, height, width = volume.image.shape
            assert 8 <= slices <= 10
            assert 160 <= min(height, width) < max(height, width) <= 200
            assert 8 <= volume.spacing[0] <= 10
            assert volume.spacing[1] == volume.spacing[2]
            assert 1.4 <= volume.spacing[1] <= 1.7
            assert (volume.image.min(), volume.image.max()) == (0, 1000)
            np.testing.assert_array_equal(volume.image, np.rint(volume.image))
            assert set(np.unique(volume.label)) == {0, 1, 2, 3}


def test_frames_share_all_but_the_heart(patients):
    diastole, systole = patients["NOR", "train"]
    border = np.s_[:, :20, :]
    assert np.corrcoef(diastole.image[border].ravel(), systole.image[border].ravel())[0, 1] > 0.9
    assert not np.array_equal(diastole.label, systole.label)


def test_ejection_fractions_follow_the_group():
    mean = {
        group: np.mean([ejection_fraction(generate_patient(seed, TRAIN_SETTINGS, group), 3) for seed in range(3)])
        for group in GROUPS
    }
    assert 0.5 < mean["NOR"] < 0.72
    assert 0.1 < mean["DCM"] < 0.38
    assert mean["DCM"] < mean["MINF"] < mean["NOR"] < mean["HCM"] < 0.85


def test_groups_differ_in_anatomy(patients):
    def millilitres(group, label):
        volume = patients[group, "train"][0]
        return np.count_nonzero(volume.label == label) * np.prod(volume.spacing) / 1000

    assert millilitres("DCM", 3) > 1.3 * millilitres("NOR", 3)
    assert millilitres("HCM", 2) > 1.2 * millilitres("NOR", 2)
    assert millilitres("RV", 1) > 1.2 * millilitres("NOR", 1)


def test_left_ventricle_is_wrapped_in_myocardium(patients):
    cross = ndimage.generate_binary_structure(2, 1)
    for volumes in patients.values():
        for label in (slice_ for volume in volumes for slice_ in volume.label):
            cavity = label == 3
            if cavity.any():
                rim = ndimage.binary_dilation(cavity, cross) & ~cavity
                assert np.mean(label[rim] == 2) > 0.98
                assert ndimage.label(cavity)[1] == 1


def test_heart_ends_within_the_stack(patients):
    empty_at_an_end = right_absent_at_apex = 0
    for volume in (volume for volumes in patients.values() for volume in volumes):
        present = volume.label.any(axis=(1, 2))
        inside = np.flatnonzero(present)
        assert present[inside[0] : inside[-1] + 1].all()
        empty_at_an_end += not present[0] or not present[-1]
        right_absent_at_apex += not (volume.label[inside[-1]] == 1).any()
    assert empty_at_an_end >= 4
    assert right_absent_at_apex >= 15


def test_heart_lies_in_the_middle_of_the_field_of_view(patients):
    for volume in (volumes[0] for volumes in patients.values()):
        side = max(volume.label.shape[1:])
        for axis in (1, 2):
            at = np.flatnonzero(volume.label.any(axis=(0, 3 - axis))) - (volume.label.shape[axis] - 1) / 2
            assert np.abs(at).max() < 0.36 * side  # the central 3/4 of the padded square hold it


def test_blood_is_brighter_than_muscle(patients):
    for volume in (volumes[0] for volumes in patients.values()):
        blood, muscle = (np.median(volume.image[volume.label == label]) for label in (3, 2))
        assert blood > 1.6 * muscle


def test_spectrum_falls_like_that_of_a_real_image(patients):
    # Cine MR has energy in its high lines: on ACDC the power per line falls with about frequency^-2.
    for volumes in patients.values():
        image = volumes[0].image
        side = max(image.shape[1:])
        power = (np.abs(np.fft.fft2(image, s=(side, side))) ** 2).sum(axis=(0, 1))[: side // 2]
        band = slice(int(0.04 * side), int(0.3 * side))
        slope = np.polyfit(np.log(np.arange(side // 2)[band]), np.log(power[band]), 1)[0]
        assert -2.6 < slope < -1.4


def test_test_settings_lie_outside_the_training_ranges():
    for name in ("orientation", "scale", "myocardium", "fat", "liver", "texture", "bias", "blur"):
        (low, high), (test_low, test_high) = getattr(TRAIN_SETTINGS, name), getattr(TEST_SETTINGS, name)
        assert test_low >= high or test_high <= low


def test_unknown_group_is_refused():
    with pytest.raises(SeggymError, match="NOR, DCM, HCM, MINF, RV"):
        generate_patient(0, TRAIN_SETTINGS, "nor")


def test_files_follow_the_official_layout(root):
    folder = next(root.glob("phantoms-*"))
    assert sorted(p.name for p in folder.iterdir()) == ["cohort.json", *(f"patient{i:03d}" for i in range(3001, 3008))]
    for patient in folder.glob("patient*"):
        info = dict(line.split(": ") for line in (patient / "Info.cfg").read_text().splitlines())
        assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
        assert int(info["ED"]) < int(info["ES"]) <= int(info["NbFrame"])
        names = {f"{patient.name}_frame{int(info[k]):02d}{s}.nii.gz" for k in ("ED", "ES") for s in ("", "_gt")}
        assert {p.name for p in patient.iterdir()} == names | {"Info.cfg"}
        for name in names:
            image = nib.load(patient / name)
            assert image.shape[2] <= 10 < min(image.shape[:2])
            assert image.get_data_dtype() == (np.uint8 if "_gt" in name else np.int16)
            assert 8 <= image.header.get_zooms()[2] <= 10


def test_cohort_reads_what_was_generated(root):
    cohort = open_cohort("phantom", root, **SMALL)
    assert cohort.name == "phantom"
    assert cohort.class_names == ("background", "right ventricle", "myocardium", "left ventricle")
    assert cohort.fingerprint
    seeds = np.random.SeedSequence(SMALL["seed"]).generate_state(SMALL["patients"], np.uint64)
    name = cohort.patients[0]
    settings = {"train": TRAIN_SETTINGS, "test": TEST_SETTINGS}[phantom_roles(cohort)[name]]
    made = generate_patient(int(seeds[0]), settings, cohort.groups[name])
    for read, volume in zip(cohort.volumes([name]), made, strict=True):
        np.testing.assert_array_equal(read.image, volume.image)
        np.testing.assert_array_equal(read.label, volume.label)
        assert read.spacing == pytest.approx(volume.spacing, abs=1e-4)
        assert read.frame == volume.frame


def test_generating_twice_gives_the_same_bytes(root, tmp_path):
    first = next(root.glob("phantoms-*"))
    second = write_phantoms(tmp_path / "again", **SMALL)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_groups_are_balanced_and_settings_recorded(root):
    cohort = open_phantoms(root, **SMALL)
    manifest = json.loads((Path(cohort.root) / "cohort.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["generator_version"] == phantoms.GENERATOR_VERSION
    assert set(manifest["settings"]) == {"train", "test"}
    roles = phantom_roles(cohort)
    for role, expected in (("train", 5), ("test", 2)):
        groups = [cohort.groups[patient] for patient in roles if roles[patient] == role]
        assert len(groups) == len(set(groups)) == expected
    text = "".join(path.read_text() for path in Path(cohort.root).glob("patient*/Info.cfg"))
    assert not re.search("train|test", text)


def test_split_takes_the_test_settings_as_test_role(root):
    cohort = open_phantoms(root, **SMALL)
    split = split_cohort(cohort, seed=1)
    roles = phantom_roles(cohort)
    assert {patient for patient in roles if roles[patient] == "test"} == set(split.test)
    assert sorted(split.train + split.val + split.test) == cohort.patients
    assert len(split.val) == 1


def test_a_manifest_of_other_patients_is_refused(root):
    cohort = open_phantoms(root, **SMALL)
    fewer = dataclasses.replace(cohort, groups=dict(list(cohort.groups.items())[:3]))
    with pytest.raises(SeggymError, match="generated again"):
        phantom_roles(fewer)


def test_every_argument_names_a_folder_of_its_own(tmp_path):
    base = {"patients": 2, "test_patients": 0, "seed": 0}
    changes = ({}, {"seed": 1}, {"patients": 1}, {"test_patients": 1})
    folders = {open_phantoms(tmp_path, **{**base, **change}).root for change in changes}
    assert len(folders) == 4


def generate(root):
    return str(open_phantoms(root, patients=2, test_patients=1, seed=9).root)


def test_two_processes_generate_one_cohort(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(generate, [tmp_path, tmp_path], chunksize=1)
    assert first == second
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [Path(first)]
    assert len(list(Path(first).glob("patient*/*.nii.gz"))) == 8


def test_failed_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped half way")

    monkeypatch.setattr(phantoms, "_write_patient", fail)
    with pytest.raises(RuntimeError):
        write_phantoms(tmp_path / "cohort", **SMALL)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(SeggymError, match="mine exists and is not the phantom cohort"):
        write_phantoms(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_unwritable_root_falls_back_to_a_temporary_folder(tmp_path):
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "below"
    with pytest.warns(UserWarning, match="for this process only"):
        cohort = open_phantoms(blocked, patients=1, test_patients=0)
    assert len(list(cohort.volumes())) == 2
    assert not Path(cohort.root).is_relative_to(tmp_path)


@pytest.mark.parametrize("wrong", [{"patients": 0}, {"patients": 3, "test_patients": 4}, {"seed": -1}])
def test_bad_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(SeggymError, match="expected"):
        open_phantoms(tmp_path, **wrong)
