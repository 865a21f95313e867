"""Rules of validity: each is broken by a mask that breaks nothing else, and measures agree with scikit-image."""

import numpy as np
import pytest
from skimage import draw, measure, morphology

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.echo_phantom import CLASS_NAMES
from seggym.cohorts.validity import measures
from seggym.cohorts.validity.rules import load_rules
from seggym.errors import SeggymError

LV, MYO, LA = 1, 2, 3
RIGHT, RING, LEFT = 1, 2, 3


def apical(wall=14, atrium=(44, 85)):
    """A square horseshoe around a cavity, and an atrium below: 128 x 128, so that one pixel is a speck."""
    mask = np.zeros((128, 128), np.uint8)
    mask[34 - wall : 91, 44 - wall : 85 + wall] = MYO
    mask[34:91, 44:85] = LV
    if atrium:
        mask[91:119, slice(*atrium)] = LA
    return mask


def short_axis(inner=12, outer=22):
    """A ring around a disc, and a crescent on its left."""
    mask = np.zeros((128, 128), np.uint8)
    mask[draw.ellipse(64, 46, 24, 20)] = RIGHT
    mask[draw.disk((64, 70), outer)] = RING
    mask[draw.disk((64, 70), inner)] = LEFT
    return mask


def put(mask, label, *places):
    for place in places:
        mask[place] = label
    return mask


def chain():
    """A gap between cavity and muscle that leaks to the outside at corners only: no hole of the two."""
    return put(apical(), 0, (85, 44), (86, 43), (87, 44), (88, 43), (89, 44), (90, 43))


def neck():
    """A muscle 20 pixels thick, with two pixels left where the cavity has a spike."""
    return put(apical(wall=20), LV, np.s_[16:34, 60:67])


# The measures of a structure that a broken one has no part of follow: an absent cavity has no width, an island of
# muscle has no neck, and what a cavity encloses, its whole outline encloses or is an island itself.
APICAL = [
    (put(apical(), 0, apical() == LV), {"lv_pixels", "width_ratio_between_lv_and_myo"}
     | {"frontier_ratio_between_lv_and_bg_no_atr", "frontier_ratio_between_lv_and_bg"}),
    (put(apical(), LV, (5, 5)), {"disconnectivity_in_lv"}),
    (put(apical(), MYO, (5, 5)), {"disconnectivity_in_myo", "erosion_ratio_before_myo_split"}),
    (put(apical(), 0, (60, 60)), {"holes_in_lv", "holes_in_epi"}),
    (put(apical(), MYO, (60, 60)), {"holes_in_lv", "disconnectivity_in_myo", "erosion_ratio_before_myo_split"}),
    (put(apical(), 0, (60, 36)), {"holes_in_epi"}),
    (chain(), {"holes_between_lv_and_myo"}),
    (apical(wall=3), {"width_ratio_between_lv_and_myo"}),
    (put(apical(atrium=None), 0, np.s_[34:91, 85:]), {"frontier_ratio_between_lv_and_bg_no_atr"}),
    (put(apical(atrium=None), MYO, np.s_[88:91, 44:85]), {"frontier_ratio_between_lv_and_bg_no_atr"}),
    (neck(), {"erosion_ratio_before_myo_split"}),
    (put(apical(), LA, (5, 5)), {"disconnectivity_in_atrium"}),
    (put(apical(), 0, (100, 60)), {"holes_in_atrium"}),
    (put(apical(), 0, np.s_[91, 60:68]), {"holes_between_lv_and_atrium"}),
    (apical(atrium=(62, 67)), {"frontier_ratio_between_lv_and_bg"}),
    (put(apical(), LA, np.s_[70:119, 20:30], np.s_[91:119, 20:85]), {"frontier_ratio_between_myo_and_atrium"}),
]  # fmt: skip


def bar(rows, columns):
    return np.s_[64 - rows : 64 + rows, 64 - columns : 64 + columns]


def without_right(inner=12, outer=22):
    mask = short_axis(inner, outer)
    return put(mask, 0, mask == RIGHT)


