"""A folder of golden numbers of DiffSeg's authors: what is in it, read from its arrays and descriptors.

The layout is that of shared/golden/diffseg (its README says how each number was made). Nothing here knows a seed, a
number of heads, cases or regions; the sides are the authors' own, which their code has fixed.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slime_bench.attention.capture import LayerAttention
from tests.parity.golden_folder import GoldenFolder, golden_folder


class Golden(GoldenFolder):
    """A golden folder."""

    @cached_property
    def sides(self) -> list[int]:
        """Of the attention's resolutions, the finest first."""
        found = {int(each[1]) for name in self.arrays("inputs") if (each := re.fullmatch(r"q_(\d+)_h\d+", name))}
        return sorted(found, reverse=True)

    @property
    def grid(self) -> tuple[int, int]:
        """Of the latent."""
        return self.sides[0], self.sides[0]

    def layers(self, file: str, prefix: str = "") -> list[LayerAttention]:
        """A layer for each resolution; the scale is in the queries."""
        return [LayerAttention(self._heads(file, f"{prefix}q", side), self._heads(file, f"{prefix}k", side), 1.0)
                for side in self.sides]  # fmt: skip

    def _heads(self, file: str, kind: str, side: int) -> Tensor:
        names = sorted(name for name in self.arrays(file) if re.fullmatch(rf"{kind}_{side}_h\d+", name))
        return torch.stack([self.tensor(file, name).float() for name in names])[None]

    @property
    def cases(self) -> list[dict[str, Any]]:
        """Of the merging."""
        return list(self.facts("merging")["cases"])

    def decisions(self, case: str) -> Tensor:
        """Which maps the anchors take in the first step, bool [A,N]."""
        bits = np.unpackbits(self.arrays("merging")[f"{case}_match"], axis=1)
        return torch.from_numpy(bits).bool()


def open_golden(request: pytest.FixtureRequest) -> Golden:
    """See `golden_folder`."""
    return Golden(golden_folder(request, "diffseg"))
