import hashlib
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from seggym.cohorts.annotations.labelme import parse_labelme
from seggym.cohorts.annotations.model import rasterise
from seggym.cohorts.instance_phantoms import BALANCED, CLASSES, IMBALANCED, draw_instances, write_instances
from seggym.errors import SeggymError


@pytest.fixture(scope="module")
def drawn():
    return [draw_instances(number) for number in range(60)]


def test_the_settings_are_frozen():
    text = json.dumps([asdict(IMBALANCED), asdict(BALANCED)], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ca0b3dfb77680a91"


def test_the_drawing_is_frozen(drawn):
    # Rounded: the last digit of a transcendental function is the processor's.
    labels = [[instance.label for instance in annotation.instances] for _, annotation in drawn[:6]]
    assert labels == [
        ["dividing", "cell", "cell", "dividing", "cell", "cell", "cell"],
        ["healthy"],
        ["bruised", "healthy", "rotten", "healthy", "rotten", "healthy", "healthy"],
        ["bruised", "bruised", "rotten"],
        ["cell", "dividing"],
        ["cell"],
    ]
    means = [float(pixels.mean()) for pixels, _ in drawn[:6]]
    np.testing.assert_allclose(means, [186.16, 78.16, 74.86, 82.17, 212.38, 192.68], atol=0.5)


def test_an_image_is_a_function_of_its_number_and_seed(drawn):
    pixels, annotation = draw_instances(7)
    np.testing.assert_array_equal(pixels, drawn[7][0])
    assert annotation == drawn[7][1]
    assert not np.array_equal(draw_instances(7, seed=1)[0], pixels)


def test_images_have_both_scenes_rare_classes_and_empty_and_crowded_ones(drawn):
    counts = Counter(instance.label for _, annotation in drawn for instance in annotation.instances)
    assert set(counts) == set(CLASSES)
    assert counts["rotten"] < 0.1 * sum(counts.values())
    objects = [len(annotation.instances) for _, annotation in drawn]
    assert min(objects) == 0
    assert max(objects) >= 6
    parts = [instance for _, annotation in drawn for instance in annotation.instances if len(instance.shapes) > 1]
    assert parts
    assert all(instance.group is not None for instance in parts)


def test_outlines_fit_what_is_drawn(drawn):
    """Inside an outline the colours differ from those just outside it, for nearly every object that stands alone."""
    apart = []
    for pixels, annotation in drawn:
        masks, labels = rasterise(annotation, CLASSES)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (64, 64, 3)
        assert all(mask.sum() >= 20 for mask in masks)
        assert labels.size == 0 or labels.max() <= len(CLASSES)
        if len(masks) == 1 and masks[0].sum() < 1000:
            ground, inside = pixels[~masks[0]].mean(0), pixels[masks[0]].mean(0)
            apart.append(np.abs(ground - inside).max())
    assert len(apart) >= 5
    assert np.median(apart) > 25


def test_only_cells_overlap(drawn):
    for _, annotation in drawn:
        masks, labels = rasterise(annotation, CLASSES)
        if labels.size and labels.min() > 2:  # produce
            # Each outline is simplified by itself, so neighbours may share a pixel here and there.
            assert (masks.sum(0) > 1).sum() <= 0.04 * masks.any(0).sum() + 2


def test_the_balanced_control_has_even_classes_and_constant_counts():
    annotations = [draw_instances(number, settings=BALANCED)[1] for number in range(80)]
    objects = [len(annotation.instances) for annotation in annotations]
    assert np.mean(np.array(objects) == 4) > 0.75
    assert min(objects) >= 2
    for scene in (("cell", "dividing"), ("healthy", "bruised", "rotten")):
        found = [i.label for annotation in annotations for i in annotation.instances if i.label in scene]
        shares = [found.count(label) / len(found) for label in scene]
        assert max(shares) - min(shares) < 0.16


def test_the_side_of_an_image_may_be_chosen():
    from dataclasses import replace

    pixels, annotation = draw_instances(3, settings=replace(IMBALANCED, size=96))
    small = draw_instances(3)[1]
    assert pixels.shape == (96, 96, 3)
    assert (annotation.width, annotation.height) == (96, 96)
    # The same objects are placed; only textures are drawn on another grid.
    assert [i.label for i in annotation.instances] == [i.label for i in small.instances]
    areas = [rasterise(found, CLASSES)[0].sum((1, 2)) / found.width**2 for found in (annotation, small)]
    np.testing.assert_allclose(*areas, rtol=0.15)


def test_a_written_set_is_left_alone_finished_or_refused(tmp_path):
    root = write_instances(tmp_path / "train", 4, first=10)
    names = sorted(path.name for path in root.iterdir())
    assert names[:2] == ["image_00010.json", "image_00010.png"]
    assert len(names) == 9
    pixels, annotation = draw_instances(12)
    with Image.open(root / "image_00012.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    path = root / "image_00012.json"
    assert parse_labelme(json.loads(path.read_text()), path) == annotation

    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    write_instances(root, 4, first=10)
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before
    with pytest.raises(SeggymError, match="other generated images"):
        write_instances(root, 5, first=10)

    manifest = root / "instances.json"
    manifest.write_text(manifest.read_text().replace("true", "false"))  # as a kill leaves it
    path.unlink()
    write_instances(root, 4, first=10)
    assert path.is_file()


def test_other_files_are_not_written_among(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"")
    with pytest.raises(SeggymError, match="not generated"):
        write_instances(tmp_path, 2)
