"""A small but complete bench: random weights in Stable Diffusion's layout, a dozen pictures, the real command line."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from slime_bench import cli
from slime_bench.errors import DataError
from slime_bench.results.result import TrialResult, read_result
from tests.e2e.tiny import SIDE as SIDE
from tests.e2e.tiny import SPLITS as SPLITS
from tests.e2e.tiny import settings, write_pictures, write_weights

FAILING = (2, 1)  # shots and seed of the trial that fails in `swept`


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Bench:
    """The command line on the small weights and the small data set.

    Attributes:
        sd: folder of the weights. data: folder of the data set. outputs: `output_root`.
    """

    sd: Path
    data: Path
    outputs: Path

    @property
    def settings(self) -> list[str]:
        """Overrides that make any trial small."""
        return settings(self.sd, self.data, self.outputs)

    def __call__(self, *arguments: str) -> Outcome:
        return command(*_flags(arguments), *self.settings, *_overrides(arguments))

    def folder(self, shots: int = 1, seed: int = 0) -> Path:
        """The one folder of a trial."""
        (found,) = (self.outputs / "runs" / "tiny_car" / "slime" / f"{shots}-shot").glob(f"seed{seed}-*")
        return found

    def result(self, shots: int = 1, seed: int = 0) -> TrialResult:
        return read_result(self.folder(shots, seed) / "result.json")


def command(*arguments: str) -> Outcome:
    """`slime-bench <arguments>` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file under `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _flags(arguments: Sequence[str]) -> list[str]:
    return [each for each in arguments if each.startswith("--")]


def _overrides(arguments: Sequence[str]) -> list[str]:
    return [each for each in arguments if not each.startswith("--")]


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with SD's block types and random weights, about 3 MB."""
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny_sd")


@pytest.fixture(scope="session")
def car_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set of the mini world's cars at half size."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "car")


@pytest.fixture(scope="session")
def swept(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Outcome]:
    """A sweep of four trials of which one fails, and how it ended; each was fitted by itself, so that its bytes can be
    compared with another process's. Read only: see `finished` for a copy."""
    from slime_bench.trial import runner as trial

    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("swept"))
    real = trial._fit_and_test

    def sometimes(spec, *arguments):  # type: ignore[no-untyped-def]
        if (spec.cfg.shots, spec.cfg.seed) == FAILING:
            raise DataError("a file went missing", path="some/image.png", remedy="put it back")
        return real(spec, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_fit_and_test", sometimes)
        outcome = bench("--multirun", "shots=1,2", "seed=0,1", "launcher.trials_per_batch=1")
    return bench, outcome


@pytest.fixture
def finished(swept: tuple[Bench, Outcome], tmp_path: Path) -> Bench:
    """A copy of the swept bench that a test may change: outputs and data set are its own."""
    bench, _ = swept
    shutil.copytree(bench.outputs, tmp_path / "outputs")
    shutil.copytree(bench.data, tmp_path / "car")
    return Bench(bench.sd, tmp_path / "car", tmp_path / "outputs")


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra prints the program's name, which under pytest is pytest's."""
    monkeypatch.setattr(sys, "argv", ["slime-bench"])
