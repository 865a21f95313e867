"""Each format against files as other programs write them, and against itself."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seggym.cohorts.annotations.labelme import with_groups
from seggym.cohorts.annotations.model import Annotation, Instance, Shape, outline, rasterise, shape_mask
from seggym.cohorts.annotations.reading import open_image_folder, read_annotation
from seggym.cohorts.annotations.tracing import predicted_annotation, trace
from seggym.cohorts.annotations.writing import COCO_FILE, FORMATS, annotation_files
from seggym.errors import SeggymError

SIZE = (40, 30)
TRIANGLE = [(1.25, 2), (11.5, 3), (6, 12.75)]
EVERYTHING = Annotation(
    "a.png",
    *SIZE,
    (
        Instance("ripe", (Shape("polygon", np.array(TRIANGLE)), Shape("polygon", np.array(TRIANGLE) + 15)), group=1),
        Instance(
            "ripe", (Shape("rectangle", np.array([(30.0, 2), (25, 9)])), Shape("polygon", np.array(TRIANGLE))), group=2
        ),
        Instance("mould & <rot>, é", (Shape("rectangle", np.array([(0.1, 0.2), (3.3, 7.7)])),)),
        Instance("raw", (Shape("circle", np.array([(20.3, 15.1), (23.7, 16.2)])),), score=0.8125),
        Instance(
            "raw", (Shape("circle", np.array([(20.0, 15), (22, 15)])), Shape("polygon", np.array(TRIANGLE))), 7, 0.5
        ),
    ),
)


def write(folder, annotation, form):
    Image.new("RGB", (annotation.width, annotation.height)).save(folder / annotation.image)
    for name, content in annotation_files([annotation], ["raw", "ripe"], form).items():
        (folder / name).write_bytes(content)
    return open_image_folder(folder)


def read(folder, content, name="a.json"):
    Image.new("RGB", SIZE).save(folder / "a.png")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return open_image_folder(folder).annotation("a.png")


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_written_is_read(tmp_path, form):
    folder = write(tmp_path, EVERYTHING, form)
    assert folder.annotated() == ["a.png"]
    assert folder.annotation("a.png") == EVERYTHING
    again = {name: (tmp_path / name).read_bytes() for name in annotation_files([EVERYTHING], ["raw", "ripe"], form)}
    assert annotation_files([folder.annotation("a.png")], ["raw", "ripe"], form) == again


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_objects_survive_every_format(tmp_path_factory, data):
    coordinate = st.floats(-50, 90, allow_nan=False, width=32)
    point = st.tuples(coordinate, coordinate)
    shape = st.one_of(
        st.lists(point, min_size=3, max_size=6).map(lambda points: Shape("polygon", np.array(points))),
        st.lists(point, min_size=2, max_size=2).map(lambda points: Shape("rectangle", np.array(points))),
        st.lists(point, min_size=2, max_size=2).map(lambda points: Shape("circle", np.array(points))),
    )
    instance = st.builds(
        Instance,
        st.sampled_from(["raw", "ripe", "new"]),
        st.lists(shape, min_size=1, max_size=3).map(tuple),
        st.none() | st.integers(0, 3),
        st.none() | st.floats(0, 1),
    )
    annotation = Annotation("a.png", *SIZE, tuple(data.draw(st.lists(instance, max_size=4))))
    for form in FORMATS:
        folder = write(tmp_path_factory.mktemp(form), annotation, form)
        expected = annotation.instances if form != "labelme" else with_groups(annotation.instances)
        assert folder.annotation("a.png") == Annotation("a.png", *SIZE, expected)


def test_groups_keep_objects_apart_and_parts_together():
    triangle, box = Shape("polygon", np.array(TRIANGLE)), Shape("rectangle", np.array([(0.0, 0), (3, 3)]))
    told = with_groups(
        (Instance("a", (box, box)), Instance("a", (box,), 1), Instance("a", (triangle,), 1), Instance("b", (box,), 1))
    )
    assert [instance.group for instance in told] == [2, 1, 3, 1]


def test_labelme_as_labelme_writes_it(tmp_path):
    found = read(
        tmp_path,
        {
            "version": "4.5.6",
            "flags": {},
            "shapes": [
                {"label": "ripe", "points": TRIANGLE, "group_id": 1, "shape_type": "polygon", "flags": {}},
                {"label": "raw", "points": [[5, 5], [7, 5]], "group_id": None, "shape_type": "circle", "flags": {}},
                {"label": "ripe", "points": [[20, 1], [30, 9]], "group_id": 1, "shape_type": "rectangle", "flags": {}},
                {"label": "raw", "points": [[20, 1], [30, 1], [30, 9], [20, 9]], "shape_type": "rectangle"},
                {"label": "raw", "points": [[20, 1], [30, 4], [27, 9], [17, 6]], "shape_type": "rectangle"},
            ],
            "imagePath": "..\\other\\b.png",
            "imageData": None,
            "imageHeight": 30,
            "imageWidth": 40,
        },
    )
    assert found.image == "a.png"
    assert [(i.label, i.group, [s.kind for s in i.shapes]) for i in found.instances] == [
        ("ripe", 1, ["polygon", "rectangle"]),
        ("raw", None, ["circle"]),
        ("raw", None, ["rectangle"]),
        ("raw", None, ["polygon"]),
    ]


def test_darwin_of_both_versions(tmp_path):
    path = [{"x": x, "y": y} for x, y in TRIANGLE]
    moved = [{"x": x + 15, "y": y + 15} for x, y in TRIANGLE]
    old = {
        "dataset": "d",
        "image": {"width": 40, "height": 30, "filename": "a.png", "original_filename": "a.png", "url": "http://x/"},
        "annotations": [
            {"name": "ripe", "polygon": {"path": path}, "bounding_box": {"x": 1, "y": 2, "w": 3, "h": 4}},
            {"name": "raw", "complex_polygon": {"path": [path, moved]}},
            {"name": "good image", "tag": {}},
        ],
    }
    new = {
        "version": "2.0",
        "item": {
            "name": "a.png",
            "path": "/",
            "slots": [{"type": "image", "slot_name": "0", "width": 40, "height": 30}],
        },
        "annotations": [
            {"id": "1", "name": "ripe", "polygon": {"paths": [path]}, "slot_names": ["0"]},
            {"id": "2", "name": "raw", "polygon": {"paths": [path, moved]}, "instance_id": {"value": 4}},
            {"id": "3", "name": "raw", "bounding_box": {"x": 1, "y": 2, "w": 3, "h": 4}},
            {"id": "4", "name": "raw", "ellipse": {"center": {"x": 9, "y": 8}, "radius": {"x": 4, "y": 4}, "angle": 0}},
            {
                "id": "5",
                "name": "raw",
                "ellipse": {"center": {"x": 9, "y": 8}, "radius": {"x": 6, "y": 3}, "angle": 0.5},
            },
        ],
    }
    first = read(tmp_path, old)
    assert [(i.label, len(i.shapes)) for i in first.instances] == [("ripe", 1), ("raw", 2)]
    np.testing.assert_array_equal(first.instances[1].shapes[1].points, np.array(TRIANGLE) + 15)
    second = read(tmp_path, new)
    assert second.instances[:1] == first.instances[:1]
    assert second.instances[1].group == 4
    assert second.instances[2].shapes[0] == Shape("rectangle", np.array([(1.0, 2), (4, 6)]))
    assert second.instances[3].shapes[0] == Shape("circle", np.array([(9.0, 8), (13, 8)]))
    assert shape_mask(second.instances[4].shapes[0], 30, 40).sum() == pytest.approx(np.pi * 18, rel=0.05)


LABELME_3 = """<?xml version="1.0" encoding="UTF-8"?>
<annotation>
 <filename>a.png</filename><folder/><source><sourceImage/><sourceAnnotation>Datumaro</sourceAnnotation></source>
 <imagesize><nrows>30</nrows><ncols>40</ncols></imagesize>
 <object><name>ripe</name><deleted>0</deleted><id>0</id><parts><hasparts>2,3</hasparts><ispartof/></parts>{a}</object>
 <object><name>gone</name><deleted>1</deleted><id>1</id><parts><hasparts/><ispartof/></parts>{a}</object>
 <object><name>ripe</name><deleted>0</deleted><id>2</id><parts><hasparts/><ispartof>0</ispartof></parts>{b}</object>
 <object><name>stalk</name><deleted>0</deleted><id>3</id><parts><hasparts/><ispartof>0</ispartof></parts>{a}</object>
 <object><name>raw</name><deleted>0</deleted><id>4</id><type>bounding_box</type>{b}
 <attributes>x=1, score=0.5</attributes></object>
