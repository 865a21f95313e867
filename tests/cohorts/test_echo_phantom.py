"""Echo phantoms: reproducible, cheap, shaped like the hearts that CAMUS shows."""

import numpy as np
import pytest
from scipy import ndimage

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.echo_phantom import FRAMES, echo_patient
from seggym.errors import SeggymError


@pytest.fixture(scope="module")
def volumes():
    """Each patient's volumes by frame."""
    cohort = open_cohort("echo", patients=12, size=96, seed=1)
    return [{volume.frame: volume for volume in cohort.volumes([patient])} for patient in cohort.patients]


def test_a_patient_is_a_seed_and_a_number():
    """Neither the number of patients nor the order of reading changes anybody."""
    few, many = (open_cohort("echo", patients=patients, size=48, seed=2) for patients in (3, 9))
    assert few.patients == many.patients[:3] == ["echo20001", "echo20002", "echo20003"]
    late = list(many.volumes(["echo20003"]))
    for first, second in zip(few.volumes(["echo20003"]), late, strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
    other = next(iter(open_cohort("echo", patients=3, size=48, seed=3).volumes()))
    assert not np.array_equal(other.image, next(iter(few.volumes())).image)
    assert few.fingerprint != many.fingerprint


def test_volumes_are_those_of_camus(volumes):
    for own in volumes:
        assert tuple(own) == FRAMES
        for volume in own.values():
            assert volume.image.shape == volume.label.shape == (1, 96, 96)
            assert (volume.image.dtype, volume.label.dtype) == (np.float32, np.uint8)
            assert 0 == volume.image.min() < volume.image.max() <= 255
            np.testing.assert_array_equal(np.unique(volume.label), [0, 1, 2, 3])


def test_the_anatomy_is_apical(volumes):
    """Atrium below, muscle around all of the cavity but its base, apex up."""
    for volume in (volume for own in volumes for volume in own.values()):
        label = volume.label[0]
        ventricle, muscle, atrium = (label == value for value in (1, 2, 3))
        centres = {value: ndimage.center_of_mass(label == value)[0] for value in (1, 2, 3)}
        assert centres[2] < centres[3]
        assert centres[1] < centres[3]
        # What touches the cavity is muscle nearly everywhere but at the mitral plane.
        shell = ndimage.binary_dilation(ventricle) & ~ventricle
        assert not (shell & (label == 0)).sum() > 3
        assert 0.6 < (shell & muscle).sum() / shell.sum() < 0.95
        assert (shell & atrium).any()
        # A horseshoe: filling its holes does not fill the cavity.
        assert not ndimage.binary_fill_holes(muscle)[ventricle].any()


def test_the_heart_contracts(volumes):
    for own in volumes:
        for view in ("2CH", "4CH"):
            diastole, systole = (np.bincount(own[f"{view}_{instant}"].label.ravel()) for instant in ("ED", "ES"))
            assert systole[1] < 0.95 * diastole[1]
            assert systole[3] > diastole[3] * 0.95


def test_blood_is_darker_than_muscle_and_the_sector_is_black_outside(volumes):
    contrasts = []
    for volume in (volume for own in volumes for volume in own.values()):
        image, label = volume.image[0], volume.label[0]
        contrasts.append(image[label == 2].mean() - image[label == 1].mean())
        assert image[:20, :20].max() == 0
        assert image[:20, -20:].max() == 0
    assert np.mean(np.array(contrasts) > 15) > 0.9


def test_speckle_is_that_of_a_beam(volumes):
    """Intensities next to each other along a row are more alike than those along a column, at the middle beam."""
    rows, columns = [], []
    for volume in (own["2CH_ED"] for own in volumes):
        middle = volume.image[0][50:90, 38:58].astype(float)
        middle = middle - ndimage.gaussian_filter(middle, 4)
        rows.append((middle[:, 1:] * middle[:, :-1]).mean() / middle.var())
        columns.append((middle[1:] * middle[:-1]).mean() / middle.var())
    assert np.mean(rows) > np.mean(columns) + 0.1


def test_the_grid_does_not_change_the_heart():
    """At twice the resolution the areas are the same."""
    for coarse, fine in zip(echo_patient("a", 4, size=64), echo_patient("a", 4, size=128), strict=True):
        areas = [np.bincount(volume.label.ravel()) / volume.label.size for volume in (coarse, fine)]
        np.testing.assert_allclose(areas[0], areas[1], rtol=0.06)
        assert coarse.spacing[1] == 2 * fine.spacing[1]


@pytest.mark.parametrize("options", [{"patients": 0}, {"size": 16}, {"seed": -1}])
def test_wrong_options(options):
    with pytest.raises(SeggymError, match=next(iter(options))):
        open_cohort("echo", **options)
