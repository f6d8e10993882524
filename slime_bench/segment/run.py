"""`slime-bench segment`, stage by stage: annotated images, images, embeddings, results, summary.

What is there already is not computed again, and what is cheap to find wrong comes before anything is learnt.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from slime_bench.data.class_files import ClassSpec, class_file_of, parse_classes, read_classes
from slime_bench.data.label_maps import listing
from slime_bench.data.manifest import stamp
from slime_bench.data.masks import UnnamedColours
from slime_bench.data.pictures import opened, size_of
from slime_bench.data.reading import read_photo
from slime_bench.errors import LabelError, ResultError, SlimeBenchError, StorageError
from slime_bench.paths import user_path
from slime_bench.results.state import content_hash, read_state
from slime_bench.segment import folder, learn, output
from slime_bench.segment.confidence import LARGE, UNSURE, doubtful
from slime_bench.segment.folder import EMBEDDINGS, LABELS, Record, Run, write, write_run
from slime_bench.segment.learn import Recipe
from slime_bench.segment.output import Shown, columns, note, percent
from slime_bench.segment.segmenter import Scored, Segmenter, noise_key
from slime_bench.segment.support import Support, pair_up, read_support
from slime_bench.trial.failure import typed_error

SHOWN = 12
"""Results in the grid picture."""
_SHOWN_SUPPORT = 6
_PER_MEGAPIXEL = 0.05  # seconds of one slow core to read a photo and to write its results
_LONG = 3.0  # seconds; so much without a sign of life is announced
_SAVE_EVERY = 5.0  # seconds; what was segmented since is done again should the process be killed


class _Bar(Callback):
    """The steps of an optimisation as a progress bar."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._bar = output.progress("fit", trainer.max_steps)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if isinstance(outputs, dict) and "loss" in outputs:
            self._bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._bar.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._bar.close()


def run(args: argparse.Namespace) -> int:
    """All stages; returns the exit code. SlimeBenchError: a mistake that the user can mend."""
    try:
        files, left_out = folder.list_images(args.images, args.out)
        folder.check_folder(args.out)
        with folder.locked(args.out):
            return _alone(args, files, left_out)
    except torch.OutOfMemoryError as error:
        raise typed_error(
            error, "learn with trainer.precision=bf16 (reused embeddings: backbone.dtype=bf16)"
        ) from error


def _alone(args: argparse.Namespace, files: dict[str, Path], left_out: Sequence[str]) -> int:
    """All stages from the annotated images on, in a folder that nobody else writes to."""
    began = time.monotonic()
    given = args.image, args.mask, args.support
    support = annotated(*given, args.classes, args.yes) if any(given) else None
    note("images", f"{len(files)} from {listing([str(each) for each in args.images])}")
    for each in left_out:
        note("", f"left out: {each}")
    if support is None:
        segmenter = Segmenter.load(args.embeddings, overrides=args.overrides, device=args.device, weights=args.weights)
        content = args.embeddings.read_bytes()
    else:
        segmenter, content = _learned(args, support)
    made, run = segmenter.recipe, _earlier(args, segmenter, content)
    _write_embeddings(args, segmenter, content, run, learns=support is not None)
    todo = {name: files[name] for name in folder.remaining(files, args.out, run, args.save_scores)}
    failures: dict[str, SlimeBenchError] = {}
    if todo:
        if not segmenter.loaded:
            note("backbone", f"{made.parts['backbone'][1].name} on {segmenter.device}")
        failures = segment_images(segmenter, todo, args.out, run, args.save_scores)
    good = {name: path for name, path in files.items() if name not in failures}
    records = [run.images[name] for name in good]
    write(args.out / folder.AREAS, output.areas_csv(records, made.classes))
    if good:
        _write_grid(args.out, made, good, support)
    _report(args.out, segmenter, records, len(files) - len(todo), time.monotonic() - began)
    _name_orphans(args.out, good)
    if failures:
        lines = [f"{len(failures)} image(s) could not be read:"]
        lines += [f"  {files[name]}: {error.summary} ({error.found})" for name, error in failures.items()]
        lines.append("  what to do: mend or remove them and repeat the command; the others are not done again")
        print("\n".join(lines), file=sys.stderr, flush=True)
    return 2 if failures else 0


