"""A figure of the bench: tables, grid and numbers of the finished trials of `experiment=figure<N>`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from slime_bench.colours import palette
from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig
from slime_bench.data.mini_world.render import OTHER_SUBJECT, render
from slime_bench.figures.grid import SHOWN, Panel, write_grid
from slime_bench.report.collect import Collected, collect, read_optional
from slime_bench.report.command import Asked, run_planned
from slime_bench.report.figures import plot, save
from slime_bench.report.rows import Row, stat
from slime_bench.report.subject import SubjectReport
from slime_bench.report.table import Grid, Line, print_grid, say, stat_cells, stat_text, write_report
from slime_bench.results.artifacts import QUALITATIVE_FILE, GridItem, read_qualitative
from slime_bench.results.result import TrialResult
from slime_bench.sweep.status import states_of
from slime_bench.tracking.loggers import log_figure

TRUTH = "truth"
SHARE, SIZE = 10, 13
"""Figures with a number of their own: what is labelled of the other subject, and IoU by the part's size."""
EDGES = (4, 8, 12, 18, 26, 41)
"""Bounds of the sizes of a part in pixels, the last of them outside."""


@dataclass(frozen=True)
class Kept:
    """A finished trial with the pictures that it kept."""

    result: TrialResult
    items: list[GridItem]

    @property
    def whole(self) -> bool:
        """Whether every test picture is among them."""
        return len(self.items) == self.result.num_test_images


def run_figure(
    number: int, overrides: Sequence[str], outputs: Path | None, out: Path | None, console: Console | None = None
) -> int:
    """Print and write tables, grid and numbers; returns the exit code.

    Args:
        overrides: further ones, as they were given to the sweep. outputs: folder with runs/. out: for the files.

    Raises:
        ConfigError: an override that cannot be. ResultError: none of the trials is finished.
        StorageError: a file cannot be written.
    """
    console, asks = console or Console(), [f"experiment=figure{number}", *overrides]
    found = plan(asks, sweep=True)
    cfgs, trials = found.trials, states_of(found, outputs)
    outputs = outputs or Path(cfgs[0].output_root)
    folder = out or outputs / "reports" / f"figure{number}"
    made = run_planned(Asked(console, lambda *_: trials, outputs=outputs, folder=folder), asks)
    reports: list[SubjectReport] = made if isinstance(made, list) else []
    collected = collect(outputs)
    rows = [row for report in reports for row in report.rows]
    kept = {row.series: _kept(row, collected) for row in rows}
    panels: list[Panel] = []
    for data in dict.fromkeys(cfg.data.name for cfg in cfgs):
        mine = [row for row in rows if row.data == data and kept[row.series]]
        if mine:
            own = [cfg for cfg in cfgs if cfg.data.name == data]
            panels.append(_panel(own, mine, kept, console))
    if not panels:
        say(console, "no grid: no finished trial kept pictures (save_maps=0); repeat one with force=true save_maps=4")
    for path in write_grid(folder / "grid", panels, f"Figure {number} of SLiMe, on the mini world") if panels else ():
        say(console, f"Written to {path}")
    extra = {SHARE: _write_share, SIZE: _write_size}.get(number)
    whole = {series: [one for one in kept_of if one.whole] for series, kept_of in kept.items()}
    if extra is not None:
        for row in (row for row in rows if len(whole[row.series]) < len(row.seeds)):
            say(console, f"{_name(row, rows)}: some seeds did not keep all test pictures; force=true repeats them")
        if counted := [row for row in rows if whole[row.series]]:
            extra(folder, counted, whole, console)
    if panels:
        means = ((f"{row.data}/{_name(row, rows)}", row.average.mean) for row in rows if not row.published)
        log_figure(cfgs[0].logger, number, folder, {name: mean for name, mean in means if mean is not None})
    return 0


def _kept(row: Row, collected: Collected) -> list[Kept]:
    """The row's trials that kept pictures, by seed."""
    found = []
    for one in collected.results:
        if one.series == row.series and one.seed in row.seeds:
            content = read_optional(collected.folders[one.signature] / QUALITATIVE_FILE, read_qualitative)
            found += [] if content is None else [Kept(one, content[0])]
    return found


def _panel(cfgs: Sequence[TrialConfig], rows: Sequence[Row], kept: dict[str, list[Kept]], console: Console) -> Panel:
    """The panel of one data set: of the first seed of which most methods have pictures."""
    counts = Counter(one.result.seed for row in rows for one in kept[row.series])
    seed = min(counts, key=lambda each: (-counts[each], each))
    chosen = {_name(row, rows): one for row in rows for one in kept[row.series] if one.result.seed == seed}
    for name in [_name(row, rows) for row in rows if _name(row, rows) not in chosen]:
        say(console, f"{name} on {rows[0].data}: no picture of seed {seed}")
    (cfg, *_) = [cfg for cfg in cfgs if cfg.seed == seed]
    data = cfg.build("data", shots=cfg.shots, seed=seed)
    data.prepare_data()
    support = data.support[0]
    found = {name: {item.image_id: item for item in one.items} for name, one in chosen.items()}
    ids = [each for each in next(iter(found.values())) if all(each in items for items in found.values())][:SHOWN]
    first = next(iter(found.values()))
    painted = {name: [items[key].prediction for key in ids] for name, items in found.items()}
    return Panel(
        title=f"{cfg.data.name}, {cfg.shots}-shot, seed {seed}", classes=data.classes,
        colours=palette(len(data.classes)).tolist(), support=support.image,
        mask=np.asarray(support.label).astype(np.uint8), queries=[first[key].image for key in ids],
        rows={TRUTH: [first[key].label for key in ids], **painted},
    )  # fmt: skip


