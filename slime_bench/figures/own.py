"""A grid of a user's own images: one annotated, and what each method finds in others."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.reading import read_photo
from slime_bench.errors import ConfigError
from slime_bench.figures.grid import SHOWN, Panel, write_grid
from slime_bench.segment import folder, learn
from slime_bench.segment.output import note
from slime_bench.segment.run import annotated
from slime_bench.segment.segmenter import Segmenter

METHODS = "slime,feature_probe"
FOLDER = "figure"
_SIDE = 1024  # pixels that both sides of a very large photo keep


def run_own(args: argparse.Namespace) -> int:
    """Learn from the annotated image with each method, and draw the grid; returns the exit code.

    Everything is composed, and every weight looked for, before anything is learned.

    Raises:
        SlimeBenchError: no query image, a mask that cannot be read, a method that does not fit, missing weights.
    """
    out = args.out or Path(FOLDER)
    files, left_out = folder.list_images(args.queries, out)
    names = [name.strip() for name in (args.methods or METHODS).split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            "the methods of a grid differ", path="--methods", found=args.methods,
            expected="names with commas, each once", remedy=f"e.g. --methods {METHODS}",
        )  # fmt: skip
    support = annotated([args.support], [args.mask], None, args.classes, args.yes)
    chosen = {
        name: learn.configuration(
            support, preset=args.preset, overrides=[f"method={name}", *args.overrides], seed=args.seed,
            device=args.device,
        )
        for name in names
    }  # fmt: skip
    for cfg in chosen.values():
        learn.signature(cfg, support)  # finds the weights
    for each in left_out:
        note("", f"left out: {each}")
    shown = [list(files.values())[place] for place in evenly(len(files))]
    rows: dict[str, list[NDArray[np.uint8]]] = {}
    for name, cfg in chosen.items():
        note("fit", f"{name} with {cfg.backbone.name} on {cfg.trainer.device}")
        segmenter = Segmenter.learned(cfg, support)
        rows[name] = [segmenter.segment(path) for path in shown]
    queries = [read_photo(path, _SIDE).pixels for path in shown]
    classes = support.classes
    panel = Panel(
        args.support.name, classes.names, classes.colours, support.images[0], support.labels[0], queries, rows
    )
    for path in write_grid(out / "grid", [panel]):
        print(path)
    return 0


def evenly(count: int) -> list[int]:
    """Places of at most `SHOWN` of so many images, spread evenly."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, SHOWN))]
