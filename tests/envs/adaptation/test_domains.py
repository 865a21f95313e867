"""Source and target domains: who is in them, on which grid, and whose labels are looked at."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from seggym.cohorts import camus
from seggym.cohorts.cohort import Cohort, Volume, open_cohort
from seggym.cohorts.shifts import Shift
from seggym.envs.adaptation import domains
from seggym.envs.adaptation.domains import DomainPair, deal_patients, open_domains, target_train_labels
from seggym.envs.adaptation.settings import ROLES, AdaptationSettings, DomainSettings
from seggym.errors import SeggymError
from seggym.reward_models.labelled_slices import prepared

SHIFT = {"kinds": ["gain", "gamma"], "severity": 4, "seed": 1}
ECHO: dict[str, Any] = {"cohort": "echo", "cohort_options": {"patients": 12, "size": 48}, "size": 32}


def of_role(pair: DomainPair, role: str) -> domains.Domain:
    return getattr(pair, role)


def test_nobody_is_in_two_roles_and_everybody_in_one() -> None:
    pair = open_domains(DomainSettings(**ECHO, shift=SHIFT))
    owners = [set(of_role(pair, role).patients) for role in ROLES]
    assert all(owners)
    assert sum(len(part) for part in owners) == len(set.union(*owners)) == 12
    for role in ROLES:
        domain = of_role(pair, role)
        assert domain.images.shape == (len(domain), 1, 32, 32)
        assert len(set(domain.names)) == len(domain) == 4 * len(set(domain.patients))
        assert 0 <= float(domain.images.min()) < float(domain.images.max()) <= 1
        assert {role: set(owner) for role, owner in deal_patients(DomainSettings(**ECHO)).items()}[role] == set(
            domain.patients
        )
    assert pair.class_names[0] == "background"
    assert pair.rules.class_names == pair.class_names


def test_shares_are_those_of_the_fractions() -> None:
    dealt = deal_patients(
        DomainSettings(**{**ECHO, "cohort_options": {"patients": 40, "size": 32}}, fractions=[0.4, 0.1, 0.3, 0.1, 0.1])
    )
    assert [len(dealt[role]) for role in ROLES] == [16, 4, 12, 4, 4]
    other = deal_patients(DomainSettings(**{**ECHO, "cohort_options": {"patients": 40, "size": 32}}, domain_seed=1))
    assert dealt["source_train"] != other["source_train"]


def test_patients_that_a_cohort_sets_apart_are_the_targets(tmp_path: Any) -> None:
    root = camus.write_example(tmp_path, patients=8)
    split = root / "split.csv"
    names = sorted(open_cohort("camus", root).groups)
    roles = ["test", "test", "val", *["train"] * 5]
    split.write_text("id,split\n" + "".join(f"{name},{role}\n" for name, role in zip(names, roles, strict=True)))
    settings = DomainSettings("camus", str(root), cohort_options={"split": str(split)}, size=32)
    dealt = deal_patients(settings)
    assert dealt["target_test"] == tuple(names[:2])
    assert dealt["target_val"] == tuple(names[2:3])
    assert sorted(name for role in ROLES[:3] for name in dealt[role]) == names[3:]
    assert len(dealt["source_train"]) == len(dealt["target_train"]) == 2


def test_who_is_in_two_cohorts_is_one_person() -> None:
    settings = DomainSettings(
        **ECHO, target_cohort="echo", target_options={"patients": 16, "size": 64}, fractions=[0.7, 0.3, 0.4, 0.3, 0.3]
    )
    pair = open_domains(settings)
    dealt = [set(of_role(pair, role).patients) for role in ROLES]
    assert sum(len(part) for part in dealt) == len(set.union(*dealt)) == 16
    assert pair.target_test.spacing[0].tolist() == [5.0, 5.0]


def test_views_by_frame() -> None:
    pair = open_domains(DomainSettings(**ECHO, source_frames=["2CH"], target_frames=["4CH"]))
    for role in ROLES:
        view = "2CH" if role.startswith("source") else "4CH"
        volumes = of_role(pair, role).volumes
        assert all(f"_{view}_" in volume for volume in volumes)
        assert len(volumes) == 2 * len(set(of_role(pair, role).patients))
    phase = open_domains(DomainSettings(**ECHO, source_frames=["ED"]))
    assert all(volume.endswith("_ED") for volume in phase.source_train.volumes)
    with pytest.raises(SeggymError, match="no images of frames 3CH"):
        open_domains(DomainSettings(**ECHO, source_frames=["3CH"]))


def test_images_and_labels_are_those_of_the_other_families_and_the_target_is_shifted() -> None:
    plain, pair = (open_domains(DomainSettings(**ECHO, shift=shift)) for shift in (None, SHIFT))
    cohort = open_cohort("echo", **ECHO["cohort_options"])
    shift = Shift(**SHIFT)  # type: ignore[arg-type]
    for role in ROLES:
        domain, before = of_role(pair, role), of_role(plain, role)
        expected = prepared(cohort, before.patients, 32, None)
        assert before.names == expected.names
        assert torch.equal(before.images, expected.images)
        if role != "target_train":
            assert torch.equal(domain.labels, expected.masks)
        else:
            assert domain.masks is None
            assert torch.equal(target_train_labels(DomainSettings(**ECHO, shift=SHIFT)), expected.masks)
        if role.startswith("source"):
            assert torch.equal(domain.images, before.images)
        else:
            shifted = shift.apply(before.images[1, 0].numpy(), before.names[1])
            np.testing.assert_array_equal(domain.images[1, 0].numpy(), shifted)
            assert not torch.equal(domain.images, before.images)


def test_the_pixel_in_mm() -> None:
    whole = open_domains(DomainSettings(**ECHO)).source_val
    # 160 mm on 32 pixels.
    assert whole.spacing.tolist() == [[5.0, 5.0]] * len(whole)
    given = open_domains(DomainSettings(**{**ECHO, "size": 48, "spacing": 2.5})).source_val
    assert given.spacing.tolist() == [[2.5, 2.5]] * len(given)


def test_classes_that_are_left_out_become_background() -> None:
    settings = DomainSettings(**ECHO)
    full = open_domains(settings)
    pair = open_domains(dataclasses.replace(settings, classes=["myocardium", "left ventricle"]))
    assert pair.class_names == ("background", "myocardium", "left ventricle")
    expected = np.array([0, 2, 1, 0])[full.source_val.labels.numpy()]
    np.testing.assert_array_equal(pair.source_val.labels.numpy(), expected)
    assert pair.rules.class_names == pair.class_names
    with pytest.raises(SeggymError, match=r"classes names liver.*left ventricle"):
        open_domains(dataclasses.replace(settings, classes=["liver"]))


class Poisoned(Volume):
    """A volume whose label must not be touched."""

    label = property(lambda self: pytest.fail(f"the label of {self.name} was read"))  # type: ignore[assignment]

    def __init__(self, volume: Volume) -> None:
        for name in ("patient", "frame", "image", "spacing", "scribble", "kspace"):
            object.__setattr__(self, name, getattr(volume, name))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], None]:
    """Make the labels of patients fatal to whoever looks at them; nothing comes from a cache."""

    def install(patients: set[str]) -> None:
        def opened(*args: Any, **kwargs: Any) -> Cohort:
            cohort = open_cohort(*args, **kwargs)

            def read(patient: str) -> Iterator[Volume]:
                for volume in cohort.read(patient):
                    yield Poisoned(volume) if patient in patients else volume

            return dataclasses.replace(cohort, read=read, fingerprint="")

        monkeypatch.setattr(domains, "open_cohort", opened)

    return install


def test_labels_of_the_targets_training_part_are_never_looked_at(poison: Callable[[set[str]], None]) -> None:
    settings = DomainSettings(**ECHO, shift=SHIFT)
    honest = open_domains(settings)
    poison(set(honest.target_train.patients))
    poisoned = open_domains(settings)
    for role in ROLES:
        before, after = of_role(honest, role), of_role(poisoned, role)
        assert torch.equal(before.images, after.images)
        assert before.names == after.names
        assert (before.masks is None) == (after.masks is None) == (role == "target_train")
    with pytest.raises(SeggymError, match="not known here"):
        _ = poisoned.target_train.labels
    # The poison works: who asks for the labels meets it.
    with pytest.raises(pytest.fail.Exception, match="was read"):
        target_train_labels(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fractions": [0.5, 0.5]}, "five numbers"),
        ({"fractions": [1, 0, 0, 0, 0]}, "leave nobody for source_val, target_train"),
        ({"size": 30}, "multiple of 16"),
        ({"spacing": -1.0}, "positive number of mm"),
        ({"target_root": "x"}, "without target_cohort"),
        ({"source_frames": []}, "source_frames"),
        ({"shift": {"kinds": ["rain"]}}, "rain.*gain"),
        ({"target_cohort": "camus", "target_root": "/nowhere"}, "no camus data"),
        ({"cohort": 3}, "cohort=3 is a int"),
    ],
)
def test_bad_settings_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SeggymError, match=message) as caught:
        open_domains(DomainSettings(**{**ECHO, **changes}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "train"}, "role='train'.*target_test"),
        ({"reward": "entropy"}, "reward='entropy'.*learned"),
        ({"reward": "learned"}, "needs the folder"),
        ({"reward_model": "x"}, "take none"),
    ],
)
def test_bad_settings_of_the_environment(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SeggymError, match=message):
        AdaptationSettings(**{**ECHO, **changes})
