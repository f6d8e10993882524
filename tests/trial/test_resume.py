"""Resuming an optimisation: a small method on noise is stopped anywhere, and ends as if it had never been."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from slime_bench.data.config import DataConfig
from slime_bench.data.folder import FolderData
from slime_bench.errors import StorageError
from slime_bench.methods.base import SegmentationMethod
from slime_bench.metrics.iou import IGNORE
from slime_bench.results.artifacts import CURVES_FILE, read_curves
from slime_bench.seeding import generator
from slime_bench.tracking.loggers import curve_callback, trial_logger
from slime_bench.trial import checkpoint, resume
from slime_bench.trial.fitting import lightning_trainer, steps_of
from slime_bench.trial.resume import Checkpoints
from tests.fixtures.twins.toy_folder import CLASSES, COMPLETE, SIZE, write_split

MADE_BY = {"signature": "0123456789abcdef"}
pytestmark = pytest.mark.filterwarnings("ignore")


class Killed(BaseException):
    """Stands in for the end of the process: nothing in the bench catches it."""


class Toy(SegmentationMethod):
    """A colour per class. Its learning rate falls, so that everything a checkpoint may hold has an effect.

    Args:
        dies: the event (a training step or a validation batch, counted from 1) at which the process ends; 0 for none.
    """

    def __init__(self, epochs: int, max_steps: int | None, group: int | None, dies: int) -> None:
        super().__init__(CLASSES)
        self.epochs, self.max_steps, self.support_group = epochs, max_steps, group
        self.weight = nn.Parameter(torch.zeros(len(CLASSES), 3))
        self.seen: dict[int, Any] = {}
        self._left = dies

    def _event(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed

    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        return torch.einsum("kc,bchw->bkhw", self.weight, images)

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.Adam([self.weight], lr=0.1)
        falling = torch.optim.lr_scheduler.StepLR(optimiser, step_size=2, gamma=0.8)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": falling, "interval": "step"}}

    def training_step(self, batch: Mapping[str, Any], index: int) -> torch.Tensor:
        self._event()
        self.seen[self.trainer.global_step] = (batch["id"], batch["epoch"].tolist(), self.current_epoch, index)
        drawn = torch.randn(self.weight.shape, generator=generator(0, "toy", self.trainer.global_step))
        scores = self.scores(batch["image"], batch["id"])
        loss = F.cross_entropy(scores, batch["label"], ignore_index=IGNORE) + (self.weight * drawn).sum()
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch: Mapping[str, Any], index: int) -> None:
        self._event()
        super().validation_step(batch, index)

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight.detach()}

    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])


@dataclass(frozen=True)
class Fit:
    """What is optimised, and how often it is saved."""

    shots: int = 3
    batch: int = 1
    passes: int = 2
    epochs: int = 4
    max_steps: int | None = None
    group: int | None = None
    validation: str = "val"
    workers: int = 0
    every: int = 1


@dataclass
class Life:
    """One process's part of a fit."""

    method: Toy
    steps: int | None
    """Of the checkpoint that it went on from."""
    trainer: Any = None
    killed: bool = False


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for name, count in (("support", 12), ("val", 3), ("test", 1)):
        write_split(path / name, name[0], count, COMPLETE)
    return path


@pytest.fixture(scope="module")
def live(root: Path) -> Callable[..., Life]:
    """Go on with a fit in `folder` as far as it comes."""

    def run(fit: Fit, folder: Path, dies: int = 0, adjust: Callable[[Any], None] = lambda trainer: None) -> Life:
        facts = {"passes_per_epoch": fit.passes, "train_batch_size": fit.batch}
        config = DataConfig(
            "toy", str(root), CLASSES, image_size=SIZE, validation=fit.validation, num_workers=fit.workers,
            batch_size=2, **facts,
        )  # fmt: skip
        data = FolderData(config, shots=fit.shots, seed=0).datamodule()
        data.setup()
        method = Toy(fit.epochs, fit.max_steps, fit.group, dies)
        data.support_group = method.support_group
        cpu = {"device": "cpu", "precision": "fp32", "progress": False, "deterministic": False}
        cfg = OmegaConf.create({"data": facts, "trainer": cpu, "logger": {"name": "csv"}})
        keeper = Checkpoints(folder, MADE_BY, fit.every, 0.0)
        life = Life(method, keeper.find(method))
        with trial_logger(cfg, folder) as logger:
            curve = None if logger is None else curve_callback(logger)
            life.trainer = lightning_trainer(cfg, method, steps_of(cfg, data, method), folder, [keeper, curve])
            adjust(life.trainer)
            try:
                life.trainer.fit(method, data)
            except Killed:
                life.killed = True
        return life

    return run


