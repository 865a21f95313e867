"""What phantoms are drawn from: two generator settings, which never overlap, and five groups of pathology."""

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class PhantomSettings:
    """Ranges that patients are drawn from, uniformly.

    ``orientation`` is the direction from the left to the right ventricle in degrees (0 = image right, 90 = down),
    ``offset`` the shift of the heart from the image centre in mm, ``scale`` multiplies every length of the heart.
    ``myocardium``, ``fat``, ``liver`` and ``lung`` are signals relative to the blood of the left ventricle. ``texture``
    is the relative standard deviation inside tissues, ``bias`` the logarithmic fall of the coil sensitivity over half
    the field of view, ``blur`` the width of an edge in pixels, ``noise`` the standard deviation of the complex noise.
    """

    name: str
    orientation: Range
    scale: Range
    myocardium: Range
    fat: Range
    liver: Range
    texture: Range
    bias: Range
    blur: Range
    lung: Range = (0.03, 0.08)
    noise: Range = (0.008, 0.016)
    offset: Range = (-14, 14)
    short_side: tuple[int, int] = (160, 176)
    long_side: tuple[int, int] = (184, 200)
    pixel: Range = (1.4, 1.7)
    thickness: Range = (8.0, 10.0)


TRAIN_SETTINGS = PhantomSettings(
    name="train",
    orientation=(150, 205),
    scale=(0.92, 1.08),
    myocardium=(0.24, 0.36),
    fat=(0.75, 1.15),
    liver=(0.26, 0.40),
    texture=(0.06, 0.11),
    bias=(0.3, 0.7),
    blur=(1.3, 1.7),
)
# Every range named here lies outside the one of training: the test patients come from a "scanner" not seen before.
TEST_SETTINGS = PhantomSettings(
    name="test",
    orientation=(205, 235),
    scale=(0.82, 0.92),
    myocardium=(0.36, 0.44),
    fat=(1.15, 1.3),
    liver=(0.40, 0.5),
    texture=(0.11, 0.15),
    bias=(0.7, 0.9),
    blur=(1.7, 2.0),
)


@dataclass(frozen=True)
class Pathology:
    """What a pathology does to the heart at scale 1: lengths in mm, fractions as shares."""

    radius: Range  # of the left ventricle's cavity at its base
    wall: Range
    ejection: Range  # fraction, left ventricle
    right_width: Range  # of the right ventricle beyond the septum
    right_ejection: Range
    bump: Range = (0.0, 0.0)  # relative change of the wall's thickness in one sector
    akinesia: float = 0.0  # share of the contraction that is lost in that sector


GROUPS = {
    "NOR": Pathology((22, 26), (7.5, 9.5), (0.55, 0.68), (26, 33), (0.48, 0.60)),
    "DCM": Pathology((29, 35), (7.0, 8.5), (0.15, 0.32), (25, 36), (0.25, 0.45)),
    "HCM": Pathology((20, 24), (11.0, 14.0), (0.66, 0.78), (24, 31), (0.50, 0.62), bump=(0.2, 0.7)),
    "MINF": Pathology((25, 30), (7.5, 9.0), (0.30, 0.44), (25, 32), (0.42, 0.58), bump=(-0.5, -0.3), akinesia=0.9),
    "RV": Pathology((20, 25), (7.5, 9.5), (0.52, 0.66), (40, 50), (0.22, 0.40)),
}
