"""What the Python call takes: pictures, masks and classes as paths, PIL images or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.class_files import ClassSpec, parse_classes, read_classes
from slime_bench.data.layouts import Pair
from slime_bench.data.mask_files import Mask, array_mask, picture_mask, read_mask
from slime_bench.data.reading import Photo, read_image, read_photo, rgb
from slime_bench.errors import ConfigError, DataError
from slime_bench.segment.support import Example, Support, support_of

Picture = str | Path | Image.Image | NDArray[np.uint8]
Masklike = str | Path | Image.Image | NDArray[Any]
Classlike = str | Path | Sequence[str] | Mapping[str, Any] | None
_SINGLE = (str, Path, Image.Image, np.ndarray)


def read_picture(image: Picture) -> NDArray[np.uint8]:
    """uint8 [H,W,3] RGB of a path (see `read_image`), a PIL image, or an array uint8 [H,W,3] or [H,W].

    Raises:
        DataError: an unreadable file, or an array of another kind.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        return rgb(image)
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise DataError(
            "this array is no picture", path="image", found=f"an array {list(array.shape)} of {array.dtype}",
            expected="uint8 [H,W,3] RGB in 0..255, or [H,W] grey",
            remedy="convert it, e.g. (255 * array).round().astype(numpy.uint8); channels come last",
        )  # fmt: skip
    return array


def read_any(image: Picture, side: int) -> Photo:
    """`read_picture` of a picture to be segmented: a very large JPEG file is read at reduced size, see `read_photo`.

    Args:
        side: pixels that both sides keep.

    Raises:
        DataError: see `read_picture`.
    """
    if isinstance(image, str | Path):
        return read_photo(Path(image).expanduser(), side)
    pixels = read_picture(image)
    return Photo(pixels, (pixels.shape[0], pixels.shape[1]))


def read_examples(
    images: Picture | Sequence[Picture], masks: Masklike | Sequence[Masklike], spec: ClassSpec
) -> Support:
    """Annotated pictures, one or several.

    Raises:
        DataError, LabelError, ConfigError: see `support_of`; not as many masks as pictures.
    """
    pictures = [images] if isinstance(images, _SINGLE) else list(images)
    maps = [masks] if isinstance(masks, _SINGLE) else list(masks)
    if not pictures or len(pictures) != len(maps):
        raise ConfigError(
            "every annotated picture needs its mask", path="images, masks",
            found=f"{len(pictures)} picture(s), {len(maps)} mask(s)",
            expected="as many masks as pictures, in their order", remedy="give both as lists of one length",
        )  # fmt: skip
    examples = []
    for index, (image, mask) in enumerate(zip(pictures, maps, strict=True)):
        named = [Path(each) if isinstance(each, str | Path) else None for each in (image, mask)]
        pair = Pair(f"{index}", named[0] or Path(f"images[{index}]"), named[1] or Path(f"masks[{index}]"))
        examples.append(Example(pair, read_picture(image), _mask(mask, pair.label)))
    return support_of(examples, spec)


def _mask(mask: Masklike, path: Path) -> Mask:
    if isinstance(mask, str | Path):
        return read_mask(Path(mask).expanduser())
    if isinstance(mask, Image.Image):
        return picture_mask(mask, path)
    return array_mask(np.asarray(mask), path)


def read_classlike(classes: Classlike) -> ClassSpec:
    """What is said of the classes: names, name -> index or colour, or the path of a file that says so.

    Raises:
        ConfigError: see `parse_classes`.
    """
    if classes is None:
        return ClassSpec(source="classes")
    if isinstance(classes, str | Path):
        return read_classes(Path(classes).expanduser())
    return parse_classes(dict(classes) if isinstance(classes, Mapping) else list(classes), "classes")