@pytest.fixture(autouse=True)
def no_thrift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take less time here than writing does."""
    monkeypatch.setattr(resume, "SHARE", math.inf)


def outcome(life: Life, folder: Path) -> Any:
    """All that may be seen of a fit that has ended, the tensors as bytes."""
    method = life.method
    tensors = [*method.learned_state().values(), *method._best_state.values()]
    best = (method.best_score, method.best_epoch, life.trainer.global_step)
    curves = [(folder / name).read_bytes() for name in ("log/metrics.csv", CURVES_FILE)]
    return [each.numpy().tobytes() for each in tensors], best, curves


def undisturbed(live: Callable[..., Life], fit: Fit, folder: Path) -> tuple[Life, Any]:
    life = live(Fit(**{**vars(fit), "every": 1000}), folder)
    return life, outcome(life, folder)


FITS = st.builds(
    Fit,
    shots=st.integers(1, 3),
    batch=st.integers(1, 2),
    passes=st.integers(1, 3),
    epochs=st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 9),
    group=st.none() | st.just(2),
    validation=st.sampled_from(["none", "support", "val"]),
    every=st.integers(1, 3),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(fit=Fit(max_steps=15), deaths=[2, 6, 2, 7])
@given(fit=FITS, deaths=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_a_fit_may_be_killed_anywhere(
    live: Callable[..., Life], tmp_path_factory: pytest.TempPathFactory, fit: Fit, deaths: list[int]
) -> None:
    calm, stormy = (tmp_path_factory.mktemp(name) for name in ("calm", "stormy"))
    whole, expected = undisturbed(live, fit, calm)
    seen: dict[int, Any] = {}
    for dies in [*deaths, 0]:
        life = live(fit, stormy, dies)
        start, reached = life.steps or 0, max(seen, default=-1) + 1
        # Not more is repeated than lies between two checkpoints; a checkpoint comes before the step that it leads to.
        assert start > reached - 1 - fit.every if reached else start == 0
        assert min(life.method.seen, default=start) == start
        assert list(life.method.seen) == list(range(start, start + len(life.method.seen)))
        seen |= life.method.seen
        if not life.killed:
            break
    assert seen == whole.method.seen
    assert outcome(life, stormy) == expected


def test_the_curves_are_those_of_lightnings_logger(live: Callable[..., Life], tmp_path: Path) -> None:
    """Which keeps a row for the training and another for the validation of a step, and has single precision."""

    def adjust(trainer: Any) -> None:
        trainer.callbacks.append(LogsBatches())
        trainer.loggers = [lightning.pytorch.loggers.CSVLogger(tmp_path, name="", version="lightning")]
        trainer.log_every_n_steps = 1

    live(Fit(shots=2), tmp_path, adjust=adjust)
    with (tmp_path / "lightning" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {}
    for name in set(rows[0]) - {"step", "epoch"}:
        logged = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        expected[name] = ([step for step, _ in logged], pytest.approx([value for _, value in logged], rel=1e-6))
    assert set(expected) == {"train/loss", "train/lr", "val/miou", "val/number"}
    assert read_curves(tmp_path / CURVES_FILE) == expected
    lines = (tmp_path / CURVES_FILE).read_text().splitlines()[1:]
    assert {tuple(line.split(",")[:2]) for line in lines} == {(row["step"], row["epoch"]) for row in rows}


class LogsBatches(lightning.Callback):
    """Logs a number with each batch of the validation, of which the last is smaller; some numbers are for no logger."""

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        pl_module.log("val/number", 1.0 + index, batch_size=len(batch["id"]))
        pl_module.log("val/other", 1.0, batch_size=1, logger=False)


def test_a_trial_that_is_repeated_keeps_its_curves_while_the_fit_goes_on(
    live: Callable[..., Life], tmp_path: Path
) -> None:
    """`force=true`: the result stays valid until there is another, and the file beside it is that of its own fit."""
    (tmp_path / CURVES_FILE).write_text("those of the result")
    (tmp_path / "result.json").write_text("{}")
    life = live(Fit(), tmp_path, dies=4)
    assert life.killed and (tmp_path / checkpoint.FILE).exists()
    assert (tmp_path / CURVES_FILE).read_text() == "those of the result"
    (tmp_path / "result.json").unlink()
    live(Fit(), tmp_path)
    assert read_curves(tmp_path / CURVES_FILE)["train/loss"][0] == list(range(12))


def test_workers_change_nothing_after_a_resume(live: Callable[..., Life], tmp_path: Path) -> None:
    fit = Fit(group=2, workers=2, validation="none")
    whole, _ = undisturbed(live, Fit(**{**vars(fit), "workers": 0}), tmp_path / "calm")
    expected = whole.method.learned_state()["weight"]
    first = live(fit, tmp_path / "stormy", dies=2)
    second = live(fit, tmp_path / "stormy")
    assert second.steps == 1 and first.method.seen | second.method.seen == whole.method.seen
    assert second.method.learned_state()["weight"].equal(expected)


def test_the_scale_of_half_precision_goes_on(live: Callable[..., Life], tmp_path: Path) -> None:
    """A scale that grows every two steps; on the CPU, as the scaler's own state is what counts."""

    def half(trainer: Any) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)

    fit = Fit(epochs=3, max_steps=7, validation="none")
    states = []
    for name, deaths in (("calm", [0]), ("stormy", [4, 2, 0])):
        for dies in deaths:
            life = live(fit, tmp_path / name, dies, half)
        states.append((life.trainer.precision_plugin.state_dict(), life.method.learned_state()["weight"].tolist()))
    assert states[0][0]["scale"] == 4.0 * 2**3 and states[0] == states[1]


