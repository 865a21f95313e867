import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from seggym.agents.maskal import workflow
from seggym.agents.maskal.workflow import AnnotateFolder, AnnotationsPending, SimulatedOracle
from seggym.cohorts.annotations.model import Annotation, Instance, Shape
from seggym.cohorts.annotations.reading import open_image_folder
from seggym.cohorts.annotations.writing import FORMATS, annotation_files
from seggym.errors import SeggymError

CLASSES = ("raw", "ripe")
NAMES = ["b.png", "a.png", "c.png"]
BOX = Shape("rectangle", np.array([(1.0, 1), (9, 7)]))
CIRCLE = Shape("circle", np.array([(20.0, 15), (24, 15)]))


def annotation(name, label="ripe"):
    return Annotation(name, 40, 30, (Instance(label, (BOX, CIRCLE), 1), Instance("raw", (CIRCLE,), 2)))


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


def predict(names):
    return {name: annotation(name) for name in names}


def save(folder, annotations, form="labelme"):
    """What a program does when somebody saves."""
    for name, content in annotation_files(annotations, CLASSES, form).items():
        (folder / name).write_bytes(content)


def test_images_are_handed_out_and_the_same_command_goes_on(root):
    annotator = AnnotateFolder(root, CLASSES)
    with pytest.raises(AnnotationsPending, match=r"3 of 3 images .* \(b\.png, a\.png, c\.png\); `seggym annotate"):
        annotator.annotate(NAMES, {"a.png": 0.25, "b.png": 0.125})
    folder = root / "annotate"
    assert sorted(path.name for path in folder.iterdir()) == [".query.json", "a.png", "b.png", "c.png"]
    assert (folder / "a.png").read_bytes() == (root / "a.png").read_bytes()
    query = json.loads((folder / ".query.json").read_text())
    assert query["names"] == NAMES
    assert query["certainty"] == {"b.png": 0.125, "a.png": 0.25}
    assert query["classes"] == list(CLASSES)

    save(folder, [annotation("a.png")])
    with pytest.raises(AnnotationsPending, match="2 of 3 images"):
        annotator.annotate(NAMES)
    save(folder, [annotation("b.png"), Annotation("c.png", 40, 30)])  # an image without objects
    found = AnnotateFolder(root, CLASSES).annotate(NAMES)
    assert list(found) == NAMES
    assert found["a.png"] == annotation("a.png")
    assert found["c.png"].instances == ()
    assert not folder.exists()
    assert sorted(path.name for path in root.glob("*.json")) == ["a.json", "b.json", "c.json"]
    assert AnnotateFolder(root, CLASSES).annotate(NAMES) == found  # nothing is asked twice


@pytest.mark.parametrize("form", FORMATS)
def test_predictions_count_once_somebody_saved_them(root, form):
    asked = []

    def watched(names):
        asked.append(list(names))
        return predict(names)

    annotator = AnnotateFolder(root, CLASSES, form=form)
    for _ in range(2):  # a command that is repeated by accident trains nothing on predictions
        with pytest.raises(AnnotationsPending, match=r"3 of 3 predictions .* have not been saved by anybody"):
            annotator.annotate(NAMES, None, watched)
    assert asked == [NAMES]
    folder = root / "annotate"
    here = open_image_folder(folder)
    assert here.annotation("a.png") == annotation("a.png")
    corrected = [annotation("a.png", "raw"), annotation("b.png")]  # b is right as it is
    time.sleep(0.01)
    save(folder, [*corrected, annotation("c.png")] if form == "coco" else corrected, form)
    if form != "coco":
        with pytest.raises(AnnotationsPending, match=r"1 of 3 predictions .* \(c\.png\)"):
            annotator.annotate(NAMES, None, watched)
        (folder / "done").touch()
    found = annotator.annotate(NAMES, None, watched)
    assert found == {one.image: one for one in (annotation("b.png"), annotation("a.png", "raw"), annotation("c.png"))}
    assert not folder.exists()
    assert asked == [NAMES]


def test_what_comes_back_is_checked_all_at_once(root):
    annotator = AnnotateFolder(root, CLASSES)
    with pytest.raises(AnnotationsPending):
        annotator.annotate(NAMES)
    folder = root / "annotate"
    save(folder, [annotation("a.png", "mould"), Annotation("b.png", 41, 30), annotation("c.png")])
    with pytest.raises(AnnotationsPending) as caught:
        annotator.annotate(NAMES)
    message = str(caught.value)
    assert f"{folder / 'a.json'} has objects of class 'mould', expected one of raw, ripe" in message
    assert "b.json is for an image of 41 x 30 pixels, but b.png has 40 x 30" in message
    assert not list(root.glob("*.json"))


def test_waiting_says_what_is_missing_when_that_changes(root):
    said = []
    annotator = AnnotateFolder(root, CLASSES, wait=True, interval=0.02, say=said.append)

    def person():
        folder = root / "annotate"
        while not (folder / "c.png").exists():
            time.sleep(0.01)
        for name in NAMES:
            time.sleep(0.1)
            save(folder, [annotation(name)])

    worker = threading.Thread(target=person)
    worker.start()
    found = annotator.annotate(NAMES)
    worker.join()
    assert set(found) == set(NAMES)
    assert "3 of 3 images" in said[0]
    assert not any("the same command" in line for line in said)  # it goes on by itself
    assert len(said) == len(set(said)) <= 4


