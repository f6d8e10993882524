"""Segmentation by example as one object: learn parts from annotated pictures, find them in others, save and load it.

The command `slime-bench segment` and the page of `slime-bench app` stand on it; docs/python.md shows it at work.

Shapes: K classes, a picture of H x W pixels, the method's square of S x S.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor

from slime_bench.config.schema import TrialConfig
from slime_bench.data.label_maps import RGB
from slime_bench.data.pictures import LARGE
from slime_bench.data.reading import Photo, read_photo
from slime_bench.data.transforms import fit_image, fitted_size, unfit
from slime_bench.results.state import content_hash, pack_state, read_state, state_facts
from slime_bench.segment import learn
from slime_bench.segment.confidence import Reached, best_scores, reached
from slime_bench.segment.learn import Recipe
from slime_bench.segment.output import VIEW, pixel_counts
from slime_bench.segment.support import (
    Classlike,
    Masklike,
    Picture,
    Support,
    read_classlike,
    read_examples,
    read_picture,
)
from slime_bench.storage import write_atomic
from slime_bench.trial import fitting
from slime_bench.trial.device import pick_device

Array = NDArray[np.uint8]
_SHARP = 8  # a picture with so many times the pixels of the square in each direction is shrunk to it without a trace
_STRIP = 16  # rows of a large label map that are made at once


class Scored(NamedTuple):
    """A picture's score maps float32 [K,S,S], refined, on the CPU, and the `best_scores` [K] before that."""

    maps: torch.Tensor
    best: torch.Tensor


class Found(NamedTuple):
    """What is in a picture: label map uint8 [H,W], and of each class its pixels and, where it is known, confidence."""

    label: Array
    pixels: list[int]
    confidence: list[float | None] | None


