"""Trials that are killed and go on: every method, at every few steps, to the same bytes; once with a real signal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig
from slime_bench.methods.infoscore.method import InfoScore
from slime_bench.methods.slime.method import Slime
from slime_bench.trial import checkpoint, resume, runner
from tests.e2e.conftest import SIDE, Bench
from tests.fixtures.blip_toys import save_blip

FILES = ("result.json", "state.safetensors", "per_image.parquet", "curves.csv", "confusion.json")
ONE_SHOT = "slime, 1 shot"


class Killed(BaseException):
    """Stands in for the end of the process: nothing in the bench catches it."""


@dataclass(frozen=True)
class Trial:
    """One trial of the command line.

    Attributes:
        settings: overrides, without `output_root`. method: its class. steps: of its optimisation.
    """

    settings: list[str]
    method: type
    steps: int

    @cached_property
    def cfg(self) -> TrialConfig:
        (cfg,) = plan(self.settings).trials
        return cfg

    def __call__(self, outputs: Path, every: int = 10, force: bool = False, fit: int = 0, test: int = 0) -> list[int]:
        """Run it; the steps that this process began.

        Args:
            every: steps between checkpoints. fit, test: the process ends at this step of its own, or at this batch of
                the test, counted from 1; 0 for never.
        """
        began: list[int] = []
        tested = 0
        training_step, test_step = self.method.training_step, self.method.test_step

        def fitted(method: Any, *arguments: Any) -> Any:
            began.append(method.trainer.global_step)
            if len(began) == fit:
                raise Killed
            return training_step(method, *arguments)

        def seen(method: Any, *arguments: Any) -> Any:
            nonlocal tested
            tested += 1
            if tested == test:
                raise Killed
            return test_step(method, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.method, "training_step", fitted)
            patch.setattr(self.method, "test_step", seen)
            cfg = self.cfg.replace(output_root=str(outputs), force=force, trainer={"checkpoint_every": every})
            with pytest.raises(Killed) if fit or test else nullcontext():
                runner.run(runner.spec_of(cfg))
        return began


def folder(outputs: Path) -> Path:
    (found,) = outputs.glob("runs/*/*/*-shot/seed0-*")
    return found


def contents(outputs: Path) -> dict[str, bytes]:
    return {name: (folder(outputs) / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def trials(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    blip = save_blip(tmp_path_factory.mktemp("blip"))
    slime = [each for each in Bench(tiny_sd, car_pictures, Path()).settings if not each.startswith("output_root=")]
    vlm = [
        "preset=mini_infoscore", "data=pascal_part_car", "data.name=tiny_car", f"data.root={car_pictures}",
        f"backbone.weights={blip}", f"backbone.image_size={SIDE}", "method.prompts=mini_car", "method.lr=0.01",
        "data.batch_size=2", "trainer=cpu", "trainer.progress=false",
    ]  # fmt: skip
    passes = ["data.passes_per_epoch=2", "save_maps=0"]
    several = ["shots=3", "data.validation=val"]
    return {
        # A 1-shot trial is its own validation; 5 passes do not fill 3 epochs of 2.
        ONE_SHOT: Trial([*slime, *passes, "method.epochs=5"], Slime, 5),
        # `max_steps` ends the second epoch of 6 steps.
        "slime, 3 shots": Trial([*slime, *passes, *several, "method.epochs=5", "method.max_steps=8"], Slime, 8),
        # Groups of two: 4 steps an epoch, 6 in all. The validation counts as forwarded images.
        "vlm, 3 shots": Trial([*vlm, *passes, *several, "method.epochs=3", "method.augment=false"], InfoScore, 6),
        "vlm, augmented": Trial([*vlm, *passes, *several, "method.epochs=2", "method.augment=true"], InfoScore, 6),
    }


@pytest.fixture(scope="module")
def undisturbed(trials: dict[str, Trial], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Outputs of a trial that nobody has disturbed, and that wrote no checkpoint."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("undisturbed")
            assert trials[name](made[name], every=0) == list(range(trials[name].steps))
        return made[name]

    return run


@pytest.fixture(autouse=True)
def no_thrift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take less time here than writing does."""
    monkeypatch.setattr(resume, "SHARE", float("inf"))


@pytest.mark.parametrize(("name", "every"), [("slime, 3 shots", 3), ("vlm, 3 shots", 2), ("vlm, augmented", 2)])
def test_a_trial_may_be_killed_at_any_step(
    trials: dict[str, Trial], undisturbed: Callable[[str], Path], tmp_path: Path, name: str, every: int
) -> None:
    one = trials[name]
    # Each life dies in the step after the checkpoint that it has written, the last but one while it tests.
    for start in range(0, one.steps - every, every):
        assert one(tmp_path, every, fit=every + 1) == list(range(start, start + every + 1))
    rest = list(range(start + every, one.steps))
    assert one(tmp_path, every, test=2) == rest and not (folder(tmp_path) / "result.json").exists()
    assert one(tmp_path, every) == []  # the fit is not repeated
    assert contents(tmp_path) == contents(undisturbed(name))
    names = [sorted(path.name for path in folder(each).iterdir()) for each in (tmp_path, undisturbed(name))]
    assert names[0] == names[1]  # no checkpoint any more
    if "ranking.json" in names[0]:
        ranking = [(folder(each) / "ranking.json").read_bytes() for each in (tmp_path, undisturbed(name))]
        assert ranking[0] == ranking[1]


KILLS_ITSELF = """
import os, signal, sys
from slime_bench.trial import resume
from slime_bench import cli
from slime_bench.methods.slime.method import Slime

resume.SHARE = float("inf")
real = Slime.training_step

def step(method, *arguments):
    if method.trainer.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(method, *arguments)

Slime.training_step = step
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def killed(trials: dict[str, Trial], tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Outputs of a process that was killed in its fourth step, as nothing can be caught; read only."""
    outputs = tmp_path_factory.mktemp("killed")
    line = [sys.executable, "-c", KILLS_ITSELF, *trials[ONE_SHOT].settings, f"output_root={outputs}"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*line, "trainer.checkpoint_every=2"], capture_output=True, text=True, cwd=outputs, env=environment, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (folder(outputs) / checkpoint.FILE).exists() and not (folder(outputs) / "result.json").exists()
    return outputs


@pytest.fixture
def remains(killed: Path, tmp_path: Path) -> Path:
    """A copy of `killed`."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_process_that_was_killed(
    trials: dict[str, Trial], undisturbed: Callable[[str], Path], remains: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "slime_bench"):
        assert trials[ONE_SHOT](remains) == [2, 3, 4]
    assert "goes on after step 2" in caplog.text
    assert contents(remains) == contents(undisturbed(ONE_SHOT))


def test_force_begins_anew(trials: dict[str, Trial], remains: Path) -> None:
    assert trials[ONE_SHOT](remains, force=True, fit=1) == [0]
    assert not (folder(remains) / checkpoint.FILE).exists()


def of_another_code(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoint, "code_hash", lambda files: "0" * 64)


def truncated(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("spoil", "says"), [(of_another_code, "code"), (truncated, "damaged")])
def test_a_checkpoint_of_no_use_is_ignored_with_a_warning(
    trials: dict[str, Trial], remains: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path, pytest.MonkeyPatch], None], says: str,
) -> None:  # fmt: skip
    spoil(folder(remains) / checkpoint.FILE, monkeypatch)
    assert trials[ONE_SHOT](remains, fit=1) == [0]
    assert "starts anew" in caplog.text and says in caplog.text and str(folder(remains)) in caplog.text