</annotation>"""


def xml(points):
    return "<polygon>" + "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points) + "</polygon>"


def test_labelme_3_of_cvat(tmp_path):
    box = [(20, 1), (30, 1), (30, 9), (20, 9)]
    found = read(tmp_path, LABELME_3.format(a=xml(TRIANGLE), b=xml(box)), "a.xml")
    assert [(i.label, len(i.shapes), i.score) for i in found.instances] == [
        ("ripe", 2, None),
        ("stalk", 1, None),
        ("raw", 1, 0.5),
    ]
    assert found.instances[2].shapes[0] == Shape("rectangle", np.array([(20.0, 1), (30, 9)]))


def test_cvat_for_images(tmp_path):
    Image.new("RGB", SIZE).save(tmp_path / "b.png")
    points = ";".join(f"{x},{y}" for x, y in TRIANGLE)
    found = read(
        tmp_path,
        f"""<annotations><version>1.1</version><meta/>
        <image id="0" name="sub/a.png" width="40" height="30">
          <polygon label="ripe" points="{points}" z_order="0" group_id="3"/>
          <box label="ripe" xtl="20" ytl="1" xbr="30" ybr="9" group_id="3"/>
          <ellipse label="raw" cx="9" cy="8" rx="4" ry="4"/>
          <mask label="raw" rle="1, 4, 1" left="5" top="6" width="3" height="2"/>
          <tag label="good"/>
        </image><image id="1" name="b.png" width="40" height="30"/></annotations>""",
        "annotations.xml",
    )
    assert [(i.label, i.group, len(i.shapes)) for i in found.instances] == [
        ("ripe", 3, 2),
        ("raw", None, 1),
        ("raw", None, 1),
    ]
    mask = np.zeros((30, 40), bool)
    mask[6, 6:8] = mask[7, 5:7] = True
    np.testing.assert_array_equal(rasterise(found, ["raw", "ripe"])[0][2], mask)
    assert open_image_folder(tmp_path).annotation("b.png").instances == ()


def coco(annotations):
    return {
        "images": [{"id": 5, "file_name": "train/a.png", "width": 40, "height": 30}],
        "categories": [{"id": 2, "name": "raw"}, {"id": 9, "name": "ripe"}],
        "annotations": [{"id": n, "image_id": 5, "category_id": 9, **entry} for n, entry in enumerate(annotations)],
    }


def test_coco_with_polygons_masks_and_crowds(tmp_path):
    mask = np.zeros((30, 40), bool)
    mask[3:9, 4:11] = mask[8:14, 7:20] = mask[20:23, 30:31] = True
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel().astype(int), [2]]))))
    runs = [0, *runs.tolist()] if mask[0, 0] else runs.tolist()
    entries = [
        {"segmentation": [np.ravel(TRIANGLE).tolist(), (np.ravel(TRIANGLE) + 15).tolist()], "iscrowd": 0},
        {"segmentation": {"size": [30, 40], "counts": runs}},
        {"segmentation": {"size": [30, 40], "counts": compressed(runs)}},
        {"segmentation": {"size": [30, 40], "counts": [1200]}, "iscrowd": 1},
    ]
    found = read(tmp_path, coco(entries), "all.json")
    assert [(i.label, len(i.shapes)) for i in found.instances] == [("ripe", 2)] * 3
    masks, _ = rasterise(found, ["raw", "ripe"])
    np.testing.assert_array_equal(masks[1], mask)
    np.testing.assert_array_equal(masks[2], mask)


def compressed(runs):
    """The code of pycocotools (rleToString), written down from its description."""
    text = ""
    for position, run in enumerate(runs):
        value = run - runs[position - 2] if position > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


def test_a_correction_in_another_program_wins_over_the_record(tmp_path):
    folder = write(tmp_path, EVERYTHING, "coco")
    path = folder.annotation_file("a.png")
    content = json.loads(path.read_text())
    circle = content["annotations"][3]
    assert len(circle["segmentation"][0]) == 128
    circle["segmentation"][0][0] += 3
    content["annotations"][4]["segmentation"] = [
        [round(v, 2) for v in p] for p in content["annotations"][4]["segmentation"]
    ]
    path.write_text(json.dumps(content))
    found = open_image_folder(tmp_path).annotation("a.png").instances
    assert [shape.kind for shape in found[3].shapes] == ["polygon"]
    assert found[3].shapes[0].points[0, 0] == pytest.approx(outline(EVERYTHING.instances[3].shapes[0])[0, 0] + 3)
    assert found[4] == EVERYTHING.instances[4]  # rounded by a program, not corrected


def test_masks_and_boxes_are_those_of_pycocotools(tmp_path):
    coco_masks = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    wanted, entries = [], []
    for size in (3, 5, 9, 14):
        y, x = np.mgrid[:30, :40] + 0.5
        blob = (y - generator.uniform(5, 25)) ** 2 + (x - generator.uniform(5, 35)) ** 2 < size**2
        code = coco_masks.encode(np.asfortranarray(blob.astype(np.uint8)))
        entries.append({"segmentation": {"size": code["size"], "counts": code["counts"].decode()}})
        wanted.append(blob)
    found = read(tmp_path, coco(entries), "all.json")
    np.testing.assert_array_equal(rasterise(found, ["ripe"])[0], wanted)
    written = json.loads(annotation_files([found], ["ripe"], "coco")[COCO_FILE])["annotations"]
    for entry, blob in zip(written, wanted, strict=True):
        again = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(entry["segmentation"], 30, 40))) > 0
        assert (again & blob).sum() / (again | blob).sum() > 0.8  # it has another rule for the pixels of the edge
        rows, columns = np.flatnonzero(blob.any(1)), np.flatnonzero(blob.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        np.testing.assert_allclose(entry["bbox"], box, atol=1.01)
        assert entry["area"] == pytest.approx(blob.sum(), rel=0.25)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_traced_outlines_cover_the_mask(seed):
    generator = np.random.default_rng(seed)
    mask = np.zeros((24, 30), bool)
    for _ in range(4):
        y, x, height, width = generator.integers(0, 20), generator.integers(0, 24), *generator.integers(1, 9, 2)
        mask[y : y + height, x : x + width] = True
    exact = np.zeros_like(mask)
    for shape in trace(mask, tolerance=0, min_area=0):
        exact |= shape_mask(shape, *mask.shape)
    from scipy.ndimage import binary_fill_holes

    assert (exact & ~binary_fill_holes(mask)).sum() == 0
    assert (mask & ~exact).sum() == 0


def test_predictions_become_annotations():
    masks = np.zeros((3, 30, 40), bool)
    masks[0, 2:12, 3:13] = masks[0, 2:12, 20:30] = True  # two parts
    masks[1, 15:25, 5:15] = True  # and an empty one
    found = predicted_annotation("a.png", masks, np.array([2, 1, 1]), np.array([0.9, 0.33333, 0.5]), ["raw", "ripe"])
    assert [(i.label, len(i.shapes), i.group, i.score) for i in found.instances] == [
        ("ripe", 2, 1, 0.9),
        ("raw", 1, None, 0.3333),
    ]
    again, labels = rasterise(found, ["raw", "ripe"])
    assert labels.tolist() == [2, 1]
    overlap = (again & masks[:2]).sum((1, 2)) / (again | masks[:2]).sum((1, 2))
    assert (overlap > 0.95).all()


def test_own_xml_is_what_cvat_expects(tmp_path):
    root = ElementTree.fromstring(annotation_files([EVERYTHING], [], "cvat")["a.xml"])
    assert [entry.findtext("id") for entry in root.iterfind("object")] == [str(n) for n in range(8)]
    assert [entry.findtext("parts/hasparts") for entry in root.iterfind("object")][:4] == ["1", "", "3", ""]
    assert [entry.findtext("parts/ispartof") for entry in root.iterfind("object")][:4] == ["", "0", "", "2"]
    assert root.findtext("imagesize/ncols") == "40"


def test_a_file_of_another_image_is_not_this_ones(tmp_path):
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(coco([]) | {"images": []}))
    with pytest.raises(SeggymError, match="annotates other images"):
        read_annotation(tmp_path / "a.json", "a.png", SIZE)
