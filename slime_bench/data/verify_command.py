"""`slime-bench verify data=<name>`: decode every file of a data set, count, and say what is wrong.

The table names, for each split, the images that show each class. Below it stand the files that cannot be used, how the
files differ from the manifest, and images that appear twice. Exit code 0: fine; 2: a trial would fail, or an image of
the test split is in another split too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from slime_bench.data.class_table import class_table, stdout_console
from slime_bench.errors import ConfigError, SlimeBenchError

if TYPE_CHECKING:
    from slime_bench.data.folder import FolderData
    from slime_bench.data.reading import FolderDataset
    from slime_bench.data.verify import VerifyReport

FAULTY = 2
_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Verify the data set of a configuration, print what was found, return the exit code.

    Raises:
        ConfigError: a configuration that cannot be, or of several trials. DataError: there is no such data set.
    """
    from slime_bench.config.compose import plan

    parser = argparse.ArgumentParser(
        prog="slime-bench verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for a trial, e.g. data=pascal_part_car")
    parser.add_argument("--fresh", action="store_true", help="decode the files also when they were found good before")
    args = parser.parse_intermixed_args(argv)
    trials = plan(args.overrides, sweep=True).trials
    if len(trials) != 1:
        raise ConfigError(
            "the configuration is one of several trials", found=f"{len(trials)} trials", expected="one",
            remedy="give one value for each key",
        )  # fmt: skip
    cfg = trials[0]
    data = cfg.build("data", shots=cfg.shots, seed=cfg.seed)
    began = time.monotonic()
    report = _verify(data, fresh=args.fresh)
    good = report.usable and not report.leaks
    _print(f"{cfg.data.name}  {data.root}", data.classes, report)
    images = sum(each.images for each in report.splits.values())
    source = " (remembered: no file has changed since; --fresh decodes them again)" if report.remembered else ""
    print(f"{'good' if good else 'NOT GOOD'}: {images:,} images in {time.monotonic() - began:.1f} s{source}")
    return 0 if good else FAULTY


def _verify(data: FolderData, *, fresh: bool) -> VerifyReport:
    from slime_bench.data.config import SPLITS
    from slime_bench.data.verify import verified

    if not data.root.is_dir() or not any(data.root.iterdir()):
        data.prepare_data()  # makes the data set, or says how to get it
    data.check_manifest()  # another subject's folder, or classes in another order, would look good below
    splits: dict[str, FolderDataset] = {}
    problems: list[SlimeBenchError] = []
    wanted = {*data.needed, *data.present_splits()}
    for name in (each for each in SPLITS if each in wanted):
        try:
            splits[name] = data.split(name)
        except SlimeBenchError as error:  # the other splits are looked at all the same
            problems.append(error)
    report = verified(splits, data.root, fresh=fresh)
    return replace(report, problems=[*problems, *report.problems])


def _print(title: str, classes: Sequence[str], report: VerifyReport) -> None:
    console = stdout_console()
    console.print(title)
    if report.splits:
        splits = {
            name: (each.images, [*each.images_with_class.values()], [*each.pixels_of_class.values()])
            for name, each in report.splits.items()
        }
        more = {
            "ignored pixels": [f"{each.ignored_pixels:,}" for each in report.splits.values()],
            "sizes": [_sizes(each.sizes) for each in report.splits.values()],
        }
        console.print(class_table(classes, splits, more))
    for name, each in report.splits.items():
        absent = [key for key, count in each.pixels_of_class.items() if not count]
        if absent:
            console.print(f"note: no image of {name} shows {', '.join(absent)}")
    sections = {
        "cannot be used": [f"{each.path}: {each.summary} ({each.found})" for each in report.problems],
        "what to do": list(dict.fromkeys(str(each.remedy) for each in report.problems if each.remedy)),
        "differs from the manifest": report.differences,
        "in the test split and in another": report.leaks,
        "appears twice (a warning)": report.twins,
    }
    for heading, lines in sections.items():
        if lines:
            rest = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            console.print("\n  ".join([f"{heading}: {len(lines)}", *lines[:_SHOWN], *rest]))


def _sizes(sizes: dict[str, int]) -> str:
    """One size as it is, several by their number and the extremes of both sides."""
    if len(sizes) <= 1:
        return "".join(sizes)
    sides = np.array([size.split("x") for size in sizes], int)
    (least_w, least_h), (most_w, most_h) = sides.min(0), sides.max(0)
    return f"{len(sizes)} from {least_w}x{least_h} to {most_w}x{most_h}"
