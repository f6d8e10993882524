"""Masks as people draw them, and the classes that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from slime_bench.colours import palette
from slime_bench.data.class_files import ClassSpec, parse_classes, read_classes
from slime_bench.data.layouts import Pair
from slime_bench.data.mask_files import read_mask
from slime_bench.data.masks import Classes, resolve
from slime_bench.errors import ConfigError, LabelError
from slime_bench.segment.support import pair_up, read_support

RED, GREEN, BLUE = (250, 10, 20), (30, 240, 40), (50, 60, 230)
NAMES = "body,light,plate,wheel,window"
Array = NDArray[Any]


def labels_of(count: int) -> st.SearchStrategy[Array]:
    """Small label maps with at least one pixel of a foreground class."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
    return hnp.arrays(np.uint8, shapes, elements=st.integers(0, count - 1)).filter(lambda array: array.any())


def saved(folder: Path, array: Any, name: str = "mask.png", colours: Any = None) -> Path:
    """The array in a file: `.npy`, or a picture, with a palette where `colours` are given."""
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, array)
        return path
    picture = Image.fromarray(np.asarray(array, dtype=getattr(array, "dtype", np.uint8)))
    if colours is not None:
        picture.putpalette(np.asarray(colours, dtype=np.uint8).tobytes())
    picture.save(path)
    return path


def said(content: Any) -> ClassSpec:
    """What a `classes.yaml` with this content says."""
    return parse_classes(content, "classes.yaml")


def meaning(path: Path, spec: ClassSpec | None = None, accept: bool = True) -> tuple[Classes, Array]:
    """`accept`: without the questions, as small arrays need not have a background."""
    classes, (label,) = resolve([read_mask(path)], spec or ClassSpec(), accept=accept)
    return classes, label


same_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestRoundTrips:
    @given(labels_of(6), st.sampled_from(["L", "P", "npy", "npy3", "bmp", "LA"]))
    @same_folder
    def test_indices_stay_as_they_are(self, tmp_path: Path, label: Array, form: str) -> None:
        name = {"npy": "m.npy", "npy3": "m.npy", "bmp": "m.bmp"}.get(form, "m.png")
        opaque = np.stack([label, np.full_like(label, 255)], -1)
        array = {"npy": label.astype(np.int32), "npy3": label[..., None], "LA": opaque}
        path = saved(tmp_path, array.get(form, label), name, palette(6) if form == "P" else None)
        classes, found = meaning(path, said(NAMES.split(",")))
        assert classes.names == ("background", *NAMES.split(",")) and found.dtype == np.uint8
        assert (found == label).all()

    @given(
        labels_of(5),
        st.lists(st.tuples(*[st.integers(0, 255)] * 3).filter(any), min_size=4, max_size=4, unique=True),
        st.booleans(),
    )
    @same_folder
    def test_colours_named_in_a_yaml(self, tmp_path: Path, label: Array, colours: list[Any], by_palette: bool) -> None:
        table = np.array([(0, 0, 0), *colours], dtype=np.uint8)
        path = saved(tmp_path, label, colours=table) if by_palette else saved(tmp_path, table[label])
        classes, found = meaning(path, said({f"c{place}": list(colour) for place, colour in enumerate(colours)}))
        assert classes.names == ("background", "c0", "c1", "c2", "c3") and (found == label).all()

    @given(labels_of(5), st.lists(st.integers(1, 254), min_size=4, max_size=4, unique=True))
    @same_folder
    def test_gaps_are_closed_in_ascending_order(self, tmp_path: Path, label: Array, indices: list[int]) -> None:
        table = np.array([0, *sorted(indices)], dtype=np.uint8)
        classes, found = meaning(saved(tmp_path, table[label]))
        used = sorted({int(value) for value in table[label].ravel()} - {0})
        assert classes.names == ("background", *(f"class_{value}" for value in used))
        assert (np.array([0, *used])[found] == table[label]).all(), "label k stands for the k-th index"
        by_name = said({f"c{value}": value for value in indices})
        assert (meaning(saved(tmp_path, table[label]), by_name)[1] == label).all()