def test_a_kill_at_any_moment_loses_nothing(root, monkeypatch):
    """Every write fails once; the same command in the end gives the same."""
    expected = {name: annotation(name) for name in NAMES}
    attempts = 0
    real = {name: getattr(workflow, name) for name in ("write_atomic", "write_json", "write_together")}
    state = {"left": 0}

    def failing(function):
        def wrapped(*args):
            if state["left"] == 0:
                raise KeyboardInterrupt
            state["left"] -= 1
            return function(*args)

        return wrapped

    for name, function in real.items():
        monkeypatch.setattr(workflow, name, failing(function))
    while True:
        state["left"] = 1  # one write succeeds, the next is the end
        attempts += 1
        try:
            found = AnnotateFolder(root, CLASSES).annotate(NAMES, None, predict)
            break
        except KeyboardInterrupt:
            pass
        except AnnotationsPending as pending:
            assert "have not been saved" in str(pending)  # noqa: PT017
            (root / "annotate" / "done").touch()
        assert attempts < 20
    assert found == expected
    assert attempts > 4
    assert not (root / "annotate").exists()


def test_a_kill_while_the_folder_is_removed(root):
    annotator = AnnotateFolder(root, CLASSES)
    with pytest.raises(AnnotationsPending):
        annotator.annotate(NAMES)
    save(root, [annotation(name) for name in NAMES])  # collected, and then the end
    (root / "annotate" / "notes.txt").write_text("mine")
    annotator.annotate(NAMES)
    assert [path.name for path in (root / "annotate").iterdir()] == ["notes.txt"]


def test_folders_of_others_are_not_touched(root):
    annotator = AnnotateFolder(root, CLASSES)
    (root / "annotate").mkdir()
    (root / "annotate" / "x.png").write_bytes(b"")
    with pytest.raises(SeggymError, match=r"holds files but no \.query\.json"):
        annotator.annotate(NAMES)
    (root / "annotate" / "x.png").unlink()
    with pytest.raises(AnnotationsPending):
        annotator.annotate(["a.png"])
    with pytest.raises(SeggymError, match=r"holds another query, without b\.png, c\.png"):
        annotator.annotate(NAMES)
    with pytest.raises(SeggymError, match=r"has no image z\.png"):
        annotator.annotate(["z.png"])


def test_a_query_of_a_stranger_names_nothing_outside(root):
    (root / "annotate").mkdir()
    (root / "victim.txt").write_text("mine")
    query = {"names": ["../victim.txt"], "predictions": {}}
    (root / "annotate" / ".query.json").write_text(json.dumps(query))
    with pytest.raises(SeggymError, match="is no query of this program"):
        AnnotateFolder(root, CLASSES).annotate(["a.png"])
    (root / "annotate" / ".query.json").write_text(json.dumps({"names": [], "predictions": {"../victim.txt": {}}}))
    save(root, [annotation("a.png")])
    with pytest.raises(SeggymError, match="is no query of this program"):
        AnnotateFolder(root, CLASSES).annotate(["a.png"])
    assert (root / "victim.txt").read_text() == "mine"
    (root / "annotate" / ".query.json").unlink()
    (root / "annotate").rmdir()
    (root / "annotate").symlink_to(root)
    with pytest.raises(SeggymError, match=r"1 symbolic links \(annotate"):
        AnnotateFolder(root, CLASSES).annotate(["b.png"])


def test_files_of_cvat_and_coco_come_back_too(root):
    annotator = AnnotateFolder(root, CLASSES)
    with pytest.raises(AnnotationsPending):
        annotator.annotate(NAMES)
    folder = root / "annotate"
    save(folder, [annotation("a.png")], "cvat")
    (folder / "a.xml").rename(folder / "item_000000.xml")  # as CVAT names them; <filename> tells
    save(folder, [annotation("b.png"), annotation("c.png")], "coco")
    found = annotator.annotate(NAMES)
    assert found["a.png"].instances[0].shapes == (BOX, CIRCLE)
    assert found["b.png"] == annotation("b.png")
    assert not folder.exists()
    assert sorted(path.name for path in root.glob("*.json")) == ["a.json", "b.json", "c.json"]


def test_the_oracle_reads_what_it_is_asked_and_nothing_else(root):
    save(root, [annotation("a.png")])
    (root / "b.json").write_text("poison")
    oracle = SimulatedOracle(open_image_folder(root), CLASSES)
    assert oracle.annotate(["a.png"]) == {"a.png": annotation("a.png")}
    with pytest.raises(SeggymError, match=r"b\.json is not readable JSON"):
        oracle.annotate(["a.png", "b.png"])
    with pytest.raises(SeggymError, match=r"has no annotations of c\.png, d\.png"):
        oracle.annotate(["a.png", "c.png", "d.png"])
    with pytest.raises(SeggymError, match="class 'raw', 'ripe', expected one of mould"):
        SimulatedOracle(open_image_folder(root), ["mould"]).annotate(["a.png"])
