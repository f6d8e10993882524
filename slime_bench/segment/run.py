"""Segmenting images with learnt embeddings: load, compute, write; what is there already is not computed again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from slime_bench.config.read import read
from slime_bench.config.schema import build_part, read_part
from slime_bench.data.config import DataConfig
from slime_bench.data.label_maps import palette
from slime_bench.data.reading import read_image
from slime_bench.data.transforms import fit_image, unfit
from slime_bench.errors import ConfigError, DeviceError, SlimeBenchError
from slime_bench.results import identity
from slime_bench.segment.files import LABELS, OVERLAYS, Record, Run, write, write_run
from slime_bench.segment.fit import refuse_dependent
from slime_bench.segment.masks import RGB
from slime_bench.segment.output import Picture, label_png, overlay, view
from slime_bench.segment.progress import Lines
from slime_bench.segment.state import NODES, content_hash

_SAVE_EVERY = 5.0  # seconds; what was segmented since is done again should the process be killed
_READING = ("batch_size", "image_size", "fit", "resize")  # the first changes no label


@dataclass(frozen=True)
class Recipe:
    """All that decides a label map besides the image and the learnt tensors.

    Attributes:
        parts: class and settings of method, protocol and backbone. data: how images are read. classes: K names.
        colours: K. seed: of the noise.
    """

    parts: dict[str, tuple[type[Any], Any]]
    data: DataConfig
    classes: tuple[str, ...]
    colours: tuple[RGB, ...]
    seed: int

    def settings_hash(self) -> str:
        """SHA-256 of it, with the content of the backbone's weights instead of their place.

        Raises:
            BackboneError: the weights are not there.
        """
        said = {
            **{name: [part.__qualname__, identity.deciding_of(config)] for name, (part, config) in self.parts.items()},
            "data": {name: getattr(self.data, name) for name in _READING[1:]},
            "classes": list(self.classes),
            "seed": self.seed,
        }
        part, config = self.parts["backbone"]
        text = identity.canonical_json({"settings": said, "backbone": part.content_hash_of(config)})
        return hashlib.sha256(text.encode()).hexdigest()


def recipe(facts: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a state's metadata hold, with `overrides` of its nodes.

    Raises:
        ConfigError: an override of something else, or a value that cannot be.
    """
    groups = [name for name in NODES if name != "data"]
    allowed = tuple(f"{name}." for name in groups)
    keys = [f"data.{name}" for name in _READING]
    for each in overrides:
        key, sign, _ = each.partition("=")
        if not sign or not (key.startswith(allowed) or key in keys):
            raise ConfigError(
                "this cannot be changed where embeddings are reused", path=key, found=each,
                expected=f"keys of method, protocol or backbone, {', '.join(keys)}",
                remedy="leave it out, or learn new embeddings with --image and --mask",
            )  # fmt: skip
    nodes: Any = OmegaConf.create({name: facts[name] for name in NODES})
    nodes = OmegaConf.merge(nodes, OmegaConf.from_dotlist(list(overrides)))
    # A trial's data module may be any subclass, and its files are not needed: how images are read is all.
    parts = {name: read_part(OmegaConf.to_container(nodes[name], resolve=True), name) for name in groups}
    reading = {name: nodes.data[name] for name in _READING if name in nodes.data}
    classes = tuple(facts["classes"])
    data = read(DataConfig, {"name": "segment", "root": "images", "classes": list(classes), **reading}, "data")
    colours = tuple((one[0], one[1], one[2]) for one in facts.get("colours", palette(len(classes)).tolist()))
    return Recipe(parts, data, classes, colours, int(facts["seed"]))


def load_method(made: Recipe, tensors: Mapping[str, torch.Tensor], device: str) -> Any:
    """The method with its learnt tensors.

    Raises:
        SlimeBenchError: a missing backbone, tensors that are not this method's and backbone's, half precision for the
            CPU.
    """
    part, config = made.parts["method"]
    refuse_dependent(part, config.name)
    if device == "cpu" and getattr(made.parts["backbone"][1], "dtype", None) == "fp16":
        raise DeviceError(
            "half precision needs CUDA", path="backbone.dtype", found="embeddings learnt in fp16, and the CPU",
            expected="fp32 or bf16 on the CPU", remedy="add backbone.dtype=fp32; label maps will differ a little",
        )  # fmt: skip
    built = {name: build_part(*made.parts[name], name) for name in ("protocol", "backbone")}
    method = build_part(
        part,
        config,
        "method",
        **built,
        classes=made.classes,
        seed=made.seed,
    )
    method.load_learned_state(tensors)
    return method


