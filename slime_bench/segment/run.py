"""`slime-bench segment`, stage by stage: annotated images, images, embeddings, results, summary.

What is there already is not computed again, and what is cheap to find wrong comes before anything is learnt.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.class_files import ClassSpec, parse_classes, read_classes
from slime_bench.data.label_maps import listing
from slime_bench.data.reading import read_image
from slime_bench.data.transforms import fit_image, unfit
from slime_bench.errors import ResultError, SlimeBenchError
from slime_bench.paths import user_path
from slime_bench.results.state import content_hash, read_state
from slime_bench.segment import folder, learn, output
from slime_bench.segment.folder import EMBEDDINGS, LABELS, OVERLAYS, Record, Run, write, write_run
from slime_bench.segment.learn import Recipe
from slime_bench.segment.output import Shown, columns, note, percent
from slime_bench.segment.support import Support, pair_up, read_support
from slime_bench.trial import fitting
from slime_bench.trial.device import pick_device
from slime_bench.trial.failure import typed_error

SHOWN = 12
"""Results in the grid picture."""
_SHOWN_SUPPORT = 6
_SAVE_EVERY = 5.0  # seconds; what was segmented since is done again should the process be killed


@dataclass(frozen=True)
class Learned:
    """Embeddings: tensors of their file, its place, how to segment with them, and the method where it is loaded."""

    tensors: dict[str, torch.Tensor]
    path: Path
    recipe: Recipe
    device: str
    method: Any = None


def run(args: argparse.Namespace) -> int:
    """All stages; returns the exit code.

    Raises:
        SlimeBenchError: a mistake that the user can mend.
    """
    try:
        return _run(args)
    except torch.OutOfMemoryError as error:
        raise typed_error(
            error, "learn with trainer.precision=bf16 (reused embeddings: backbone.dtype=bf16)"
        ) from error


def _run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    support = _annotated(args) if args.image or args.mask or args.support else None
    files = _images(args)
    learned = _reused(args) if support is None else _learned(args, support)
    made, run = learned.recipe, _earlier(args, learned)
    _write_embeddings(args, learned, run, learns=support is not None)
    todo = {name: files[name] for name in folder.remaining(files, args.out, run)}
    failures: dict[str, SlimeBenchError] = {}
    if todo:
        method = learned.method or learn.load_method(made, learned.tensors, learned.device)
        with fitting.threads(None, True):
            failures = segment_images(method.to(learned.device).eval(), made, todo, args.out, run)
    good = {name: path for name, path in files.items() if name not in failures}
    records = [run.images[name] for name in good]
    write(args.out / folder.AREAS, output.areas_csv(((record.file, record.pixels) for record in records), made.classes))
    if good:
        _write_grid(args.out, made, good, support)
    _report(args.out, made, records, len(files) - len(todo), time.monotonic() - began)
    if failures:
        lines = [f"{len(failures)} image(s) could not be read:"]
        lines += [f"  {files[name]}: {error.summary} ({error.found})" for name, error in failures.items()]
        lines.append("  what to do: mend or remove them and repeat the command; the others are not done again")
        print("\n".join(lines), file=sys.stderr, flush=True)
    return 2 if failures else 0


def _annotated(args: argparse.Namespace) -> Support:
    said, spec = args.classes, ClassSpec()
    if said is not None:
        file = user_path(said)
        is_file = said.endswith((".yaml", ".yml")) or ("," not in said and file.is_file())
        spec = read_classes(file) if is_file else parse_classes(said.split(","), "--classes")
    support = read_support(pair_up(args.image, args.mask, args.support), spec)
    note("annotated", listing(support.names))
    note("classes", columns([("in mask", "label", "class", "area"), *support.classes.table()]))
    return support


def _images(args: argparse.Namespace) -> dict[str, Path]:
    files, others = folder.list_images(args.images, args.out)
    folder.check_folder(args.out)
    left_out = f"; left out: {listing(others)}" if others else ""
    note("images", f"{len(files)} from {listing([str(each) for each in args.images])}{left_out}")
    return files


def _reused(args: argparse.Namespace) -> Learned:
    tensors, facts = read_state(args.embeddings)
    if args.weights is not None:
        facts["backbone"]["weights"] = args.weights
    return Learned(
        tensors, args.embeddings, learn.recipe(facts, args.overrides), pick_device(args.device, "--device cpu")
    )


def _learned(args: argparse.Namespace, support: Support) -> Learned:
    """Embeddings of the annotated images: those that an earlier run has left, or new ones."""
    cfg = learn.configuration(args, support)
    signature, device, here = learn.signature(cfg, support), str(cfg.trainer.device), args.out / EMBEDDINGS
    for path in (args.embeddings, here):
        if args.force or path is None or not path.exists():
            continue
        try:
            tensors, facts = read_state(path)
        except ResultError:
            facts = {}
        if facts.get("fit") != signature:
            raise ResultError(
                "there are other embeddings already", path=path,
                found="embeddings of other annotated images or settings", expected="nothing, or embeddings of these",
                remedy=f"to use them, leave out --image and --mask; to keep them, choose another "
                f"{'--out' if path == here else 'name'}; to replace them, add --force",
            )  # fmt: skip
        note("fit", f"not repeated: {path} is of these annotated images and settings")
        facts["backbone"] = cfg.plain["backbone"]  # its weights may have moved since
        return Learned(tensors, path, learn.recipe(facts), device)
    write_run(args.out, folder.read_run(args.out))  # from here on the folder is ours, and it can be written
    method = learn.fit(cfg, support, args.out, here, signature)
    tensors, facts = read_state(here)
    return Learned(tensors, here, learn.recipe(facts), device, method)


def _earlier(args: argparse.Namespace, learned: Learned) -> Run:
    """What the output folder holds of these embeddings and settings; with `--force` others are removed.

    Raises:
        ResultError: it holds results of others, and they are not to be replaced.
    """
    origin = {"embeddings": content_hash(learned.tensors), "settings": learned.recipe.settings_hash()}
    earlier, here = folder.read_run(args.out), args.out / EMBEDDINGS
    other = bool(earlier.images) and earlier.origin != origin
    if here.exists() and here != learned.path and not other:
        other = content_hash(read_state(here)[0]) != origin["embeddings"]
    if other and not args.force:
        raise ResultError(
            "the folder holds results of other embeddings or settings", path=args.out,
            found=f"{len(earlier.images)} segmented image(s)", expected="an empty folder, or results of the same",
            remedy="choose another --out, or replace them with --force",
        )  # fmt: skip
    if not args.force:
        return Run(origin, earlier.images)
    write_run(args.out, Run(origin))
    for name in earlier.images:
        (args.out / LABELS / f"{name}.png").unlink(missing_ok=True)
        (args.out / OVERLAYS / f"{name}.jpg").unlink(missing_ok=True)
    return Run(origin)


def _write_embeddings(args: argparse.Namespace, learned: Learned, run: Run, learns: bool) -> None:
    """`run.json`, the embeddings where they are wanted, and the class list."""
    write_run(args.out, run)
    content = learned.path.read_bytes()
    for path in (args.out / EMBEDDINGS, *([args.embeddings] if learns and args.embeddings is not None else [])):
        if not path.exists() or path.read_bytes() != content:
            write(path, content)
    names = yaml.safe_dump(list(learned.recipe.classes), allow_unicode=True, width=1000)
    write(args.out / folder.CLASSES, f"# classes of labels/, from label 0 on\n{names}".encode())


def segment_images(
    method: Any, made: Recipe, files: Mapping[str, Path], out: Path, run: Run
) -> dict[str, SlimeBenchError]:
    """Label maps and overlays of all images; `run` is brought up to date, also after an interruption.

    Images are read and results are written in other threads while the next ones are computed. Memory does not grow
    with their number.

    Returns:
        the errors of images that could not be read, by name.

    Raises:
        StorageError: `out` cannot be written. DeviceError: too little memory.
    """
    names, size = list(files), made.data.batch_size
    batches = [names[start : start + size] for start in range(0, len(names), size)]
    failures: dict[str, SlimeBenchError] = {}
    writing: list[Future[None]] = []
    saved = time.monotonic()
    try:
        with (
            ThreadPoolExecutor(max_workers=max(2, min(4, os.cpu_count() or 1))) as pool,
            output.progress("segment", len(names)) as bar,
        ):
            reading = {name: pool.submit(_load, name, files[name], made) for name in batches[0]}
            for following in [*batches[1:], []]:
                loaded = {name: each.result() for name, each in reading.items()}
                reading = {name: pool.submit(_load, name, files[name], made) for name in following}
                good = [each for each in loaded.values() if isinstance(each, _Loaded)]
                failures |= {name: each for name, each in loaded.items() if isinstance(each, SlimeBenchError)}
                scores = _scores(method, good) if good else []
                for each in writing:
                    each.result()
                bar.update(len(loaded))
                if time.monotonic() - saved > _SAVE_EVERY:
                    write_run(out, run)
                    saved = time.monotonic()
                both = zip(good, scores, strict=True)
                writing = [pool.submit(_finish, one, score, made, out, run) for one, score in both]
            for each in writing:
                each.result()
    finally:
        write_run(out, run)
    return failures


@dataclass(frozen=True)
class _Loaded:
    """An image ready for the method, float [3,S,S] in [0,1], and what its results need."""

    name: str
    image: torch.Tensor
    view: Image.Image
    size: tuple[int, int]
    path: Path
    bytes: int
    changed: int


def _load(name: str, path: Path, made: Recipe) -> _Loaded | SlimeBenchError:
    try:
        image = read_image(path)
        status = path.stat()
    except SlimeBenchError as error:
        return error
    fitted = fit_image(image, made.data.image_size, made.data.resize, made.data.fit).float() / 255
    size = (int(image.shape[0]), int(image.shape[1]))
    return _Loaded(name, fitted, output.view(Image.fromarray(image)), size, path, status.st_size, status.st_mtime_ns)


def _scores(method: Any, loaded: Sequence[_Loaded]) -> list[torch.Tensor]:
    """Score maps float32 [K,S,S] of each image, on the CPU."""
    with torch.inference_mode():
        images = torch.stack([each.image for each in loaded]).to(method.device)
        return list(method.refined_scores(images, [each.name for each in loaded]).float().cpu())


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


def _finish(loaded: _Loaded, scores: torch.Tensor, made: Recipe, out: Path, run: Run) -> None:
    """Write one image's results, and record them."""
    label = label_of(scores, loaded.size, made.data.fit)
    write(out / OVERLAYS / f"{loaded.name}.jpg", output.overlay(loaded.view, label, made.classes, made.colours))
    write(out / LABELS / f"{loaded.name}.png", output.label_png(label, made.colours))
    pixels = np.bincount(label.ravel(), minlength=len(made.classes)).tolist()
    run.images[loaded.name] = Record(loaded.path.name, loaded.bytes, loaded.changed, list(loaded.size), pixels)


