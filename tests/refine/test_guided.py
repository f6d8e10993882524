"""The guided filter: against a regression solved window by window, its symmetries, its borders and its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slime_bench.config.read import read
from slime_bench.errors import ConfigError
from slime_bench.refine import guided
from slime_bench.refine.config import GuidedFilter
from slime_bench.refine.guided import guided_filter

Array = np.ndarray
quick = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
radii = st.integers(1, 12)


def picture(size: tuple[int, int], batch: int = 1, channels: int = 3, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, generator=drawn, dtype=torch.float64)


def window(size: tuple[int, int], y: int, x: int, radius: int) -> tuple[slice, slice]:
    """The part of the window around a pixel that lies inside the image."""
    rows, columns = (
        slice(max(0, at - radius), min(end, at + radius + 1)) for at, end in zip((y, x), size, strict=True)
    )
    return rows, columns


def regressions(one: Array, guide: Array, radius: int, eps: float) -> Array:
    """From equations 19 to 21 of the paper alone: [H,W], [3,H,W] -> [H,W], one window after the other.

    The ridge regression is solved as least squares with three more rows, by numpy, without a covariance.
    """
    size = one.shape
    fits = np.zeros((*size, 4))
    for y, x in np.ndindex(*size):
        rows, columns = window(size, y, x, radius)
        colours, values = guide[:, rows, columns].reshape(3, -1).T, one[rows, columns].ravel()
        wanted = np.concatenate([values - values.mean(), np.zeros(3)])
        given_ = np.concatenate([colours - colours.mean(0), np.sqrt(len(values) * eps) * np.eye(3)])
        slope = np.linalg.lstsq(given_, wanted, rcond=None)[0]
        fits[y, x] = [*slope, values.mean() - slope @ colours.mean(0)]
    found = np.zeros(size)
    for y, x in np.ndindex(*size):
        mean = fits[window(size, y, x, radius)].reshape(-1, 4).mean(0)
        found[y, x] = mean[:3] @ guide[:, y, x] + mean[3]
    return found


def close(found: Tensor, want: Tensor, bar: float = 1e-9) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=bar)


class TestOracle:
    @quick
    @given(sizes, radii, st.sampled_from([1e-6, 1e-4, 0.1]), st.integers(0, 99))
    def test_a_regression_in_every_window(self, size: tuple[int, int], radius: int, eps: float, seed: int) -> None:
        guide, maps = picture(size, 2, seed=seed), picture(size, 2, 2, seed=seed + 100)
        want = [
            [regressions(one.numpy(), image.numpy(), radius, eps) for one in own]
            for own, image in zip(maps, guide, strict=True)
        ]
        close(guided_filter(maps, guide, radius, eps), torch.from_numpy(np.array(want)), 1e-8)

    def test_passes(self) -> None:
        guide, maps = picture((8, 7)), picture((8, 7), channels=3, seed=1)
        twice = guided_filter(guided_filter(maps, guide, 2, 1e-3), guide, 2, 1e-3)
        assert torch.equal(guided_filter(maps, guide, 2, 1e-3, rounds=2), twice)

    def test_grey_and_flat_guides(self) -> None:
        """Covariances of rank one and zero."""
        maps = picture((7, 9), channels=1)
        grey = picture((7, 9), channels=1, seed=1).expand(1, 3, 7, 9)
        flat = torch.full((1, 3, 7, 9), 0.3, dtype=torch.float64)
        for guide in (grey, flat):
            want = regressions(maps[0, 0].numpy(), guide[0].numpy(), 2, 1e-9)
            close(guided_filter(maps, guide, 2, 1e-9)[0, 0], torch.from_numpy(want), 1e-6)


class TestByHand:
    def test_windows_end_at_the_border(self) -> None:
        """A flat guide leaves two box means, each over the pixels that are there."""
        maps = torch.tensor([1.0, 2.0, 6.0, 0.0])[None, None, None]  # one row
        found = guided_filter(maps, torch.zeros(1, 3, 1, 4), 1, 1e-4)
        first = [1.5, 3.0, 8 / 3, 3.0]
        want = [sum(first[:2]) / 2, sum(first[:3]) / 3, sum(first[1:]) / 3, sum(first[2:]) / 2]
        close(found[0, 0, 0], torch.tensor(want), 1e-6)

    @pytest.mark.parametrize("radius", [4, 5, 1000])
    def test_a_window_larger_than_the_image_is_the_image(self, radius: int) -> None:
        guide, maps = picture((5, 3)), picture((5, 3), channels=1, seed=1)
        want = regressions(maps[0, 0].numpy(), guide[0].numpy(), 99, 1e-4)
        close(guided_filter(maps, guide, radius, 1e-4)[0, 0], torch.from_numpy(want))

    def test_a_map_moves_to_the_edge_of_the_guide(self) -> None:
        """A step two pixels beside that of the picture: afterwards the labels' step is the picture's."""
        guide = (torch.arange(32) >= 16).float().expand(1, 3, 32, 32)
        step = (torch.arange(32) >= 14).float().expand(32, 32)
        found = GuidedFilter(radius=4, rounds=2)(torch.stack([1 - step, step])[None], guide).argmax(1)
        assert torch.equal(found[0], guide[0, 0].long())


class TestSymmetries:
    @quick
    @given(sizes, radii, st.sampled_from([0.0, 1.0, -1e3]))
    def test_a_constant_stays(self, size: tuple[int, int], radius: int, value: float) -> None:
        maps = torch.full((1, 2, *size), value)
        close(guided_filter(maps, picture(size), radius, 1e-4, rounds=2), maps, 1e-6 * abs(value))

    @quick
    @given(sizes, radii, st.floats(-3, 3), st.floats(-3, 3))
    def test_affine_in_the_maps(self, size: tuple[int, int], radius: int, scale: float, shift: float) -> None:
        guide, one, two = picture(size), picture(size, channels=2, seed=1), picture(size, channels=2, seed=2)
        first, second = (guided_filter(each, guide, radius, 1e-4) for each in (one, two))
        close(guided_filter(scale * one + two + shift, guide, radius, 1e-4), scale * first + second + shift, 1e-8)

    @quick
    @given(sizes, radii, st.floats(0.25, 4), st.floats(-1, 1))
    def test_colours_and_eps_have_one_unit(
        self, size: tuple[int, int], radius: int, scale: float, shift: float
    ) -> None:
        guide, maps = picture(size), picture(size, channels=1, seed=1)
        want = guided_filter(maps, guide, radius, 1e-3)
        close(guided_filter(maps, scale * guide + shift, radius, 1e-3 * scale**2), want, 1e-8)

    @quick
    @given(st.tuples(st.integers(3, 9), st.integers(3, 9)), radii)
    def test_the_guide_itself_is_kept(self, size: tuple[int, int], radius: int) -> None:
        guide = picture(size)
        close(guided_filter(guide, guide, radius, 1e-10), guide, 1e-6)

    @quick
    @given(sizes, radii)
    def test_mirrored_and_turned(self, size: tuple[int, int], radius: int) -> None:
        guide, maps = picture(size), picture(size, channels=2, seed=1)
        want = guided_filter(maps, guide, radius, 1e-4)
        close(guided_filter(maps.flip(-1), guide.flip(-1), radius, 1e-4).flip(-1), want)
        close(guided_filter(maps.mT, guide.mT, radius, 1e-4).mT, want)


class TestUse:
    def test_a_sum_of_one_stays(self) -> None:
        maps = picture((16, 12), channels=5).softmax(1).float()
        close(GuidedFilter()(maps, picture((16, 12)).float()).sum(1), torch.ones(1, 16, 12), 1e-5)

    def test_float32_is_exact_enough(self) -> None:
        """The input's rounding is all: also of maps with an offset, and of a guide without contrast."""
        guide, maps = picture((64, 48)) * 0.01 + 0.5, picture((64, 48), channels=3, seed=1) - 1e3
        guide, maps = guide.float(), maps.float()
        close(guided_filter(maps, guide, 2, 1e-4).double(), guided_filter(maps.double(), guide.double(), 2, 1e-4), 1e-4)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_types(self, dtype: torch.dtype) -> None:
        maps = picture((9, 8), channels=2).to(dtype)
        found = guided_filter(maps, picture((9, 8)).float(), 2, 1e-4)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(guided_filter(maps, picture((9, 8)).float(), 2, 1e-4), found)

    @pytest.mark.parametrize("chunk", [1, 2000])
    def test_chunks_and_batches_change_nothing(self, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
        guide, maps = picture((9, 8), 3), picture((9, 8), 3, 4, seed=1)
        want = guided_filter(maps, guide, 2, 1e-4, 2)
        monkeypatch.setattr(guided, "CHUNK", chunk)
        assert torch.equal(guided_filter(maps, guide, 2, 1e-4, 2), want)
        assert torch.equal(guided_filter(maps[1:2], guide[1:2], 2, 1e-4, 2), want[1:2])

    def test_inputs_are_left_alone(self) -> None:
        guide, maps = picture((9, 8)), picture((9, 8), channels=2, seed=1)
        before = guide.clone(), maps.clone()
        guided_filter(maps, guide, 2, 1e-4, 2)
        assert torch.equal(guide, before[0]) and torch.equal(maps, before[1])

    @pytest.mark.parametrize(("side", "radius"), [(16, 1), (64, 2), (100, 3), (128, 4), (512, 16)])
    def test_the_window_follows_the_image(self, side: int, radius: int) -> None:
        assert GuidedFilter().window(side) == radius and GuidedFilter(radius=7).window(side) == 7
        assert GuidedFilter().stated(side) == f"guided filter, radius {radius}, 2 passes"
        assert GuidedFilter(rounds=1).stated(side) == f"guided filter, radius {radius}, 1 pass"

    def test_the_longer_side_decides(self) -> None:
        maps, guide = picture((20, 96), channels=2), picture((20, 96), seed=1)
        assert torch.equal(GuidedFilter()(maps, guide), guided_filter(maps, guide, 3, 1e-4, 2))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_cuda(self) -> None:
        guide, maps = picture((50, 41), 2), picture((50, 41), 2, 4, seed=1)
        want = guided_filter(maps, guide, 3, 1e-4, 2)
        torch.use_deterministic_algorithms(True)
        try:
            found = [guided_filter(maps.cuda(), guide.cuda(), 3, 1e-4, 2) for _ in range(2)]
        finally:
            torch.use_deterministic_algorithms(False)
        close(found[0].cpu(), want)
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "value"),
    [("radius", 0), ("radius", 2.5), ("eps", 0.0), ("eps", -1e-4), ("eps", 1e-12), ("eps", float("nan")),
     ("rounds", 0), ("rounds", True), ("rounds", None), ("radius", "4")],
)  # fmt: skip
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(GuidedFilter, {name: value}, "refine")
    assert caught.value.path == f"refine.{name}" and caught.value.expected and caught.value.remedy