class TestMeaning:
    LABEL = np.array([[0, 1, 2], [3, 3, 0]], dtype=np.uint8)

    def test_255_is_ignored(self, tmp_path: Path) -> None:
        classes, label = meaning(saved(tmp_path, [[0, 1, 255]]))
        assert classes.names == ("background", "class_1") and label.tolist() == [[0, 1, 255]]
        assert ("255", "-", "(ignored)", "1", "33.3 %", "") in classes.table()

    def test_white_may_be_named(self, tmp_path: Path) -> None:
        classes, label = meaning(saved(tmp_path, [[0, 255], [255, 255]]), said({"car": 255}))
        assert classes.names == ("background", "car") and label.tolist() == [[0, 1], [1, 1]]
        (Image.fromarray(label * 255).convert("1")).save(tmp_path / "bits.png")
        assert meaning(tmp_path / "bits.png", said(["car"]))[1].tolist() == label.tolist()

    def test_background_and_ignore_may_be_any_value(self, tmp_path: Path) -> None:
        spec = said({"background": 7, "body": 0, "ignore": 2})
        assert meaning(saved(tmp_path, [[7, 0, 2]]), spec)[1].tolist() == [[0, 1, 255]]
        white = said({"background": "white", "body": "#fa0a14"})
        assert meaning(saved(tmp_path, [[(255, 255, 255), RED]]), white)[1].tolist() == [[0, 1]]

    def test_the_masks_own_colours_are_drawn(self, tmp_path: Path) -> None:
        own = [(0, 0, 0), RED, GREEN, BLUE]
        assert meaning(saved(tmp_path, self.LABEL, colours=own))[0].colours == tuple(own)
        by_colour = said({name: list(colour) for name, colour in zip("abc", own[1:], strict=True)})
        assert meaning(saved(tmp_path, np.array(own, dtype=np.uint8)[self.LABEL]), by_colour)[0].colours == tuple(own)
        usual = tuple(map(tuple, palette(4).tolist()))
        assert meaning(saved(tmp_path, self.LABEL))[0].colours == usual
        dark = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)]  # a palette that says nothing
        assert meaning(saved(tmp_path, self.LABEL, colours=dark))[0].colours == usual

    def test_several_masks_share_their_classes(self, tmp_path: Path) -> None:
        masks = [read_mask(saved(tmp_path, [[0, 3]], "a.png")), read_mask(saved(tmp_path, np.array([[7, 7]]), "b.npy"))]
        classes, labels = resolve(masks, ClassSpec(), accept=True)
        assert classes.names == ("background", "class_3", "class_7")
        assert [label.tolist() for label in labels] == [[[0, 1]], [[2, 2]]]
        assert classes.table()[2] == ("7", "2", "class_7", "2", "50.0 %", "too few to learn from")


