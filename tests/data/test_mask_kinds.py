"""Every kind of mask that people give: read, asked about, or refused by its kind; `pytest -s` prints the answers.

The files of ../shared/inputs were read wrongly once; the others are made here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from slime_bench.colours import palette
from slime_bench.data.class_files import ClassSpec, class_file_of, parse_classes, read_classes
from slime_bench.data.layouts import find_pairs
from slime_bench.data.mask_edges import soft_values
from slime_bench.data.masks import UnnamedColours
from slime_bench.errors import LabelError, SlimeBenchError
from slime_bench.segment.support import Support, pair_up, read_support

NAMES = ["body", "light", "plate", "wheel", "window"]
SIDE = 64
RED, BLUE = (250, 10, 20), (50, 60, 230)


@pytest.fixture(scope="module")
def inputs(shared: Path) -> Path:
    return shared / "inputs"


def read(image: Path, *masks: Path, spec: ClassSpec | None = None, accept: bool = False) -> Support:
    pairs = pair_up([image], list(masks), None)
    return read_support(pairs, spec or ClassSpec(), accept=accept)


def answered(name: str, call: Callable[[], Support]) -> str:
    """What a person is told: the classes, or the error."""
    try:
        classes = call().classes
        counts = dict.fromkeys(classes.names, 0)
        for value, label in classes.labels.items():
            if label < len(classes.names):
                counts[classes.names[label]] += classes.pixels.get(value, 0)
        said = "read: " + ", ".join(f"{key} {count}" for key, count in counts.items())
    except SlimeBenchError as error:
        assert error.remedy and error.found, error
        said = f"{error.summary}; found {error.found}; {error.remedy}"
    print(f"{name}: {said}")
    return said


class TestSharedInputs:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("svg_aa_rgb.png", "the mask has soft edges"),
            ("simple_lossy.webp", "a format that changes pixels; found lossy WebP"),
            ("cvat_background_not_black.png", "#00d7ff as background, #ff00cc as magenta"),
            ("bg255.png", "58 % of the masks have the value 255, which means ignored"),
            ("voc_rgb_void.png", "#e0e0c0"),
            ("apng.png", "more than one picture in its file"),
            ("black_alpha.png", "in the alpha channel"),
            ("mask.png", "read: background 9461, class_1 3880"),
            ("labelme_car.json", "read: background 14142, wheel 961, window 1281"),
            ("coco_car.json", "read: background 15484, wheel 900"),
        ],
    )
    def test_one_file(self, inputs: Path, name: str, words: str) -> None:
        assert words in answered(name, lambda: read(inputs / "car.png", inputs / name))

    def test_void_is_proposed_as_ignored(self, inputs: Path) -> None:
        with pytest.raises(UnnamedColours) as caught:
            read(inputs / "car.png", inputs / "voc_rgb_void.png")
        assert caught.value.proposal.values["ignore"] == 0xE0E0C0
        support = read(inputs / "car.png", inputs / "voc_rgb_void.png", accept=True)
        assert (support.labels[0] == 255).any() and "ignore" not in support.classes.names

    def test_what_255_means_can_be_said(self, inputs: Path) -> None:
        mask = inputs / "bg255.png"
        found = read(inputs / "car.png", mask, accept=True)
        spec = parse_classes({"background": 255} | {name: 1 + k for k, name in enumerate(NAMES)}, "classes.yaml")
        named = read(inputs / "car.png", mask, spec=spec)
        assert (found.labels[0] == 255).sum() == (named.labels[0] == 0).sum() > 0
        assert not (named.labels[0] == 255).any()

    def test_parts_become_one_mask(self, inputs: Path) -> None:
        whole = read(inputs / "car.png", inputs / "mask.png", spec=parse_classes(NAMES, "names"))
        parts = read(inputs / "car.png", inputs / "car.wheel.png", inputs / "car.body.png")
        assert parts.classes.names == ("background", "body", "wheel")
        assert ((parts.labels[0] == 2) == (whole.labels[0] == 4)).all()
        answered("car.wheel.png, car.body.png", lambda: parts)

    @pytest.mark.parametrize("folder", ["roboflow", "images_masks"])
    def test_folders(self, inputs: Path, folder: str) -> None:
        listed = class_file_of(inputs / folder)
        spec = ClassSpec() if listed is None else read_classes(listed)
        support = read_support(pair_up([], [], inputs / folder), spec)
        assert len(support.names) == len(find_pairs(inputs / folder)) == 3
        answered(folder, lambda: support)


def drawn(background: int = 0, side: int = SIDE) -> np.ndarray:
    """A disc of 1 and a bar of 3 on the background, uint8 [H,W]."""
    picture = Image.new("L", (side, side), background)
    draw = ImageDraw.Draw(picture)
    draw.ellipse([8, 8, side // 2, side // 2], fill=1)
    draw.rectangle([side // 2, side // 2 + 4, side - 6, side - 10], fill=3)
    return np.array(picture)


LABEL = drawn()
RGB = np.array([(0, 0, 0), RED, (9, 9, 9), BLUE], np.uint8)[LABEL]
COLOURS = parse_classes({"disc": list(RED), "bar": list(BLUE)}, "classes.yaml")
SMOOTH = {"resample": Image.Resampling.BILINEAR}
WAYS: dict[str, tuple[Callable[[Path], Path], ClassSpec, str]] = {}


def way(name: str, words: str, spec: ClassSpec | None = None) -> Callable[[Callable[[Path], Path]], None]:
    def add(make: Callable[[Path], Path]) -> None:
        WAYS[name] = make, spec or ClassSpec(), words

    return add


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def written(path: Path, head: bytes) -> Path:
    """A file of which only the first bytes are right, which is all that tells its kind."""
    path.write_bytes(head + b"\0" * 200)
    return path


def made(array: np.ndarray, name: str = "m.png", **options: object) -> Callable[[Path], Path]:
    return lambda folder: save(Image.fromarray(array), folder / name, **options)


def saved_with_palette(label: np.ndarray, path: Path) -> Path:
    picture = Image.fromarray(label)
    picture.putpalette(palette(4).tobytes())
    return save(picture, path)


def scaled(array: np.ndarray, factor: float) -> np.ndarray:
    """Smaller or larger and back to the size of the picture, with interpolation."""
    picture = Image.fromarray(array)
    size = round(SIDE * factor)
    return np.array(picture.resize((size, size), **SMOOTH).resize((SIDE, SIDE), **SMOOTH))


way("16 bits, black and white", "say what white is")(made((65535 * (LABEL > 0)).astype(np.uint16)))
way("16 bits, indices", "read: background")(made(LABEL.astype(np.uint16)))
way("TIFF", "read: background")(made(LABEL, "m.tif"))
way("lossless WebP", "as background")(made(RGB, "m.webp", lossless=True))
way("lossless WebP with a list", "read: background", COLOURS)(made(RGB, "m.webp", lossless=True))
way("JPEG", "found JPEG")(made(RGB, "m.jpg"))
way("JPEG called PNG", "found JPEG")(made(RGB, "m.png", format="JPEG"))
way("JPEG 2000", "found JPEG2000")(made(RGB, "m.jp2"))
way("AVIF", "found AVIF")(
    lambda folder: written(folder / "m.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf")
)  # fmt: skip
way("HEIC called PNG", "found HEIC")(
    lambda folder: written(folder / "m.png", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
)  # fmt: skip
way("JPEG in a TIFF", "found JPEG")(made(RGB, "m.tif", compression="jpeg"))
way("two pages", "more than one picture")(
    made(LABEL, "m.tif", save_all=True, append_images=[Image.fromarray(LABEL)])
)  # fmt: skip
way("soft brush, grey", "soft edges")(made(scaled((255 * (LABEL == 1)).astype(np.uint8), 0.7)))
way("soft brush, grey, with a list", "soft edges", parse_classes({"disc": 255}, "c.yaml"))(
    made(scaled((255 * (LABEL == 1)).astype(np.uint8), 0.7))
)
way("indices, interpolated", "soft edges")(made(scaled(np.where(LABEL == 3, 5, LABEL).astype(np.uint8), 1.5)))
way("indices, interpolated, with a list", "soft edges", parse_classes(["a", "b", "c", "d", "e"], "names"))(
    made(scaled(np.where(LABEL == 3, 5, LABEL).astype(np.uint8), 1.5))
)
way("colours, interpolated", "soft edges")(made(scaled(RGB, 1.5)))
way("colours, interpolated, with a list", "soft edges", COLOURS)(made(scaled(RGB, 1.5)))
way("colours from a JPEG", "a photograph, or a mask with soft edges or from a lossy format")(
    lambda folder: save(
        Image.open(save(Image.fromarray(RGB), folder / "m.jpg", quality=60)).convert("RGB"), folder / "m.png"
    )
)
way("half-transparent brush", "half-transparent pixels")(
    lambda folder: save(
        Image.merge("RGBA", [*Image.new("RGB", (SIDE, SIDE), RED).split(),
                             Image.fromarray((255 * (LABEL == 1)).astype(np.uint8)).filter(ImageFilter.BoxBlur(1))]),
        folder / "m.png",
    )
)  # fmt: skip
way("a photograph", "a photograph")(
    made(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))
)  # fmt: skip
way("a label map of three channels", "read: background 3094, class_1 489, class_3 513")(made(np.stack([LABEL] * 3, -1)))
way("colours without a list", "as red")(made(RGB))
way("no background", "the masks have no background")(made(drawn(2)))
way("white is not named", "`name: 255`")(made((255 * (LABEL > 0)).astype(np.uint8)))
way("palette", "read: background 3094, class_1 489, class_3 513")(
    lambda folder: saved_with_palette(LABEL, folder / "m.png")
)  # fmt: skip


@pytest.mark.parametrize("name", list(WAYS))
def test_own_kinds(tmp_path: Path, name: str) -> None:
    make, spec, words = WAYS[name]
    image = save(Image.new("RGB", (SIDE, SIDE), (90, 120, 30)), tmp_path / "car.jpg")
    assert words in answered(name, lambda: read(image, make(tmp_path), spec=spec))


def test_proposed_names_are_read_as_they_are_written(tmp_path: Path) -> None:
    image = save(Image.new("RGB", (SIDE, SIDE)), tmp_path / "car.jpg")
    mask = made(RGB)(tmp_path)
    with pytest.raises(UnnamedColours) as caught:
        read(image, mask)
    (tmp_path / "c.yaml").write_text(caught.value.class_file())
    by_file = read(image, mask, spec=read_classes(tmp_path / "c.yaml"))
    by_yes = read(image, mask, accept=True)
    assert by_file.classes.names == by_yes.classes.names == ("background", "blue", "red")
    assert (by_file.labels[0] == by_yes.labels[0]).all() and set(np.unique(by_yes.labels[0])) == {0, 1, 2}


def test_a_background_is_not_guessed_without_a_border(tmp_path: Path) -> None:
    image = save(Image.new("RGB", (SIDE, SIDE)), tmp_path / "car.jpg")
    stripes = np.array([RED, BLUE, (0, 200, 0)], np.uint8)[np.arange(SIDE) * 3 // SIDE][None].repeat(SIDE, 0)
    for accept in (False, True):
        with pytest.raises(LabelError, match="none of them is along most of the picture's border"):
            read(image, made(stripes)(tmp_path), accept=accept)


def test_a_class_of_few_pixels_is_named(tmp_path: Path) -> None:
    image = save(Image.new("RGB", (SIDE, SIDE)), tmp_path / "car.jpg")
    label = LABEL.copy()
    label[0, :7] = 2
    rows = read(image, made(label)(tmp_path), spec=parse_classes(["a", "b", "c", "d"], "names")).classes.table()
    assert [(row[2], row[5]) for row in rows if row[5]] == [
        ("b", "too few to learn from"), ("d", "not in the masks: never found")
    ]  # fmt: skip


class TestEdges:
    def test_a_line_between_two_classes_is_one(self) -> None:
        """A membrane: 1 around every 2 on 0. Named it is a class; unnamed it looks like an edge that was smoothed."""
        label = np.zeros((60, 60), np.int64)
        label[10:40, 10:40], label[11:39, 11:39] = 1, 2
        assert soft_values(label, False, True) == [] and soft_values(label, False, False) == [1]

    @pytest.mark.parametrize("factor", [0.6, 0.8, 1.3, 2.0])
    def test_interpolated_label_maps_of_the_mini_world(self, factor: float) -> None:
        """Every one is told from the same map as it was drawn, also of values that are all classes."""
        from slime_bench.data.mini_world.render import render

        for subject in ("car", "horse", "face"):
            for index in range(4):
                label = render(subject, "val", index).label
                assert soft_values(label.astype(np.int64), False, True) == []
                size = round(len(label) * factor)
                smooth = np.array(Image.fromarray(label.astype(np.uint8)).resize((size, size), **SMOOTH))
                assert soft_values(smooth.astype(np.int64), False, True), (subject, index)
