"""Whole trials of several methods on the mini world: seconds of the fit and of the test, and peak memory.

    python -m slime_bench.bench.methods [overrides] [--methods slime feature_probe] [--shots 1 10] [--out FOLDER]

Each trial runs in a process of its own, with a folder of its own, from nothing to its result; the numbers are those of
its environment.json. A fit includes the loading of the backbone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slime_bench.bench.command import GB, make_main, number, publish, say, table, times
from slime_bench.bench.memory import apart
from slime_bench.config.compose import plan
from slime_bench.results.environment import ENVIRONMENT_FILE
from slime_bench.trial.runner import run, spec_of

METHODS = ("slime", "feature_knn", "feature_probe", "segddpm", "diffseg", "infoscore", "seggpt")


def measure(overrides: Sequence[str]) -> dict[str, Any]:
    """Seconds of fit and test, images of the test, mIoU in percent and peak bytes of one trial, run in this process."""
    threads = torch.get_num_threads()
    (cfg,) = plan([*overrides, "force=true", "trainer.progress=false", f"trainer.threads={threads}"]).trials
    end = run(spec_of(cfg))
    facts = json.loads((end.folder / ENVIRONMENT_FILE).read_text())
    peak = facts["peak_gpu_bytes"] or facts["peak_rss_bytes"] or 0
    average = None if end.result.average is None else 100 * end.result.average
    return {**facts["seconds"], "images": end.result.num_test_images, "mIoU": average, "peak": peak}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown; ratios are to the first row of the same shots."""
    first: dict[int, dict[str, Any]] = {}
    lines = []
    for row in rows:
        base = first.setdefault(row["shots"], row)
        each = row["test"] / row["images"]
        faster = ["", ""] if base is row else [
            times(base["fit"] / max(row["fit"], 0.01)), times(base["test"] / base["images"] / each)
        ]  # fmt: skip
        lines.append(
            [
                *(row["method"], str(row["shots"]), number(row["fit"]), faster[0], number(each), faster[1]),
                *(f"{row['peak'] / GB:.2f}", number(row["mIoU"])),
            ]
        )
    head = ["method", "shots", "fit, s", "times faster", "test, s per image", "times faster", "peak GB", "mIoU, %"]
    return table(head, lines)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="settings of every trial, key=value")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="the first is what ratios are to")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 10])


def _measure(arguments: argparse.Namespace, command: str) -> str:
    rows = []
    with tempfile.TemporaryDirectory(prefix="slime-bench-") as folder:
        for shots in arguments.shots:
            for method in arguments.methods:
                say(f"{method}, {shots} shots")
                words = [f"method={method}", f"shots={shots}", f"output_root={Path(folder)}", *arguments.overrides]
                rows.append({"method": method, "shots": shots, **apart(measure, words)})
    text = f"{tables(rows)}\n\nOne trial each, seed 0; a fit includes the loading of the backbone."
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return publish(arguments.out, f"methods_{device}", "Methods, whole trials", text, device, command, {"rows": rows})


main = make_main("slime_bench.bench.methods", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))
