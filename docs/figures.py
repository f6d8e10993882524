"""Draws the figures of the pages on the methods from test pictures of a trial, which it runs unless it is finished.

python docs/figures.py slime
python docs/figures.py infoscore
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import load_file

from slime_bench.config.compose import plan
from slime_bench.methods.infoscore.maps import layer_classes, probabilities
from slime_bench.report.figures import class_colours, paint
from slime_bench.trial import runner as trial
from slime_bench.trial.fitting import method_of

FOLDER = Path(__file__).parent / "figures"
TRIALS = {
    "slime": ["preset=mini", "data=mini_car", "shots=1", "seed=0"],
    "infoscore": ["preset=mini_infoscore", "data=mini_car", "shots=0", "seed=0"],
}
PICTURES = {"slime": 2, "infoscore": 1}  # of the test split, the first ones
COLUMNS = 5
Row = list[tuple[str, Any]]  # titles and images


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure that is asked for; further arguments are overrides of its trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=list(TRIALS))
    parser.add_argument("overrides", nargs="*", help="of the trial, e.g. seed=1")
    parser.add_argument("--part", default="wheel", help="class whose maps are shown")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_intermixed_args(argv)
    chosen = {each.partition("=")[0]: each for each in [*TRIALS[args.figure], *args.overrides]}  # the last word counts
    (cfg,) = plan(list(chosen.values())).trials
    method, images, labels, ids = tested(cfg, PICTURES[args.figure])
    rows = {"slime": slime_rows, "infoscore": infoscore_rows}[args.figure](method, images, ids, args.part)
    colours = class_colours(len(method.classes))
    for row, image, label in zip(rows, images, labels, strict=True):
        row.insert(0, ("picture", image.movedim(0, 2).numpy()))
        row.append(("annotation", label.numpy()))
    cells = [
        (title, paint(image, colours) if image.dtype == np.int64 else image) for row in rows for title, image in row
    ]
    draw(args.out / f"{args.figure}.png", cells)


def tested(cfg: Any, pictures: int) -> tuple[Any, torch.Tensor, torch.Tensor, list[str]]:
    """The method of a finished trial as it was tested, with test images [N,3,H,W], label maps [N,H,W] and their ids."""
    spec = trial.spec_of(cfg)
    folder, data = trial.run(spec).folder, spec.data.datamodule()
    data.setup()
    method = method_of(spec, cfg.build("backbone"))
    method.prepare(data, "cpu")
    if cfg.shots > 0:
        method.load_learned_state(load_file(folder / "state.safetensors"))
    batch = next(iter(data.test_dataloader()))
    return method, *(batch[name][:pictures] for name in ("image", "label", "id"))


def slime_rows(method: Any, images: torch.Tensor, ids: Sequence[str], part: str) -> list[Row]:
    """Cross-attention map and WAS map of the part, and the prediction."""
    index, found = method.classes.index(part), {}
    for maps in ("cross", "was"):
        method.config.maps = maps
        found[maps] = method.scores(images, ids)
    return [
        [
            (f"cross-attention: {part}", cross[index].numpy()),
            (f"WAS: {part}", was[index].numpy()),
            ("prediction", was.argmax(0).numpy()),
        ]
        for cross, was in zip(found["cross"], found["was"], strict=True)
    ]


@torch.no_grad()
def infoscore_rows(method: Any, images: torch.Tensor, ids: Sequence[str], part: str) -> list[Row]:
    """The part's share in every pixel for every layer, with the layer's InfoScore, and the predictions of the best."""
    index, frame, protocol = method.classes.index(part), tuple(images.shape[2:]), method.protocol
    shown, grid = method._views["chosen"], method.backbone.grid(tuple(images.shape[2:]))
    found = method.readings(images, ids, method.backbone.layers)
    scores = dict(zip(method.ranking.layers, method.ranking.score, strict=True))
    layers = {}
    for name, maps in shown.layer_maps(found, protocol).items():
        classes = layer_classes({name: maps}, shown.spans, protocol)
        layers[name] = probabilities(classes, grid, frame, protocol)[:, index].numpy()
    both = method.combined(found.only(method.layers), frame)
    refined = method.refine(both, images).argmax(1).numpy()
    return [
        [
            *((f"{name}: {scores[name]:.1f}", maps[row]) for name, maps in layers.items()),
            ("two best", both.argmax(1).numpy()[row]),
            ("with the CRF", refined[row]),
        ]
        for row in range(len(images))
    ]


def draw(path: Path, cells: Row) -> None:
    """A grid of titled images, line by line, as PNG."""
    lines = -(-len(cells) // COLUMNS)
    figure = Figure(figsize=(1.6 * COLUMNS, 1.85 * lines), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, COLUMNS, squeeze=False)
    figure.subplots_adjust(left=0.002, right=0.998, bottom=0.005, top=1 - 0.13 / lines, wspace=0.03, hspace=0.18)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes.flat, cells, strict=False):
        axis.imshow(image, cmap="magma", interpolation="nearest")
        axis.set_title(title, fontsize=9, pad=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