def made_by(made: Recipe, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What `run.json` keeps to tell whether label maps are of these embeddings and settings."""
    return {"embeddings": content_hash(tensors), "settings": made.settings_hash()}


@dataclass
class Outcome:
    """What became of the images: names segmented now, names that were there already, (file, error) of the others."""

    segmented: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: list[tuple[Path, SlimeBenchError]] = field(default_factory=list)


def remaining(files: Mapping[str, Path], out: Path, run: Run) -> list[str]:
    """Names of the images that are still to be segmented."""

    def is_there(name: str, path: Path) -> bool:
        record = run.images.get(name)
        written = (out / LABELS / f"{name}.png", out / OVERLAYS / f"{name}.jpg")
        return record is not None and record.is_of(path) and all(each.is_file() for each in written)

    return [name for name, path in files.items() if not is_there(name, path)]


def segment_images(
    method: Any, made: Recipe, files: Mapping[str, Path], out: Path, run: Run, lines: Lines, device: str
) -> Outcome:
    """Label maps and overlays of all images that `run` does not have; `run` is brought up to date, also on the way.

    Images are read and results are written in other threads while the next ones are computed. Memory does not grow
    with their number.

    Raises:
        StorageError: `out` cannot be written. DeviceError: too little memory.
    """
    todo = remaining(files, out, run)
    outcome = Outcome(kept=[name for name in files if name not in set(todo)])
    size = made.data.batch_size
    batches = [todo[start : start + size] for start in range(0, len(todo), size)]
    if todo:
        method.to(device).eval()
        lines.count("segment", 0, len(todo))
    writing: list[Future[tuple[str, Record]]] = []
    done, saved = 0, time.monotonic()

    def keep() -> None:
        """Wait for the results that are being written, and record them; raises what went wrong with one of them."""
        nonlocal done
        errors = []
        for future in writing:
            if future.exception() is not None:
                errors.append(future.exception())
                continue
            name, record = future.result()
            run.images[name] = record
            outcome.segmented.append(name)
        writing.clear()
        before, done = done, len(outcome.segmented) + len(outcome.failures)
        if done > before:
            lines.count("segment", done, len(todo))
        if errors and errors[0] is not None:
            raise errors[0]

    try:
        with ThreadPoolExecutor(max_workers=max(2, min(4, os.cpu_count() or 1))) as pool:
            ahead = [pool.submit(_load, name, files[name], made) for name in (batches[0] if batches else [])]
            for following in [*batches[1:], []]:
                loaded = [each.result() for each in ahead]
                ahead = [pool.submit(_load, name, files[name], made) for name in following]
                good = [each for each in loaded if isinstance(each, _Loaded)]
                outcome.failures += [each for each in loaded if not isinstance(each, _Loaded)]
                scores = _scores(method, good, device) if good else []
                keep()
                writing += [
                    pool.submit(_finish, one, score, made, out) for one, score in zip(good, scores, strict=True)
                ]
                if time.monotonic() - saved > _SAVE_EVERY:
                    write_run(out, run)
                    saved = time.monotonic()
    finally:  # also after an interruption
        try:
            keep()
        finally:
            lines.end()
            write_run(out, run)
    return outcome


@dataclass(frozen=True)
class _Loaded:
    """An image ready for the method, float [3,S,S] in [0,1], and what its results need."""

    name: str
    image: torch.Tensor
    view: Picture
    size: tuple[int, int]
    path: Path
    bytes: int
    changed: int


def _load(name: str, path: Path, made: Recipe) -> _Loaded | tuple[Path, SlimeBenchError]:
    try:
        image = read_image(path)
        status = path.stat()
    except SlimeBenchError as error:
        return path, error
    fitted = fit_image(image, made.data.image_size, made.data.resize, made.data.fit).float() / 255
    shown = view(image)
    size = (int(image.shape[0]), int(image.shape[1]))
    return _Loaded(name, fitted, shown, size, path, status.st_size, status.st_mtime_ns)


def _scores(method: Any, loaded: Sequence[_Loaded], device: str) -> list[torch.Tensor]:
    """Score maps float32 [K,S,S] of each image, on the CPU."""
    with torch.inference_mode():
        images = torch.stack([each.image for each in loaded]).to(device)
        return list(method.scores(images, [each.name for each in loaded]).float().cpu())


def label_of(scores: torch.Tensor, size: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    """Score maps float [K,S,S] -> label map uint8 [H,W] at the file's size: the argmax of the enlarged maps.

    One class after the other, so that a photo of many megapixels does not need K maps of its size at once.
    """
    label = torch.zeros(size, dtype=torch.uint8)
    best = unfit(scores[:1], size, fit)[0].clone()
    for index in range(1, len(scores)):
        one = unfit(scores[index : index + 1], size, fit)[0]
        better = one > best
        best = torch.where(better, one, best)
        label[better] = index
    return label.numpy()


def _finish(loaded: _Loaded, scores: torch.Tensor, made: Recipe, out: Path) -> tuple[str, Record]:
    """Write one image's results."""
    label = label_of(scores, loaded.size, made.data.fit)
    write(out / OVERLAYS / f"{loaded.name}.jpg", overlay(loaded.view, label, made.classes, made.colours))
    write(out / LABELS / f"{loaded.name}.png", label_png(label, made.colours))
    pixels = tuple(np.bincount(label.ravel(), minlength=len(made.classes)).tolist())
    return loaded.name, Record(loaded.path.name, loaded.bytes, loaded.changed, loaded.size, pixels)