def annotated(
    images: Sequence[Path], masks: Sequence[Path], place: Path | None, said: str | None, accept: bool
) -> Support:
    """The annotated images, in files or in the folder `place`, with their classes, which are told on the terminal.

    Args:
        said: the option `--classes`. accept: take masks as they are where the command would ask about them.
    """
    spec = ClassSpec()
    if said is not None:
        file = user_path(said)
        is_file = file.suffix in (".yaml", ".yml", ".txt", ".csv") or ("," not in said and file.is_file())
        spec = read_classes(file) if is_file else parse_classes(said.split(","), "--classes")
    elif place is not None and (listed := class_file_of(place)) is not None:
        spec = read_classes(listed)
        note("classes", f"as {listed} says")
    try:
        support = read_support(pair_up(images, masks, place), spec, accept=accept)
    except UnnamedColours as error:
        raise _asked(error) from error
    note("annotated", listing(support.names))
    titles = ("in mask", "label", "class", "pixels", "area", "")
    note("classes", columns([titles, *support.classes.table()]))
    for each in support.classes.notes:
        note("", each)
    return support


def _asked(error: UnnamedColours) -> LabelError:
    """The error with the class file that it proposes, which is written beside the mask."""
    note("colours", columns([("colour", "pixels", "area", "could be called"), *error.table()]))
    path = Path(f"{error.path}.classes.yaml")
    remedy = f"correct the names in {path} and add --classes {path}"
    try:
        if not path.exists():
            write(path, error.class_file().encode())
    except StorageError:  # the question matters, not that its folder is read-only
        remedy = str(error.remedy)
    return LabelError(
        error.summary, path=error.path, found=error.found, expected=error.expected,
        remedy=f"{remedy}; or take them as they are with --yes",
    )  # fmt: skip


def _learned(args: argparse.Namespace, support: Support) -> tuple[Segmenter, bytes]:
    """Embeddings of the annotated images, those that an earlier run has left or new ones, and their file's content."""
    cfg = learn.configuration(support, args.preset, args.overrides, args.seed, args.device, args.weights)
    signature, device, here = learn.signature(cfg, support), str(cfg.trainer.device), args.out / EMBEDDINGS
    for path in (args.embeddings, here):
        if args.force or path is None or not path.exists():
            continue
        tensors, facts = _state_of(path, signature, "--out" if path == here else "name")
        note("fit", f"not repeated: {path} is of these annotated images and settings")
        facts["backbone"] = cfg.plain["backbone"]  # its weights may have moved since
        return Segmenter(tensors, facts, device=device), path.read_bytes()
    write_run(args.out, folder.read_run(args.out))  # from here on the folder is ours, and it can be written
    note("backbone", f"{cfg.backbone.name} on {device}")
    segmenter = Segmenter.learned(cfg, support, folder=args.out, callbacks=[_Bar()])
    write(here, segmenter.content())  # before anything else can go wrong
    return segmenter, segmenter.content()


