"""Keys and values of a text that does not change, computed once per layer instead of once per call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeGuard

import torch
from torch import nn

TEXTS: Final = 4
"""Texts that are kept: a trial has its prompt and the empty one."""


@dataclass(eq=False)
class _Text:
    """One text and what linear layers have made of it. The text is a copy: its owner may change his."""

    text: torch.Tensor
    kind: tuple[object, ...]
    #: the owner's tensor when it was last looked at, which keeps its memory from being another's, and its counter
    seen: tuple[torch.Tensor, int] | None = None
    made: dict[nn.Module, tuple[tuple[int, ...], torch.Tensor]] = field(default_factory=dict)


class ConstantText:
    """Projections of the texts of the last calls, where no gradient is asked for.

    Nothing stale can come out. A text is recognised by its content, not by its address or its identity: an optimiser
    that changes it in place, or another tensor in the same memory, gives another text. A projection is made anew when
    its layer's weights have been changed or moved, or when somebody has written into what was handed out.

    On a GPU, where the CPU would have to wait for the answer, a text in the same memory that has counted no writing
    since (as weights are recognised, too) is the same without a look at its content.
    """

    def __init__(self) -> None:
        self._texts: list[_Text] = []  # the last used first
        self._current: tuple[torch.Tensor, _Text] | None = None

    @contextmanager
    def during(self, text: torch.Tensor, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """Gives the text in `dtype`. Inside the block, projections of this very tensor are kept, unless a gradient
        could be asked for.

        Args:
            text: float [1,T,D] or [B,T,D], not to be changed inside the block. dtype: None for its own.
        """
        before, given = self._current, text if dtype is None else text.to(dtype)
        self._current = None if torch.is_grad_enabled() or text.is_meta else (given, self._find(text, given.dtype))
        try:
            yield given
        finally:
            self._current = before

    def projected(self, linear: nn.Module, source: torch.Tensor) -> torch.Tensor:
        """linear(source); a kept one where `source` is the text of `during`."""
        current = self._current
        if current is None or source is not current[0] or not _watched(linear):
            output: torch.Tensor = linear(source)
            return output
        state, before = _state(linear), current[1].made.get(linear)
        if before is not None and before[0] == (*state, before[1]._version):
            return before[1]
        with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor: it is still good outside that mode
            made: torch.Tensor = linear(source)
        current[1].made[linear] = ((*state, made._version), made)
        return made

    def clear(self) -> None:
        """Forget everything."""
        self._texts.clear()

    def _find(self, text: torch.Tensor, dtype: torch.dtype) -> _Text:
        autocast = torch.get_autocast_dtype(text.device.type) if torch.is_autocast_enabled(text.device.type) else None
        kind = (text.shape, text.dtype, text.device, dtype, autocast)
        same = [old for old in self._texts if old.kind == kind]
        found = next((old for old in same if _unwritten(old.seen, text)), None)
        found = found or next((old for old in same if torch.equal(old.text, text)), None)
        with torch.inference_mode(False):
            found = found or _Text(text.detach().clone(), kind)
        found.seen = None if text.is_cpu or text.is_inference() else (text, text._version)
        self._texts = [found, *(old for old in self._texts if old is not found)][:TEXTS]
        return found


def _unwritten(seen: tuple[torch.Tensor, int] | None, text: torch.Tensor) -> bool:
    """Whether the text lies where the one that was seen does, and nobody has written there since."""
    if seen is None or text.is_inference():
        return False
    (old, version), place = seen, (text.data_ptr(), text.stride())
    return place == (old.data_ptr(), old.stride()) and text._version == version


def _watched(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer does nothing but multiply, and its weights count how often they are written to."""
    plain = type(linear) is nn.Linear and not torch.is_grad_enabled()
    return plain and not any(tensor.is_inference() for tensor in linear.parameters())


def _state(linear: nn.Linear) -> tuple[int, ...]:
    """Changes when the layer's numbers may have changed: where they are, and how often they were written to."""
    return tuple(number for tensor in linear.parameters() for number in (tensor.data_ptr(), tensor._version))
