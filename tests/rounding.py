"""How far two ways to compute the same may be apart, from what is computed and not from what one machine showed."""

from __future__ import annotations

import torch

SPREAD = 8.0
"""Standard deviations of a sum's rounding that two ways may be apart. Five of them are the largest of some million
elements; that both ways round gives another √2."""


TINY = {"terms": 128 * 9, "steps": 50}
"""Of the tests' small Stable Diffusion: the widest convolution sees two times 64 channels through a window of 3 x 3,
and some fifty convolutions and products follow each other. Residual paths hand errors on as they are."""

TOY = {"terms": 48, "steps": 40}
"""Of the tests' small BLIP and LLaVA: the widest sums are the 48 (64) of a hidden layer, with eight products in each of
five layers."""


def rounding(magnitude: float | torch.Tensor, terms: int, steps: int = 1, dtype: torch.dtype = torch.float32) -> float:
    """Absolute bar for two ways that differ in the order of their sums alone, whatever kernels the processor gets.

    Every addition rounds by at most the unit u of the type (2^-24 for float32), up or down as good as by chance; so a
    sum of n terms is off by about u √n of its terms' magnitude (Higham and Mary, 2019, doi:10.1137/18M1226312), and
    after s steps in sequence, that hand their errors on as they are, by u √(n s).

    Args:
        magnitude: largest of the values on the way, a tensor stands for the largest of its own. terms: of the longest
            sum in a step, for a convolution its input channels times its window. steps: in sequence.
    """
    largest = float(magnitude.detach().abs().max()) if isinstance(magnitude, torch.Tensor) else magnitude
    unit = torch.finfo(dtype).eps / 2
    return SPREAD * unit * (terms * steps) ** 0.5 * largest


def same(
    found: torch.Tensor,
    expected: torch.Tensor,
    terms: int,
    steps: int = 1,
    *,
    magnitude: float | torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Fails unless both are the same but for `rounding`, of their own type and magnitude if none is given."""
    bar = rounding(expected if magnitude is None else magnitude, terms, steps, dtype or expected.dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=bar)
