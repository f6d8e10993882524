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

from slime_bench.data.label_maps import palette
from slime_bench.errors import ConfigError, DataError, LabelError, SlimeBenchError
from slime_bench.segment.classes import Classes, resolve
from slime_bench.segment.masks import Mask, hexadecimal, pack, read_mask, unpack
from slime_bench.segment.spec import ClassSpec, parse_classes, read_classes
from slime_bench.segment.support import pair_up, read_support

RED, GREEN, BLUE = (250, 10, 20), (30, 240, 40), (50, 60, 230)
Array = NDArray[Any]


def labels_of(count: int) -> st.SearchStrategy[Array]:
    """Small label maps with at least one pixel of a foreground class."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
    return hnp.arrays(np.uint8, shapes, elements=st.integers(0, count - 1)).filter(lambda array: array.any())


def saved(folder: Path, array: Array, name: str = "mask.png", colours: Any = None) -> Path:
    """The array in a file: `.npy`, or a picture, with a palette where `colours` are given."""
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, array)
        return path
    picture = Image.fromarray(array)
    if colours is not None:
        picture.putpalette(np.asarray(colours, dtype=np.uint8).tobytes())
    picture.save(path)
    return path


def meaning(path: Path, spec: ClassSpec | None = None) -> tuple[Classes, Array]:
    classes, (label,) = resolve([read_mask(path)], spec or ClassSpec())
    return classes, label


same_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestRoundTrips:
    @given(labels_of(6), st.sampled_from(["L", "P", "npy", "npy3", "bmp", "grey RGB"]))
    @same_folder
    def test_indices_stay_as_they_are(self, tmp_path: Path, label: Array, form: str) -> None:
        names = ("background", "body", "light", "plate", "wheel", "window")
        name = {"npy": "m.npy", "npy3": "m.npy", "bmp": "m.bmp"}.get(form, "m.png")
        array = {"npy": label.astype(np.int32), "npy3": label[..., None], "grey RGB": np.stack([label] * 3, -1)}
        path = saved(tmp_path, array.get(form, label), name, palette(6) if form == "P" else None)
        classes, found = meaning(path, ClassSpec(names=names))
        assert classes.names == names and found.dtype == np.uint8 and (found == label).all()

    @given(
        labels_of(5),
        st.lists(st.tuples(*[st.integers(0, 255)] * 3).filter(any), min_size=4, max_size=4, unique=True),
        st.booleans(),
    )
    @same_folder
    def test_colours_named_in_a_yaml(self, tmp_path: Path, label: Array, colours: list[Any], by_palette: bool) -> None:
        table = np.array([(0, 0, 0), *colours], dtype=np.uint8)
        path = saved(tmp_path, label, colours=table) if by_palette else saved(tmp_path, table[label])
        spec = parse_classes({f"c{place}": list(colour) for place, colour in enumerate(colours)}, "classes.yaml")
        classes, found = meaning(path, spec)
        assert classes.names == ("background", "c0", "c1", "c2", "c3") and (found == label).all()

    @given(labels_of(5), st.lists(st.integers(1, 254), min_size=4, max_size=4, unique=True))
    @same_folder
    def test_gaps_are_closed_in_ascending_order(self, tmp_path: Path, label: Array, indices: list[int]) -> None:
        table = np.array([0, *sorted(indices)], dtype=np.uint8)
        classes, found = meaning(saved(tmp_path, table[label]))
        used = sorted({int(value) for value in table[label].ravel()} - {0})
        assert classes.names == ("background", *(f"class_{value}" for value in used))
        assert (np.array([0, *used])[found] == table[label]).all(), "label k stands for the k-th index"
        by_name = parse_classes({f"c{value}": value for value in indices}, "classes.yaml")
        assert (meaning(saved(tmp_path, table[label]), by_name)[1] == label).all()

    @given(labels_of(5))
    @same_folder
    def test_colours_without_names_are_numbered_by_their_number(self, tmp_path: Path, label: Array) -> None:
        colours = np.array([(0, 0, 0), BLUE, GREEN, RED, (9, 9, 9)], dtype=np.uint8)
        classes, found = meaning(saved(tmp_path, colours[label]))
        used = sorted({int(value) for value in pack(colours[label]).ravel()} - {0})
        if classes.coloured:
            assert classes.names == ("background", *(f"class_{place + 1}" for place in range(len(used))))
            assert ([unpack(value) for value in [0, *used]][found.ravel()[0]]) == tuple(colours[label.ravel()[0]])
            assert (np.array([0, *used])[found] == pack(colours[label])).all()

    @given(st.integers(0, 0xFFFFFF))
    def test_packing(self, value: int) -> None:
        assert int(pack(np.array(unpack(value), dtype=np.uint8))) == value
        assert int(hexadecimal(unpack(value))[1:], 16) == value


class TestMeaning:
    LABEL = np.array([[0, 1, 2], [3, 3, 0]], dtype=np.uint8)

    def test_255_is_ignored_in_one_channel(self, tmp_path: Path) -> None:
        classes, label = meaning(saved(tmp_path, np.array([[0, 1, 255]], dtype=np.uint8)))
        assert classes.names == ("background", "class_1") and label.tolist() == [[0, 1, 255]]
        assert ("255", "-", "(ignored)", "33.3 %") in classes.table()

    @pytest.mark.parametrize("form", ["L", "1", "RGB"])
    def test_black_and_white_is_one_class(self, tmp_path: Path, form: str) -> None:
        array = np.array([[0, 255], [255, 255]], dtype=np.uint8)
        Image.fromarray(array).convert(form).save(tmp_path / "m.png")
        classes, label = meaning(tmp_path / "m.png", read_classes("car"))
        assert classes.names == ("background", "car") and label.tolist() == [[0, 1], [1, 1]]
        assert meaning(tmp_path / "m.png")[1].tolist() == label.tolist()

    def test_what_is_transparent_was_never_painted(self, tmp_path: Path) -> None:
        array = np.array([[(*RED, 255), (*GREEN, 0)]], dtype=np.uint8)
        classes, label = meaning(saved(tmp_path, array))
        assert len(classes.names) == 2 and label.tolist() == [[1, 0]]

    def test_16_bit_indices(self, tmp_path: Path) -> None:
        classes, label = meaning(saved(tmp_path, np.array([[0, 700, 40000]], dtype=np.uint16)))
        assert classes.names[1:] == ("class_700", "class_40000") and label.tolist() == [[0, 1, 2]]

    def test_names_may_cover_classes_that_the_mask_does_not_show(self, tmp_path: Path) -> None:
        spec = read_classes("background,body,light,plate,wheel")
        classes, label = meaning(saved(tmp_path, np.array([[0, 2]], dtype=np.uint8)), spec)
        assert len(classes.names) == 5 and label.tolist() == [[0, 2]]

    def test_background_and_ignore_may_be_any_value(self, tmp_path: Path) -> None:
        spec = parse_classes({"background": 7, "body": 0, "ignore": 2}, "classes.yaml")
        _, label = meaning(saved(tmp_path, np.array([[7, 0, 2]], dtype=np.uint8)), spec)
        assert label.tolist() == [[0, 1, 255]]
        white = parse_classes({"bg": "white", "body": "#fa0a14"}, "classes.yaml")
        _, label = meaning(saved(tmp_path, np.array([[(255, 255, 255), RED]], dtype=np.uint8)), white)
        assert label.tolist() == [[0, 1]]

    def test_the_masks_own_colours_are_drawn(self, tmp_path: Path) -> None:
        own = [(0, 0, 0), RED, GREEN, BLUE]
        assert meaning(saved(tmp_path, self.LABEL, colours=own))[0].colours == tuple(own)
        assert set(meaning(saved(tmp_path, np.array(own, dtype=np.uint8)[self.LABEL]))[0].colours) == set(own)
        usual = tuple(map(tuple, palette(4).tolist()))
        assert meaning(saved(tmp_path, self.LABEL))[0].colours == usual
        dark = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)]  # a palette that says nothing
        assert meaning(saved(tmp_path, self.LABEL, colours=dark))[0].colours == usual

    def test_several_masks_share_their_classes(self, tmp_path: Path) -> None:
        one = read_mask(saved(tmp_path, np.array([[0, 3]], dtype=np.uint8), "one.png"))
        other = read_mask(saved(tmp_path, np.array([[7, 7]], dtype=np.uint8), "other.npy"))
        classes, labels = resolve([one, other], ClassSpec())
        assert classes.names == ("background", "class_3", "class_7")
        assert [label.tolist() for label in labels] == [[[0, 1]], [[2, 2]]]
        assert classes.table()[2] == ("7", "2", "class_7", "50.0 %")

    def test_a_black_and_white_mask_among_colours(self, tmp_path: Path) -> None:
        white = np.full((1, 2, 3), 255, dtype=np.uint8)
        red = np.array([[RED, (0, 0, 0)]], dtype=np.uint8)
        paths = [saved(tmp_path, white, "a.png"), saved(tmp_path, red, "b.png")]
        classes, labels = resolve([read_mask(path) for path in paths], ClassSpec())
        assert [hexadecimal(colour) for colour in classes.colours[1:]] == ["#fa0a14", "#ffffff"]
        assert labels[0].tolist() == [[2, 2]]

    def test_a_palette_that_a_program_has_numbered(self, tmp_path: Path) -> None:
        """GIMP's indexed mode and GIF: the background's black has any index."""
        picture = Image.fromarray(np.array([[0, 3, 3]], dtype=np.uint8), "P")
        picture.putpalette([250, 10, 20, 1, 1, 1, 2, 2, 2, 0, 0, 0])
        picture.save(tmp_path / "m.png")
        with pytest.raises(LabelError, match="index 0 of the palette is not black") as caught:
            resolve([read_mask(tmp_path / "m.png")], ClassSpec())
        assert "black is index 3" in str(caught.value.found)

    def test_soft_edges_of_a_black_and_white_mask(self, tmp_path: Path) -> None:
        path = saved(tmp_path, np.array([[0, 0, 128, 255, 255, 255]], dtype=np.uint8), "m.png")
        with pytest.raises(LabelError, match="more of the picture is ignored"):
            resolve([read_mask(path)], ClassSpec())

    def test_a_white_canvas_is_no_part(self, tmp_path: Path) -> None:
        path = saved(tmp_path, np.array([[RED, (255, 255, 255)]], dtype=np.uint8), "m.png")
        with pytest.raises(LabelError, match="no background"):
            resolve([read_mask(path)], ClassSpec())


class TestSpec:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("body,wheel", ("background", "body", "wheel")),
            (" background , body", ("background", "body")),
            ("BG,größe 1", ("background", "größe 1")),
            ("car", ("background", "car")),
        ],
    )
    def test_names_on_the_command_line(self, text: str, names: tuple[str, ...]) -> None:
        assert read_classes(text).names == names

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[background, body]", ClassSpec(names=("background", "body"))),
            ("classes: [body]", ClassSpec(names=("background", "body"))),
            ("body: 3\nwheel: 7\n", ClassSpec(indices={"body": 3, "wheel": 7})),
            ("0: background\n3: body\n", ClassSpec(indices={"background": 0, "body": 3})),
            (
                'body: "#ff34ff"\nwheel: [255, 255, 0]\n',
                ClassSpec(colours={"body": (255, 52, 255), "wheel": (255, 255, 0)}),
            ),
            ("body: red\nignore: gray\n", ClassSpec(colours={"body": (255, 0, 0), "ignore": (128, 128, 128)})),
        ],
    )
    def test_files(self, tmp_path: Path, text: str, expected: ClassSpec) -> None:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        found = read_classes(str(tmp_path / "c.yaml"))
        assert (found.names, found.indices, found.colours) == (expected.names, expected.indices, expected.colours)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("body: #ff34ff\n", "put colours in quotes"),
            ("body: 1\nbody: 2\n", "stands twice"),
            ("body: 1\nwheel: 1\n", "both `body` and `wheel`"),
            ("body: 1\nwheel: red\n", "all classes indices"),
            ("body: [1, 2]\n", "the classes cannot be read"),
            ("body: 300000\n", "the classes cannot be read"),
            ("[on, off]", "not a list of names"),
            ("[body, body]", "listed twice"),
            ("[body, background]", "not the background"),
            ("3", "a list of names"),
            ("", "a list of names"),
            ("{", "the classes cannot be read"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_classes(str(tmp_path / "c.yaml"))

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file"):
            read_classes(str(tmp_path / "c.yaml"))


class TestRefused:
    def error(self, *masks: Mask, spec: ClassSpec | None = None) -> SlimeBenchError:
        with pytest.raises(SlimeBenchError) as caught:
            resolve(masks, spec or ClassSpec())
        assert caught.value.path and caught.value.remedy
        return caught.value

    def mask(self, folder: Path, array: Any, name: str = "m.png", colours: Any = None) -> Mask:
        return read_mask(saved(folder, np.asarray(array, dtype=np.uint8), name, colours))

    def test_anti_aliased_edges(self, tmp_path: Path) -> None:
        small = Image.fromarray(np.array([[(0, 0, 0), RED], [BLUE, GREEN]], dtype=np.uint8))
        smooth = np.array(small.resize((40, 40), Image.Resampling.BILINEAR))
        error = self.error(self.mask(tmp_path, smooth))
        assert isinstance(error, LabelError) and "different colours" in error.summary and "anti-alias" in str(error)
        named = self.error(self.mask(tmp_path, smooth), spec=parse_classes({"body": list(RED)}, "c.yaml"))
        assert "anti-aliased edges" in str(named)

    def test_a_grey_photo(self, tmp_path: Path) -> None:
        error = self.error(self.mask(tmp_path, np.arange(240).reshape(12, 20)))
        assert "239 different values" in error.summary

    def test_76_classes_are_the_most(self, tmp_path: Path) -> None:
        array = np.arange(77).reshape(7, 11)
        assert len(meaning(saved(tmp_path, array.astype(np.uint8)))[0].names) == 77
        self.error(self.mask(tmp_path, np.append(array, [[77] * 11], axis=0)))

    def test_only_background(self, tmp_path: Path) -> None:
        assert "no class" in self.error(self.mask(tmp_path, [[0, 0]])).summary
        assert (
            "no class"
            in self.error(self.mask(tmp_path, [[0, 5]]), spec=parse_classes({"ignore": 5, "a": 1}, "c")).summary
        )

    def test_values_that_no_class_has(self, tmp_path: Path) -> None:
        error = self.error(self.mask(tmp_path, [[0, 1, 9, 9]]), spec=read_classes("body,wheel,plate"))
        assert isinstance(error, LabelError) and "9 (2 pixels)" in str(error)
        error = self.error(self.mask(tmp_path, [[0, 1, 9]]), spec=parse_classes({"body": 1}, "c.yaml"))
        assert "9 (1 pixels)" in str(error) and "c.yaml" in str(error)
        error = self.error(self.mask(tmp_path, [[RED, GREEN]]), spec=parse_classes({"body": list(RED)}, "c.yaml"))
        assert "#1ef028" in str(error)

    def test_negative_indices(self, tmp_path: Path) -> None:
        np.save(tmp_path / "m.npy", np.array([[-1, 1]]))
        assert "negative" in self.error(read_mask(tmp_path / "m.npy")).summary
        spec = parse_classes({"body": "red"}, "c.yaml")
        assert "colours" in self.error(read_mask(tmp_path / "m.npy"), spec=spec).summary

    def test_names_do_not_order_colours(self, tmp_path: Path) -> None:
        error = self.error(self.mask(tmp_path, [[RED, GREEN]]), spec=read_classes("body,wheel"))
        assert isinstance(error, ConfigError) and "#1ef028, #fa0a14" in str(error)

    def test_indices_for_colours(self, tmp_path: Path) -> None:
        error = self.error(self.mask(tmp_path, [[RED, GREEN]]), spec=parse_classes({"body": 1}, "c.yaml"))
        assert "by index" in error.summary

    def test_masks_of_different_kinds(self, tmp_path: Path) -> None:
        one, other = self.mask(tmp_path, [[0, 1]], "a.png"), self.mask(tmp_path, [[RED, RED]], "b.png")
        assert "different kinds" in self.error(one, other).summary

    def test_palettes_that_disagree(self, tmp_path: Path) -> None:
        one = self.mask(tmp_path, [[0, 1]], "a.png", [(0, 0, 0), RED, GREEN])
        other = self.mask(tmp_path, [[0, 2]], "b.png", [(0, 0, 0), GREEN, BLUE])
        resolve([one, other], ClassSpec())  # no index has two colours in use
        third = self.mask(tmp_path, [[0, 1]], "c.png", [(0, 0, 0), GREEN, RED])
        assert "palettes disagree" in self.error(one, third).summary
        spec = parse_classes({"body": list(RED), "wheel": list(GREEN)}, "c.yaml")
        _, labels = resolve([one, third], spec)
        assert [label.tolist() for label in labels] == [[[0, 1]], [[0, 2]]]

    @pytest.mark.parametrize(
        ("name", "kind", "words"),
        [
            ("m.png", "missing", "nothing"),
            ("m.png", "empty", "0 bytes"),
            ("m.png", "cut", "do not decode"),
            ("m.jpg", "jpeg", "JPEG cannot hold a mask"),
            ("m.png", "jpeg", "JPEG cannot hold a mask"),
            ("m.png", "folder", "a folder"),
            ("m.tif", "cmyk", "mode CMYK"),
            ("m.tif", "float", "mode F"),
            ("m.npy", "floats", "float64"),
            ("m.npy", "pickle", "do not decode"),
        ],
    )
    def test_files(self, tmp_path: Path, name: str, kind: str, words: str) -> None:
        path, array = tmp_path / name, np.arange(4096, dtype=np.uint8).reshape(64, 64)
        if kind == "folder":
            path.mkdir()
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "cut":
            saved(tmp_path, array, name)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif kind in ("jpeg", "cmyk", "float"):
            picture = Image.fromarray(array).convert({"jpeg": "L", "cmyk": "CMYK", "float": "F"}[kind])
            picture.save(path, "JPEG" if kind == "jpeg" else None)
        elif kind == "floats":
            np.save(path, np.zeros((2, 2)))
        elif kind == "pickle":
            np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
        with pytest.raises(DataError, match=words):
            read_mask(path)


class TestSupport:
    def make(self, folder: Path, mask_size: tuple[int, int], orientation: int | None = None) -> tuple[Path, Path]:
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        Image.new("RGB", (6, 4), RED).save(folder / "a.jpg", exif=exif)
        label = np.zeros(mask_size[::-1], dtype=np.uint8)
        label[0] = 1
        return folder / "a.jpg", saved(folder, label, "a.png")

    def test_a_mask_follows_the_turned_image(self, tmp_path: Path) -> None:
        support = read_support([self.make(tmp_path, (4, 6), orientation=6)], ClassSpec())
        assert support.images[0].shape == (6, 4, 3) and support.labels[0].shape == (6, 4)

    @pytest.mark.parametrize(("orientation", "words"), [(6, "turn the mask"), (None, "export the mask")])
    def test_sizes_that_differ(self, tmp_path: Path, orientation: int | None, words: str) -> None:
        size = (6, 4) if orientation else (5, 4)
        with pytest.raises(LabelError, match=words):
            read_support([self.make(tmp_path, size, orientation)], ClassSpec())

    def test_pairs(self, tmp_path: Path) -> None:
        one, other = Path("a.jpg"), Path("b.jpg")
        assert pair_up([one], [other], None) == [(one, other)]
        with pytest.raises(ConfigError, match="2 image"):
            pair_up([one, other], [one], None)
        with pytest.raises(ConfigError, match="twice"):
            pair_up([one], [other], tmp_path)
        self.make(tmp_path, (6, 4))
        assert pair_up([], [], tmp_path) == [(tmp_path / "a.jpg", tmp_path / "a.png")]

    def test_the_data_set_holds_the_same(self, tmp_path: Path) -> None:
        from slime_bench.data.reading import FolderDataset

        support = read_support([self.make(tmp_path, (6, 4))], ClassSpec())
        support.write(tmp_path / "set")
        (sample,) = FolderDataset(tmp_path / "set" / "support", support.classes.names)  # type: ignore[misc]
        assert sample.id == "000" and (sample.label == support.labels[0]).all()
        assert (sample.image == support.images[0]).all()
