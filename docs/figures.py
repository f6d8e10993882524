"""Draws the figures of the pages on the methods from test pictures of a trial, which it runs unless it is finished.

python docs/figures.py slime
python docs/figures.py infoscore
python docs/figures.py supervised
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import load_file

from slime_bench.colours import palette
from slime_bench.config.compose import plan
from slime_bench.methods.infoscore.maps import layer_classes, probabilities
from slime_bench.report.figures import paint
from slime_bench.trial import runner as trial
from slime_bench.trial.fitting import method_of

FOLDER = Path(__file__).parent / "figures"
TRIALS = {
    "slime": ["preset=mini", "data=mini_car", "shots=1", "seed=0"],
    "infoscore": ["preset=mini_infoscore", "data=mini_car", "shots=0", "seed=0"],
}
CURVE = "supervised"
KEPT = Path(__file__).parent / "results" / "mini" / "probe.md"
"""Its table of the usual test pictures has the rows that the curve is held against."""
PICTURES = {"slime": 2, "infoscore": 1}  # of the test split, the first ones
COLUMNS = 5
Row = list[tuple[str, Any]]  # titles and images


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure that is asked for; further arguments are overrides of its trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=[*TRIALS, CURVE])
    parser.add_argument("overrides", nargs="*", help="of the trial, e.g. seed=1")
    parser.add_argument("--part", default="wheel", help="class whose maps are shown")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_intermixed_args(argv)
    if args.figure == CURVE:
        draw_curve(args.out / f"{CURVE}.png", curve(args.overrides))
        return
    chosen = {each.partition("=")[0]: each for each in [*TRIALS[args.figure], *args.overrides]}  # the last word counts
    (cfg,) = plan(list(chosen.values())).trials
    method, images, labels, ids = tested(cfg, PICTURES[args.figure])
    rows = {"slime": slime_rows, "infoscore": infoscore_rows}[args.figure](method, images, ids, args.part)
    colours = palette(len(method.classes))
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
    method = method_of(cfg, spec.data.classes, cfg.build("backbone"))
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


def curve(overrides: Sequence[str]) -> dict[int, list[float]]:
    """Average IoU in percent of the trials of experiment=supervised_curve, by their number of annotated pictures."""
    found = defaultdict[int, list[float]](list)
    for cfg in plan(["experiment=supervised_curve", *overrides], sweep=True).trials:
        average = trial.run(trial.spec_of(cfg)).result.average
        found[cfg.shots].append(100 * average)
    return dict(sorted(found.items()))


def kept_rows() -> list[tuple[str, int, float, float]]:
    """(method, shots, mean, deviation) of SLiMe and the feature probe on the usual pictures of the car."""
    section = KEPT.read_text(encoding="utf-8").split("## The usual test pictures", 1)[1].split("\n## ", 1)[0]
    rows = []
    for shots in (1, 10):
        cells = re.search(rf"^\| car \| {shots} \|(.*)$", section, re.MULTILINE)[1].replace("*", "").split("|")
        for method, cell in (("SLiMe", cells[0]), ("feature probe", cells[2])):
            rows.append((method, shots, *map(float, cell.strip().split("±"))))
    return rows


def draw_curve(path: Path, found: dict[int, list[float]]) -> None:
    """Average IoU against the number of annotated pictures, with the kept rows as lines with bands, as PNG."""
    figure = Figure(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    means = [statistics.fmean(values) for values in found.values()]
    spread = [statistics.stdev(values) if len(values) > 1 else 0 for values in found.values()]
    axis.errorbar(list(found), means, spread, color="black", marker="o", capsize=3)
    axis.annotate("supervised UPerNet", (list(found)[-1], means[-1]), (-6, 8), textcoords="offset points", ha="right")
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    for method, shots, mean, deviation in kept_rows():
        colour, dashes = {"SLiMe": "tab:blue", "feature probe": "tab:orange"}[method], "-" if shots == 10 else "--"
        axis.axhline(mean, color=colour, linestyle=dashes, linewidth=1.2)
        axis.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
        above = 5 if method == "feature probe" else -5  # its 1-shot row and SLiMe's 10-shot row are all but equal
        axis.annotate(f"{method}, {shots}-shot", (1.01, mean), (0, above), color=colour, va="center", **beside)
    axis.set_xscale("log")
    axis.set_xticks(list(found), [str(count) for count in found], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("annotated pictures of the training")
    axis.set_ylabel("average IoU in percent")
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


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
