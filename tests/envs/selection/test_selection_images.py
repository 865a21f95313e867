"""The classification environment: class folders, drawn images, accuracy and F1."""

import gymnasium
import numpy as np
import pytest
import torch

from seggym.envs.selection.images import INITIAL, POOL, TEST, draw_images, read_images, write_example
from seggym.errors import SeggymError

NAME = "ALSelect-Classification-v0"
FAST = {"learner_options": {"iterations": 3}, "budget": 3, "candidates": 5}


@pytest.fixture
def folder(tmp_path):
    return write_example(tmp_path)


def test_folders_say_class_and_part(folder):
    found = read_images(folder, 32)
    assert found.class_names == ("disc", "square", "triangle")
    assert found.images.shape == (60, 3, 32, 32)
    assert found.parts.count("initial") == 12
    for name, label, part in zip(found.names, found.labels.tolist(), found.parts, strict=True):
        top, kind, _ = name.split("/")
        assert found.class_names[label] == kind
        assert top == {"initial": INITIAL, "pool": POOL}[part]


def test_an_episode_begins_with_the_initial_images(folder):
    env = gymnasium.make(NAME, data_root=str(folder), **FAST)
    _, info = env.reset(seed=0)
    assert info["annotated"] == 12
    view = env.unwrapped.view()
    assert all(view.samples.names[index].startswith(INITIAL) for index in view.labelled)
    assert all(view.samples.names[index].startswith(POOL) for index in view.candidates)
    # Another metric of the same predictions.
    other = gymnasium.make(NAME, data_root=str(folder), metric="f1", **FAST)
    _, scored = other.reset(options={"episodes": [{"budget": 3, "key": int(info["key"])}]})
    np.testing.assert_allclose(np.nanmean(info["dice"]), scored["quality"], rtol=1e-6)


def test_accuracy_and_f1_by_hand(folder):
    env = gymnasium.make(NAME, data_root=str(folder), **FAST).unwrapped
    _, info = env.reset(seed=1)
    part = env.engine.learner._scored["reward"]
    predicted = env.engine.learner.predict(torch.tensor([0]), part.slices[None])[0].flatten(1).argmax(1)
    assert float(info["quality"]) == pytest.approx(float((predicted == part.labels).float().mean()))
    for label in range(3):
        both = int(((predicted == label) & (part.labels == label)).sum())
        either = int((predicted == label).sum() + (part.labels == label).sum())
        assert info["dice"][label] == pytest.approx(2 * both / either)


def test_images_set_apart_are_the_test_role(folder):
    kind = next((folder / POOL).iterdir())
    (folder / TEST / kind.name).mkdir(parents=True)
    for path in sorted(kind.iterdir())[:3]:
        path.rename(folder / TEST / kind.name / path.name)
    env = gymnasium.make(NAME, data_root=str(folder), scored=["reward", "test"], **FAST).unwrapped
    env.reset(seed=0)
    assert len(env.engine.learner._scored["test"].slices) == 3
    assert not any(name.startswith(TEST) for name in env.engine.pool.table.names)


def test_drawn_images_follow_from_the_seed():
    one, other = draw_images(32, 20, seed=3), draw_images(32, 20, seed=3)
    assert torch.equal(one.images, other.images)
    assert not torch.equal(one.images, draw_images(32, 20, seed=4).images)


def test_bad_folders_are_sentences(folder, tmp_path):
    with pytest.raises(SeggymError, match=f"has no folder {INITIAL}"):
        read_images(tmp_path / "nowhere", 32)
    first, second = sorted((folder / POOL / "disc").iterdir())[:2]
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(SeggymError, match="is the same image as"):
        read_images(folder, 32)
    second.write_bytes(content[:40])
    with pytest.raises(SeggymError, match="is not a readable image"):
        read_images(folder, 32)
    second.unlink()
    first.rename(folder / POOL / first.name)
    with pytest.raises(SeggymError, match="outside any class folder"):
        read_images(folder, 32)
    with pytest.raises(SeggymError, match="cohort_options has size"):
        gymnasium.make(NAME, cohort_options={"size": 3})
    with pytest.raises(SeggymError, match=r"unit='volume' is for segmentation"):
        gymnasium.make(NAME, unit="volume")