def test_a_fit_that_was_over_is_not_repeated(live: Callable[..., Life], tmp_path: Path) -> None:
    fit = Fit(every=1000)
    first = live(fit, tmp_path)
    expected = outcome(first, tmp_path)
    again = live(fit, tmp_path)
    assert again.steps == first.trainer.global_step == 12 and again.method.seen == {}
    assert outcome(again, tmp_path) == expected
    # A line that the test phase logs stands where it would stand without the interruption.
    assert again.trainer.fit_loop.epoch_loop._batches_that_stepped == 12


@pytest.mark.parametrize("error", [StorageError("no space", path="c"), TypeError("cannot pickle it")])
def test_a_checkpoint_that_cannot_be_written_does_not_end_the_trial(
    live: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Exception
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "write", full)
    life = live(Fit(epochs=2), tmp_path)
    assert life.trainer.global_step == 6 and not (tmp_path / checkpoint.FILE).exists()
    assert caplog.text.count("the trial goes on") == 1


def test_tensors_of_another_shape_are_not_taken_over(live: Callable[..., Life], tmp_path: Path, caplog: Any) -> None:
    live(Fit(), tmp_path, dies=4)
    found = checkpoint.read(tmp_path / checkpoint.FILE, MADE_BY)
    found["method"]["learned"] = {"weight": torch.zeros(2, 2)}
    checkpoint.write(tmp_path / checkpoint.FILE, found, MADE_BY)
    life = live(Fit(epochs=1), tmp_path)
    assert life.steps is None and min(life.method.seen) == 0 and "starts anew" in caplog.text


class Watch:
    """Stands in for the clock: a step takes one second, a checkpoint `cost`."""

    def __init__(self, cost: float) -> None:
        self.now, self.cost = 100.0, cost

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(("cost", "steps"), [(0.001, [3, 6, 9, 12]), (0.1, [3, 8]), (1000.0, [3])])
def test_checkpoints_take_a_small_part_of_the_time(
    live: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: float, steps: list[int]
) -> None:
    """At 2 %, one of 0.1 s is worth 5 steps of one second each."""
    watch, written = Watch(cost), []

    class Counted(Toy):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            watch.now += 1.0
            return super().training_step(batch, index)

    def write(path: Path, state: Any, made_by: Any) -> None:
        watch.now += cost
        written.append((state["step"], state["finished"]))

    monkeypatch.setattr(resume, "SHARE", 0.02)
    monkeypatch.setattr(resume, "time", watch)
    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setitem(globals(), "Toy", Counted)
    live(Fit(epochs=5, passes=1, max_steps=13, every=3, validation="none"), tmp_path)
    assert written == [*((step, False) for step in steps), (13, True)]
