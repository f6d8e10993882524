"""Reading of single files: the kinds of image, mask and label map that people have, and those that will not do."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from slime_bench.data import pictures, reading
from slime_bench.data.label_maps import pack, unpack, validate_colours
from slime_bench.data.layouts import Pair
from slime_bench.data.mask_files import read_mask
from slime_bench.data.reading import FolderDataset, read_image, read_photo, rgb
from slime_bench.data.verify import verify_splits
from slime_bench.errors import ConfigError, DataError, LabelError

CLASSES = ("background", "body", "wheel")
COLOURS = validate_colours({"body": [255, 52, 255], "wheel": [255, 255, 0], "ignore": [255, 255, 255]}, CLASSES)
PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)
GREY = np.dstack([PIXELS] * 3)
LABEL = np.zeros((6, 8), np.uint8)
LABEL[1], LABEL[2], LABEL[3, 3] = 1, 2, 255


def deep_png(path: Path, pixels: np.ndarray) -> Path:
    """uint16 [H,W,3] as a PNG of 16 bits per channel, which PIL cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def coloured(label: np.ndarray, background: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """A label map's picture in the colours of COLOURS, uint8 [H,W,3]."""
    picture = np.empty((*label.shape, 3), np.uint8)
    picture[:] = background
    for colour, value in COLOURS.items():
        picture[label == value] = unpack(colour)
    return picture


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def read_label(path: Path, colours: dict[int, int] | None = None) -> np.ndarray:
    """The label map in a file, of as many classes as there can be."""
    return reading.read_label(Pair("a", path, path), ["background", *map(str, range(1, 255))], colours)


# --- images


@pytest.mark.parametrize("kind", ["grey", "palette", "palette with transparency", "alpha", "grey with alpha", "binary"])
def test_image_modes(tmp_path: Path, kind: str) -> None:
    path, expected = tmp_path / "a.PNG", GREY
    picture = Image.fromarray(PIXELS)
    if kind.startswith("palette"):
        picture = picture.convert("P")
    elif kind == "alpha":
        picture = Image.fromarray(np.dstack([PIXELS] * 3 + [np.zeros_like(PIXELS)]))
    elif kind == "grey with alpha":
        picture = Image.merge("LA", [picture, Image.new("L", picture.size, 7)])
    elif kind == "binary":
        picture, expected = Image.fromarray(PIXELS > 20), np.where(GREY > 20, 255, 0)
    picture.save(path, **({"transparency": 3} if "transparency" in kind else {}))
    image = read_image(path)
    assert image.dtype == np.uint8 and np.array_equal(image, expected)


def test_a_cmyk_jpeg_whatever_its_suffix(tmp_path: Path) -> None:
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16], colours[16:] = (230, 230, 230), (200, 30, 30)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "a.png", "JPEG", quality=95)
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - colours).max() <= 12


