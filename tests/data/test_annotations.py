"""What labelling tools write, as masks: shapes of labelme and COCO, one file for each part."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from slime_bench.data.annotations import read_annotation
from slime_bench.data.class_files import ClassSpec
from slime_bench.data.layouts import Pair, find_pairs, parts_of
from slime_bench.data.mask_files import Mask
from slime_bench.data.masks import resolve
from slime_bench.errors import DataError, LabelError

NAMES = ("body", "light", "wheel")
SIZE = (40, 60)  # height, width
Array = NDArray[Any]

label_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=st.integers(0, len(NAMES))
)
same_folder = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(folder: Path, size: tuple[int, ...] = SIZE, name: str = "car.png") -> Path:
    path = folder / name
    Image.new("RGB", (size[1], size[0]), (9, 9, 9)).save(path)
    return path


def png64(region: Array) -> str:
    file = io.BytesIO()
    Image.fromarray(region.astype(np.uint8)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def shape(label: str, points: Any, kind: str | None = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def labelme(folder: Path, *shapes: dict[str, Any], size: Any = SIZE, **more: Any) -> Pair:
    content = {"version": "5.4.1", "shapes": shapes, "imagePath": "..\\car.png", "imageData": None} | more
    content |= {"imageHeight": size[0], "imageWidth": size[1]}
    (folder / "car.json").write_text(json.dumps(content))
    return Pair("car", picture(folder), folder / "car.json")


def coco_file(folder: Path, *objects: tuple[str, Any], size: Any = SIZE, crowd: tuple[int, ...] = ()) -> Pair:
    """`objects`: name and `segmentation`; an object of None has a bounding box only."""
    content = {
        "images": [{"id": 7, "file_name": "photos/car.png", "height": size[0], "width": size[1], "license": 1}],
        "categories": [{"id": 0, "name": "my project"}, *({"id": i, "name": name} for i, name in enumerate(NAMES, 1))],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1 + NAMES.index(name), "bbox": [1, 1, 4, 4], "area": 16}
            | ({} if outline is None else {"segmentation": outline})
            | {"iscrowd": int(i in crowd)}
            for i, (name, outline) in enumerate(objects)
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return Pair("car", picture(folder, size), path)


def by_name(mask: Mask) -> Array:
    """The label map with the values of NAMES."""
    table = {0: 0, 255: 255} | {value: 1 + NAMES.index(name) for value, name in mask.names.items()}
    return np.vectorize(table.get, otypes=[np.int64])(mask.values)


def rle(region: Array, compressed: bool) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(region.astype(np.uint8)))
    if compressed:
        return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    flat = region.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(region.shape), "counts": [0, *counts] if flat[0] else counts}


class TestRoundTrips:
    """A label map, written as a tool writes it, comes back."""

    @given(label_maps, st.booleans())
    @same_folder
    def test_coco_run_lengths(self, tmp_path: Path, label: Array, compressed: bool) -> None:
        regions = [(name, rle(label == value, compressed)) for value, name in enumerate(NAMES, 1)]
        mask = read_annotation(coco_file(tmp_path, *regions, size=label.shape))
        assert (by_name(mask) == label).all() and [*mask.names.values()] == list(NAMES) and not mask.notes

    @given(label_maps)
    @same_folder
    def test_masks_of_labelme(self, tmp_path: Path, label: Array) -> None:
        shapes = []
        for value, name in enumerate(NAMES, 1):
            rows, columns = np.nonzero(label == value)
            if rows.size:
                (top, bottom), (left, right) = (rows.min(), rows.max()), (columns.min(), columns.max())
                cut = png64((label == value)[top : bottom + 1, left : right + 1])
                shapes.append(shape(name, [[int(left), int(top)], [int(right), int(bottom)]], "mask", mask=cut))
        pair = labelme(tmp_path, *shapes, size=label.shape)
        picture(tmp_path, label.shape)
        assert (by_name(read_annotation(pair)) == label).all()

    @given(label_maps, st.sampled_from(["0/255", "0/1", "palette", "1 bit", "16 bit", "alpha", "black alpha", "npy"]))
    @same_folder
    def test_a_file_for_each_part(self, tmp_path: Path, label: Array, form: str) -> None:
        image = picture(tmp_path, label.shape)
        paths = []
        for value, name in enumerate(NAMES, 1):
            path = tmp_path / f"car.{name}.{'npy' if form == 'npy' else 'png'}"
            region = label == value
            if form == "npy":
                np.save(path, region.astype(np.uint8) * 255)
            elif form.endswith("alpha"):
                black = form == "black alpha"
                assume(not (black and region.all()))  # nothing would say that it is painted
                layers = np.dstack([np.full((*label.shape, 3), 0 if black else 200), region * 255])
                Image.fromarray(layers.astype(np.uint8)).save(path)
            elif form == "palette":
                paletted = Image.fromarray(region.astype(np.uint8)).convert("P")
                paletted.putpalette([0, 0, 0, 250, 10, 20])
                paletted.save(path)
            elif form == "16 bit":
                Image.fromarray(region.astype(np.uint16) * 65535).save(path)
            else:
                Image.fromarray(region if form == "1 bit" else region.astype(np.uint8) * int(form[2:])).save(path)
            paths.append(path)
        parts = parts_of(paths, image)
        mask = read_annotation(Pair("car", image, paths[0], parts))
        assert (by_name(mask) == label).all() and [*mask.names.values()] == list(NAMES)
        assert all("nothing is painted" in note for note in mask.notes)


def polygon(form: str, folder: Path, corners: Array) -> Array:
    """The pixels of a polygon, as the tool's file is read."""
    if form == "labelme":
        pair = labelme(folder, shape("body", corners.tolist()))
    else:
        pair = coco_file(folder, ("body", [corners.ravel().tolist()]))
    return read_annotation(pair).values > 0


