"""The loop that pre-training stages share: budget, checkpoints that resume, averages over steps and over processes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data_prep.pretrain import trainloop
from data_prep.pretrain.trainloop import Clock, Ema, Ranks


class Watch:
    """Stands in for the clock on the wall."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(trainloop.time, "monotonic", found.monotonic)
    return found


def parts(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model: nn.Module, optimiser: torch.optim.Optimizer, clock: Clock, steps: int, watch: Watch) -> None:
    for _ in range(steps):
        data = torch.randn(5, 3, generator=torch.Generator().manual_seed(clock.step))
        optimiser.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        optimiser.step()
        watch.now += 2.0
        clock.tick({"loss": float(loss.detach())}, {"model": model}, optimiser, images=5)


def test_the_clock_counts_steps_images_and_seconds(tmp_path: Path, watch: Watch) -> None:
    clock = Clock(tmp_path, seconds=9.0, name="stage")
    train(*parts(), clock, 4, watch)
    assert (clock.step, clock.images, clock.spent) == (4, 20, 8.0) and clock.running()
    train(*parts(), clock, 1, watch)
    assert clock.spent == 10.0 and not clock.running()


def test_a_resumed_stage_goes_on_as_if_nothing_had_happened(tmp_path: Path, watch: Watch) -> None:
    model, optimiser = parts()
    clock = Clock(tmp_path / "a", 1000.0, "stage")
    train(model, optimiser, clock, 3, watch)
    clock.save({"model": model}, optimiser)
    train(model, optimiser, clock, 3, watch)

    watch.now += 5000.0  # the machine was off
    resumed_model, resumed_optimiser = parts(seed=9)
    resumed = Clock(tmp_path / "a", 1000.0, "stage")
    assert resumed.restore({"model": resumed_model}, resumed_optimiser)
    assert (resumed.step, resumed.images, resumed.spent) == (3, 15, 6.0)
    train(resumed_model, resumed_optimiser, resumed, 3, watch)

    assert (resumed.step, resumed.images, resumed.spent) == (clock.step, clock.images, clock.spent) == (6, 30, 12.0)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed_model.state_dict()[name], value)
    ours, theirs = resumed_optimiser.state_dict()["state"], optimiser.state_dict()["state"]
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for index, state in theirs.items():
        assert {"step", "exp_avg", "exp_avg_sq"} <= state.keys()
        assert all(torch.equal(ours[index][name], value) for name, value in state.items())


def test_without_a_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    model, optimiser = parts()
    before = copy.deepcopy(model.state_dict())
    assert not Clock(tmp_path, 10.0, "stage").restore({"model": model}, optimiser)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_save_that_was_torn_before_its_end_is_not_taken_for_a_whole_one(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimiser = parts()
    clock = Clock(tmp_path, 1000.0, "stage")
    train(model, optimiser, clock, 1, watch)

    def torn(tensors: Any, path: Path) -> None:
        if "optimiser" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(trainloop, "save_file", torn)
    with pytest.raises(OSError, match="No space"):
        clock.save({"model": model}, optimiser)
    assert not (tmp_path / "clock.json").exists() and not (tmp_path / "optimiser.safetensors").exists()
    assert not Clock(tmp_path, 1000.0, "stage").restore({"model": model}, optimiser)


def test_checkpoints_come_by_themselves_and_only_from_the_process_that_speaks(tmp_path: Path, watch: Watch) -> None:
    for name, quiet in (("loud", False), ("quiet", True)):
        model, optimiser = parts()
        clock = Clock(tmp_path / name, 1000.0, name, quiet=quiet)
        train(model, optimiser, clock, int(trainloop.CHECKPOINT_SECONDS / 2) + 1, watch)
    saved = load_file(tmp_path / "loud" / "model.safetensors")
    assert torch.equal(saved["0.weight"], model.state_dict()["0.weight"])  # both saw the same pictures
    assert list((tmp_path / "quiet").iterdir()) == []
    lines = [json.loads(line) for line in (tmp_path / "loud" / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and len(steps) > 5 and all("loss" in line for line in lines)


def test_a_stage_shorter_than_the_logs_rhythm_still_leaves_its_loss(tmp_path: Path, watch: Watch) -> None:
    model, optimiser = parts()
    clock = Clock(tmp_path, 3.0, "stage")
    train(model, optimiser, clock, 2, watch)
    clock.save({"model": model}, optimiser)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and last["loss"] > 0


def test_shape_of_the_learning_rate(tmp_path: Path) -> None:
    clock = Clock(tmp_path, 100.0, "stage")
    factors = {}
    for step, spent in (
        (0, 0.0),
        (4, 1.0),
        (9, 2.0),
        (500, 50.0),
        (600, 70.0),
        (700, 85.0),
        (900, 100.0),
        (950, 120.0),
    ):
        clock.step, clock.spent = step, spent
        factors[spent] = clock.learning_rate_factor(warmup=10, decay_from=0.7)
    expected = {0.0: 0.1, 1.0: 0.5, 2.0: 1.0, 50.0: 1.0, 70.0: 1.0, 85.0: 0.5, 100.0: 0.02, 120.0: 0.02}
    assert factors == pytest.approx(expected)


def test_average_over_steps() -> None:
    model, shadow = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Ema(model, shadow, decay=0.5)
    assert shadow.weight.item() == 0 and not shadow.weight.requires_grad
    model.weight.data.fill_(1.0)
    average.update(0)  # decay min(0.5, 1/10)
    assert shadow.weight.item() == pytest.approx(0.9)
    model.weight.data.fill_(3.0)
    average.update(10_000)  # decay 0.5
    assert shadow.weight.item() == pytest.approx(0.5 * 0.9 + 0.5 * 3.0)
    assert model.weight.item() == 3.0


def work_of_a_rank(rank: int, size: int, folder: Path) -> None:
    """One of two processes: its own gradients, and its own wish to go on."""
    torch.set_num_threads(1)
    ranks = Ranks(rank, size, folder / "rendezvous")
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(1, 1)])
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = None if index == 3 else torch.full_like(parameter, float(rank * 10 + index))
    ranks.average_gradients(model)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients["agreed"] = torch.tensor([ranks.agree(rank == 0), ranks.agree(rank == 1)])
    save_file(gradients, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_share_their_gradients_and_rank_0_decides(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work_of_a_rank, (2, tmp_path), nprocs=2)
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.pop("agreed").tolist() == [True, False]
        assert {name: value.flatten().tolist() for name, value in found.items()} == {
            "0.weight": [5.0, 5.0],
            "0.bias": [6.0],
            "1.weight": [7.0],
        }


def test_one_process_changes_nothing() -> None:
    model = nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[1.0, 2.0]])
    ranks = Ranks()
    ranks.average_gradients(model)
    assert model.weight.grad.tolist() == [[1.0, 2.0]] and ranks.agree(True) and not ranks.agree(False)
