"""Paint and label maps: what the page's brush leaves is turned into hard-edged labels, and back.

Shapes: K classes, a picture of H x W pixels, the view on which it is painted of h x w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from slime_bench.colours import class_colours
from slime_bench.data.class_files import ClassSpec
from slime_bench.data.label_maps import RGB, pack, shown
from slime_bench.data.mask_files import Mask
from slime_bench.data.masks import UnnamedColours, resolve

VIEW: Final = 800
"""Side of the square that is painted on, in pixels. It never changes: where a picture has not the size of the canvas,
Gradio's editor sets paint beside it."""
_PADDING: Final = 128
_PURE: Final = 16
"""Difference in any channel up to which paint has a class's own colour; brushes mix colours along their edges."""
Array = NDArray[np.uint8]


def hexed(colour: RGB) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def place(size: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the square that a picture of (height, width) takes: all that keeps its form."""
    height, width = (max(1, round(each * VIEW / max(size[:2]))) for each in size[:2])
    top, left = (VIEW - height) // 2, (VIEW - width) // 2
    return slice(top, top + height), slice(left, left + width)


def painting_view(image: Array) -> Array:
    """A picture uint8 [H,W,3] as it is painted on, in the middle of the square [VIEW,VIEW,3]."""
    here = place(image.shape)
    view = np.full((VIEW, VIEW, 3), _PADDING, np.uint8)
    height, width = view[here].shape[:2]
    view[here] = np.asarray(Image.fromarray(image).resize((width, height)))
    return view


def painted(layers: Sequence[Array], colours: Sequence[RGB], size: tuple[int, ...]) -> Array:
    """The labels uint8 [h,w] of a picture of (height, width) in its view; paint beside it is cut off."""
    return labels_of(layers, colours, (VIEW, VIEW))[place(size)]


def resized(label: Array, size: tuple[int, int]) -> Array:
    """A label map brought to (height, width) by nearest neighbour."""
    if label.shape == size:
        return label
    return np.asarray(Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST))


def labels_of(layers: Sequence[Array], colours: Sequence[RGB], size: tuple[int, int]) -> Array:
    """Paint as labels uint8 [h,w] of `size`: 0 where the paint's alpha is at most one half, later layers above earlier.

    Paint of a class's own colour has its label. Mixed colours, which brushes leave along their edges, could lie near a
    third class's; they take the label of the nearest pixel whose colour is pure.

    Args:
        layers: uint8 [.,.,4] RGBA each. colours: K, the background's first.
    """
    label = np.zeros(size, np.uint8)
    for layer in layers:
        painted = layer[..., 3] > 127
        if not painted.any():
            continue
        found, places = np.unique(layer[painted][:, :3], axis=0, return_inverse=True)
        apart = np.abs(found[:, None, :].astype(int) - np.array(colours[1:])[None]).max(axis=-1)  # [colours, K-1]
        of_layer, pure = np.zeros(layer.shape[:2], np.uint8), np.zeros(layer.shape[:2], bool)
        of_layer[painted] = (1 + apart.argmin(axis=-1))[places.ravel()]
        pure[painted] = (apart.min(axis=-1) <= _PURE)[places.ravel()]
        if pure.any() and (painted & ~pure).any():
            rows, columns = distance_transform_edt(~pure, return_distances=False, return_indices=True)
            of_layer = np.where(painted, of_layer[rows, columns], 0).astype(np.uint8)
        of_layer = resized(of_layer, size)
        label = np.where(of_layer > 0, of_layer, label)
    return label


def layer_of(label: Array, colours: Sequence[RGB]) -> Array:
    """A label map [H,W] as paint on the square, uint8 [VIEW,VIEW,4] RGBA; background and ignored are unpainted."""
    paint = np.zeros((VIEW, VIEW, 4), np.uint8)
    here = paint[place(label.shape)]
    label = resized(label, (here.shape[0], here.shape[1]))
    inside = (label > 0) & (label < len(colours))
    here[inside, :3] = np.array(colours, np.uint8)[label[inside]]
    here[inside, 3] = 255
    return paint


def merged(label: Array, before: Array, after: Array) -> Array:
    """A label map [H,W] with what was changed in its view [h,w]; the rest keeps the picture's own resolution."""
    size = (label.shape[0], label.shape[1])
    changed = resized((before != after).astype(np.uint8), size) > 0
    return np.where(changed, resized(after, size), label)


def understood(mask: Mask, classes: tuple[str, ...]) -> tuple[tuple[str, ...], Array, str]:
    """A mask that was loaded: class names, label map uint8 [H,W], and a sentence where something was assumed.

    Indices and the page's own colours are of the `classes` that are named already; other colours get the names that
    are proposed for them, and say so.

    Raises:
        LabelError: see `data.masks.resolve`.
    """
    named = len(classes) > 1
    own = {name: int(pack(np.array(colour))) for name, colour in zip(classes, class_colours(len(classes)), strict=True)}
    spec = ClassSpec({name: index for index, name in enumerate(classes)} if named else {}, source="Classes")
    if mask.coloured:
        ours = named and {*np.unique(mask.values).tolist()} <= {*own.values()}
        spec = ClassSpec(own, coloured=True, source="Classes") if ours else ClassSpec()
    try:
        found, (label,) = resolve([mask], spec)
    except UnnamedColours as error:
        found, (label,) = resolve([mask], spec, accept=True)
        pairs = [f"{shown(value, True)}: {name}" for name, value in error.proposal.values.items()]
        return found.names, label, f" Its colours were taken as {', '.join(pairs)}: correct the names under Classes."
    return found.names, label, ""
