"""Sweeps on a real SLURM and a real Ray: the same bytes as in one process, whatever becomes of a job on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slime_bench.lock import holder
from tests.e2e.conftest import Bench
from tests.e2e.waiting import FILE, STEP, steps
from tests.fixtures.slurm import until

# A dozen processes start here, each with its imports: the limit is for what hangs.
pytestmark = [pytest.mark.release, pytest.mark.timeout(1800)]
FILES = ("result.json", "state.safetensors", "per_image.parquet", "curves.csv", "confusion.json", "qualitative.npz")
SEEDS = range(3)
METHOD = ("method._target_=tests.e2e.waiting.Waiting", "trainer.threads=1", "trainer.checkpoint_every=1")
SLURM = ("launcher=submitit_slurm", "launcher.jobs=2", "launcher.options.cpus_per_task=1")


class Sweep:
    """`slime-bench --multirun` of the waiting method, in a process of its own."""

    def __init__(self, bench: Bench, *arguments: str) -> None:
        self.bench = bench
        self.began = time.monotonic()
        bench.outputs.mkdir(exist_ok=True)
        line = [sys.executable, "-m", "slime_bench.cli", "--multirun", *bench.settings, *METHOD, *arguments]
        with (bench.outputs / "err").open("a") as err:
            environment = {**os.environ, FILE: str(bench.outputs / "steps"), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(line, stderr=err, env=environment, cwd=Path(__file__).parents[2])

    @property
    def said(self) -> str:
        return (self.bench.outputs / "err").read_text()

    @property
    def steps(self) -> list[int]:
        """That were begun, of the trial with seed 0: another life goes on with the last one."""
        return steps(self.bench.outputs / "steps")

    def waits(self) -> None:
        """Return once the trial with seed 0 stands in the middle of its fit."""
        until(lambda: STEP in self.steps or self.process.poll() is not None, "a fit has begun", 300)
        assert self.process.poll() is None, self.said

    def ends(self, seconds: float = 300) -> int:
        return self.process.wait(seconds)


def products(bench: Bench, seed: int) -> dict[str, bytes]:
    folder = bench.folder(1, seed)
    return {name: (folder / name).read_bytes() for name in FILES}


def logs(bench: Bench) -> str:
    """What the jobs of SLURM said."""
    return "".join(path.read_text() for path in bench.outputs.rglob("submitit/*/*.err"))


def scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout


def jobs(*states: str) -> list[str]:
    """SLURM's jobs in these states."""
    line = ["squeue", "--noheader", "--array", f"--states={','.join(states)}", "--format=%i"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def sequential(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Trials that nobody has disturbed, run one after another in this process. Read only."""
    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("sequential"))
    seeds = f"seed={','.join(map(str, SEEDS))}"
    assert bench("--multirun", *METHOD, seeds, "launcher.trials_per_batch=1").code == 0
    return bench


@pytest.fixture
def start(sequential: Bench, tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """`start(*overrides)` -> a sweep that runs."""
    begun: list[Sweep] = []

    def make(*arguments: str) -> Sweep:
        begun.append(Sweep(Bench(sequential.sd, sequential.data, tmp_path / "outputs"), *arguments))
        return begun[-1]

    yield make
    for each in begun:
        if each.process.poll() is None:
            each.process.terminate()
            each.ends()


@pytest.fixture
def idle(slurm: Path) -> None:
    """SLURM has no job: a trial's result may be there before its process has ended."""
    until(lambda: not jobs("pending", "running", "completing"), "all jobs have ended")


@pytest.mark.usefixtures("idle")
class TestSlurm:
    def test_trials_of_which_one_is_requeued_in_its_fit(self, start: Callable[..., Sweep], sequential: Bench) -> None:
        sweep = start(*SLURM, "seed=0,1,2")
        sweep.waits()
        (job,) = [each for each in jobs("running") if each.endswith("_0")]
        scontrol("requeue", job)
        assert sweep.ends() == 0, sweep.said
        assert "3 of 3 trials finished" in sweep.said and "sacct" not in sweep.said
        assert sweep.steps == [0, 1, 1]
        for seed in SEEDS:
            assert products(sweep.bench, seed) == products(sequential, seed)

    def test_a_job_over_its_time_limit_comes_again(self, start: Callable[..., Sweep], sequential: Bench) -> None:
        """The limit is lowered once the fit stands where it shall end, and raised again for the job's second life: how
        long a process takes to get there is the machine's affair."""
        limit = ("launcher.options.timeout_min=10", "+launcher.options.slurm_signal_delay_s=120")
        sweep = start(*SLURM, *limit, "seed=0")
        sweep.waits()
        (job,) = jobs("running")
        scontrol("update", f"jobid={job}", f"timelimit={(time.monotonic() - sweep.began) // 60 + 2:.0f}")
        until(lambda: "Restarts=1" in scontrol("show", "job", job), "the job was put into the queue again", 120)
        scontrol("update", f"jobid={job}", "timelimit=10")
        assert sweep.ends() == 0, sweep.said
        assert "timed-out" in logs(sweep.bench) and sweep.steps == [0, 1, 1]
        assert products(sweep.bench, 0) == products(sequential, 0)

    def test_a_job_that_is_cancelled_is_told_within_a_minute_and_the_others_go_on(
        self, start: Callable[..., Sweep]
    ) -> None:
        sweep = start(*SLURM, "seed=0,1")
        sweep.waits()
        until(lambda: "[1/2] done" in sweep.said, "the other trial has finished", 300)
        (job,) = [each for each in jobs("running") if each.endswith("_0")]
        began = time.monotonic()
        subprocess.run(["scancel", job], check=True)
        assert sweep.ends() == 1 and time.monotonic() - began < 60
        assert f"without a word: job {job} CANCELLED" in sweep.said and "1 of 2 trials finished, 1 failed" in sweep.said

    def test_a_command_that_is_terminated_ends_its_jobs(self, start: Callable[..., Sweep]) -> None:
        sweep = start(*SLURM, "seed=0")
        sweep.waits()
        sweep.process.terminate()
        assert sweep.ends(60) == 130
        assert "scancel" in sweep.said and "interrupted: finished trials are kept" in sweep.said
        until(lambda: not jobs("pending", "running", "completing"), "its jobs have ended")


@pytest.mark.usefixtures("ray")
def test_a_ray_worker_that_is_killed(start: Callable[..., Sweep], sequential: Bench) -> None:
    """Its trial fails alone; the same command, now on a cluster that runs already, goes on with it."""
    sweep = start("launcher=ray", "seed=0,1")
    sweep.waits()
    until(lambda: "[1/2] done" in sweep.said, "the other trial has finished", 300)
    worker = holder(sweep.bench.folder())
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert sweep.ends() == 1
    assert "1 of 2 trials finished, 1 failed" in sweep.said and "without a word" in sweep.said
    again = start("launcher=ray", "launcher.options.address=auto", "seed=0,1")
    assert again.ends() == 0, again.said
    assert "2 of 2 trials finished (1 before)" in again.said
    for seed in range(2):
        assert products(sweep.bench, seed) == products(sequential, seed)
