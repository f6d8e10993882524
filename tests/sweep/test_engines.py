"""The launchers: every trial gets its result, whatever becomes of its process, and Ctrl-C leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from slime_bench.config.compose import plan
from slime_bench.config.schema import LauncherConfig
from slime_bench.errors import ConfigError
from slime_bench.sweep import job_result as states
from slime_bench.sweep.engines import GONE, Engine, Pool, SlurmQueue, engine, launcher_of
from slime_bench.sweep.job_result import JobResult
from tests.fixtures.ray import GPUS
from tests.fixtures.slurm import until
from tests.fixtures.twins.standin import StandIn, is_alive, runs, tasks, times_run

EVERYWHERE = ("joblib", "submitit_local", "submitit_slurm", "ray")
Start = Callable[..., tuple[StandIn, Engine]]


@pytest.fixture
def start(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Start:
    """`start(launcher, jobs, options, **job)` -> the job and the launcher's runner of it."""
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), str(repository / "tests"), before]))
    (tmp_path / "sweep").mkdir()

    def make(
        name: str, jobs: int = 2, options: Mapping[str, Any] | None = None, **settings: Any
    ) -> tuple[StandIn, Engine]:
        if name in ("ray", "submitit_slurm"):
            request.getfixturevalue(name.removeprefix("submitit_"))
        if name == "ray" and options is None:
            options = {"address": "auto"}
        job = StandIn(tmp_path / "sweep", recorded=True, **settings)
        runner = engine(LauncherConfig(name=name, jobs=jobs, options=dict(options or {})), job)
        if isinstance(runner, Pool):
            monkeypatch.setattr(runner, "pause", 0.05)
        return job, runner

    return make


def statuses(results: list[JobResult]) -> dict[int, str]:
    found = {each.index: each.status for each in results}
    assert len(found) == len(results), "a trial has two results"
    return found


class TestResults:
    @pytest.mark.parametrize("name", EVERYWHERE)
    def test_a_process_that_dies_takes_no_other_trial_along(self, start: Start, name: str) -> None:
        job, runner = start(name)
        results = list(runner.run(tasks(["ok", "die", "fail", "ok", "ok"])))
        assert statuses(results) == {
            0: states.DONE, 1: states.DIED, 2: states.FAILED, 3: states.DONE, 4: states.DONE,
        }  # fmt: skip
        (dead,) = (each for each in results if each.index == 1)
        assert dead.exit_code == 1 and "without a word" in dead.summary
        if name.startswith("submitit"):
            assert dead.log is not None and Path(dead.log).is_file()
        counted = times_run(job.folder)
        assert counted == dict.fromkeys(range(5), 1)
        assert {each[1] for each in runs(job.folder)}.isdisjoint({str(os.getpid())})

    def test_joblib_where_no_record_can_be_written(self, start: Start) -> None:
        job, runner = start("joblib")
        job.recorded = False
        assert statuses(list(runner.run(tasks(["ok", "die", "ok"])))) == {
            0: states.DONE, 1: states.DIED, 2: states.DONE,
        }  # fmt: skip

    def test_an_earlier_record_is_not_taken_for_the_new_outcome(self, start: Start) -> None:
        job, runner = start("submitit_local")
        job._record(JobResult(0, "die", states.BUSY))
        assert statuses(list(runner.run(tasks(["die"])))) == {0: states.DIED}

    @pytest.mark.parametrize("name", ["sequential", "submitit_local"])
    def test_the_rest_is_left_out_where_the_first_failure_ends_the_sweep(self, start: Start, name: str) -> None:
        job, runner = start(name, jobs=1, keep_going=False)
        assert statuses(list(runner.run(tasks(["ok", "fail", "ok"])))) == {
            0: states.DONE, 1: states.FAILED, 2: states.LEFT_OUT,
        }  # fmt: skip
        assert set(times_run(job.folder)) == {0, 1}


