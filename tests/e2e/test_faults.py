"""What goes wrong around a trial: disks, files, other processes, other code, clocks, memory. Nothing finished is lost,
nothing half-written is left, nothing wrong is averaged in, and every failure can be seen afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from slime_bench.config import compose
from slime_bench.config.compose import Plan
from slime_bench.results.environment import ENVIRONMENT_FILE
from slime_bench.sweep.job_result import JobResult
from slime_bench.trial import runner as trial
from slime_bench.trial import spec
from tests.e2e.conftest import Bench, command, contents
from tests.e2e.quick import Direct, Quick
from tests.e2e.quick import quick as quick

SWEEP = ("--multirun", "shots=1", "seed=0,1", "launcher.trials_per_batch=1")
HOLDS = """
import sys
from pathlib import Path
from slime_bench.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def plan(tiny_sd: Path, car_pictures: Path) -> Plan:
    return compose.plan([*Bench(tiny_sd, car_pictures, Path("outputs")).settings, *SWEEP[1:]], sweep=True)


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """`SWEEP` without any fault. Read only: see `made` for a copy."""
    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_compute", Quick())
        assert all(each.finished for each in Direct(plan, bench.outputs)().values())
    return bench


@pytest.fixture
def direct(plan: Plan, tmp_path: Path) -> Direct:
    """`SWEEP` in the same folder as `bench` and `made`, without the command line."""
    return Direct(plan, tmp_path / "outputs")


@pytest.fixture
def bench(undisturbed: Bench, tmp_path: Path) -> Bench:
    """The same trials, and nothing done yet."""
    return replace(undisturbed, outputs=tmp_path / "outputs")


@pytest.fixture
def made(undisturbed: Bench, bench: Bench) -> Bench:
    """The same trials, and all done."""
    shutil.copytree(undisturbed.outputs, bench.outputs)
    return bench


def products(bench: Bench) -> dict[str, bytes]:
    """What has to be the same after any fault."""
    found = contents(bench.outputs / "runs")
    return {name: found[name] for name in found if name.endswith(("result.json", "per_image.parquet"))}


def leftovers(bench: Bench) -> list[Path]:
    return list(bench.outputs.rglob(".*.tmp"))