class Segmenter:
    """What was learned from annotated pictures, and the method that segments with it.

    `fit` and `load` make one. The backbone is loaded when it is first needed.

    Args:
        tensors: what was learned, by name. facts: the other content of its file, see `results.state`.
        overrides: `key=value` of the configuration, see `load`. device: `cpu`, `cuda`, `mps` or `auto`.
        method: where it is there already.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        facts: Mapping[str, Any],
        overrides: Sequence[str] = (),
        device: str = "auto",
        method: Any = None,
    ) -> None:
        self.tensors, self.facts = dict(tensors), dict(facts)
        self.recipe: Recipe = learn.recipe(facts, overrides)
        self.device = pick_device(device, "--device cpu")
        self._changed = any(not each.startswith(("data.batch_size=", "refine")) for each in overrides)
        self._method = method

    @classmethod
    def fit(
        cls,
        images: Picture | Sequence[Picture],
        masks: Masklike | Sequence[Masklike],
        classes: Classlike = None,
        *,
        preset: str = "mini",
        overrides: Sequence[str] = (),
        seed: int = 0,
        device: str = "auto",
        weights: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Segmenter:
        """Learn from annotated pictures.

        Args:
            images: one or several: paths, PIL images or uint8 arrays [H,W,3] RGB (or [H,W] grey).
            masks: one for each: paths or PIL images as docs/segment.md describes them, or arrays of whole numbers [H,W]
                with class indices, 0 = background and 255 = ignore.
            classes: names in the order of the indices, with or without `background`; or name -> index or colour; or the
                path of a class file. Without it they are called `class_<index>`.
            preset: `mini` (small and bundled; it knows its procedural world only) or `paper` (Stable Diffusion 2.1).
            overrides: of the configuration, as on the command line, e.g. `["method=feature_probe"]`.
            seed: of the random draws. weights: folder of the backbone, where it is not the one that the preset names.
            callbacks: of Lightning, for methods that learn in steps.

        Raises:
            SlimeBenchError: pictures or masks that cannot be read or do not fit together, settings that cannot be,
                missing weights, too little memory.
        """
        support = read_examples(images, masks, read_classlike(classes))
        place = None if weights is None else str(weights)
        cfg = learn.configuration(support, preset, overrides, seed, device, place)
        return cls.learned(cfg, support, callbacks=callbacks)

    @classmethod
    def learned(
        cls,
        cfg: TrialConfig,
        support: Support,
        *,
        folder: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Segmenter:
        """Learn from examples that were read, by a configuration of `learn.configuration`.

        Args:
            folder: where a logger of the configuration writes.
        """
        signature = learn.signature(cfg, support)
        with tempfile.TemporaryDirectory() as temporary:
            method = learn.fit(cfg, support, folder or Path(temporary), callbacks)
        classes = support.classes
        facts = state_facts(cfg.plain, classes.names, colours=[list(each) for each in classes.colours], fit=signature)
        segmenter = cls(method.learned_state(), facts, device=str(cfg.trainer.device), method=method)
        found = [segmenter.scored_one(each).best for each in support.images]
        segmenter.facts["reached"] = asdict(reached(found, support.labels))
        return segmenter

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        overrides: Sequence[str] = (),
        device: str = "auto",
        weights: str | Path | None = None,
    ) -> Segmenter:
        """Take up what `save`, `slime-bench segment --embeddings` or a trial (`state.safetensors`) has written.

        Args:
            overrides: `refine=...`, and keys of method, protocol, backbone or of how pictures are read.
            weights: folder of the backbone, where it has moved.

        Raises:
            ResultError: the file cannot be read. ConfigError: an override that cannot be.
        """
        tensors, facts = read_state(Path(path).expanduser())
        if weights is not None:
            facts["backbone"]["weights"] = str(weights)
        return cls(tensors, facts, overrides, device)

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names; index 0 is the background."""
        return self.recipe.classes

    @property
    def colours(self) -> tuple[RGB, ...]:
        """The K colours that results are drawn in."""
        return self.recipe.colours

    def segment(self, image: Picture) -> Array:
        """The label map of a picture: uint8 [H,W] in its own size, 0..K-1; DataError where it cannot be read."""
        return label_map(*self._maps(image), self.recipe.data.fit)

    def scores(self, image: Picture) -> NDArray[np.float32]:
        """Score maps of a picture, float32 [K,H,W] in its own size; the label map is their argmax. Their range is the
        method's. DataError as `segment`."""
        return unfit(*self._maps(image), self.recipe.data.fit).numpy()

    def read(self, image: Picture) -> Photo:
        """A picture uint8 [h,w,3] as it is segmented, and the size (H, W) of its labels.

        They differ for a JPEG file of more than 50 megapixels alone, which is decoded at reduced size, but with sides
        of at least 8 times the method's square. An array of all its pixels has another `noise_key`, and may get other
        labels at edges. DataError as `segment`.
        """
        if isinstance(image, str | Path):
            return read_photo(Path(image).expanduser(), max(_SHARP * self.recipe.data.image_size, VIEW[1]))
        pixels = read_picture(image)
        return Photo(pixels, (pixels.shape[0], pixels.shape[1]))

    def _maps(self, image: Picture) -> tuple[torch.Tensor, tuple[int, int]]:
        pixels, size = self.read(image)
        return self.scored_one(pixels).maps, size

    def scored_one(self, image: Array) -> Scored:
        """`scored` of a picture uint8 [H,W,3]."""
        return self.scored([self.fitted(image)], [noise_key(image)])[0]

    def fitted(self, image: Array) -> torch.Tensor:
        """A picture uint8 [H,W,3] as the method takes it: float32 [3,S,S] in [0,1]."""
        data = self.recipe.data
        return fit_image(image, data.image_size, data.resize, data.fit).float() / 255

    def scored(self, fitted: Sequence[torch.Tensor], keys: Sequence[str]) -> list[Scored]:
        """Score maps of pictures that are `fitted`; `keys` as `noise_key` gives them."""
        method = self.method
        with fitting.threads(None, True), torch.inference_mode():
            images = torch.stack(list(fitted)).to(method.device)
            scores = method.scores(images, list(keys))
            best = [best_scores(each) for each in scores.float().cpu()]
            return [Scored(*each) for each in zip(method.refine(scores, images).float().cpu(), best, strict=True)]

    def found(self, scored: Scored, size: tuple[int, int]) -> Found:
        """What score maps say of a picture of `size` (H, W)."""
        label = label_map(scored.maps, size, self.recipe.data.fit)
        confidence = None if self.reached is None else self.reached.confidence(scored.best)
        return Found(label, pixel_counts(label, len(self.classes)), confidence)

    @property
    def reached(self) -> Reached | None:
        """What the classes reached on the annotated pictures; None where that is not known: of a trial's state, and
        with other settings than those that they were learned with."""
        said = self.facts.get("reached")
        return Reached(**{name: tuple(each) for name, each in said.items()}) if said and not self._changed else None

    @property
    def loaded(self) -> bool:
        """Whether the backbone is in memory."""
        return self._method is not None

    @property
    def method(self) -> Any:
        """The method with what it has learned, on its device; errors as `learn.load_method`."""
        if self._method is None:
            self._method = learn.load_method(self.recipe, self.tensors, self.device)
        return self._method.to(self.device).eval()

    def content_hash(self) -> str:
        """SHA-256 of what was learned."""
        return content_hash(self.tensors)

    def content(self) -> bytes:
        """The file that `save` writes."""
        return pack_state(self.tensors, self.facts)

    def save(self, path: str | Path) -> None:
        """Write what was learned, with the settings that it needs, to a `.safetensors` file of a few hundred kB;
        StorageError where it cannot be written."""
        write_atomic(Path(path).expanduser(), self.content())


