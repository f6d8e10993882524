"""Whether two trials learned the same tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

STATE_FILE = "state.safetensors"


@dataclass(frozen=True)
class Learned:
    """The learned tensors of two trials.

    Attributes:
        unknown: why nothing can be said, else empty.
        tensors: that both have, with the same shape and number format.
        only_a, only_b: names of tensors that one alone has. reshaped: that have another shape or format.
        differ: of the comparable ones, those that are not equal bit for bit.
        largest: largest absolute difference of two numbers in them; None where a difference is not a finite number.
    """

    unknown: str = ""
    tensors: int = 0
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()
    largest: float | None = 0.0

    @property
    def equal(self) -> bool | None:
        """Whether both are the same bit for bit; None where nobody knows."""
        return None if self.unknown else not (self.only_a or self.only_b or self.reshaped or self.differ)


def compare_learned(a: Path, b: Path) -> Learned:
    """The learned tensors in the folders of two trials; nothing is raised for files that are not there or spoilt."""
    import torch
    from safetensors import SafetensorError, safe_open

    files = []
    for folder in (a, b):
        try:
            files.append(safe_open(folder / STATE_FILE, "pt"))
        except (OSError, SafetensorError) as error:
            return Learned(unknown=f"{folder / STATE_FILE} cannot be read: {str(error).splitlines()[0]}")
    left, right = files
    names_a, names_b = (set(file.keys()) for file in files)
    common = sorted(names_a & names_b)
    reshaped, differ = [], []
    largest: float | None = 0.0
    for name in common:
        one, other = left.get_tensor(name), right.get_tensor(name)
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            reshaped.append(name)
        elif not torch.equal(_bits(one), _bits(other)):
            differ.append(name)
            found = float((one.double() - other.double()).abs().max())
            largest = max(largest, found) if largest is not None and found < float("inf") else None
    return Learned(
        tensors=len(common) - len(reshaped),
        only_a=tuple(sorted(names_a - names_b)),
        only_b=tuple(sorted(names_b - names_a)),
        reshaped=tuple(reshaped),
        differ=tuple(differ),
        largest=largest,
    )


def _bits(value: Tensor) -> Any:
    """The tensor's bytes: two NaNs of the same bits are the same, and 0 and -0 are not."""
    import torch

    return value.contiguous().flatten().view(torch.uint8)