class TestSpec:
    @pytest.mark.parametrize(
        ("text", "values", "coloured"),
        [
            ("[background, body]", {"background": 0, "body": 1}, False),
            ("body: 3\nwheel: 7\n", {"body": 3, "wheel": 7}, False),
            ("0: background\n3: body\n", {"background": 0, "body": 3}, False),
            ('body: "#ff34ff"\nwheel: [255, 255, 0]\n', {"body": 0xFF34FF, "wheel": 0xFFFF00}, True),
            ("body: red\nignore: gray\n", {"body": 0xFF0000, "ignore": 0x808080}, True),
        ],
    )
    def test_files(self, tmp_path: Path, text: str, values: dict[str, int], coloured: bool) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        assert read_classes(path) == ClassSpec(values, coloured, str(path))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("body: #ff34ff\n", "put colours in quotes"),
            ("body: 1\nbody: 2\n", "duplicate key body"),
            ("body: 1\nwheel: 1\n", "one line and one value"),
            ("body: 1\nwheel: red\n", "all classes indices"),
            ("body: [1, 2, 300]\n", "the classes cannot be read"),
            ("body: 300000\n", "the classes cannot be read"),
            ("body: ${nothing\n", "the classes cannot be read"),
            ("[on, off]", "class list cannot be"),
            ("[body, background]", "class list cannot be"),
            ("3", "a list of names"),
            ("", "a list of names"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_classes(tmp_path / "c.yaml")


SMOOTH = np.array(Image.fromarray(np.array([[(0, 0, 0), RED], [BLUE, GREEN]], np.uint8)).resize((40, 40)))
GIMP = [RED, (1, 1, 1), (2, 2, 2), (0, 0, 0)]


class TestRefused:
    @pytest.mark.parametrize(
        ("array", "colours", "spec", "words"),
        [
            (SMOOTH, None, said({"body": list(RED)}), "soft edges"),
            ([[RED, GREEN]], None, ClassSpec(), "(?s)nothing says which class each one is.*#1ef028"),
            ([[RED, GREEN]], None, said(["body", "wheel"]), "give the classes by colour"),
            ([[RED, GREEN]], None, said({"body": list(RED)}), r"#1ef028 \(1 pixels\)"),
            ([[0, 1]], None, said({"body": "red"}), "the mask holds indices"),
            (np.arange(240).reshape(12, 20), None, ClassSpec(), "239 different values"),
            ([[0, 255]], None, said(["car"]), "`name: 255`"),
            ([[0, 5]], None, said({"ignore": 5, "a": 1}), "no class"),
            ([[0, 0, 128, 255, 255, 255]], None, ClassSpec(), "50 % of the masks have the value 255"),
            ([[0, 1, 9]], None, said({"body": 1}), r"(?s)9 \(1 pixels\).*classes\.yaml"),
            ([[0, 3, 3]], GIMP, ClassSpec(), "(?s)index 0 of the palette is not black.*black is index 3"),
        ],
    )
    def test_what_is_no_mask_of_these_classes(
        self, tmp_path: Path, array: Any, colours: Any, spec: ClassSpec, words: str
    ) -> None:
        path = saved(tmp_path, np.asarray(array, np.uint8), "m.png", colours)
        with pytest.raises(LabelError, match=words) as caught:
            resolve([read_mask(path)], spec)
        assert caught.value.path == path and caught.value.remedy and caught.value.found and caught.value.expected

    def test_palettes_that_disagree(self, tmp_path: Path) -> None:
        one = read_mask(saved(tmp_path, [[0, 1]], "a.png", [(0, 0, 0), RED, GREEN]))
        other = read_mask(saved(tmp_path, [[0, 2]], "b.png", [(0, 0, 0), GREEN, BLUE]))
        resolve([one, other], ClassSpec())  # no index has two colours in use
        third = read_mask(saved(tmp_path, [[0, 1]], "c.png", [(0, 0, 0), GREEN, RED]))
        with pytest.raises(LabelError, match="palettes disagree"):
            resolve([one, third], ClassSpec())
        _, labels = resolve([one, third], said({"body": list(RED), "wheel": list(GREEN)}))
        assert [label.tolist() for label in labels] == [[[0, 1]], [[0, 2]]]


def test_pairs(tmp_path: Path) -> None:
    one, other = Path("a.jpg"), Path("b.jpg")
    assert pair_up([one], [other], None) == [Pair("a", one, other)]
    with pytest.raises(ConfigError, match="2 image"):
        pair_up([one, other], [one], None)
    with pytest.raises(ConfigError, match="twice"):
        pair_up([one], [other], tmp_path)
    Image.new("RGB", (6, 4), RED).save(tmp_path / "a.jpg")
    mask = saved(tmp_path, [[1] * 6] * 4, "a.png")
    (pair,) = pair_up([], [], tmp_path)
    assert pair == Pair("a", tmp_path / "a.jpg", mask)
    saved(tmp_path, [[1] * 4] * 6, "a.png")
    with pytest.raises(LabelError, match="differ in size"):
        read_support([pair], ClassSpec())