def _name(row: Row, rows: Sequence[Row]) -> str:
    """What a row is called among those of one data set."""
    shared = sum(each.label == row.label and each.data == row.data for each in rows) > 1
    return f"{row.label} ({row.variant})" if shared and row.variant else row.label


# --- numbers of single figures


def _write_share(folder: Path, rows: Sequence[Row], kept: dict[str, list[Kept]], console: Console) -> None:
    """How much of the subject that nobody annotated is labelled, in percent: `share.*`."""

    def region(item: GridItem) -> NDArray[np.bool_]:
        name, split, index = item.image_id.rsplit("-", 2)
        return render(name, split, int(index)).scene == OTHER_SUBJECT

    lines, table = [], []
    for row in rows:
        shares = [labelled_share((item.prediction, region(item)) for item in one.items) for one in kept[row.series]]
        value, name = stat([share for share in shares if share is not None]), _name(row, rows)
        lines.append(Line([name, row.data, str(len(shares)), stat_text(value)]))
        table.append({"method": name, "data": row.data, "n": len(shares), **stat_cells({"share": value})})
    caption = ["pixels of the car that are predicted as a part of the horse, in percent of its pixels, all test "
               "pictures together; mean±sample standard deviation over n seeds"]  # fmt: skip
    title = "What is labelled of the subject that is not annotated"
    grid = Grid(title, ["method", "data", "n", "share"], lines, caption)
    write_report(folder / "share", [grid], table, table)
    print_grid(grid, console)


def _write_size(folder: Path, rows: Sequence[Row], kept: dict[str, list[Kept]], console: Console) -> None:
    """IoU against the size of the part, in percent: `size.*`, the curve among them."""
    figure, axis = plot((6.0, 3.8))
    lines, table = [], []
    for row in rows:
        name = _name(row, rows)
        by_seed = [iou_by_size((item.prediction, item.label) for item in one.items) for one in kept[row.series]]
        values = []
        for ranges in zip(*by_seed, strict=True):
            values.append(stat([one.iou for one in ranges if one.iou is not None]))
            about = {"least": ranges[0].least, "most": ranges[0].most, "parts": ranges[0].count, "n": len(by_seed)}
            table.append({"method": name, "data": row.data, **about, **stat_cells({"iou": values[-1]})})
        sizes = [f"{one.least}-{one.most}" for one in by_seed[0]]
        lines.append(Line([name, str(len(by_seed)), *map(stat_text, values)]))
        known = [(place, each) for place, each in enumerate(values) if each.mean is not None]
        means, spreads = [each.mean or 0.0 for _, each in known], [each.std or 0.0 for _, each in known]
        axis.errorbar([place for place, _ in known], means, spreads, fmt="o-", capsize=3, label=name)
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set(xlabel="pixels of the part", ylabel="IoU (%)")
    axis.legend(fontsize=8)
    caption = [
        "IoU in percent of parts by their pixels in the label map: intersections over unions, both summed over the "
        "test pictures; mean±sample standard deviation over n seeds"
    ]
    grid = Grid("IoU by the size of the part", ["method", "n", *sizes], lines, caption)
    write_report(folder / "size", [grid, "![size](size.png)"], table, table)
    print_grid(grid, console)
    for kind in ("png", "pdf"):
        save(figure, folder / f"size.{kind}")


@dataclass(frozen=True)
class Sized:
    """Parts of one range of sizes.

    Attributes:
        least, most: pixels. count: parts. iou: of all their pictures together, in percent; None without any.
    """

    least: int
    most: int
    count: int
    iou: float | None


def labelled_share(pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.bool_]]]) -> float | None:
    """Percent of the pixels of a region that are predicted as any part, over all pictures together.

    Args:
        pairs: prediction [H,W], 0 = background, and the region [H,W] of the subject that is not annotated.
    """
    inside = [prediction[region] > 0 for prediction, region in pairs]
    whole = sum(each.size for each in inside)
    return 100 * sum(int(each.sum()) for each in inside) / whole if whole else None


def iou_by_size(
    pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], edges: Sequence[int] = EDGES
) -> list[Sized]:
    """IoU of parts in ranges of their size: sum of intersections over sum of unions of the pictures in a range.

    Args:
        pairs: prediction and label map [H,W] of each picture. Every part that the label map shows counts by itself.
        edges: bounds of the ranges, the lower one inside.
    """
    rows = []
    for prediction, label in pairs:
        for part in np.unique(label[(label > 0) & (label < 255)]):
            own, said = label == part, prediction == part
            rows.append((int(own.sum()), int((own & said).sum()), int((own | said).sum())))
    found = []
    for low, high in pairwise(edges):
        inside = [row for row in rows if low <= row[0] < high]
        both, either = (sum(row[place] for row in inside) for place in (1, 2))
        found.append(Sized(low, high - 1, len(inside), 100 * both / either if either else None))
    return found
