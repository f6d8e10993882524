"""`slime-bench compare RUN_A RUN_B`: in what two finished trials differ, and how much.

A run is a trial's folder, its result.json, or the first digits of its signature, which are looked up below --outputs.
Printed are the IoU of every class and the average (B - A in percentage points), differing settings, data, fingerprints
and environment, whether the learned tensors are equal bit for bit, and in how many test images counted pixels differ.
Exit code 0 whether they differ or not; 2 for a run that is not there, not finished, or of other classes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slime_bench.metrics import CONVENTION_RULES


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two runs, print what was found, return the exit code.

    Raises:
        ResultError: see `find_run` and `compare`.
    """
    args = _parser().parse_args(argv)
    from slime_bench.report.compare.comparison import as_json, compare
    from slime_bench.report.compare.runs import find_run

    a, b = (find_run(name, args.outputs) for name in (args.run_a, args.run_b))
    found = compare(a, b, args.convention, False if args.without_background else None)
    if args.json:
        print(json.dumps(as_json(found), indent=1, ensure_ascii=False, default=str))
        return 0
    from rich.console import Console

    from slime_bench.report.compare.tables import show

    # In a file or a pipe rich takes the width from COLUMNS, or 80.
    show(found, Console(file=sys.stdout, highlight=False, markup=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    outputs = Path(os.environ.get("SLIME_BENCH_OUTPUTS") or "outputs")
    rules = "; ".join(f"{name}: {rule}" for name, rule in CONVENTION_RULES.items())
    parser.add_argument("run_a", metavar="RUN_A", help="folder, result.json, or beginning of a signature")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--outputs", type=Path, default=outputs, help=f"folder with runs/ (default {outputs})")
    parser.add_argument("--convention", choices=list(CONVENTION_RULES), help=f"{rules} (default: that of RUN_A)")
    parser.add_argument("--without-background", action="store_true", help="leave class 0 out of the average")
    parser.add_argument("--json", action="store_true", help="everything as JSON; IoU in 0..1, memory in bytes")
    return parser
