"""The file of a checkpoint: any state comes back as it was; any other file is ignored with a warning."""

from __future__ import annotations

import io
import logging
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.trial import checkpoint

HERE = {"signature": "0123456789abcdef", "code": "c" * 64, "torch": "2.13.0"}
STATE = {"learned": {"weight": torch.arange(6.0).reshape(2, 3)}, "step": 7, "betas": (0.9, 0.999)}

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)
TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 9),
)
STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and (not isinstance(one, float) or math.copysign(1, one) == math.copysign(1, other))


@settings(max_examples=30, deadline=None)
@given(STATES)
def test_a_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip"
    checkpoint.write(path, state, HERE)
    assert same(checkpoint.read(path, HERE), state)


class Trap:
    """An object that would make a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return self.place.touch, ()


def test_nothing_in_the_file_is_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    torch.save({"origin": HERE, "state": Trap(tmp_path / "sprung")}, buffer)
    content = buffer.getvalue()
    (tmp_path / "c").write_bytes(zlib.crc32(content).to_bytes(4, "big") + content)
    assert checkpoint.read(tmp_path / "c", HERE) is None and "damaged" in caplog.text
    assert not (tmp_path / "sprung").exists()


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one bit": flipped,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    path = tmp_path / "c"
    checkpoint.write(path, STATE, HERE)
    content = path.read_bytes()
    assert DAMAGE[name](content) != content
    path.write_bytes(DAMAGE[name](content))
    assert checkpoint.read(path, HERE) is None
    assert "starts anew" in caplog.text and "damaged" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("name", HERE)
def test_a_checkpoint_of_other_origin_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    checkpoint.write(tmp_path / "c", STATE, {**HERE, name: "another"})
    with caplog.at_level(logging.WARNING):
        assert checkpoint.read(tmp_path / "c", HERE) is None
    assert caplog.text.rstrip().endswith(f"found: other {name}")
    assert checkpoint.is_of(tmp_path / "c", {**HERE, name: "another"}) and not checkpoint.is_of(tmp_path / "c", HERE)


def test_origin_names_trial_code_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = checkpoint.origin("0123456789abcdef")
    assert here == checkpoint.origin("0123456789abcdef") and here["torch"] == torch.__version__
    assert checkpoint.origin("fedcba9876543210") == {**here, "signature": "fedcba9876543210"}
    # Code outside the package counts where a part of the trial lies there; the bench's own always does.
    module = tmp_path / "own_method.py"
    hashes = []
    for text in ("class Method: pass\n", "class Method: pass  # changed\n"):
        module.write_text(text)
        checkpoint.code_hash.cache_clear()
        hashes.append(checkpoint.code_hash(frozenset({module})))
    assert len({*hashes, here["code"]}) == 3
    assert checkpoint.code_hash(frozenset({Path(checkpoint.__file__)})) == here["code"]
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_method  # type: ignore[import-not-found]

    assert checkpoint.origin("0123456789abcdef", own_method.Method, int)["code"] == hashes[1]