class TestWorkers:
    @pytest.mark.parametrize("name", ["joblib", "submitit_local", "ray"])
    def test_they_have_the_folder_and_the_gpus_of_this_process(
        self, start: Start, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """submitit's own local jobs see no GPU at all; Ray would join the cluster that runs here."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        job, runner = start(name, options={})
        list(runner.run(tasks(["ok"])))
        assert [line[2:] for line in runs(job.folder)] == [["3", str(tmp_path)]]

    def test_ray_gives_every_trial_gpus_of_its_own(self, start: Start) -> None:
        job, runner = start("ray", options={"address": "auto", "num_gpus": 1})
        assert statuses(list(runner.run(tasks(["ok", "ok"])))) == dict.fromkeys(range(2), states.DONE)
        assert {line[2] for line in runs(job.folder)} <= {str(index) for index in range(GPUS)}

    def test_slurm_gets_one_array_and_the_options(self, start: Start) -> None:
        options = {"timeout_min": 30, "gpus_per_node": 1, "slurm_partition": "main", "slurm_qos": None}
        job, runner = start("submitit_slurm", jobs=2, options=options)
        assert statuses(list(runner.run(tasks(["ok"] * 3)))) == dict.fromkeys(range(3), states.DONE)
        (script,) = (job.folder / "submitit").glob("*/*_submission.sh")
        array = script.name.partition("_")[0]
        told = subprocess.run(["scontrol", "show", "job", array], capture_output=True, text=True, check=True).stdout
        assert told.count(f"ArrayJobId={array}") == 3 and "ArrayTaskThrottle=2" in told
        assert told.count("TimeLimit=00:30:00") == told.count("gres:gpu:1") == told.count("Partition=main") == 3


class TestSlurmQueue:
    @pytest.mark.usefixtures("slurm")
    def test_jobs_that_are_there_and_gone(self) -> None:
        queue = SlurmQueue()
        queue.every = 0.0
        submitted = subprocess.run(
            ["sbatch", "--hold", "--parsable", "--output=/dev/null", "--wrap=true"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        job = submitted.stdout.strip()
        assert queue.state(job) == "PENDING" and queue.state("0") == "UNKNOWN"
        subprocess.run(["scancel", job], check=True)
        until(lambda: queue.state(job) == "CANCELLED", "the job has ended")

    def test_slurm_gives_no_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        """What is known stays known, and a warning says so once."""
        answer = tmp_path / "squeue"
        answer.write_text("#!/bin/sh\necho '1_0|RUNNING'\necho '1_1|PENDING'\n")
        answer.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        queue = SlurmQueue()
        queue.every = 0.0
        assert (queue.state("1_0"), queue.state("1_1")) == ("RUNNING", "PENDING")
        answer.write_text("#!/bin/sh\necho 'no controller' >&2\nexit 1\n")
        assert (queue.state("1_0"), queue.state("1_1")) == ("RUNNING", "PENDING")
        assert capsys.readouterr().err.count("no controller") == 1
        answer.write_text("#!/bin/sh\necho '1_1|COMPLETED'\n")
        assert (queue.state("1_0"), queue.state("1_1")) == (GONE, "COMPLETED")


@pytest.fixture
def listens_to_ctrl_c() -> Iterator[None]:
    """A background job of a shell is started deaf to it, and so are the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
class TestInterruption:
    @pytest.mark.parametrize("name", EVERYWHERE)
    def test_ctrl_c_ends_the_workers_too(self, start: Start, name: str) -> None:
        job, runner = start(name)

        def interrupt() -> None:
            until = time.monotonic() + 60
            while len(runs(job.folder)) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(runner.run(tasks(["sleep", "sleep", "ok"])))
        thread.join()
        processes = [int(line[1]) for line in runs(job.folder)]
        until = time.monotonic() + 10
        while any(map(is_alive, processes)) and time.monotonic() < until:
            time.sleep(0.05)
        assert len(processes) >= 2 and not any(map(is_alive, processes))


class TestMistakes:
    def test_a_library_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        launcher = LauncherConfig(name="submitit_slurm", jobs=2, options={})
        with pytest.raises(ConfigError, match=r"pip install 'slime-bench\[launchers\]'"):
            engine(launcher, StandIn(tmp_path))

    def test_options_that_submitit_does_not_know(self, start: Start) -> None:
        with pytest.raises(ConfigError, match=r"launcher\.options"):
            start("submitit_slurm", options={"slurm_partitoin": "gpu"})

    def test_a_cluster_that_refuses_the_jobs(self, start: Start) -> None:
        _, runner = start("submitit_slurm", options={"slurm_partition": "closed"})
        with pytest.raises(ConfigError, match="invalid partition specified"):
            list(runner.run(tasks(["ok", "ok"])))

    def test_no_slurm_on_this_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        launcher = LauncherConfig(name="submitit_slurm", jobs=2, options={})
        with pytest.raises(ConfigError, match="slurm cluster"):
            engine(launcher, StandIn(tmp_path))

    def test_one_command_has_one_launcher(self) -> None:
        trials = plan(["launcher=joblib,sequential"], sweep=True).trials
        with pytest.raises(ConfigError, match="one command has one launcher"):
            launcher_of(trials)
