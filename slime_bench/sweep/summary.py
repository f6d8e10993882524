"""What a sweep says on stderr: a line as each trial begins or ends, and a table of all of them at the end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from slime_bench.console import say
from slime_bench.sweep import job_result as states
from slime_bench.sweep.job_result import JobResult


def announce(index: int, name: str, count: int) -> None:
    """A trial begins; a command's only one need not be named."""
    if count > 1:
        _print(f"[{index + 1}/{count}] {name}")


def tell(result: JobResult, earlier: Iterable[JobResult]) -> None:
    """Why a trial did not finish, for those that did not; a reason that was told before, in short."""
    if result.status == states.BUSY:
        _print(f"left for later: {result.message}")
    elif result.status in states.BAD:
        if result.traceback is not None:
            _print(result.traceback)
        elif any(each.message == result.message for each in earlier):
            _print(f"error: {result.summary} (as above)")
        else:
            say(result.message, expected=result.exit_code == 2 or result.status == states.DIED)


def tell_end(result: JobResult, ended: int, count: int, earlier: Iterable[JobResult]) -> None:
    """A trial has ended somewhere else."""
    _print(f"[{ended}/{count}] {_row(result)}" if count > 1 else _row(result).strip())
    tell(result, earlier)


def summarise(results: Mapping[int, JobResult], names: Sequence[str]) -> None:
    """The table of a sweep: what became of every trial, and each reason of a failure once, however many share it."""
    rows = [results.get(index, JobResult(index, name, states.LEFT_OUT)) for index, name in enumerate(names)]
    rows += [each for index, each in sorted(results.items()) if index >= len(names)]
    if len(rows) > 1:
        _print("\n".join(["", *table(rows)]))
    others = sorted({each.code for each in rows if each.code})
    if others:
        count = sum(each.code is not None for each in rows)
        _print(
            f"warning: {count} of the finished results {'was' if count == 1 else 'were'} made by other code than this "
            f"({', '.join(others)}) and kept; force=true computes them again"
        )


def table(rows: Sequence[JobResult]) -> list[str]:
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
    reasons: dict[str, list[JobResult]] = {}
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


def _row(result: JobResult) -> str:
    seconds = f"({result.seconds:.0f} s)" if result.status == states.DONE else ""
    score = "" if result.average is None else f"mIoU {100 * result.average:.1f}"
    return "  ".join(part for part in (f"{result.status:<8}", result.name, score, seconds) if part)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