def _state_of(path: Path, signature: str, other: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of embeddings that are there; ResultError if they have another signature. `other`: what the
    user can choose another of."""
    try:
        tensors, facts = read_state(path)
    except ResultError:
        tensors, facts = {}, {}
    if facts.get("fit") != signature:
        raise ResultError(
            "there are other embeddings already", path=path,
            found="embeddings of other annotated images or settings", expected="nothing, or embeddings of these",
            remedy=f"to use them, leave out --image and --mask; to keep them, choose another {other}; to replace them, "
            "add --force",
        )  # fmt: skip
    return tensors, facts


def _earlier(args: argparse.Namespace, segmenter: Segmenter, content: bytes) -> Run:
    """What the output folder holds of these embeddings and settings; results of others are removed with `--force`, and
    a ResultError without."""
    origin = {"embeddings": segmenter.content_hash(), "settings": segmenter.recipe.settings_hash()}
    earlier, here = folder.read_run(args.out), args.out / EMBEDDINGS
    other = bool(earlier.images) and earlier.origin != origin
    if not other and here.exists() and here.read_bytes() != content:
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
        for each in folder.results_of(args.out, name):
            each.unlink(missing_ok=True)
    return Run(origin)


def _write_embeddings(args: argparse.Namespace, segmenter: Segmenter, content: bytes, run: Run, learns: bool) -> None:
    """`run.json`, the embeddings where they are wanted, and the class list."""
    write_run(args.out, run)
    for path in (args.out / EMBEDDINGS, *([args.embeddings] if learns and args.embeddings is not None else [])):
        if not path.exists() or path.read_bytes() != content:
            if path == args.embeddings and path.exists() and not args.force:  # of a process that was faster
                _state_of(path, segmenter.facts["fit"], "name")
            write(path, content)
    write(args.out / folder.CLASSES, output.class_list(segmenter.classes))


def segment_images(
    segmenter: Segmenter, files: Mapping[str, Path], out: Path, run: Run, save_scores: bool = False
) -> dict[str, SlimeBenchError]:
    """Label maps and overlays of all images; `run` is brought up to date, also after an interruption.

    Images are read and results are written in other threads while the next ones are computed. Memory does not grow
    with their number.

    Returns:
        the errors of images that could not be read, by name.

    Raises:
        StorageError: `out` cannot be written. DeviceError: too little memory.
    """
    made = segmenter.recipe
    names, size = list(files), made.data.batch_size
    batches = [names[start : start + size] for start in range(0, len(names), size)]
    failures: dict[str, SlimeBenchError] = {}
    _ = segmenter.method  # loaded now, so that the first batch takes no longer than others
    writing: list[Future[None]] = []
    saved = time.monotonic()
    by_files = _PER_MEGAPIXEL * sum(math.prod(size_of(path)) for path in files.values()) / 1e6
    if by_files > _LONG:
        note("segment", f"{len(names)} image(s), of which to read and to write alone will take about {by_files:.0f} s")
    try:
        with (
            ThreadPoolExecutor(max_workers=max(2, min(4, os.cpu_count() or 1))) as pool,
            output.progress("segment", len(names)) as bar,
        ):
            reading = {name: pool.submit(_load, name, files[name], segmenter) for name in batches[0]}
            for following in [*batches[1:], []]:
                loaded = {name: each.result() for name, each in reading.items()}
                reading = {name: pool.submit(_load, name, files[name], segmenter) for name in following}
                good = [each for each in loaded.values() if isinstance(each, _Loaded)]
                failures |= {name: each for name, each in loaded.items() if isinstance(each, SlimeBenchError)}
                began = time.monotonic()
                scores = segmenter.scored([each.image for each in good], [each.key for each in good]) if good else []
                if bar.n == 0 and good and following:
                    seconds = by_files + (time.monotonic() - began) / len(good) * len(names)
                    bar.write(f"{'segment':<10}{len(names)} images, about {seconds:.0f} s", file=sys.stderr)
                for each in writing:
                    each.result()
                bar.update(len(loaded))
                if time.monotonic() - saved > _SAVE_EVERY:
                    write_run(out, run)
                    saved = time.monotonic()
                both = zip(good, scores, strict=True)
                writing = [pool.submit(_finish, one, score, segmenter, out, run, save_scores) for one, score in both]
            for each in writing:
                each.result()
    finally:
        write_run(out, run)
    return failures


@dataclass(frozen=True)
class _Loaded:
    """An image ready for the method, float32 [3,S,S] in [0,1] with its `noise_key`, and what its results need."""

    name: str
    key: str
    image: torch.Tensor
    view: Image.Image
    size: tuple[int, int]
    file: tuple[str, int, int]


def _load(name: str, path: Path, segmenter: Segmenter) -> _Loaded | SlimeBenchError:
    changed = stamp(path) or (0, 0)  # before its pixels: should they change meanwhile, they are read again next time
    try:
        pixels, size = segmenter.read(path)
    except SlimeBenchError as error:
        return error
    view, fitted, key = output.view(Image.fromarray(pixels)), segmenter.fitted(pixels), noise_key(pixels)
    return _Loaded(name, key, fitted, view, size, (path.name, *changed))


def _finish(loaded: _Loaded, scored: Scored, segmenter: Segmenter, out: Path, run: Run, save_scores: bool) -> None:
    """Write one image's results, and record them."""
    made = segmenter.recipe
    label, pixels, confidence = segmenter.found(scored, loaded.size)
    label_file, overlay_file, scores_file = folder.results_of(out, loaded.name)
    if save_scores or scores_file.exists():  # which may be of an earlier picture of this name
        write(scores_file, output.scores_npz(scored.maps, loaded.size, made.data.fit, made.classes))
    write(overlay_file, output.overlay(loaded.view, label, made.classes, made.colours))
    write(label_file, output.label_png(label, made.colours))
    run.images[loaded.name] = Record(*loaded.file, list(loaded.size), pixels, confidence)


def _write_grid(out: Path, made: Recipe, files: Mapping[str, Path], support: Support | None) -> None:
    above, below, names = [], [], list(files)
    if support is not None:
        shown = zip(support.names, support.images, support.labels, strict=True)
        above = [Shown(name, Image.fromarray(image), label) for name, image, label in shown][:_SHOWN_SUPPORT]
    for place in np.linspace(0, len(names) - 1, min(len(names), SHOWN)).astype(int).tolist():
        path = files[names[place]]
        picture = Image.fromarray(read_photo(path, output.TILE).pixels)
        with opened(out / LABELS / f"{names[place]}.png") as label:
            below.append(Shown(path.name, *output.thumbnail(picture, label)))
    write(out / folder.GRID, output.grid_png(above, below, len(names), made.classes, made.colours))


def _name_orphans(out: Path, names: Iterable[str]) -> None:
    """Say which results are of none of the images, so that nobody takes them for results of this command."""
    left = sorted({each.name.removesuffix(".png") for each in (out / LABELS).glob("[!.]*.png")} - {*names})
    if left:
        print(
            f"{len(left)} earlier result(s) in {out} are of none of these images: {listing(left)}\n"
            "  what to do: delete their files in labels/ and overlays/ if the images are gone",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _report(out: Path, segmenter: Segmenter, records: Sequence[Record], earlier: int, seconds: float) -> None:
    before = f" ({earlier} of them earlier)" if earlier else ""
    print(f"{len(records)} image(s) segmented{before} in {seconds:.0f} s: {out}")
    if not records:
        return
    known = [record.confidence for record in records if record.confidence is not None]
    rows = [("class", "mean area", "in images", *(["unsure in"] if known else []))]
    for index, name in enumerate(segmenter.classes):
        parts = [record.pixels[index] / sum(record.pixels) for record in records]
        unsure = sum((each[index] or 1) < UNSURE for each in known)
        row = (name, percent(sum(parts) / len(parts)), str(sum(part > 0 for part in parts)))
        rows.append((*row, *([str(unsure) if index else ""] if known else [])))
    print("  " + columns(rows).replace("\n", "\n  "))
    _doubts(segmenter, records)
    print(f"look at {out / folder.GRID}", flush=True)


def _doubts(segmenter: Segmenter, records: Sequence[Record]) -> None:
    """Name the pictures in which nothing convinces, and classes that are larger than their examples."""
    empty = [record.file for record in records if record.confidence is not None and doubtful(record.confidence)]
    if empty:
        print(f"nothing convinces in {len(empty)} image(s), which may show none of the classes: {listing(empty)}")
    reached, large = segmenter.reached, dict[int, list[str]]()
    if reached is None:
        return
    for record in records:
        for index in reached.too_large([count / sum(record.pixels) for count in record.pixels]):
            large.setdefault(index, []).append(record.file)
    for index, files in sorted(large.items()):
        print(
            f"{segmenter.classes[index]} covers more than {LARGE:.0f} times its annotated share "
            f"in {len(files)} image(s): {listing(files)}"
        )
