"""The course of a sweep around its launcher: what other processes compute is waited for, and nothing is run twice."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from slime_bench.lock import Holder, held
from slime_bench.storage import write_atomic
from slime_bench.sweep import outcome as states
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.launchers import Runner
from slime_bench.sweep.outcome import Outcome, died, read_records
from slime_bench.sweep.telling import tell_end
from slime_bench.trial.spec import stamp


def launch(runner: Runner, tasks: Collection[Task], job: Job, overrides: Sequence[str]) -> dict[int, Outcome]:
    """Run the trials in other processes, and say on stderr how each ended.

    Raises:
        StorageError: the command's folder cannot be written.
    """
    write_atomic(job.folder / "overrides.yaml", yaml.safe_dump(list(overrides)).encode())
    outcomes: dict[int, Outcome] = {}
    for outcome in runner.run(list(tasks)):
        tell_end(outcome, len(outcomes) + 1, len(tasks), outcomes.values())
        outcomes[outcome.index] = outcome
    return outcomes


def collected(job: Job) -> dict[int, Outcome]:
    """The outcomes of trials that somebody else's launcher ran, from their records: it gives none back."""
    found = {**read_records(job.folder), **job.outcomes}
    return {
        index: died(index, each.name, "the launcher gave up") if each.status == states.STARTED else each
        for index, each in found.items()
    }


def wait_for_others(outcomes: Mapping[int, Outcome], tasks: Mapping[int, Task], runner: Runner) -> dict[int, Outcome]:
    """The outcomes once the trials that other processes were computing have ended there; those that did not end well
    are run here."""
    settled = dict(outcomes)
    for index, outcome in outcomes.items():
        while outcome.status == states.BUSY and outcome.folder is not None and index in tasks:
            task = _after(tasks[index], Path(outcome.folder))
            (outcome,) = runner.run([task])
        settled[index] = outcome
    return settled


def _after(task: Task, folder: Path) -> Task:
    """The trial, to be run once nobody else computes it. A result that came meanwhile is as good as a forced one."""

    def says(holder: Holder | None) -> None:
        who = holder or "another process"
        print(f"waiting for {who}, which computes {task.name} (Ctrl-C ends the wait)", file=sys.stderr, flush=True)

    before = stamp(folder)
    with held(folder, says):
        pass
    if task.cfg.force and stamp(folder) != before:
        cfg = task.cfg.copy()
        cfg.force = False
        return replace(task, cfg=cfg)
    return task
