"""Files of strangers: whatever they ask for, the answer is one sentence, soon, and nothing outside is opened."""

import contextlib
import json
import os
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seggym.cohorts.annotations import limits
from seggym.cohorts.annotations.limits import bare_name, image_size, read_bytes, read_image
from seggym.cohorts.annotations.model import Annotation, Instance, Shape, rasterise
from seggym.cohorts.annotations.reading import open_image_folder
from seggym.cohorts.annotations.writing import annotation_files
from seggym.errors import SeggymError

TRIANGLE = [[1, 2], [11, 3], [6, 12]]


def labelme(**changes):
    shape = {"label": "ripe", "points": TRIANGLE, "group_id": None, "shape_type": "polygon"}
    shape.update({key: changes.pop(key) for key in list(changes) if key in (*shape, "score")})
    return {"shapes": [shape], "imagePath": "a.png", "imageWidth": 40, "imageHeight": 30} | changes


def coco(**changes):
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "ripe"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 11, 3, 6, 12]]} | changes],
    }


def darwin(**changes):
    return {"item": {"name": "a.png"}, "annotations": [{"name": "ripe"} | changes]}


def xml(inside, head=""):
    sides = "<imagesize><nrows>30</nrows><ncols>40</ncols></imagesize>"
    return f"{head}<annotation><filename>a.png</filename>{sides}{inside}</annotation>"


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    return tmp_path


def refused(folder, content, name="a.json"):
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SeggymError) as caught:
        open_image_folder(folder).annotation("a.png")
    message = str(caught.value)
    assert str(folder / name) in message
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "not readable JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00", "not readable JSON"),
        ("[1, 2]", "holds a list, expected a JSON object"),
        ({"hello": 1}, "is no annotation"),
        (labelme(shapes=5), "'shapes' of the file is of type int"),
        (labelme(shapes=[7]), "shape 1 is of type int"),
        (labelme(points="1,2"), "'points' of shape 1 is of type str"),
        (labelme(points=[[1, 2], [3]]), "has the point"),
        (labelme(points=[[1, 2], [3, "x"], [3, 4]]), "'x' for a number"),
        (labelme(points=[[1, 2], [3, True], [3, 4]]), "'True' for a number"),
        (labelme(points=[[1, 2], [3, 1e300], [3, 4]]), "for a number, expected one up to"),
        ('{"shapes": [{"label": "a", "points": [[NaN, 1], [2, 2], [3, 4]]}], "imagePath": "a.png"}', "'nan' for a"),
        (labelme(points=[[1, 2], [3, 10**400], [3, 4]]), "for a number"),
        (labelme(points=TRIANGLE[:2]), "a polygon of 2 points, expected at least 3"),
        (labelme(shape_type="mask"), "is a mask, expected one of polygon, rectangle, circle"),
        (labelme(shape_type={"x": 1}), "expected one of polygon"),
        (labelme(label=""), "no class name"),
        (labelme(label="a\x00b"), "no class name"),
        (labelme(label="\ud800"), "no class name"),
        (labelme(label=3), "no class name"),
        (labelme(group_id="one"), "as its group, expected a whole number"),
        (labelme(score=7), "has the score 7, expected 0 to 1"),
        (labelme(imageWidth=10**9, imageHeight=10**9), "expected whole pixels, at most"),
        (labelme(imageWidth=-40), "expected whole pixels"),
        (labelme(imageWidth=41), "annotate the image itself"),
        (labelme(points=[[0.5, 0.5]] * 20_001), "exceeds 20,000 points"),
        (coco(image_id=2), "which is not listed"),
        (coco(image_id=[1]), "has the id [1], expected a number"),
        (coco(category_id=2), "which is not listed"),
        (coco(segmentation=[]), "has no outline"),
        (coco(segmentation=[[1, 2, 3]]), "no list of x and y"),
        (coco(segmentation={"size": [9, 9], "counts": [81]}), "has a mask of size"),
        (coco(segmentation={"size": [30, 40], "counts": [10**12]}), "does not fill its mask"),
        (coco(segmentation={"size": [30, 40], "counts": [-1, 1201]}), "does not fill its mask"),
        (coco(segmentation={"size": [30, 40], "counts": "o" * 1000}), "does not fill its mask"),
        (coco(segmentation={"size": [30, 40], "counts": "\u2603"}), "does not fill its mask"),
        (coco() | {"images": 2 * coco()["images"]}, "has the id or name of another"),
        (coco() | {"images": [coco()["images"][0] | {"file_name": "../"}]}, "expected a file name"),
        (coco() | {"categories": [1]}, "something other than objects"),
        (darwin(polygon=[]), "'polygon' of annotation 1 is of type list"),
        (darwin(polygon={"paths": [[1, 2, 3]]}), "has the point 1"),
        (darwin(polygon={"paths": 5}), "no list of paths"),
        (darwin(line={}), "is a line, expected a polygon"),
        (darwin() | {"item": {"name": "a.png", "slots": [{}, {}]}}, "holds several images"),
    ],
)
def test_json_that_is_not_as_expected(folder, content, expected):
    assert expected in refused(folder, content)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.just([[1, 2]]),
    st.just({"x": 1}),
)