@pytest.mark.parametrize("form", ["labelme", "coco"])
class TestPolygons:
    @given(st.integers(0, 58), st.integers(0, 38), st.data())
    @same_folder
    def test_a_rectangle_is_its_pixels(
        self, tmp_path: Path, form: str, left: int, top: int, data: st.DataObject
    ) -> None:
        right, bottom = data.draw(st.integers(left + 1, 59)), data.draw(st.integers(top + 1, 39))
        found = polygon(form, tmp_path, np.array(box(left, top, right, bottom), float))
        inner, outer = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
        inner[top + 1 : bottom - 1, left + 1 : right - 1] = True
        outer[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        assert found[inner].all() and not found[~outer].any()

    @given(st.lists(st.tuples(st.floats(0, 59), st.floats(0, 39)), min_size=3, max_size=9))
    @same_folder
    def test_a_star_has_its_area(self, tmp_path: Path, form: str, points: list[tuple[float, float]]) -> None:
        corners = np.array(points)
        centre = corners - corners.mean(axis=0)
        corners = corners[np.argsort(np.arctan2(centre[:, 1], centre[:, 0]))]  # around the centre, so as not to cross
        after = np.roll(corners, -1, axis=0)
        area = abs((corners[:, 0] * after[:, 1] - corners[:, 1] * after[:, 0]).sum()) / 2
        perimeter = np.hypot(*(after - corners).T).sum()
        # Only pixels whose centre lies within one of the outline may be judged otherwise than by their centre.
        assert abs(polygon(form, tmp_path, corners).sum() - area) <= 2 * perimeter + 4


def test_shapes_of_labelme(tmp_path: Path) -> None:
    pair = labelme(
        tmp_path,
        shape("body", [[50, 30], [10, 5]], "rectangle"),
        shape("wheel", [[20, 20], [20, 25]], "circle"),
        shape("light", box(2, 2, 4, 4), None),  # as old versions write polygons
        shape("_background_", [[40, 28], [45, 30]], "rectangle"),
        shape("__ignore__", [[0, 38], [59, 39]], "rectangle"),
        shape("axle", [[20, 20]], "point"),
        shape("body", [[0, 0], [30, 39]], "line"),
    )
    mask = read_annotation(pair)
    label = by_name(Mask(mask.path, mask.values, names={value: n for value, n in mask.names.items() if n in NAMES}))
    assert abs((label == 3).sum() - np.pi * 25) < 2 * np.pi * 5 and label[20, 20] == 3 and label[26, 20] == 1
    assert label[5, 10] == label[30, 39] == 1 and label[4, 10] == label[29, 42] == 0 and label[3, 3] == 2
    assert (label[38:] == 255).all() and "axle" in mask.names.values()
    notes = "\n".join(mask.notes)
    assert "left out, as only polygons, rectangles, circles and masks are filled: point `axle`, line `body`" in notes
    assert f"wheel over body: {(label == 3).sum()} pixels belong to wheel" in notes
    assert "_background_ over body: 18 pixels belong to _background_" in notes


def test_a_size_that_labelme_has_not_written(tmp_path: Path) -> None:
    pair = labelme(tmp_path, shape("body", box(3, 3, 9, 9)), size=(None, None))
    assert read_annotation(pair).values.shape == SIZE


def test_labelme_of_another_picture_is_said(tmp_path: Path) -> None:
    pair = labelme(tmp_path, shape("body", box(3, 3, 9, 9)), imagePath="bus.jpg")
    assert read_annotation(pair).notes == ("car.json: drawn on bus.jpg, and given with car.png",)


def test_an_object_of_coco_is_the_union_of_its_polygons(tmp_path: Path) -> None:
    """COCO knows no holes: a polygon within another, or across it, adds to it."""
    outlines = [np.ravel(box(*corners)).tolist() for corners in ((5, 5, 25, 25), (10, 10, 20, 20), (20, 20, 40, 30))]
    mask = read_annotation(coco_file(tmp_path, ("body", outlines)))
    expected = np.zeros(SIZE, bool)
    expected[5:25, 5:25] = expected[20:30, 20:40] = True
    assert ((mask.values > 0) == expected).all()


def test_crowds_and_later_objects_of_coco(tmp_path: Path) -> None:
    square = [np.ravel(box(5, 5, 15, 15)).tolist()]
    everywhere = rle(np.ones(SIZE, bool), True)
    pair = coco_file(
        tmp_path, ("body", square), ("light", everywhere), ("wheel", [np.ravel(box(5, 5, 15, 7)).tolist()]), crowd=(1,)
    )
    mask = read_annotation(pair)
    assert mask.names == {1: "body", 2: "light", 3: "wheel"}  # the project's own category has no object
    assert (mask.values[5:7, 5:15] == 3).all() and (mask.values[7:15, 5:15] == 1).all()
    assert (mask.values == 255).sum() == SIZE[0] * SIZE[1] - 100
    assert "instances.json: wheel over body: 20 pixels belong to wheel" in mask.notes


def test_some_boxes_among_outlines_are_said(tmp_path: Path) -> None:
    mask = read_annotation(coco_file(tmp_path, ("body", [np.ravel(box(5, 5, 15, 15)).tolist()]), ("light", None)))
    assert mask.notes == ("instances.json: left out, as they are bounding boxes only: light",)


@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_what_reaches_out_of_the_picture_is_cut_off(tmp_path: Path, form: str) -> None:
    found = polygon(form, tmp_path, np.array(box(50, 30, 70, 50), float))
    assert abs(found.sum() - 100) <= 21 and not found[:29].any()
    file = tmp_path / ("car.json" if form == "labelme" else "instances.json")
    assert "reaches out of the picture" in read_annotation(Pair("car", tmp_path / "car.png", file)).notes[0]


def whole(folder: Path, **more: Any) -> Pair:
    return labelme(folder, shape("body", box(3, 3, 9, 9)), **more)


def written(content: bytes) -> Callable[[Path], Pair]:
    def write(folder: Path) -> Pair:
        (folder / "car.json").write_bytes(content)
        return Pair("car", picture(folder), folder / "car.json")

    return write


def not_listed(folder: Path) -> Pair:
    pair = coco_file(folder, ("body", [[1, 1, 9, 1, 9, 9]]))
    return Pair("bus", picture(folder, name="bus.png"), pair.label)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (written(b'{"shapes": ['), "no valid JSON"),
        (written(b"[1, 2]"), "(?s)no kind.*labelme.*COCO.*CVAT"),
        (written(b'{"regions": {}}'), "(?s)no kind.*regions"),
        (written('{"shapes": []}'.encode("utf-16")), "(?s)not UTF-8.*save it as UTF-8"),
        (written(b'{"shapes": [{"label": "body"}]}'), r"(?s)shapes\.0\.points"),
        (written(b'{"images": [{"id": 1}], "annotations": [], "categories": []}'), r"images\.0\.\w+: Field required"),
        (lambda folder: whole(folder, size=(20, 30)), "(?s)another size.*30x20.*60x40"),
        (lambda folder: whole(folder, size=(60, 40)), "(?s)another size.*EXIF"),
        (lambda folder: labelme(folder, shape("body", [[1, 1], [9, 9]])), r"(?s)shape 1 \(polygon `body`\): 2"),
        (lambda folder: labelme(folder, shape("body", [[1, 1]], "circle")), "wrong number of points"),
        (lambda folder: labelme(folder, shape("body", box(1, 1, 2, 2)[:3], "rectangle")), "2 or 4"),
        (lambda folder: labelme(folder, shape("body", box(100, 1, 110, 9))), "outside the picture"),
        (lambda folder: labelme(folder, shape("body", box(0, 0, 1e9, 9))), "outside the picture"),
        (lambda folder: labelme(folder, shape("body", box(0, 0, 3, 3)[:2], "mask", mask="?")), "does not decode"),
        (lambda folder: coco_file(folder, ("body", None), ("wheel", [])), "(?s)bounding boxes.*CVAT.*COCO"),
        (lambda folder: coco_file(folder, ("body", [[1, 1, 9, 9]])), "(?s)object 1 of photos/car.png.*2"),
        (lambda folder: coco_file(folder, ("body", [[1, 1, 9, 9, 3]])), "5 numbers"),
        (lambda folder: coco_file(folder, ("body", {"size": [3, 3], "counts": [0, 9]})), "run lengths"),
        (not_listed, r"(?s)do not list this picture.*photos/car\.png.*bus\.png"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, write: Callable[[Path], Pair], words: str) -> None:
    pair = write(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        read_annotation(pair)
    assert caught.value.path == pair.label and caught.value.remedy and caught.value.expected


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    pair = whole(tmp_path)
    pair.label.write_bytes(b"\xef\xbb\xbf" + pair.label.read_bytes())
    assert read_annotation(pair).names == {1: "body"}


def part(folder: Path, name: str, array: Any, kind: str = "png") -> tuple[str, Path]:
    path = folder / f"car.{name}.{kind}"
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return name, path


class TestParts:
    def test_the_later_one_lies_above(self, tmp_path: Path) -> None:
        wheel, body = part(tmp_path, "wheel", [[0, 255, 255]]), part(tmp_path, "body", [[1, 1, 0]])
        mask = read_annotation(Pair("car", tmp_path / "car.jpg", body[1], (body, wheel)))
        assert mask.names == {1: "body", 2: "wheel"} and mask.values.tolist() == [[1, 2, 2]]
        assert mask.notes == ("car.wheel.png over car.body.png: 1 pixels belong to wheel",)
        mask = read_annotation(Pair("car", tmp_path / "car.jpg", wheel[1], (wheel, body)))
        assert mask.names == {1: "body", 2: "wheel"} and mask.values.tolist() == [[1, 1, 2]]

    def test_several_files_of_one_part(self, tmp_path: Path) -> None:
        left, right = part(tmp_path, "left", [[9, 0, 0]]), part(tmp_path, "right", [[0, 0, 9]])
        mask = read_annotation(Pair("car", tmp_path / "car.jpg", left[1], (("wheel", left[1]), ("wheel", right[1]))))
        assert mask.names == {1: "wheel"} and mask.values.tolist() == [[1, 0, 1]]

    def test_background_and_ignore(self, tmp_path: Path) -> None:
        parts = [part(tmp_path, *each) for each in (("body", [[1, 1, 1]]), ("ignore", [[0, 1, 0]]))]
        parts.append(part(tmp_path, "background", [[1, 0, 0]]))
        mask = read_annotation(Pair("car", tmp_path / "car.jpg", parts[0][1], tuple(parts)))
        assert mask.names == {1: "body"} and mask.values.tolist() == [[0, 255, 1]]

    @pytest.mark.parametrize(
        ("array", "kind", "words"),
        [
            ([[0, 90, 255]], "png", r"(?s)more than two values.*90 \(1 pixels\).*hard brush"),
            ([[[0, 0, 0], [9, 0, 0], [0, 9, 0]]], "png", "more than two values"),
            (
                [[[9, 9, 9, 0], [9, 9, 9, 128], [9, 9, 9, 255]]],
                "png",
                "(?s)than two values.*3 colours or opacities",
            ),
            ([[1, 255, 255]], "png", "which of two values"),
            ([[0, 255, 255]], "jpg", "a format that changes pixels"),
            ([[0, 255]], "png", "(?s)differ in size.*2x1.*3x1"),
        ],
    )
    def test_what_is_no_binary_mask(self, tmp_path: Path, array: Any, kind: str, words: str) -> None:
        parts = (part(tmp_path, "body", [[0, 0, 1]]), part(tmp_path, "wheel", array, kind))
        with pytest.raises(LabelError, match=words) as caught:
            read_annotation(Pair("car", tmp_path / "car.jpg", parts[0][1], parts))
        assert caught.value.path == parts[1][1]

    def test_a_file_that_is_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "car.wheel.png").write_text("no picture")
        with pytest.raises(DataError, match="do not decode"):
            read_annotation(Pair("car", tmp_path / "car.jpg", tmp_path, (("wheel", tmp_path / "car.wheel.png"),)))


def test_one_value_for_a_name_in_all_masks(tmp_path: Path) -> None:
    one = Mask(tmp_path / "a.json", np.array([[0, 1, 2]]), names={1: "body", 2: "wheel"})
    other = Mask(tmp_path / "b.json", np.array([[0, 1, 255]]), names={1: "light"})
    empty = Mask(tmp_path / "c.json", np.array([[0, 255, 0]]))
    classes, labels = resolve([one, other, empty], ClassSpec(), accept=True)
    assert [label.tolist() for label in labels] == [[[0, 1, 3]], [[0, 2, 255]], [[0, 255, 0]]]
    assert classes.names == ("background", "body", "light", "wheel")
    other_order = Mask(tmp_path / "a.json", np.array([[0, 1, 2]]), names={1: "wheel", 2: "body"})
    assert resolve([other_order] * 2, ClassSpec(), accept=True)[0].names == ("background", "wheel", "body")
    indices = Mask(tmp_path / "d.png", np.array([[0, 1, 1]]))
    with pytest.raises(LabelError, match=r"(?s)others do not.*d\.png.*body, wheel"):
        resolve([one, indices], ClassSpec(), accept=True)


class TestShared:
    """The examples of ../shared/inputs."""

    @pytest.mark.parametrize("name", ["labelme_car.json", "coco_car.json"])
    def test_json(self, shared: Path, name: str) -> None:
        inputs = shared / "inputs"
        mask = read_annotation(Pair("car", inputs / "car.png", inputs / name))
        assert mask.names == ({1: "wheel", 2: "window"} if name.startswith("labelme") else {1: "wheel"})
        assert (mask.values[91:120, 11:40] == 1).all() and not mask.notes
        assert abs((mask.values == 1).sum() - 900) <= 61

    def test_parts(self, shared: Path) -> None:
        inputs = shared / "inputs"
        masks = [inputs / "car.wheel.png", inputs / "car.body.png"]
        parts = parts_of(masks, inputs / "car.png")
        mask = read_annotation(Pair("car", inputs / "car.png", masks[0], parts))
        expected = np.array(Image.open(inputs / "mask.png"))
        assert mask.names == {1: "body", 2: "wheel"}
        for value, label in ((1, 1), (2, 4)):
            assert ((mask.values == value) == (expected == label)).all()

    @pytest.mark.parametrize(("name", "label"), [("roboflow", "_mask.png"), ("images_masks", "masks")])
    def test_folders(self, shared: Path, name: str, label: str) -> None:
        pairs = find_pairs(shared / "inputs" / name)
        assert len(pairs) == 3 and all(label in str(pair.label) for pair in pairs)
        assert all(read_annotation(pair).values.max() == 5 for pair in pairs)
