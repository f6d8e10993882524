"""What a sweep says on stderr: a line as each trial begins or ends, and a table of all of them at the end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from slime_bench.console import say
from slime_bench.sweep import outcome as states
from slime_bench.sweep.outcome import Outcome


def announce(index: int, name: str, count: int) -> None:
    """A trial begins; a command's only one need not be named."""
    if count > 1:
        _print(f"[{index + 1}/{count}] {name}")


def tell(outcome: Outcome, earlier: Iterable[Outcome]) -> None:
    """Why a trial did not finish, for those that did not; a reason that was told before, in short."""
    if outcome.status == states.BUSY:
        _print(f"left for later: {outcome.message}")
    elif outcome.status in states.BAD:
        if outcome.traceback is not None:
            _print(outcome.traceback)
        elif any(each.message == outcome.message for each in earlier):
            _print(f"error: {outcome.summary} (as above)")
        else:
            say(outcome.message, expected=outcome.exit_code == 2 or outcome.status == states.DIED)


def tell_end(outcome: Outcome, ended: int, count: int, earlier: Iterable[Outcome]) -> None:
    """A trial has ended somewhere else."""
    _print(f"[{ended}/{count}] {_row(outcome)}" if count > 1 else _row(outcome).strip())
    tell(outcome, earlier)


def summarise(outcomes: Mapping[int, Outcome], names: Sequence[str]) -> None:
    """The table of a sweep: what became of every trial, and each reason of a failure once, however many share it."""
    rows = [outcomes.get(index, Outcome(index, name, states.LEFT_OUT)) for index, name in enumerate(names)]
    rows += [each for index, each in sorted(outcomes.items()) if index >= len(names)]
    if len(rows) > 1:
        _print("\n".join(["", *table(rows)]))
    others = sorted({each.made_by for each in rows if each.made_by})
    if others:
        count = sum(each.made_by is not None for each in rows)
        _print(
            f"warning: {count} of the finished results {'was' if count == 1 else 'were'} made by other code than this "
            f"({', '.join(others)}) and kept; force=true computes them again"
        )


def table(rows: Sequence[Outcome]) -> list[str]:
    """The lines of `summarise`."""
    count = Counter(each.status for each in rows)
    finished = sum(count[name] for name in states.FINISHED)
    parts = [f"{finished} of {len(rows)} trials finished"]
    if count[states.SKIPPED]:
        parts[0] += f" ({count[states.SKIPPED]} before)"
    bad = sum(count[name] for name in states.BAD)
    parts += [f"{bad} failed"] if bad else []
    parts += [f"{count[name]} {name}" for name in (states.LEFT_OUT, states.BUSY) if count[name]]
    lines = [f"{', '.join(parts)}:", *(f"  {_row(each)}" for each in rows if each.status not in states.BAD)]
    reasons: dict[str, list[Outcome]] = {}
    for each in rows:
        if each.status in states.BAD:
            reasons.setdefault(each.message, []).append(each)
    for reason, members in reasons.items():
        for each in members:
            lines += [f"  {_row(each)}", *([f"           see {each.log}"] if each.log else [])]
        lines += [f"    {line}" for line in reason.splitlines()]
    if finished < len(rows):
        lines.append("Finished trials are kept; the same command runs only those that are missing.")
    return lines


def _row(outcome: Outcome) -> str:
    seconds = f"({outcome.seconds:.0f} s)" if outcome.status == states.DONE else ""
    return "  ".join(part for part in (f"{outcome.status:<8}", outcome.name, outcome.score, seconds) if part)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