def noise_key(image: Array) -> str:
    """What the noise of a picture uint8 [H,W,3] is keyed by: its content, so that its name changes nothing."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def label_map(scores: torch.Tensor, size: tuple[int, ...], fit: str) -> Array:
    """Score maps float [K,S,S] -> label map uint8 [H,W] of `size`: the argmax of the enlarged maps.

    One class after the other, so that a photo of many megapixels does not need K maps of its size at once; of more
    than `pictures.LARGE` pixels strip by strip, so that it needs none.
    """
    height, width = size
    if height * width > LARGE:
        return _label_strips(scores, height, width, fit)
    return _argmax(lambda index: unfit(scores[index : index + 1], (height, width), fit)[0], len(scores))


def _argmax(map_of: Callable[[int], Tensor], classes: int) -> Array:
    """The first class of the largest value, uint8 [h,w], of maps float [h,w] that are made one after the other."""
    best = map_of(0).clone()
    label = torch.zeros(best.shape, dtype=torch.uint8)
    for index in range(1, classes):
        one = map_of(index)
        label.masked_fill_(one > best, index)
        torch.maximum(best, one, out=best)
    return label.numpy()


def _label_strips(scores: Tensor, height: int, width: int, fit: str) -> Array:
    """`label_map`, but for rounding: `unfit` to the full width, then between two rows y0, y1 of it by hand."""
    rows, columns = fitted_size((height, width), scores.shape[-1], fit)
    wide = F.interpolate(scores[None, :, :rows, :columns], size=(rows, width), mode="bilinear", align_corners=False)[0]
    label = np.empty((height, width), np.uint8)
    for top in range(0, height, _STRIP):
        y = ((torch.arange(top, min(top + _STRIP, height)) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
        y0 = y.long()
        y1, part = (y0 + 1).clamp(max=rows - 1), (y - y0)[:, None]

        def between(index: int, y0: Tensor = y0, y1: Tensor = y1, part: Tensor = part) -> Tensor:
            return torch.lerp(wide[index, y0], wide[index, y1], part)

        label[top : top + _STRIP] = _argmax(between, len(scores))
    return label
