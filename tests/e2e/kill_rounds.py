"""Sweeps that are killed with `kill -9` at random moments and started again; and two sweeps of the same trials at once.

    python tests/e2e/kill_rounds.py <empty folder> <rounds>

Every sweep is a process of its own. It is forked from this one, which has imported the libraries but computed nothing,
so that the kills fall into the trials and not into imports. The last line of the output is JSON:

    hit         kills that found the sweep still running
    sweeps      output folders that were filled that way: a finished one is followed by a new one
    lost        finished trials whose result was gone, or no longer valid, after a later round
    repeated    finished trials whose result was written again
    differing   files of finished trials that are not, byte for byte, those of an undisturbed sweep
    leftovers   files of trials that a killed process had not finished writing, and that are still there at the end
                (to the sweep's own folder in hydra/ nobody returns)
    together    exit codes of two sweeps of the same trials started together, and how often each trial was computed
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

COMPARED = ("result.json", "per_image.parquet", "state.safetensors", "qualitative.npz", "curves.csv", "confusion.json")
COMPUTED = "computed.txt"
Results = Mapping[str, tuple[int, int]]


class Sweep:
    """`slime-bench --multirun ...` in a fork of this process, its output appended to `<outputs>/log.txt`."""

    def __init__(self, settings: list[str], outputs: Path) -> None:
        outputs.mkdir(exist_ok=True)
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                code = self._child(["--multirun", *settings, f"output_root={outputs}"], outputs)
            finally:
                os._exit(code)

    @staticmethod
    def _child(arguments: list[str], outputs: Path) -> int:
        from slime_bench import cli
        from slime_bench.trial import runner

        descriptor = os.open(outputs / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        real = runner._compute

        def counted(spec: Any, *rest: Any) -> Any:
            result = real(spec, *rest)
            with (outputs / COMPUTED).open("a") as file:
                file.write(f"{spec.cfg.shots} {spec.cfg.seed}\n")
            return result

        runner._compute = counted
        return cli.main(arguments)

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
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


def finished(outputs: Path) -> Results:
    """Folder of every finished trial, and something that changes when its result is written again."""
    from slime_bench.errors import ResultError
    from slime_bench.results.result import read_result

    found = {}
    for path in outputs.glob("runs/*/*/*/*/result.json"):
        try:
            read_result(path)
        except ResultError:
            continue
        found[path.parent.relative_to(outputs).as_posix()] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def compare(before: Results, after: Results, figures: Counter[str]) -> Results:
    figures["lost"] += len(set(before) - set(after))
    figures["repeated"] += sum(before[name] != after[name] for name in set(before) & set(after))
    return after


def main(work: Path, rounds: int) -> None:
    import lightning  # noqa: F401 - what every sweep imports; nothing that starts a thread: autograd survives no fork
    import torch

    from slime_bench.config import compose
    from slime_bench.trial import runner  # noqa: F401
    from tests.e2e import tiny

    torch.set_num_threads(1)
    weights, data = tiny.write_weights(work / "weights"), tiny.write_pictures(work / "car")
    settings = ["shots=1", "trainer.threads=1", "trainer.checkpoint_every=1", *tiny.settings(weights, data, work)[:-1]]
    compose.plan(settings).trials[0].build("backbone")
    settings.append("seed=0,1")

    calm, began = work / "undisturbed", time.monotonic()
    Sweep(settings, calm).wait()
    duration, wanted = time.monotonic() - began, finished(calm)
    assert wanted, (calm / "log.txt").read_text()

    def differing(other: Path) -> int:
        pairs = [(calm / trial / name, other / trial / name) for trial in wanted for name in COMPARED]
        return sum(not two.is_file() or one.read_bytes() != two.read_bytes() for one, two in pairs)

    figures: Counter[str] = Counter(dict.fromkeys(("hit", "sweeps", "lost", "repeated", "differing", "leftovers"), 0))
    chance, folders = random.Random(1), list[Path]()
    before: Results = {}
    for _ in range(rounds):
        if not folders or len(before) == len(wanted):
            folders.append(work / f"killed{len(folders)}")
            before = {}
        began = time.monotonic()
        hit = Sweep(settings, folders[-1]).kill_after(chance.uniform(0, duration))
        if not hit:  # the machine is faster than it was
            duration = min(duration, time.monotonic() - began)
        figures["hit"] += hit
        before = compare(before, finished(folders[-1]), figures)
    for folder in folders:
        before = finished(folder)
        assert Sweep(settings, folder).wait() == 0, (folder / "log.txt").read_text()
        after = compare(before, finished(folder), figures)
        figures["sweeps"] += len(after) == len(wanted)
        figures["differing"] += differing(folder)
        figures["leftovers"] += len(list((folder / "runs").rglob(".*.tmp")))
    both = [Sweep(settings, work / "together") for _ in range(2)]
    codes = [each.wait() for each in both]
    computed = Counter((work / "together" / COMPUTED).read_text().splitlines())
    figures["differing"] += differing(work / "together")
    print(json.dumps({**figures, "folders": len(folders), "together": [codes, computed]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
