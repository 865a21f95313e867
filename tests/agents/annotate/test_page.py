"""The page in a real browser: events of a mouse and a keyboard in, files out."""

import threading

import numpy as np
import pytest
from headless_browser import Browser, find_chromium
from PIL import Image

from seggym.agents.annotate.server import AnnotationServer
from seggym.agents.maskal.workflow import AnnotateFolder, AnnotationsPending
from seggym.cohorts.annotations.model import Annotation, Instance, Shape
from seggym.cohorts.annotations.reading import open_image_folder

TRIANGLE = np.array([(10.0, 10), (30, 10), (20, 25)])
BOX = Shape("rectangle", np.array([(2.0, 30), (12, 38)]))
FOUND = Annotation(
    "b.png", 50, 40, (Instance("raw", (Shape("polygon", TRIANGLE),), None, 0.5), Instance("raw", (BOX,)))
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on the path: install Debian's package `chromium`")
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, tmp_path):
    """The browser on the page of a query for three images, with predictions, and the folder."""
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (50, 40), (90, 120, 60)).save(tmp_path / name)
    annotator = AnnotateFolder(tmp_path, ["raw", "ripe"])
    with pytest.raises(AnnotationsPending):
        annotator.annotate(
            ["a.png", "b.png", "c.png"], {"a.png": 0.9, "b.png": 0.2, "c.png": 0.5}, lambda names: {"b.png": FOUND}
        )
    with AnnotationServer(tmp_path / "annotate") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        browser.errors.clear()
        browser.call("Page.navigate", url=server.url)
        browser.wait("document.readyState === 'complete' && current === 'b.png' && at('shapes').children.length === 2")
        yield browser, tmp_path
        browser.run("saved = JSON.stringify(content.shapes)")  # else the browser asks before it leaves
        browser.call("Page.navigate", url="about:blank")
        server.shutdown()
    assert browser.errors == []


def window(browser, x, y):
    """Where the point (x, y) of the image is in the window."""
    point = browser.run(
        f"(p => [p.x, p.y])(new DOMPoint({x}, {y}).matrixTransform(document.getElementById('view').getScreenCTM()))"
    )
    return tuple(point)


def save(browser, name):
    browser.click(*browser.run("(r => [r.x + r.width / 2, r.y + r.height / 2])(at('save').getBoundingClientRect())"))
    browser.wait(f"at('message').textContent === 'saved {name}'")


def read(root, name="b.png"):
    return open_image_folder(root / "annotate").annotation(name).instances


def test_images_come_in_the_order_of_uncertainty(page):
    browser, _ = page
    assert browser.run("[...at('list').children].map(e => e.dataset.name)") == ["b.png", "c.png", "a.png"]
    assert browser.run("[...at('list').children].map(e => e.classList[0])") == ["predicted", "open", "open"]
    assert browser.run("at('picture').getBoundingClientRect().width") > 100
    # The picture arrives, although the page may load nothing from anywhere else.
    shown = browser.run(
        "fetch(at('picture').getAttribute('href')).then(a => a.blob()).then(createImageBitmap)"
        ".then(b => [b.width, b.height])"
    )
    assert shown == [50, 40]


def test_a_polygon_is_moved_saved_and_read_again(page):
    browser, root = page
    browser.drag(window(browser, 20, 15), window(browser, 25, 18))
    save(browser, "b.png")
    moved = read(root)[0]
    np.testing.assert_allclose(moved.shapes[0].points, TRIANGLE + np.array([5, 3]), atol=0.15)
    assert (moved.label, moved.score) == ("raw", 0.5)
    assert read(root)[1] == FOUND.instances[1]
    assert browser.run("[...at('list').children].map(e => e.classList[0])")[0] == "saved"


def test_corners_are_moved_added_and_removed(page):
    browser, root = page
    browser.click(*window(browser, 20, 15))  # selects
    browser.drag(window(browser, 30, 10), window(browser, 40, 6))
    browser.click(*window(browser, 25, 8), count=2)  # on the edge from (10, 10) to (40, 6)
    browser.wait("content.shapes[0].points.length === 4")
    browser.click(*window(browser, 20, 25), button="right")
    browser.wait("content.shapes[0].points.length === 3")
    save(browser, "b.png")
    np.testing.assert_allclose(read(root)[0].shapes[0].points, [(10, 10), (25, 8), (40, 6)], atol=0.15)


def test_a_polygon_is_drawn_labelled_and_another_deleted(page):
    browser, root = page
    browser.key("d")
    corners = [(32, 25), (46, 25), (46, 36), (33, 37)]
    for corner in corners:
        browser.click(*window(browser, *corner))
    browser.key("Enter")
    browser.wait("content.shapes.length === 3 && selected === 2")
    browser.run("at('label').focus(), at('label').select()")
    browser.call("Input.insertText", text="ripe")
    browser.run("at('group').focus()")
    browser.call("Input.insertText", text="4")
    browser.click(*window(browser, 7, 34))  # the rectangle
    browser.wait("selected === 1")
    browser.key("Delete")
    save(browser, "b.png")
    first, second = read(root)
    assert first == FOUND.instances[0]
    assert (second.label, second.group) == ("ripe", 4)
    np.testing.assert_allclose(second.shapes[0].points, corners, atol=0.15)


def test_a_rectangle_stays_one_and_undo_takes_back(page):
    browser, root = page
    browser.drag(window(browser, 7, 34), window(browser, 17, 32))
    browser.run("undo()")
    browser.drag(window(browser, 7, 34), window(browser, 12, 30))
    save(browser, "b.png")
    shape = read(root)[1].shapes[0]
    assert shape.kind == "rectangle"
    np.testing.assert_allclose(shape.points, BOX.points + np.array([5, -4]), atol=0.15)


def test_the_whole_query_is_done_on_the_page_alone(page):
    browser, root = page
    for name in ("b.png", "c.png", "a.png"):
        browser.wait(f"current === '{name}'")
        browser.run("at('view').focus()")
        browser.key("n")
    browser.wait("at('message').textContent === 'all images are saved'")
    found = AnnotateFolder(root, ["raw", "ripe"]).annotate(["a.png", "b.png", "c.png"])
    assert found["b.png"] == FOUND
    assert found["a.png"].instances == ()


def test_what_the_server_refuses_is_said(page):
    browser, root = page
    browser.run("content.shapes[0].points = [[1, 1]], at('save').click()")
    browser.wait("at('message').className === 'fault'")
    assert "a polygon of 1 points" in browser.run("at('message').textContent")
    assert read(root) == FOUND.instances
    browser.errors.clear()  # the browser logs the refusal
