"""The stages of `slime-bench segment`: annotated images, images, embeddings, results, summary."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from slime_bench.data.reading import read_image
from slime_bench.errors import ResultError
from slime_bench.segment import fit as learning
from slime_bench.segment.files import (
    AREAS,
    CLASSES,
    EMBEDDINGS,
    GRID,
    LABELS,
    OVERLAYS,
    Record,
    Run,
    check_folder,
    list_images,
    read_run,
    write,
    write_run,
)
from slime_bench.segment.grid import Shown, evenly, grid_png
from slime_bench.segment.output import areas_csv, percent
from slime_bench.segment.progress import Lines, columns, duration
from slime_bench.segment.run import Outcome, Recipe, load_method, made_by, recipe, remaining, segment_images
from slime_bench.segment.spec import read_classes
from slime_bench.segment.state import content_hash, ordered, read_state, signature_of
from slime_bench.segment.support import Support, pair_up, read_support
from slime_bench.trial import fitting
from slime_bench.trial.device import pick_device

SHOWN = 12
"""Results in the grid picture."""
_SHOWN_SUPPORT = 6


@dataclass(frozen=True)
class Learned:
    """Embeddings: tensors and metadata of their file, its place, the device, and the method where it is loaded."""

    tensors: dict[str, Any]
    facts: dict[str, Any]
    path: Path
    device: str
    method: Any = None


def run(args: argparse.Namespace) -> int:
    """All stages; returns the exit code. What is cheap to find wrong comes before anything is learnt.

    Raises:
        SlimeBenchError: a mistake that the user can mend.
    """
    began, lines = time.monotonic(), Lines()
    support = _annotated(args, lines) if args.image or args.mask or args.support else None
    files = _images(args, lines)
    if support is None:
        learned = Learned(*read_state(args.embeddings), args.embeddings, pick_device(args.device))
        if args.weights is not None:
            learned.facts["backbone"]["weights"] = args.weights
        made = recipe(learned.facts, args.overrides)
    else:
        learned = _learn(args, support, lines)
        made = recipe(learned.facts)
    earlier = _earlier(args, learned, made_by(made, learned.tensors))
    _write_embeddings(args, learned, made, earlier, support is not None)
    method = learned.method
    if method is None and remaining(files, args.out, earlier):
        lines.note("backbone", f"{made.parts['backbone'][1].name} on {learned.device}")
        method = load_method(made, learned.tensors, learned.device)
    with learning.memory_errors(), fitting.threads(None, True):
        outcome = segment_images(method, made, files, args.out, earlier, lines, learned.device)
    names = [name for name in files if name in {*outcome.segmented, *outcome.kept}]
    records = [earlier.images[name] for name in names]
    write(args.out / AREAS, areas_csv(((record.file, record.pixels) for record in records), made.classes))
    if names:
        _write_grid(args.out, made, {name: files[name] for name in names}, support)
    _summarise(args.out, made, records, outcome, time.monotonic() - began)
    return 2 if outcome.failures else 0


def _annotated(args: argparse.Namespace, lines: Lines) -> Support:
    support = read_support(pair_up(args.image, args.mask, args.support), read_classes(args.classes))
    lines.note("annotated", ", ".join(support.names[:5]) + (" ..." if len(support.names) > 5 else ""))
    lines.note("classes", columns([("in mask", "label", "class", "area"), *support.classes.table()]))
    return support


def _images(args: argparse.Namespace, lines: Lines) -> dict[str, Path]:
    files, passed = list_images(args.images, args.out)
    check_folder(args.out)
    places = ", ".join(str(each) for each in args.images[:3]) + (" ..." if len(args.images) > 3 else "")
    left_out = f"; {len(passed)} of kinds that are not read left out, e.g. {passed[0]}" if passed else ""
    lines.note("images", f"{len(files)} from {places}{left_out}")
    return files


def _learn(args: argparse.Namespace, support: Support, lines: Lines) -> Learned:
    """Embeddings of the annotated images: those that an earlier run has left, or new ones."""
    cfg = learning.configuration(
        support, args.overrides, preset=args.preset, seed=args.seed, device=args.device, weights=args.weights
    )
    wanted, device = learning.signature(cfg, support), str(cfg.trainer.device)
    here = args.out / EMBEDDINGS
    for path in (args.embeddings, here):
        if args.force or path is None or not path.exists():
            continue
        if signature_of(path) == wanted:
            lines.note("fit", f"not repeated: {path} is of these annotated images and settings")
            tensors, facts = read_state(path)
            facts["backbone"] = cfg.plain["backbone"]  # its weights may have moved since
            return Learned(tensors, facts, path, device)
        raise ResultError(
            "there are other embeddings already", path=path, found="embeddings of other annotated images or settings",
            expected="nothing, or embeddings of these",
            remedy=f"to use them, leave out --image and --mask; to keep them, choose another "
            f"{'--out' if path == here else 'name'}; to replace them, add --force",
        )  # fmt: skip
    write_run(args.out, read_run(args.out))  # from here on the folder is ours, and it can be written
    method = learning.fit(cfg, support, args.out, lines)
    learning.save(here, method, cfg, support, wanted)
    return Learned(*read_state(here), here, device, method)


def _earlier(args: argparse.Namespace, learned: Learned, made_by: dict[str, str]) -> Run:
    """What the output folder holds of these embeddings and settings; with `--force` others are removed.

    Raises:
        ResultError: it holds results of others, and they are not to be replaced.
    """
    earlier, here = read_run(args.out), args.out / EMBEDDINGS
    other = bool(earlier.images) and earlier.made_by != made_by
    if here.exists() and here != learned.path and not other:
        other = content_hash(read_state(here)[0]) != made_by["embeddings"]
    if other and not args.force:
        raise ResultError(
            "the folder holds results of other embeddings or settings", path=args.out,
            found=f"{len(earlier.images)} segmented image(s)", expected="an empty folder, or results of the same",
            remedy="choose another --out, or replace them with --force",
        )  # fmt: skip
    if other or args.force:
        write_run(args.out, Run(made_by, {}))
        for name in earlier.images:
            (args.out / LABELS / f"{name}.png").unlink(missing_ok=True)
            (args.out / OVERLAYS / f"{name}.jpg").unlink(missing_ok=True)
        return Run(made_by, {})
    return Run(made_by, dict(earlier.images))


def _write_embeddings(args: argparse.Namespace, learned: Learned, made: Recipe, run: Run, learns: bool) -> None:
    """`run.json`, the embeddings where they are wanted, and the class list."""
    write_run(args.out, run)
    content = ordered(learned.path.read_bytes())
    for path in (args.out / EMBEDDINGS, *([args.embeddings] if learns and args.embeddings is not None else [])):
        if not (path.exists() and (path.samefile(learned.path) or path.read_bytes() == content)):
            write(path, content)
    names = yaml.safe_dump(list(made.classes), allow_unicode=True, width=1000)
    write(args.out / CLASSES, f"# classes of labels/, from label 0 on\n{names}".encode())


def _write_grid(out: Path, made: Recipe, files: Mapping[str, Path], support: Support | None) -> None:
    above = []
    if support is not None:
        shown = list(zip(support.names, support.images, support.labels, strict=True))
        above = [Shown(*each) for each in shown[:_SHOWN_SUPPORT]]
    below, names = [], list(files)
    for name in (names[place] for place in evenly(len(names), SHOWN)):
        with Image.open(out / LABELS / f"{name}.png") as label:
            image = read_image(files[name])
            below.append(Shown(files[name].name, image, np.array(label)))
    write(out / GRID, grid_png(above, below, len(names), made.classes, made.colours))


def _summarise(out: Path, made: Recipe, records: Sequence[Record], outcome: Outcome, seconds: float) -> None:
    kept = f" ({len(outcome.kept)} of them earlier)" if outcome.kept else ""
    print(f"{len(records)} image(s) segmented{kept} in {duration(seconds)}: {out}")
    if records:
        rows = [("class", "mean area", "in images")]
        for index, name in enumerate(made.classes):
            parts = [record.pixels[index] / sum(record.pixels) for record in records]
            rows.append((name, percent(sum(parts) / len(parts)), str(sum(part > 0 for part in parts))))
        print("  " + columns(rows).replace("\n", "\n  "))
        print(f"look at {out / GRID}")
    sys.stdout.flush()
    if outcome.failures:
        lines = [f"{len(outcome.failures)} image(s) could not be read:"]
        lines += [f"  {path}: {error.summary} ({error.found})" for path, error in outcome.failures]
        lines.append("  what to do: mend or remove them and repeat the command; the others are not done again")
        print("\n".join(lines), file=sys.stderr, flush=True)