def _write_grid(out: Path, made: Recipe, files: Mapping[str, Path], support: Support | None) -> None:
    above, below, names = [], [], list(files)
    if support is not None:
        shown = zip(support.names, support.images, support.labels, strict=True)
        above = [Shown(name, Image.fromarray(image), label) for name, image, label in shown][:_SHOWN_SUPPORT]
    for place in np.linspace(0, len(names) - 1, min(len(names), SHOWN)).astype(int).tolist():
        with Image.open(out / LABELS / f"{names[place]}.png") as label:
            path = files[names[place]]
            below.append(Shown(path.name, Image.fromarray(read_image(path)), np.array(label)))
    write(out / folder.GRID, output.grid_png(above, below, len(names), made.classes, made.colours))


def _report(out: Path, made: Recipe, records: Sequence[Record], earlier: int, seconds: float) -> None:
    before = f" ({earlier} of them earlier)" if earlier else ""
    print(f"{len(records)} image(s) segmented{before} in {seconds:.0f} s: {out}")
    if records:
        rows = [("class", "mean area", "in images")]
        for index, name in enumerate(made.classes):
            parts = [record.pixels[index] / sum(record.pixels) for record in records]
            rows.append((name, percent(sum(parts) / len(parts)), str(sum(part > 0 for part in parts))))
        print("  " + columns(rows).replace("\n", "\n  "))
        print(f"look at {out / folder.GRID}", flush=True)