class TestDisk:
    def test_one_that_is_full_when_the_result_is_written(
        self, bench: Bench, direct: Direct, quick: Quick, undisturbed: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.replace

        def full(source: Any, target: Any) -> None:
            if Path(target).name == "result.json" and "seed0" in str(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            outcome = bench(*SWEEP)
        assert outcome.code == 1 and "1 of 2 trials finished, 1 failed" in outcome.err
        assert "result.json" in outcome.err and "free space" in outcome.err
        assert not (bench.folder() / "result.json").exists() and leftovers(bench) == []
        assert json.loads((bench.folder() / "error.json").read_text())["type"] == "StorageError"
        assert direct()[0].finished and quick.computed == [(1, 1), (1, 0)]
        assert products(bench) == products(undisturbed) and not (bench.folder() / "error.json").exists()

    def test_one_on_which_nothing_can_be_written(
        self, bench: Bench, quick: Quick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then there is no file that could tell of it, and the command itself has to."""
        real = os.fsync

        def full(descriptor: int) -> None:
            if str(bench.outputs) in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            outcome = bench(*SWEEP)
        assert outcome.code == 1 and "0 of 2 trials finished, 2 failed" in outcome.err
        assert "seed=0" in outcome.err and "seed=1" in outcome.err and "output_root" in outcome.err
        assert "Traceback" not in outcome.err and quick.computed == []
        assert products(bench) == {} and leftovers(bench) == []

    def test_outputs_that_are_no_folder(self, bench: Bench, quick: Quick, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        outcome = bench("seed=0", f"output_root={tmp_path / 'file'}")
        assert outcome.code == 2 and "output_root" in outcome.err and "Traceback" not in outcome.err
        assert quick.computed == []

    def test_what_a_killed_process_was_writing_is_swept_away(self, made: Bench, direct: Direct, quick: Quick) -> None:
        (made.folder() / "result.json").unlink()
        (made.folder() / ".result.json.4711-beef.tmp").write_text("{")
        assert direct()[0].status == "done" and leftovers(made) == [] and quick.computed == [(1, 0)]


class TestResultFiles:
    @pytest.mark.parametrize("what", ["truncated", "foreign"])
    def test_a_spoilt_one_is_reported_never_averaged_in_and_made_again(
        self, made: Bench, direct: Direct, quick: Quick, undisturbed: Bench, what: str
    ) -> None:
        path = made.folder() / "result.json"
        whole, other = path.read_bytes(), (made.folder(1, 1) / "result.json").read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "foreign": other}[what])
        assert [each.state for each in direct.states()] == ["unreadable", "done"]
        reported = command("report", "--outputs", str(made.outputs), "--subject", "car", "--shots", "1")
        assert reported.code == 0 and "MISSING TRIALS" in reported.out
        folder = made.outputs / "reports" / "car"
        assert "1 result file(s) are not valid and not used" in (folder / "table.md").read_text()
        (invalid,) = json.loads((folder / "trials.json").read_text())["invalid"]
        assert invalid["path"] == path.relative_to(made.outputs).as_posix()
        rows = [row for row in json.loads((folder / "table.json").read_text()) if not row["published"]]
        assert [(row["n"], row["seeds"]) for row in rows] == [(1, [1])]
        assert [each.status for each in direct().values()] == ["done", "skipped"] and quick.computed == [(1, 0)]
        assert products(made) == products(undisturbed)


class TestOtherCode:
    def test_one_warning_and_no_trial_is_run_again(
        self,
        made: Bench,
        direct: Direct,
        quick: Quick,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(spec, "git_state", lambda: {"commit": "f" * 40, "dirty": False})
        for seed, commit in ((0, "0123456789abcdef" * 2), (1, "f" * 40)):
            facts = {"git": {"commit": commit, "dirty": False}, "slime_bench": "0.0.1"}
            (made.folder(1, seed) / ENVIRONMENT_FILE).write_text(json.dumps(facts))
        assert [each.status for each in direct().values()] == ["skipped", "skipped"] and quick.computed == []
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("warning")]
        assert "1 of the finished results" in line and "commit 0123456789ab" in line and "force=true" in line


class TestMemory:
    def test_the_gpus_is_too_small(self, bench: Bench, direct: Direct, quick: Quick) -> None:
        def full(cfg: Any) -> None:
            if cfg.seed == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        quick.before = full
        outcome = bench(*SWEEP)
        assert outcome.code == 1 and quick.computed == [(1, 1)] and "data.batch_size" in outcome.err
        assert "oom       seed=0" in outcome.err
        facts = json.loads((bench.folder() / "error.json").read_text())
        assert (facts["status"], facts["type"]) == ("oom", "GpuMemoryError") and "20.00 GiB" in facts["message"]
        assert [each.state for each in direct.states()] == ["oom", "done"]
        # Nothing was made smaller on the quiet: the trials differ in their seed alone.
        first, second = (yaml.safe_load((bench.folder(1, seed) / "config.yaml").read_text()) for seed in (0, 1))
        assert {key for key in first if first[key] != second[key]} == {"seed"}


class TestEarlyFailures:
    """What fails before the trial's own folder is known leaves a trace as well, which goes once it is mended."""

    def test_missing_data(self, made: Bench, quick: Quick, tmp_path: Path) -> None:
        moved = tmp_path / "not there yet"
        overrides = ("shots=3", "seed=1", f"data.root={moved}")
        assert made(*overrides).code == 2
        (trace,) = made.outputs.glob("runs/tiny_car/slime/3-shot/*/error.json")
        assert str(moved) in json.loads(trace.read_text())["message"]
        assert command("report", "--outputs", str(made.outputs), "--subject", "car").code == 0
        failed = json.loads((made.outputs / "reports/car/trials.json").read_text())["failed"]
        assert [(each["shots"], each["seed"]) for each in failed] == [(3, 1)]
        seen = command("status", "--json", *made.settings, *overrides)
        (state,) = json.loads(seen.out)["trials"]
        assert seen.code == 0 and state["state"] == "failed" and "Error" in state["detail"]
        shutil.copytree(made.data, moved)
        assert made(*overrides).code == 0 and quick.computed == [(3, 1)] and not trace.parent.exists()

    def test_the_users_home_folder_is_in_no_record(
        self, bench: Bench, quick: Quick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its name is mostly the user's."""

        def fails(cfg: Any) -> None:
            raise RuntimeError(f"nothing in {bench.outputs.parent}/weights")

        monkeypatch.setenv("HOME", str(bench.outputs.parent))
        quick.before = fails
        assert bench("seed=0").code == 1
        texts = {path.name: path.read_text() for path in bench.folder().iterdir()}
        assert "nothing in ~/weights" in texts["error.json"] and "output_root: ~/" in texts["config.yaml"]
        assert [name for name in texts if str(bench.outputs.parent) in texts[name]] == []

    def test_a_mistake_in_the_command_leaves_none(self, bench: Bench, quick: Quick) -> None:
        assert bench("shots=0").code == 2
        assert not (bench.outputs / "runs").exists()


class TestOtherProcesses:
    @pytest.fixture
    def hold(self, made: Bench, repository: Path) -> Iterator[subprocess.Popen[str]]:
        """A process that holds the trial of seed 0 until a line comes on its standard input."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(made.folder())], env={**os.environ, "PYTHONPATH": str(repository)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    def test_what_another_one_computes_comes_last(
        self,
        made: Bench,
        direct: Direct,
        quick: Quick,
        hold: subprocess.Popen[str],
        undisturbed: Bench,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for seed in (0, 1):
            (made.folder(1, seed) / "result.json").unlink()
        assert [each.state for each in direct.states()] == ["running", "missing"]

        def let_go(cfg: Any) -> None:
            if cfg.seed == 1:
                hold.communicate("go\n")

        quick.before = let_go
        assert [each.status for each in direct().values()] == ["done", "done"]
        text = capsys.readouterr().err
        assert quick.computed == [(1, 1), (1, 0)] and "2 of 2 trials finished" in text
        assert f"left for later: process {hold.pid} on" in text
        assert products(made) == products(undisturbed)

    @pytest.mark.parametrize("force", [False, True])
    def test_what_the_other_one_has_finished_is_not_computed_here(
        self, made: Bench, direct: Direct, quick: Quick, hold: subprocess.Popen[str], force: bool
    ) -> None:
        """Also where all are to be computed again: that result is a new one."""
        result = made.folder() / "result.json"
        content = result.read_bytes()
        if not force:
            result.unlink()

        def finishes() -> None:
            result.with_name("new").write_bytes(content)
            result.with_name("new").replace(result)
            hold.communicate("go\n")

        outcomes, text = _with_reaction(lambda: direct(force=force), "waiting for", finishes)
        assert [each.finished for each in outcomes.values()] == [True, True]
        assert quick.computed == ([(1, 1)] if force else [])
        assert f"waiting for process {hold.pid}" in text and "skipped   seed=0" in text

    def test_ctrl_c_ends_the_wait(
        self, made: Bench, quick: Quick, hold: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("filelock._api.time.sleep", interrupted)
        outcome = made("seed=0", "force=true")
        assert outcome.code == 130 and "Ctrl-C ends the wait" in outcome.err and quick.computed == []


def _with_reaction(
    run: Callable[[], dict[int, JobResult]], word: str, react: Callable[[], None]
) -> tuple[dict[int, JobResult], str]:
    """Call `run`, and `react` when it says `word` on stderr; the outcomes and all that it said."""

    class Listener:
        text = ""

        def write(self, text: str) -> int:
            self.text += text
            if word in text:
                react()
            return len(text)

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", listener := Listener())
        outcomes = run()
    return outcomes, listener.text
