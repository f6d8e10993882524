"""Every method on a device with CUDA's rules: no mixture of devices, the CPU's numbers, and a known number of waits.

    make test ARGS='-rP tests/contract/test_device.py'

prints the table of docs/bench.md, the lines that begin with `|`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.methods.base import SegmentationMethod
from tests.contract.test_contract import batch, make, options, tiny_weights, trial
from tests.fixtures.device import NAME, TestDevice, on_cpu, on_device

__all__ = ["make", "tiny_weights"]

#: method file -> how often the CPU waits for the GPU in a training step (None: there is none) and in a test batch of
#: two images, once a trial is on its way
WAITS: dict[str, tuple[int | None, int]] = {
    "slime": (0, 2),
    "supervised": (0, 1),
    "infoscore": (1, 2),
    "infoscore_ranking": (None, 13),
    "feature_knn": (None, 3),
    "feature_probe": (None, 5),
    "segddpm": (None, 3),
    "peekaboo": (None, 3),
    "seggpt": (None, 27),
    "diffseg": (None, 14),
    "regan": (None, 1),
}


@pytest.fixture
def device() -> Iterator[TestDevice]:
    with on_device() as entered:
        yield entered


def moved(method: SegmentationMethod, place: str) -> Any:
    """A batch as Lightning moves it."""
    return method.transfer_batch_to_device(batch(), torch.device(place), 0)


def run(method: SegmentationMethod, place: str, tick: Callable[[], Any]) -> tuple[list[Any], torch.Tensor, list[Any]]:
    """Two training steps and two test batches: losses, score maps, and what `tick` gives after each of the four."""
    losses, ticks = [], []
    if method.epochs > 0:
        configured: Any = method.configure_optimizers()
        optimiser = configured["optimizer"] if isinstance(configured, dict) else configured
        for _ in range(2):
            one = moved(method, place)
            tick()
            loss: Any = method.training_step(one, 0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            ticks.append(tick())
            losses.append(loss.detach())
        assert {value.device.type for value in method.learned_state().values()} == {place}
    method.eval()
    with torch.no_grad():
        for _ in range(2):
            one = moved(method, place)
            tick()
            method.test_step(one, 0)
            ticks.append(tick())
        return losses, method.scores(one["image"], one["id"]), ticks


@pytest.mark.slow
@pytest.mark.parametrize("name", options("method"))
def test_method(name: str, make: Callable[..., SegmentationMethod]) -> None:
    losses, scores, _ = run(make(name), "cpu", lambda: None)
    with on_device() as device:

        def tick() -> Counter[str]:
            since, device.waits = device.waits, Counter()
            return since

        method = make(name, device=NAME)
        if method.device.type != NAME:  # what its `prepare` has not moved, Lightning moves
            method.to(NAME)
        found, maps, waits = run(method, NAME, tick)
        assert {value.device.type for value in (maps, *found)} == {NAME}
    # The device chooses other kernels for some products, which round otherwise.
    torch.testing.assert_close(on_cpu(found), losses, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(on_cpu(maps), scores, rtol=1e-2, atol=1e-2)
    step, image = waits[1].total() if losses else None, waits[-1].total()
    print(f"| `{name}` | {'–' if step is None else step} | {image} | {dict(waits[-1])}")
    assert (step, image) == WAITS[name]


def test_the_documentation_has_the_waits(repository: Path) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| \S+ \| (\S+) \| \S+ \| (\d+) \|", (repository / "docs/bench.md").read_text(), re.M
    )
    stated = {name: (None if step == "–" else int(step), int(image)) for name, step, image in rows}
    assert stated == WAITS


class TestTheDeviceItself:
    """It refuses what CUDA refuses, counts what CUDA waits for, and lets a gradient through."""

    def test_what_mixes_devices(self, device: TestDevice) -> None:
        here, there = torch.ones(3), torch.ones(3).to(NAME)
        with pytest.raises(RuntimeError, match="on the device and on the CPU"):
            there + here
        with pytest.raises(RuntimeError, match="a tensor on the CPU"):
            here[torch.tensor([0]).to(NAME)]
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device=NAME)
        assert torch.equal(on_cpu(there + torch.tensor(1.0)), here + 1), "a number without a dimension may come along"
        assert torch.equal(on_cpu(there[torch.tensor([0, 2])]), here[:2]), "and indices may"

    @pytest.mark.parametrize(
        ("ask", "kind"),
        [
            (lambda x: float(x.sum()), "number"),
            (lambda x: bool((x > 0).any()), "number"),
            (lambda x: x.tolist(), "to cpu"),
            (lambda x: x.cpu(), "to cpu"),
            (lambda x: torch.empty(3).copy_(x), "to cpu"),
            (lambda x: torch.ones(3).to(x.device), "to gpu"),
            (lambda x: torch.tensor([1.0], device=x.device), "to gpu"),
            (lambda x: x[torch.tensor([0])], "to gpu"),
            (lambda x: torch.equal(x, x + 1), "equal"),
            (lambda x: x[x > 0], "size"),
            (lambda x: torch.bincount(x.long()), "size"),
            (lambda x: torch.ones(3).to(x.device, non_blocking=True), None),
            (lambda x: x.masked_fill_(x > 0, 1.0), None),
            (lambda x: (x @ x).exp(), None),
        ],
    )
    def test_waits(self, device: TestDevice, ask: Callable[[torch.Tensor], Any], kind: str | None) -> None:
        there = torch.ones(3).to(NAME, non_blocking=True)
        ask(there)
        assert dict(device.waits) == ({} if kind is None else {kind: 1})

    def test_float64(self) -> None:
        with on_device(torch.float64):
            there = torch.ones(3, dtype=torch.float32).to(NAME)
            for ask in (
                there.double,
                lambda: there.to("cpu", torch.float64),
                lambda: torch.zeros(2, dtype=torch.float64, device=NAME),
            ):
                with pytest.raises(TypeError, match="float64"):
                    ask()
            assert there.cpu().double().dtype == torch.float64

    def test_gradients(self, device: TestDevice) -> None:
        start = torch.arange(6.0).view(2, 3)
        one, other = start.clone().requires_grad_(), start.to(NAME).requires_grad_()
        for each in (one, other):
            (each.softmax(1)[:, 1:] * 2).square().sum().backward()
        assert one.grad is not None and torch.equal(on_cpu(other.grad), one.grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "refine"),
    [
        ("slime", "none"),
        ("infoscore_ranking", "guided"),
        ("feature_knn", "crf"),
        ("feature_probe", "none"),
        ("segddpm", "none"),
        ("seggpt", "none"),
        ("peekaboo", "none"),
        ("diffseg", "none"),
    ],
)
def test_a_device_without_float64(
    name: str, refine: str, make: Callable[..., SegmentationMethod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test device plays MPS: whatever needs float64 is computed on the CPU, and comes back."""
    monkeypatch.setattr("slime_bench.places.NO_FLOAT64", {NAME})
    plain = make(name)
    plain.refine = trial(f"refine={refine}").refine
    wanted = plain.refined_scores(batch()["image"], batch()["id"])
    with on_device(torch.float64):
        method = make(name, device=NAME)
        method.refine = plain.refine
        if method.device.type != NAME:
            method.to(NAME)
        assert {value.device.type for value in method.learned_state().values()} <= {NAME}
        one = moved(method.eval(), NAME)
        with torch.no_grad():
            found = method.refined_scores(one["image"], one["id"])
            method.test_step(one, 0)
    assert found.device.type == NAME
    torch.testing.assert_close(on_cpu(found), wanted, rtol=1e-2, atol=1e-2)
