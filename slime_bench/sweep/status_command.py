"""`slime-bench status`: which trials of a sweep are done, running, failed or missing, for the overrides of the sweep.

Nothing is run, loaded or written. Other states: `oom` (the GPU has too little memory), `killed` (its process was; the
same command goes on with it), `unreadable` (its result is damaged, or another trial's; it runs again), `unknown` (data
or weights are not here, and no folder looks like its own).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slime_bench.results.status import TrialStatus


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return 0.

    Raises:
        ConfigError: overrides that make no trial.
    """
    parser = argparse.ArgumentParser(
        prog="slime-bench status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for the sweep, e.g. experiment=mini_car")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--config-dir", help="a further folder of configuration files, as it was given to the sweep")
    args = parser.parse_intermixed_args(argv)
    from slime_bench.config.compose import plan
    from slime_bench.sweep.status import Sweep

    planned, sweep = plan(args.overrides, sweep=True, extra_dir=args.config_dir), Sweep()
    states = [sweep.state(cfg, name) for cfg, name in zip(planned.trials, planned.names, strict=True)]
    if args.json:
        count = Counter(each.state for each in states)
        print(json.dumps({"trials": [asdict(each) for each in states], "count": dict(count)}, indent=1, sort_keys=True))
    else:
        print("\n".join(table(states)))
    return 0


def table(states: Sequence[TrialStatus]) -> list[str]:
    """The lines of the table, the counts first."""
    from slime_bench.sweep.status import STATES

    count = Counter(each.state for each in states)
    counts = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
    widths = [max(len(text) for text in column) for column in zip(*map(_cells, states), strict=True)]
    lines = [f"{len(states)} trial{'s' if len(states) > 1 else ''}: {counts}"]
    for each in states:
        cells = "  ".join(text.ljust(width) for text, width in zip(_cells(each), widths, strict=True))
        lines.append(f"  {cells}  {each.detail}".rstrip())
    return lines + [f"note: {note}" for note in dict.fromkeys(each.note for each in states if each.note)]


def _cells(state: TrialStatus) -> tuple[str, ...]:
    from slime_bench.results.status import DEFAULT_TRIAL

    more = DEFAULT_TRIAL if state.name == DEFAULT_TRIAL else state.variant
    return state.state, state.method, state.data, f"{state.shots}-shot", f"seed {state.seed}", more