def crescent():
    mask = np.zeros((128, 128), np.uint8)
    mask[draw.disk((64, 70), 25)] = RIGHT
    mask[:, 72:] = 0
    mask[draw.disk((64, 70), 22)] = RING
    mask[draw.disk((64, 70), 12)] = LEFT
    return mask


def apart():
    mask = short_axis()
    return put(without_right(), RIGHT, np.roll(mask == RIGHT, -3, axis=1))


def dented():
    mask = without_right(14, 24)
    return put(mask, RING, np.s_[40:63, 68:73])


SHORT_AXIS = [
    (np.zeros((64, 64), np.uint8), {"foreground_pixels"}),
    (np.full((64, 64), RIGHT), {"foreground_share"}),
    (put(short_axis(), LEFT, (64, 87)), {"disconnectivity_in_lv"}),
    (put(short_axis(), RIGHT, (64, 24)), {"disconnectivity_in_rv"}),
    (put(short_axis(), RING, (64, 95)), {"disconnectivity_in_myo"}),
    (put(short_axis(), RING, (64, 70)), {"holes_in_lv", "disconnectivity_in_myo"}),
    (put(short_axis(), 0, (64, 36)), {"holes_in_rv"}),
    (put(short_axis(), 0, (64, 87)), {"holes_in_epi"}),
    (put(short_axis(), 0, np.s_[64:66, 82]), {"holes_between_lv_and_myo", "holes_in_epi"}),
    (put(short_axis(), 0, np.s_[63:66, 47:49]), {"holes_between_rv_and_epi"}),
    (apart(), {"rv_disconnected_from_myo"}),
    (put(short_axis(), RIGHT, np.s_[59:70, 47:59]), {"frontier_ratio_between_lv_and_rv"}),
    (put(short_axis(), 0, np.s_[59:70, 81:93]), {"frontier_ratio_between_lv_and_bg"}),
    (put(put(np.zeros((128, 128), np.uint8), RING, bar(11, 28)), LEFT, bar(3, 20)), {"lv_circularity"}),
    (put(put(np.zeros((128, 128), np.uint8), RING, bar(11, 56)), LEFT, bar(6, 6)), {"epi_circularity"}),
    (dented(), {"lv_concavity"}),
    (crescent(), {"rv_concavity"}),
    (put(without_right(10, 50), 0, np.s_[:52, 67:74]), {"epi_concavity"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "broken"), APICAL, ids=lambda value: "-".join(sorted(value))[:40] if isinstance(value, set) else ""
)
def test_a_mask_breaks_one_rule_of_the_apical_view(mask, broken):
    report = load_rules("camus").check(mask)
    assert set(report.failed) == broken
    assert not report.valid


@pytest.mark.parametrize(
    ("mask", "broken"), SHORT_AXIS, ids=lambda value: "-".join(sorted(value))[:40] if isinstance(value, set) else ""
)
def test_a_mask_breaks_one_rule_of_the_short_axis(mask, broken):
    report = load_rules("acdc").check(mask)
    assert set(report.failed) == broken
    assert not report.valid


@pytest.mark.parametrize(("name", "sound", "table"), [("camus", apical(), APICAL), ("acdc", short_axis(), SHORT_AXIS)])
def test_sound_masks_break_none_and_every_rule_is_broken_by_some(name, sound, table):
    rules = load_rules(name)
    report = rules.check(sound)
    assert report.failed == ()
    assert report.valid
    assert set(report.values) == {rule.name for rule in rules.rules} == set.union(*(broken for _, broken in table))


def test_values_are_measured():
    values = load_rules("camus").check(apical()).values
    assert values["lv_pixels"] == 57 * 41
    assert values["width_ratio_between_lv_and_myo"] == pytest.approx(41 / 28)
    assert values["frontier_ratio_between_lv_and_bg_no_atr"] == 1
    assert values["frontier_ratio_between_myo_and_atrium"] == pytest.approx(2 / 69)
    # 7 erosions leave nothing of a wall whose middle is 7 pixels from its edge, but for the two corners.
    assert 7 / 10 <= values["erosion_ratio_before_myo_split"] <= 1
    assert load_rules("camus").check(put(apical(), 0, np.s_[91, 60:68])).values["holes_between_lv_and_atrium"] == 8


def test_the_gap_between_ventricle_and_atrium_is_theirs():
    """It was measured between ventricle and muscle in the code that these rules come from."""
    failed = load_rules("camus").check(chain()).failed
    assert failed == ("holes_between_lv_and_myo",)


def test_a_view_without_an_atrium_skips_its_rules():
    rules = load_rules("camus")
    report = rules.check(apical(atrium=None))
    assert report.valid
    skipped = {name for name, value in report.values.items() if np.isnan(value)}
    assert skipped == {rule.name for rule in rules.rules if LA in rule.of + rule.needs or rule.to == (LA,)}
    assert len(skipped) == 5


def test_labels_without_an_atrium():
    """RL4Seg's label set: the rules of the atrium are not there at all."""
    rules = load_rules("camus", CLASS_NAMES[:3])
    assert len(rules.rules) == 9
    assert rules.check(apical(atrium=None)).valid
    with pytest.raises(SeggymError, match="holds label 3, but the rules camus know 0 to 2"):
        rules.check(apical())


def test_classes_are_found_by_name():
    """A cohort that numbers its classes otherwise has the same rules."""
    names = ("background", "left atrium", "left ventricle", "myocardium")
    order = np.array([0, 2, 3, 1])
    for mask, broken in [(apical(), set()), *APICAL]:
        assert set(load_rules("camus", names).check(order[mask]).failed) == broken


def test_empty_and_full_masks_are_invalid():
    for rules in (load_rules("camus"), load_rules("acdc"), load_rules("topology", CLASS_NAMES)):
        assert not rules.valid(np.stack([np.full((32, 32), label) for label in range(4)])).any()


@pytest.mark.parametrize(("name", "table"), [("camus", APICAL), ("acdc", SHORT_AXIS[2:])])
def test_many_masks_at_once(name, table):
    rules = load_rules(name)
    masks = np.stack([mask for mask, _ in table] + [apical() if name == "camus" else short_axis()])
    np.testing.assert_array_equal(rules.valid(masks), [rules.check(mask).valid for mask in masks])
    assert rules.valid(masks).sum() == 1


def broken_phantoms():
    """Masks with specks, holes and cuts of all kinds."""
    rng = np.random.default_rng(0)
    for volume in open_cohort("echo", patients=8, size=64, seed=5).volumes():
        mask = volume.label[0].copy()
        for _ in range(rng.integers(0, 4)):
            row, column = rng.integers(8, 56, 2)
            mask[row : row + rng.integers(1, 9), column : column + rng.integers(1, 9)] = rng.integers(0, 4)
        yield mask


def test_measures_agree_with_scikit_image():
    """Holes, islands, frontiers and erosions as their definitions say, by another library on the whole image."""
    for mask in broken_phantoms():
        label_map = measures.LabelMap(mask)
        for label in (LV, MYO, LA):
            structure, region = label_map.structure((label,)), np.pad(mask == label, 1)
            regions = measure.regionprops(measure.label(region, connectivity=2))
            areas = sorted((entry.area for entry in regions), reverse=True)
            assert measures.disconnectivity(label_map, structure) == sum(areas[1:])
            outside = measure.label(~region, connectivity=2)
            holes = sum(p.area for p in measure.regionprops(outside) if p.label != outside[0, 0])
            assert measures.holes(label_map, structure) == holes
        myo, la = mask == MYO, mask == LA
        touching = int((myo & morphology.dilation(la, np.ones((3, 3)))).sum())
        columns = np.ptp(np.nonzero(myo)[1]) + 1
        measured = measures.frontier_ratio(label_map, label_map.structure((MYO,)), label_map.structure((LA,)))
        assert measured == pytest.approx((touching if touching > 1 else 0) / columns)
        eroded, count = np.pad(myo, 1), 0
        while measure.label(eroded, connectivity=2, return_num=True)[1] == 1:
            eroded, count = morphology.erosion(eroded, np.ones((3, 3))), count + 1
        ratio = measures.erosion_ratio(label_map, label_map.structure((MYO,)))
        assert (ratio > 0) == (count > 0)
        filled = morphology.remove_small_holes(mask > 0, max_size=10_000, connectivity=1)
        anything = label_map.structure((LV, MYO, LA))
        assert measures.background_holes(label_map, anything) <= (filled & (mask == 0)).sum()


def test_every_ground_truth_of_the_phantoms_is_valid():
    rules = load_rules("camus")
    for size in (64, 128):
        masks = np.concatenate([volume.label for volume in open_cohort("echo", patients=15, size=size).volumes()])
        assert rules.valid(masks).all()


def test_real_short_axis_masks_are_valid(acdc_root):
    cohort = open_cohort("acdc", acdc_root)
    masks = [label for volume in cohort.volumes(cohort.patients[:6]) for label in volume.label if label.any()]
    rules = load_rules("acdc", cohort.class_names)
    assert np.mean([rules.check(mask).valid for mask in masks]) > 0.95


def test_topology_holds_for_any_labels():
    rules = load_rules("topology", ("background", "disc", "ring"))
    sound = np.where(short_axis() == RIGHT, 0, np.where(short_axis() == LEFT, 1, short_axis()))
    assert rules.check(sound).valid
    assert set(rules.check(put(sound.copy(), 0, (64, 70))).failed) == {"holes_in_foreground", "background_holes_disc"}
    assert rules.check(put(sound.copy(), 1, (5, 5))).failed == ("disconnectivity_disc",)
    assert rules.check(np.where(sound == 1, 0, sound)).failed == (
        "holes_in_foreground", "pixels_disc", "background_holes_ring"
    )  # fmt: skip
    with pytest.raises(SeggymError, match="list no classes, so class_names is needed"):
        load_rules("topology")


OWN = """
classes: [background, a, b]
optional: [b]
rules:
  a_pixels: {measure: area, of: a, min: 4, max: 20}
  apart: {measure: distance, of: a, to: b, min: 2}
"""


def test_rules_of_ones_own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    rules = load_rules(path)
    mask = np.zeros((16, 16), int)
    mask[2:5, 2:5], mask[2:5, 8:10] = 1, 2
    assert rules.check(mask).values == {"a_pixels": 9, "apart": 3}
    assert rules.name == "own"
    assert rules.check(np.roll(mask == 1, 2, axis=1) + 2 * (mask == 2)).failed == ("apart",)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("measure: area", "measure: volume", "a_pixels.measure=volume is unknown, expected one of area"),
        ("of: a, min: 4, max: 20", "of: a", "a_pixels has neither min nor max"),
        ("of: a, to: b", "of: a", "apart measures distance, expected `of` and `to`"),
        ("of: a, min: 4", "of: a, to: b, min: 4", "a_pixels measures area, expected `of` and no `to`"),
        ("of: a, min: 4", "of: c, min: 4", "a_pixels is about c, expected some of background, a, b"),
        ("min: 4", "minimum: 4", "a_pixels.minimum is unknown"),
        ("min: 4", "min: four", "a_pixels.min='four'"),
        ("rules:", "rule:", "rule is unknown"),
        (OWN, "- 1", "hold a list"),
        (OWN, "classes: [", "cannot be read"),
        (OWN, "classes: [background, a]", "hold no rule"),
        ("measure: area, ", "", "is {'of': 'a', 'min': 4, 'max': 20}, expected measure"),
    ],
)
def test_wrong_files(tmp_path, old, new, sentence):
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace(old, new))
    with pytest.raises(SeggymError, match=sentence):
        load_rules(path)


def test_wrong_calls(tmp_path):
    with pytest.raises(SeggymError, match=r"absent\.yaml cannot be read"):
        load_rules(tmp_path / "absent.yaml")
    for name, first in (("acdc", "right"), ("camus", "left")):
        with pytest.raises(SeggymError, match=f"about {first} ventricle, .*not among the classes background, liver"):
            load_rules(name, ("background", "liver"))
    rules = load_rules("camus")
    with pytest.raises(SeggymError, match=r"shape \(1, 8, 8\)"):
        rules.check(np.zeros((1, 8, 8), int))
    with pytest.raises(SeggymError, match="float64"):
        rules.check(np.zeros((8, 8)))
    with pytest.raises(SeggymError, match=r"shape \(8, 8\) cannot be checked, expected \(number"):
        rules.valid(np.zeros((8, 8), int))
