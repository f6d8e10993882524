"""Sweeps that are killed with `kill -9` at random moments and started again; and several sweeps at once.

    python tests/e2e/kill_rounds.py --rounds 20 --seed 0

Every sweep is a process of its own. It is forked from this one, which has imported the libraries but computed nothing,
so that the kills fall into the trials and not into imports; `--fresh` starts new interpreters instead. The last line of
the output is JSON:

    rounds      kills; `hit` of them found the sweep still running
    sweeps      output folders that were filled that way: a finished one is followed by a new one
    trials      trials of these sweeps together
    lost        finished trials whose result was gone, or no longer valid, after a later round
    repeated    finished trials whose result was written again
    differing   files of finished trials that are not, byte for byte, those of an undisturbed sweep
    resumed     trials that went on from a checkpoint
    leftovers   files that a killed process had not finished writing, and that are still there at the end
    together    for --together N: how often each trial was computed by N sweeps of the same trials started together
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

COMPARED = ("result.json", "per_image.parquet", "state.safetensors", "qualitative.npz", "curves.csv", "confusion.json")
COMPUTED = "computed.txt"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=0, help="sweeps that are started at once")
    parser.add_argument("--fresh", action="store_true", help="new interpreters instead of forks")
    parser.add_argument("--work", type=Path, help="folder to work in, which is kept (default: a temporary one)")
    parser.add_argument("--sweep", default="shots=1,2 seed=0,1", help="which trials")
    parser.add_argument("overrides", nargs="*", help="settings of the trials besides the tiny ones")
    args = parser.parse_intermixed_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        bench = Sweeps(work, args.sweep.split(), args.overrides, fresh=args.fresh)
        began = time.monotonic()
        bench.run("undisturbed").wait()
        duration = time.monotonic() - began
        figures = kill(bench, args.rounds, random.Random(args.seed), duration)
        if args.together:
            figures["together"] = at_once(bench, args.together)
    print(json.dumps(figures))
    return 0


class Sweeps:
    """Starts the sweep on any output folder, as a process of its own."""

    def __init__(self, work: Path, sweep: Sequence[str], overrides: Sequence[str], *, fresh: bool) -> None:
        from tests.e2e import tiny

        self.work, self.sweep, self.fresh = work, sweep, fresh
        shutil.rmtree(work, ignore_errors=True)
        weights, data = tiny.write_weights(work / "weights"), tiny.write_pictures(work / "car")
        self.settings = [*tiny.settings(weights, data, work / "out")[:-1], "trainer.threads=1", *overrides]
        if not fresh:
            self._import()

    def command(self, name: str) -> list[str]:
        return ["--multirun", *self.sweep, *self.settings, f"output_root={self.work / name}"]

    def run(self, name: str) -> Process:
        (self.work / name).mkdir(exist_ok=True)
        log = self.work / name / "log.txt"
        return Process(self.command(name), log, fresh=self.fresh)

    def finished(self, name: str) -> dict[str, tuple[int, int]]:
        """Folder of every finished trial, and something that changes when its result is written again."""
        from slime_bench.errors import ResultError
        from slime_bench.results.result import read_result

        found = {}
        for path in (self.work / name).glob("runs/*/*/*/*/result.json"):
            try:
                read_result(path)
            except ResultError:
                continue
            found[path.parent.relative_to(self.work / name).as_posix()] = (path.stat().st_ino, path.stat().st_mtime_ns)
        return found

    def _import(self) -> None:
        """What every sweep imports, and nothing that starts a thread: autograd does not survive a fork."""
        import lightning
        import torch

        from slime_bench.config import compose
        from slime_bench.trial import runner as trial  # noqa: F401

        torch.set_num_threads(1)
        compose.plan(list(self.settings)).trials[0].build("backbone")
        assert lightning


class Process:
    """`slime-bench <arguments>`, its output appended to a file."""

    def __init__(self, arguments: Sequence[str], log: Path, *, fresh: bool) -> None:
        self.code: int | None = None
        sys.stdout.flush()
        if fresh:
            line = [sys.executable, "-m", "slime_bench.cli", *arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            with log.open("a") as file:
                self.pid = subprocess.Popen(line, stdout=file, stderr=file, env=environment).pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = self._child(arguments, log)
            finally:
                os._exit(code)

    def _child(self, arguments: Sequence[str], log: Path) -> int:
        from slime_bench import cli
        from slime_bench.trial import runner as trial

        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        real = trial._compute

        def counted(spec: Any, *rest: Any) -> Any:
            result = real(spec, *rest)
            with (log.parent / COMPUTED).open("a") as file:
                file.write(f"{spec.cfg.shots} {spec.cfg.seed}\n")
            return result

        trial._compute = counted
        return cli.main(arguments)

    def wait(self) -> int:
        if self.code is None:
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill_after(self, seconds: float) -> bool:
        """Whether it was still running by then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return False
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


def kill(bench: Sweeps, rounds: int, chance: random.Random, duration: float) -> dict[str, Any]:
    """Kill and start again; see the head of this file for the figures."""
    wanted = bench.finished("undisturbed")
    assert wanted, (bench.work / "undisturbed" / "log.txt").read_text()
    figures = Counter({"rounds": rounds, "hit": 0, "sweeps": 0, "trials": 0, "lost": 0, "repeated": 0, "differing": 0})
    names: list[str] = []
    before: dict[str, tuple[int, int]] = {}
    for _ in range(rounds):
        if not names or len(before) == len(wanted):
            names.append(f"killed{len(names)}")
            before = {}
        began = time.monotonic()
        hit = bench.run(names[-1]).kill_after(chance.uniform(0, duration))
        if not hit:  # the machine is faster than it was
            duration = min(duration, time.monotonic() - began)
        figures["hit"] += hit
        before = compare(before, bench.finished(names[-1]), figures)
    for name in names:
        before = bench.finished(name)
        code = bench.run(name).wait()
        assert code == 0, (bench.work / name / "log.txt").read_text()
        after = compare(before, bench.finished(name), figures)
        figures["sweeps"] += 1
        figures["trials"] += len(after)
        figures["differing"] += differences(bench.work / "undisturbed", bench.work / name, wanted)
        figures["resumed"] += (bench.work / name / "log.txt").read_text().count("goes on after step")
        figures["leftovers"] += len(list((bench.work / name).rglob(".*.tmp")))
    return dict(figures)


def compare(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], figures: Counter
) -> dict[str, tuple[int, int]]:
    figures["lost"] += len(set(before) - set(after))
    figures["repeated"] += sum(before[name] != after[name] for name in set(before) & set(after))
    return after


def differences(one: Path, other: Path, trials: Sequence[str]) -> int:
    return sum(
        not (other / trial / name).is_file() or (one / trial / name).read_bytes() != (other / trial / name).read_bytes()
        for trial in trials
        for name in COMPARED
    )


def at_once(bench: Sweeps, count: int) -> dict[str, Any]:
    """Several sweeps of the same trials, started together on one output folder."""
    processes = [bench.run("together") for _ in range(count)]
    codes = [process.wait() for process in processes]
    computed = Counter((bench.work / "together" / COMPUTED).read_text().splitlines())
    log = (bench.work / "together" / "log.txt").read_text()
    return {
        "codes": codes,
        "computed": dict(computed),
        "waited": log.count("left for later"),
        "differing": differences(bench.work / "undisturbed", bench.work / "together", bench.finished("undisturbed")),
    }


if __name__ == "__main__":
    sys.exit(main())