def mutated(data, content):
    """``content`` with one of its values replaced or removed."""
    root = holder = {"": content}
    key = ""
    while isinstance(holder[key], (dict, list)) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    if isinstance(holder, dict) and key and data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(VALUES)
    return root[""]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_changes_in_a_file_it_is_read_or_refused(tmp_path_factory, data):
    found = Annotation(
        "a.png",
        40,
        30,
        (
            Instance("ripe", 2 * (Shape("polygon", np.array(TRIANGLE)),), 1, 0.5),
            Instance("raw", (Shape("circle", np.array(TRIANGLE[:2])),), 2),
        ),
    )
    form = data.draw(st.sampled_from(["labelme", "darwin", "coco"]))
    (content,) = annotation_files([found], ["raw", "ripe"], form).values()
    folder = tmp_path_factory.mktemp("changed")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    (folder / "a.json").write_text(json.dumps(mutated(data, json.loads(content))))
    with contextlib.suppress(SeggymError):
        read = open_image_folder(folder).annotation("a.png")
        assert (read.width, read.height) == (40, 30)
        assert rasterise(read, sorted({instance.label for instance in read.instances}))[0].shape[1:] == (30, 40)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_changes_in_xml_it_is_read_or_refused(tmp_path_factory, data):
    text = xml(
        "<object><name>a</name><id>0</id><parts><hasparts>1</hasparts><ispartof/></parts><polygon><pt><x>1</x><y>2</y>"
        "</pt><pt><x>9</x><y>2</y></pt><pt><x>5</x><y>8</y></pt></polygon><attributes>score=0.5</attributes></object>"
    )
    images = (
        '<annotations><image name="a.png" width="40" height="30"><polygon label="a" points="1,2;9,2;5,8" group_id="1"/>'
        '<box label="a" xtl="1" ytl="2" xbr="5" ybr="6"/><ellipse label="a" cx="9" cy="9" rx="2" ry="3"/>'
        '<mask label="a" rle="1,2,1" left="3" top="4" width="2" height="2"/></image></annotations>'
    )
    text = data.draw(st.sampled_from([text, images]))
    values = [match.span(1) for match in re.finditer(r'>([^<>]+)<|(?<==")([^"]*)"', text) if match.group(1)]
    values += [match.span(1) for match in re.finditer(r'="([^"]*)"', text)]
    start, end = data.draw(st.sampled_from(values))
    letters = st.text(st.sampled_from("0123456789.,;-eainf x"), max_size=5)
    folder = tmp_path_factory.mktemp("changed")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    (folder / "a.xml").write_text(text[:start] + data.draw(letters) + text[end:])
    with contextlib.suppress(SeggymError):
        read = open_image_folder(folder).annotation("a.png")
        rasterise(read, sorted({instance.label for instance in read.instances}))


BOMB = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'
NAMED = "<object><name>ripe</name>{}</object>"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<annotation>", "not readable XML"),
        (xml("&c;", BOMB), "not readable XML"),
        (xml("&b;", OUTSIDE), "not readable XML"),
        ("<html></html>", "is no annotation"),
        (xml(NAMED.format("")), "has no polygon"),
        (xml(NAMED.format("<segm><mask>../../etc/passwd</mask></segm>")), "a mask in a file of its own"),
        (xml(NAMED.format("<polygon><pt><x>1</x></pt></polygon>")), "'nothing' for a number"),
        (xml(NAMED.format("<polygon><pt><x>1</x><y>inf</y></pt></polygon>")), "'inf' for a number"),
        (xml(2 * "<object><id>1</id><name>a</name><polygon>" + "</polygon></object>"), "not readable XML"),
        ("<annotations><track/></annotations>", "belongs to a video"),
        ('<annotations><image name="a.png" width="40" height="x"/></annotations>', "'x' for a number"),
        (
            '<annotations><image name="a.png" width="40" height="30"><mask label="a" left="39" top="0" width="2" '
            'height="1" rle="0,2"/></image></annotations>',
            "does not fit its box",
        ),
        (
            '<annotations><image name="a.png" width="40" height="30"><points label="a"/></image></annotations>',
            "is a points",
        ),
    ],
)
def test_xml_that_is_not_as_expected(folder, content, expected):
    assert expected in refused(folder, content, "a.xml")


