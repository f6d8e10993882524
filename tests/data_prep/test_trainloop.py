"""The loop that pre-training stages share: budget, checkpoints that resume, averages over steps and over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_prep.pretrain import trainloop
from data_prep.pretrain.export import stage_facts
from data_prep.pretrain.trainloop import CHECKPOINT, Stage, averaged_weights, fabric_of, read_checkpoint, train


class Watch:
    """Stands in for the clock on the wall: two seconds pass in every step."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(trainloop.time, "monotonic", found.monotonic)
    return found


def run(work: Path, watch: Watch, images: int, stop_at: int | None = None, **stage: Any) -> nn.Module:
    """A stage in one process; an interruption at the step `stop_at`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        watch.now += 2.0
        data = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        loss = module(data).square().mean()
        return {"loss": loss, "half": loss.detach() / 2}

    of = Stage("stage", images, 5, 0.01, **{"averaging": 0.9, "warmup": 2} | stage)
    train(fabric_of("cpu", 1), of, work, model, torch.optim.AdamW(model.parameters(), lr=0.01), losses)
    return model


def test_a_stage_ends_with_its_budget(tmp_path: Path, watch: Watch) -> None:
    run(tmp_path, watch, images=23)
    state = read_checkpoint(tmp_path, "stage")
    assert (state["step"], state["images"], state["spent"]) == (5, 25, 10.0)
    facts = stage_facts(tmp_path, "stage")  # a stage shorter than the rhythm of the progress line has its losses too
    assert (facts["steps"], facts["seconds"]) == (5, 10) and facts["loss"] > 0
    assert facts["half"] == pytest.approx(facts["loss"] / 2, abs=1e-4)


def test_a_resumed_stage_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainloop, "CHECKPOINT_SECONDS", 5.0)
    whole = run(tmp_path / "whole", watch, images=50)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", watch, images=50, stop_at=7)
    assert read_checkpoint(tmp_path / "cut", "stage")["step"] == 6  # checkpoints come by themselves
    watch.now += 5000.0  # the machine was off
    resumed = run(tmp_path / "cut", watch, images=50)
    ours, theirs = (read_checkpoint(tmp_path / name, "stage") for name in ("cut", "whole"))
    assert ours["step"] == theirs["step"] == 10 and ours["spent"] == theirs["spent"] == 20.0
    assert ours["means"] == theirs["means"]
    for part in ("model", "average"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items())
    for index, state in theirs["optimiser"]["state"].items():
        assert {"step", "exp_avg", "exp_avg_sq"} <= state.keys()
        assert all(torch.equal(ours["optimiser"]["state"][index][name], value) for name, value in state.items())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_save_that_was_torn_before_its_end_is_not_taken_for_a_whole_one(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: Any, path: Path, *_: Any, **__: Any) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lightning.fabric.Fabric.save", torn)
        with pytest.raises(OSError, match="No space"):
            run(tmp_path, watch, images=10)
    assert not (tmp_path / "stage" / CHECKPOINT).exists()
    run(tmp_path, watch, images=10)
    assert read_checkpoint(tmp_path, "stage")["step"] == 2


def test_shape_of_the_learning_rate() -> None:
    stage = Stage("stage", 400, 4, 2.0, warmup=10, decay_from=0.7)
    found = {step: stage.rate_at(step) / 2 for step in (0, 4, 9, 50, 70, 85, 99, 100)}
    expected = {0: 0.1, 4: 0.5, 9: 1.0, 50: 1.0, 70: 1.0, 85: 0.5, 99: 1 / 30, 100: 0.02}
    assert found == pytest.approx(expected)
    steady = Stage("stage", 400, 4, 2.0, warmup=10, decay_from=1.0)
    assert [steady.rate_at(step) for step in (9, 50, 99)] == [2.0, 2.0, 2.0]


def test_average_over_steps(tmp_path: Path, watch: Watch) -> None:
    """The first step is taken as it is; then the decay grows to its last value."""
    first = run(tmp_path, watch, images=5).state_dict()
    assert all(torch.equal(value, first[name]) for name, value in averaged_weights(tmp_path, "stage").items())
    second = run(tmp_path, watch, images=10).state_dict()
    decay = 2 / 11
    for name, value in averaged_weights(tmp_path, "stage").items():
        torch.testing.assert_close(value, decay * first[name] + (1 - decay) * second[name])


class Scaled(nn.Module):
    """One weight that each process pulls to another side, and one that no loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, target: float) -> torch.Tensor:
        return (self.weight * target).sum()


def in_two_processes(fabric: Any, work: Path) -> None:
    model = Scaled()

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        return {"loss": module(0.1 if fabric.global_rank == 0 else 0.3)}

    stage = Stage("stage", 30, 6, 1.0, warmup=1, decay_from=0.0)
    train(fabric, stage, work, model, torch.optim.SGD(model.parameters(), lr=1.0), losses)
    state = fabric.all_gather(model.weight.detach())
    if fabric.is_global_zero:
        torch.save({"weights": state, "steps": read_checkpoint(work, "stage")["step"]}, work / "found.pt")


@pytest.mark.release
def test_two_processes_share_their_gradients(tmp_path: Path) -> None:
    fabric_of("cpu", 2).launch(in_two_processes, tmp_path)  # type: ignore[arg-type]
    found = torch.load(tmp_path / "found.pt")
    assert found["steps"] == 5 and read_checkpoint(tmp_path, "stage")["images"] == 30
    assert torch.equal(found["weights"][0], found["weights"][1]) and (found["weights"] < 0).all()