def test_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(PIXELS.astype(np.uint16) * 1000).save(path)
    with pytest.raises(DataError, match="more than 8 bits") as caught:
        read_image(path)
    assert caught.value.path == path and "I;16" in str(caught.value.found)
    # Of RGB, PIL keeps the upper byte of each channel.
    deep = GREY.astype(np.uint16) * 256 + 255
    assert np.array_equal(read_image(deep_png(tmp_path / "rgb.png", deep)), GREY)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_empty_and_other_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:10], whole[: len(whole) // 2], b"<html>not found</html>", b"\0" * 500):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot read the image") as caught:
            read_image(path)
        assert caught.value.path == path and f"{len(content)} bytes that do not decode" in str(caught.value.found)


MALFORMED = {
    "another header": b"Exif\0\0NOTTIFF!",
    "cut short": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    "a text for a number": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0",
    "numbers without end": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 10,
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_malformed_exif_counts_as_none(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path, exif=MALFORMED[kind])
    assert read_image(path).shape == (6, 8, 3) and read_photo(path, 1).size == (6, 8)
    if suffix == "png":
        assert np.array_equal(read_image(path), GREY) and np.array_equal(rgb(Image.open(path)), GREY)
        Image.fromarray(LABEL).save(path, exif=MALFORMED[kind])
        assert np.array_equal(read_mask(path).values, LABEL)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_only_exif_turns_a_picture(tmp_path: Path, suffix: str) -> None:
    """As viewers do; Pillow would obey XMP where there is no orientation in EXIF."""
    path, picture = tmp_path / f"a.{suffix}", Image.fromarray(GREY)
    said = '<rdf:Description tiff:Orientation="6"/>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", said)
    options = {"png": {"pnginfo": text}, "tif": {"tiffinfo": {700: said.encode()}}}.get(suffix, {"xmp": said.encode()})
    picture.save(path, **options)
    with Image.open(path) as file:
        assert ImageOps.exif_transpose(file).size == (6, 8), "the file does say so"
    assert read_image(path).shape == (6, 8, 3) and read_photo(path, 1).size == (6, 8)
    picture.save(path, exif=with_exif(6))
    assert read_image(path).shape == (8, 6, 3) and read_photo(path, 1).size == (8, 6)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_very_large_jpeg_is_read_at_reduced_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int
) -> None:
    monkeypatch.setattr(pictures, "LARGE", 100_000)
    fade = np.add.outer(np.arange(301), np.arange(401)) * 255 // 700
    picture = Image.fromarray(np.dstack([fade.astype(np.uint8)] * 3)).convert(mode)
    for name in ("a.jpg", "a.png"):
        if name == "a.jpg" or mode != "CMYK":
            picture.save(tmp_path / name, exif=with_exif(orientation))
    photo, whole = read_photo(tmp_path / "a.jpg", 70), read_image(tmp_path / "a.jpg")
    assert photo.size == whole.shape[:2] == ((301, 401) if orientation == 1 else (401, 301))
    assert sorted(photo.pixels.shape[:2]) == [76, 101], "a quarter, and not an eighth, which would have a side below 70"
    small = Image.fromarray(whole).resize(photo.pixels.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(np.array(small).astype(int) - photo.pixels).mean() < 2
    assert read_photo(tmp_path / "a.jpg", 400).pixels.shape == whole.shape, "its sides would fall below 400"
    if mode != "CMYK":
        assert read_photo(tmp_path / "a.png", 70).pixels.shape == whole.shape, "the format cannot do that"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).resize((80, 60)).save(path)
    monkeypatch.setattr(pictures, "LARGE", 1000)
    monkeypatch.setattr(pictures, "DECODED", 2000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="the image is too large") as caught:
        read_image(path)
    assert caught.value.path == path and "megapixels" in str(caught.value) and "DOS" not in str(caught.value.found)
    if suffix == "jpg":
        assert read_photo(path, 10).size == (60, 80)
        monkeypatch.setattr(pictures, "LARGEST", 4000)
    with pytest.raises(DataError, match="the image is too large"):
        read_photo(path, 10)


# --- masks, and label maps of them


@pytest.mark.parametrize("kind", ["uint8", "int16", "int64", "uint64", "bool", "float16", "float32", "float64", "3D"])
def test_arrays_of_whole_numbers(tmp_path: Path, kind: str) -> None:
    label = LABEL == 1 if kind == "bool" else LABEL
    np.save(tmp_path / "a.npy", label[..., None] if kind == "3D" else label.astype(kind))
    found = read_label(tmp_path / "a.npy")
    assert found.dtype == np.int64 and np.array_equal(found, label)


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_pictures_hold_indices_whatever_colours_there_are(tmp_path: Path, depth: int) -> None:
    Image.fromarray(LABEL.astype(f"uint{depth}")).save(tmp_path / "a.png")
    for colours in (None, COLOURS):
        assert np.array_equal(read_label(tmp_path / "a.png", colours), LABEL)


def test_a_palette_is_there_beside_the_indices(tmp_path: Path) -> None:
    picture = Image.fromarray(LABEL)
    picture.putpalette([9, 9, 9, *unpack(0xFF34FF), *unpack(0xFFFF00)] + [255] * 759)
    picture.save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png")
    assert np.array_equal(mask.values, LABEL) and mask.palette[1] == 0xFF34FF and not mask.coloured
    assert np.array_equal(read_label(tmp_path / "a.png"), LABEL)
    assert np.array_equal(read_label(tmp_path / "a.png", COLOURS), LABEL)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "palette"])
@pytest.mark.parametrize("background", [(0, 0, 0), (13, 14, 15)])
def test_colour_label_maps(tmp_path: Path, kind: str, background: tuple[int, int, int]) -> None:
    picture = Image.fromarray(coloured(LABEL, background))
    picture = picture.quantize(16) if kind == "palette" else picture.convert(kind)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_label(tmp_path / "a.png", COLOURS), LABEL)


def test_what_is_transparent_was_never_painted(tmp_path: Path) -> None:
    for array in ([[[3, 255], [7, 0]]], [[[9, 8, 7, 255], [9, 8, 7, 0]]]):
        Image.fromarray(np.array(array, np.uint8)).save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png").values.tolist() in ([[3, 0]], [[0x090807, 0]])