def test_links_and_pipes_are_refused(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.json"
    secret.write_text(json.dumps(labelme()))
    (folder / "a.json").symlink_to(secret)
    with pytest.raises(SeggymError, match="links are not followed"):
        open_image_folder(folder)
    with pytest.raises(SeggymError, match="is a symbolic link"):
        read_bytes(folder / "a.json", 1000)
    (folder / "a.json").unlink()
    (folder / "sub").symlink_to(secret.parent)
    with pytest.raises(SeggymError, match="links are not followed"):
        open_image_folder(folder)
    (folder / "sub").unlink()
    os.mkfifo(folder / "a.json")
    with pytest.raises(SeggymError, match="is no regular file"):
        open_image_folder(folder).annotation("a.png")


def test_a_path_in_an_annotation_is_compared_and_never_opened(folder, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **kw: opened.append(Path(path)) or real(path, *rest, **kw))
    (folder / "other.json").write_text(json.dumps(labelme(imagePath="/etc/../../a.png")))
    assert open_image_folder(folder).annotation("a.png").image == "a.png"
    assert opened
    assert all(path.parent == folder for path in opened)


@pytest.mark.parametrize("name", ["", "..", "/", None, 5, "a\x00.png", "x" * 300])
def test_names_that_are_none(name):
    with pytest.raises(SeggymError, match="expected a file name"):
        bare_name(name, Path("f.json"))


def test_size_limits(folder, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TEXT_BYTES", 50)
    assert "expected a JSON file of at most 50" in refused(folder, labelme())
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(SeggymError, match="expected an image of at most 50"):
        read_image(folder / "a.png")


def png_of(width, height):
    """A PNG whose header promises more than its data hold."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png_of(60_000, 60_000), "expected at most|cannot be read"),
        (png_of(9_000, 9_000), "9000 x 9000 pixels, expected at most"),
        (png_of(50, 50), "cannot be read"),
        (b"", "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "cannot be read"),
    ],
)
def test_images_are_checked_before_they_are_decoded(tmp_path, content, expected):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SeggymError, match=expected):
        read_image(tmp_path / "a.png")


def test_images_of_every_kind_become_rgb(tmp_path):
    grey = (np.arange(1200).reshape(30, 40) % 256).astype(np.uint8)
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        name = "a.tif" if mode == "CMYK" else "a.png"
        Image.fromarray(grey).convert(mode).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (30, 40, 3)
    Image.fromarray(np.linspace(100, 900, 1200).reshape(30, 40).astype(np.uint16)).save(tmp_path / "a.png")
    deep = read_image(tmp_path / "a.png")
    assert deep.dtype == np.uint8
    assert (deep.min(), deep.max()) == (0, 255)
    pages = [Image.fromarray(grey), Image.fromarray(grey)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(SeggymError, match="holds 2 images"):
        read_image(tmp_path / "a.tif")


def test_photographs_are_turned_as_programs_show_them(tmp_path):
    picture, exif = Image.new("RGB", (40, 30)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (30, 40)
    assert read_image(tmp_path / "a.jpg").shape == (40, 30, 3)
    buffer = BytesIO()
    picture.save(buffer, "JPEG")
    (tmp_path / "b.jpg").write_bytes(buffer.getvalue())
    assert image_size(tmp_path / "b.jpg") == (40, 30)


def test_folders_in_which_it_is_not_clear_what_belongs_to_what(folder):
    (folder / "sub").mkdir()
    Image.new("RGB", (40, 30)).save(folder / "sub" / "a.png")
    with pytest.raises(SeggymError, match=r"has the name of .*a\.png: rename"):
        open_image_folder(folder)
    (folder / "sub" / "a.png").rename(folder / "a.jpg")
    (folder / "a.json").write_text(json.dumps(labelme()))
    with pytest.raises(SeggymError, match="may belong to"):
        open_image_folder(folder)
    (folder / "a.jpg").unlink()
    (folder / "all.json").write_text(json.dumps(coco(segmentation=[[1, 2, 9, 3, 6, 9]])))
    alone = open_image_folder(folder).annotation("a.png")  # its own file, not the one for all
    assert alone.instances[0].shapes[0].points.tolist() == TRIANGLE
    (folder / "a.xml").write_text(xml(""))
    with pytest.raises(SeggymError, match=r"a\.png is annotated by .*a\.json and by .*a\.xml"):
        open_image_folder(folder)
    (folder / "a.xml").unlink()
    (folder / "a.json").rename(folder / "other.json")
    with pytest.raises(SeggymError, match=r"a\.png is annotated by .*all\.json and by .*other\.json"):
        open_image_folder(folder)


def test_other_files_are_left_alone(folder):
    (folder / "notes.json").write_text('{"anything": 1}')
    (folder / "readme.txt").write_text("x")
    (folder / "annotate").mkdir()
    Image.new("RGB", (4, 3)).save(folder / "annotate" / "b.png")
    found = open_image_folder(folder)
    assert found.names == ["a.png"]
    assert found.annotated() == []
    assert found.annotation("a.png") is None
    with pytest.raises(SeggymError, match="there is no folder"):
        open_image_folder(folder / "none")
