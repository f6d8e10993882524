"""Which device `auto` means, and what a message says where the wanted one is not there."""

from __future__ import annotations

import pytest

from slime_bench.errors import DeviceError
from slime_bench.results.environment import environment
from slime_bench.trial import device as module
from slime_bench.trial.device import check_precision, pick_device


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_prefers_cuda_then_mps_then_the_cpu(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_cuda", lambda: cuda)
    monkeypatch.setattr(module, "has_mps", lambda: mps)
    assert pick_device("auto") == expected and pick_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_one_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, f"has_{name}", lambda: False)
    with pytest.raises(DeviceError, match=f"{name.upper()} was asked for and there is none") as caught:
        pick_device(name, "--device cpu")
    assert caught.value.path == "--device" and "--device cpu" in str(caught.value.remedy)


@pytest.mark.parametrize(("name", "device"), [("fp16", "cpu"), ("fp16", "mps")])
def test_half_precision_without_scaling(name: str, device: str) -> None:
    with pytest.raises(DeviceError, match="half precision needs CUDA"):
        check_precision(name, device)
    check_precision("bf16", device)
    check_precision(name, "cuda")


def test_what_mps_cannot_say() -> None:
    facts = environment("mps", {}, {})
    assert facts["device"].endswith("GPU (MPS)")
    assert facts["arithmetic"]["deterministic"] is None and facts["peak_gpu_bytes"] is None
