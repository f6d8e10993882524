"""Every method on a device with CUDA's rules: no mixture of devices, the CPU's numbers, and a known number of waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from slime_bench.methods.base import SegmentationMethod
from tests.contract.test_contract import StandInData, batch, make, options, tiny_weights
from tests.fixtures.device import NAME, TestDevice, moved_as_new_parameters, on_cpu, register

__all__ = ["make", "tiny_weights"]


@pytest.fixture
def device() -> Iterator[TestDevice]:
    register()
    with moved_as_new_parameters(), TestDevice() as entered:
        yield entered


@pytest.mark.parametrize("name", options("method"))
def test_method(name: str, make: Callable[..., SegmentationMethod], device: TestDevice, monkeypatch) -> None:
    import traceback
    method = make(name, device=NAME)
    print(name, "prepare", dict(device.waits))
    method.to(NAME)
    device.waits.clear()
    def told(kind):
        fr=[f"{f.filename.split('/')[-1]}:{f.lineno}:{f.name}" for f in traceback.extract_stack() if 'slime_bench' in f.filename]
        print("   ", kind, fr[-3:])
    device.on_wait = told
    if method.epochs > 0:
        one = method.transfer_batch_to_device(batch(), torch.device(NAME), 0)
        device.waits.clear()
        opt: Any = method.configure_optimizers()
        opt = opt["optimizer"] if isinstance(opt, dict) else opt
        loss: Any = method.training_step(one, 0)
        loss.backward()
        print("train", device.waits)
        opt.step()
        print("train", device.waits)
    one = method.transfer_batch_to_device(batch(), torch.device(NAME), 0)
    device.waits.clear()
    method.test_step(one, 0)
    print("test", device.waits)