def test_colours_that_are_no_class(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = coloured(LABEL)
    picture[5, :3], picture[5, 3] = (255, 255, 1), (7, 7, 7)  # a stroke that is a shade off, and a single pixel
    Image.fromarray(picture).save(path)
    with pytest.raises(LabelError, match="colour picture") as caught:
        read_label(path)
    assert caught.value.path == path and "data.colours={" in str(caught.value.remedy)
    # Without a colour for the background, everything else is background, as ReGAN's masks are read.
    assert not read_label(path, COLOURS)[5].any()
    strict = COLOURS | {0: 0}
    with pytest.raises(LabelError, match="colours that are no class") as caught:
        read_label(path, strict)
    assert caught.value.found == "#ffff01 (3 pixels), #070707 (1 pixels)" and caught.value.path == path
    Image.fromarray(coloured(LABEL)).save(path)
    assert np.array_equal(read_label(path, strict), LABEL)


@given(st.integers(0, 0xFFFFFF))
def test_packing(value: int) -> None:
    assert int(pack(np.array(unpack(value), dtype=np.uint8))) == value


@pytest.mark.parametrize(
    ("colours", "path", "words"),
    [
        ({"wheels": [1, 2, 3]}, "data.colours.wheels", "did you mean `wheel`"),
        ({"wheel": [1, 2]}, "data.colours.wheel", "cannot have this colour"),
        ({"wheel": [1, 2, 256]}, "data.colours.wheel", "cannot have this colour"),
        ({"body": [1, 2, 3], "wheel": [1, 2, 3]}, "data.colours.wheel", "cannot have this colour"),
    ],
)
def test_bad_colours(colours: dict[str, list[int]], path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        validate_colours(colours, CLASSES)
    assert caught.value.path == path


@pytest.mark.parametrize(("value", "found"), [(0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf"), (1e30, "1e+30")])
def test_arrays_of_other_numbers(tmp_path: Path, value: float, found: str) -> None:
    array = LABEL.astype(np.float64)
    array[5, :2] = value
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(LabelError, match="no class index") as caught:
        read_label(tmp_path / "a.npy")
    assert caught.value.found == f"{found} and the like (2 pixels)" and caught.value.path == tmp_path / "a.npy"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("m.png", "missing", "No such file"),
        ("m.png", "folder", "Is a directory"),
        ("m.png", "empty", "0 bytes that do not decode"),
        ("m.png", "JPEG", "JPEG"),
        ("m.png", "WEBP", "lossy WebP"),
        ("m.tif", "CMYK", "mode CMYK"),
        ("m.npy", "empty", "0 bytes that do not decode"),
        ("m.npy", "several", "several arrays"),
        ("m.npy", "too much", "bytes that do not decode"),
        ("m.npy", "vector", "uint8"),
        ("m.npy", "complex", "complex128"),
    ],
)
def test_files_that_are_no_mask(tmp_path: Path, name: str, kind: str, words: str) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("JPEG", "WEBP"):
        Image.fromarray(LABEL).save(path, kind)
    elif kind == "CMYK":
        Image.fromarray(LABEL).convert(kind).save(path)
    elif kind == "several":
        np.savez(tmp_path / "a.npz", LABEL, LABEL)
        (tmp_path / "a.npz").rename(path)
    elif kind == "too much":
        with path.open("wb") as file:
            shape = (2**31, 2**31)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    elif kind in ("vector", "complex"):
        np.save(path, np.zeros(4, np.uint8) if kind == "vector" else np.zeros((2, 2), complex))
    with pytest.raises(DataError) as caught:
        read_mask(path)
    assert words in str(caught.value.found) and caught.value.path == path
    assert caught.value.expected and caught.value.remedy


def test_no_cut_goes_unseen(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 6, (20, 20), dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", label)
    for path, end in ((tmp_path / "a.png", 25), (tmp_path / "a.npy", 1)):
        whole = path.read_bytes()
        refused = 0
        for keep in range(0, len(whole), 3):
            path.write_bytes(whole[:keep])
            try:
                found = read_label(path)
            except DataError:
                refused += 1
            else:  # only the file's end mark was lost
                assert np.array_equal(found, label)
        assert refused > (len(whole) - end) / 3


def test_objects_and_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "a.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="without pickling"):
        read_label(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="without pickling"):
        read_label(path)
    assert not (tmp_path / "sprung").exists()


# --- image and label map together


def pair(tmp_path: Path, image: Image.Image, label: np.ndarray, **saved: object) -> Pair:
    image.save(tmp_path / "a.jpg", **saved)  # type: ignore[arg-type]
    np.save(tmp_path / "a.npy", label)
    return Pair("a", tmp_path / "a.jpg", tmp_path / "a.npy")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_orientation(tmp_path: Path, orientation: int) -> None:
    """The image is turned as viewers show it, a mask with such a mark too; else it must have been drawn on that."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # the stored upper left corner
    upright = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    size = (16, 32) if orientation < 5 else (32, 16)
    files = pair(tmp_path, Image.fromarray(pixels), np.zeros(size, np.uint8), exif=with_exif(orientation))
    image = FolderDataset(tmp_path, CLASSES, pairs=[files])[0].image
    assert image.shape[:2] == size
    bottom, right = upright
    corner = image[-2 if bottom else 1, -2 if right else 1, 0]
    assert corner > 200 and image[..., 0].mean() < 80
    Image.fromarray(pixels[..., 0] // 255).save(tmp_path / "mask.png", exif=with_exif(orientation))
    mask = read_mask(tmp_path / "mask.png").values
    assert mask.shape == size and mask[-2 if bottom else 1, -2 if right else 1] == 1
    np.save(files.label, np.zeros((16, 32), np.uint8))
    if orientation < 5:
        FolderDataset(tmp_path, CLASSES, pairs=[files])[0]
        return
    with pytest.raises(LabelError, match="differ in size") as caught:
        FolderDataset(tmp_path, CLASSES, pairs=[files])[0]
    assert "EXIF orientation" in str(caught.value.remedy) and "turn the label map" in str(caught.value.remedy)


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    files = pair(tmp_path, Image.new("RGB", (8, 6)), np.zeros((6, 7), np.uint8))
    with pytest.raises(LabelError, match="differ in size") as caught:
        FolderDataset(tmp_path, CLASSES, pairs=[files])[0]
    assert caught.value.found == "7x6" and str(caught.value.expected).startswith("8x6 (width x height) as ")
    assert "EXIF" not in str(caught.value)  # the image has no orientation: turning would help nobody


@pytest.mark.parametrize("value", [3, 254, -1, 256])
def test_labels_out_of_range(tmp_path: Path, value: int) -> None:
    label = LABEL.astype(np.int32)
    label[5, 5] = value
    files = pair(tmp_path, Image.new("RGB", (8, 6)), label)
    dataset = FolderDataset(tmp_path, CLASSES, pairs=[files])
    for read in (dataset.__getitem__, dataset.label):
        with pytest.raises(LabelError, match="outside the classes") as caught:
            read(0)
        assert caught.value.found == f"{value} (1 pixels)"
        assert "0..2 (background, body, wheel) or 255" in str(caught.value.expected)


def test_a_folder_whose_files_name_their_classes(tmp_path: Path) -> None:
    """One file for each part; labels go by the data set's class list, whatever the order of the names."""
    Image.fromarray(GREY).save(tmp_path / "car.jpg")
    for name, value in (("body", 1), ("wheel", 2)):
        Image.fromarray(((value == LABEL) * 255).astype(np.uint8)).save(tmp_path / f"car.{name}.png")
    expected = np.where(LABEL == 255, 0, LABEL)
    for classes, table in ((CLASSES, (0, 1, 2)), (("background", "wheel", "body"), (0, 2, 1))):
        dataset = FolderDataset(tmp_path, classes)
        assert (dataset.label(0) == np.array(table)[expected]).all() and (dataset[0].label == dataset.label(0)).all()
    with pytest.raises(ConfigError, match="unknown class `wheel`"):
        FolderDataset(tmp_path, ("background", "body", "wheels")).label(0)


def test_interpolated_label_maps_are_found_by_the_verification(tmp_path: Path) -> None:
    """All their values are classes, so that reading alone cannot tell."""
    label = np.zeros((64, 64), np.uint8)
    label[8:30, 8:40], label[34:60, 20:50] = 5, 3
    smooth = np.array(Image.fromarray(label).resize((90, 90), Image.Resampling.BILINEAR))
    for name, array in (("a", label), ("b", smooth)):
        for folder, pixels in (("images", np.dstack([array] * 3)), ("labels", array)):
            (tmp_path / "test" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "test" / folder / f"{name}.png")
    dataset = FolderDataset(tmp_path / "test", ["background", *"abcde"])
    (problem,) = verify_splits({"test": dataset}, tmp_path).problems
    assert "soft edges" in problem.summary and Path(str(problem.path)).name == "b.png"
