"""The mean field: against brute force, its symmetries, its settings, and what it needs in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slime_bench.config.read import read
from slime_bench.errors import ConfigError, DataError
from slime_bench.refine import crf
from slime_bench.refine.config import Crf
from slime_bench.refine.crf import CrfConfig, crf_kernel, mean_field

Array = np.ndarray

# Brute force, from the README of shared/golden/infoscore, section 4, alone: numpy, float64, every pair of cells.


def members(length: int, blur: int) -> tuple[list[list[int]], int]:
    """Pixels of each cell along an axis, and how many the first cell stands over the border."""
    padding = math.ceil(((blur - length % blur) % blur) / 2)
    count = (length + 2 * padding - blur) // blur + 1
    inside = [[n for n in range(i * blur - padding, (i + 1) * blur - padding) if 0 <= n < length] for i in range(count)]
    return inside, padding


def pool(maps: Array, blur: int) -> Array:
    """[C,H,W] -> [C,h,w]: mean over the pixels that are there."""
    rows, columns = (members(length, blur)[0] for length in maps.shape[1:])
    return np.stack([[[each[np.ix_(ys, xs)].mean() for xs in columns] for ys in rows] for each in maps])


def raise_axis(length: int, cells: int, blur: int) -> Array:
    """[length, cells]: bilinear weights with half-pixel centres, the padding cut off."""
    weights, padding = np.zeros((length, cells)), members(length, blur)[1]
    for pixel in range(length):
        place = max((pixel + padding + 0.5) / blur - 0.5, 0.0)
        low = min(int(place), cells - 1)
        weights[pixel, low] += 1 - (place - low)
        weights[pixel, min(low + 1, cells - 1)] += place - low
    return weights


def pairs_kernel(
    image: Array, window: int, blur: int, position: tuple[float, float], colour: tuple[float, float]
) -> tuple[Array, tuple[int, int]]:
    """Every pair of cells: [3,H,W] -> ([h*w,h*w], (h, w)). position, colour: (scale, weight)."""
    height, width = image.shape[1:]
    coordinates = pool(np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(float), blur)
    colours = pool(image, blur)
    h, w = colours.shape[1:]
    places = [(y, x) for y in range(h) for x in range(w)]
    result = np.zeros((h * w, h * w))
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            if abs(y - v) <= window // 2 and abs(x - u) <= window // 2:
                for features, (scale, weight) in ((coordinates, position), (colours, colour)):
                    difference = (features[:, y, x] - features[:, v, u]) / scale
                    result[i, j] += weight * math.exp(-(difference @ difference) / 2)
    return result, (h, w)


def softmax(scores: Array) -> Array:
    """Over the first axis."""
    raised = np.exp(scores - scores.max(0))
    return raised / raised.sum(0)


def dense_mean_field(
    unary: Array,
    image: Array,
    *,
    window: int,
    blur: int,
    iterations: int,
    weights: tuple[float, float],
    position: tuple[float, float],
    colour: tuple[float, float],
    final_softmax: bool,
) -> Array:
    """One image: [C,H,W], [3,H,W] -> [C,H,W]. weights: of the input, of the messages."""
    unary, image = unary.astype(np.float64), image.astype(np.float64)
    height, width = unary.shape[1:]
    pairs, (h, w) = pairs_kernel(image, window, blur, position, colour)
    up_rows, up_columns = raise_axis(height, h, blur), raise_axis(width, w, blur)
    log_p = np.log(softmax(unary))
    p = log_p
    for left in reversed(range(iterations)):
        message = np.stack([(pairs @ each.ravel()).reshape(h, w) for each in pool(p, blur)])
        p = weights[0] * log_p + weights[1] * np.stack([up_rows @ each @ up_columns.T for each in message])
        if left or final_softmax:
            p = softmax(p)
    return p


quick = settings(max_examples=25, deadline=None)


def picture(size: tuple[int, int], batch: int = 1, seed: int = 0, spread: float = 0.1) -> Tensor:
    """float64 [B,3,H,W]; `spread` in colour scales of the default, so that both kernels matter."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def maps(size: tuple[int, int], classes: int = 3, batch: int = 1, seed: int = 0) -> Tensor:
    """Probabilities, float64 [B,C,H,W]."""
    random = torch.Generator().manual_seed(seed + 1)
    return (3 * torch.randn(batch, classes, *size, generator=random, dtype=torch.float64)).softmax(1)


def refined(unary: Tensor, image: Tensor, config: CrfConfig) -> Tensor:
    return mean_field(unary, crf_kernel(image, config), config)


def brute_force(unary: Tensor, image: Tensor, config: CrfConfig) -> Tensor:
    found = [
        dense_mean_field(
            each.numpy(), colours.numpy(), window=config.window, blur=config.blur, iterations=config.iterations,
            weights=(config.unary_weight, config.message_weight),
            position=(config.position_scale, config.position_weight),
            colour=(config.colour_scale, config.colour_weight), final_softmax=config.final_softmax,
        )
        for each, colours in zip(unary, image, strict=True)
    ]  # fmt: skip
    return torch.stack([torch.from_numpy(each) for each in found])


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Within `tolerance` of the largest value."""
    assert found.shape == expected.shape
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    assert error <= tolerance, error


sizes = st.tuples(st.integers(1, 13), st.integers(1, 19))
configs = st.builds(
    CrfConfig,
    window=st.sampled_from([1, 3, 5, 15]),
    blur=st.integers(1, 5),
    iterations=st.integers(0, 4),
    unary_weight=st.sampled_from([0.0, 0.8, 1.0]),
    message_weight=st.sampled_from([0.0, 0.2, 0.01]),
    position_scale=st.sampled_from([1.0, 3.0]),
    position_weight=st.sampled_from([0.0, 3.0]),
    colour_scale=st.sampled_from([0.1, 1.0]),
    colour_weight=st.sampled_from([0.0, 10.0]),
    final_softmax=st.booleans(),
)


class TestAgainstBruteForce:
    @pytest.mark.parametrize("blur", [1, 4])
    @pytest.mark.parametrize("size", [(9, 13), (13, 10), (11, 11), (7, 1), (12, 16)])
    def test_odd_sizes_and_batches(self, size: tuple[int, int], blur: int) -> None:
        config = CrfConfig(window=5, blur=blur, iterations=3)
        unary, image = maps(size, batch=2), picture(size, batch=2)
        assert_close(refined(unary, image, config), brute_force(unary, image, config))

    @pytest.mark.parametrize("blur", [1, 4])
    def test_window_larger_than_the_image(self, blur: int) -> None:
        config = CrfConfig(window=31, blur=blur, iterations=2, final_softmax=True)
        unary, image = maps((6, 9)), picture((6, 9))
        assert_close(refined(unary, image, config), brute_force(unary, image, config))

    @pytest.mark.parametrize("blur", [1, 2])
    def test_several_blocks_of_the_kernel(self, blur: int) -> None:
        """More cells than a block and its window have, so that a block sees others on all sides and not all."""
        config = CrfConfig(window=3, blur=blur, iterations=2)
        size = (blur * (3 * crf.BLOCK[0] + 1), blur * (3 * crf.BLOCK[1] + 1))
        unary, image = maps(size, classes=2), picture(size)
        assert_close(refined(unary, image, config), brute_force(unary, image, config))

    @settings(max_examples=40, deadline=None)
    @given(configs, sizes, st.integers(1, 4), st.integers(1, 2), st.integers(0, 99))
    def test_any_settings(self, config: CrfConfig, size: tuple[int, int], classes: int, batch: int, seed: int) -> None:
        unary, image = maps(size, classes, batch, seed), picture(size, batch, seed)
        assert_close(refined(unary, image, config), brute_force(unary, image, config))

    def test_single_precision(self) -> None:
        config = CrfConfig(iterations=5)
        unary, image = maps((21, 30)), picture((21, 30))
        found = refined(unary.float(), image.float(), config)
        assert found.dtype == torch.float32
        assert_close(found.double(), brute_force(unary, image, config), 5e-5)


class TestProperties:
    @quick
    @given(configs, sizes, st.integers(1, 5))
    def test_nothing_to_tell_classes_apart(self, config: CrfConfig, size: tuple[int, int], classes: int) -> None:
        """Equal probabilities on a constant image stay equal."""
        unary = torch.full((1, classes, *size), 1 / classes, dtype=torch.float64)
        found = refined(unary, torch.full((1, 3, *size), 0.3, dtype=torch.float64), config)
        assert_close(found, found[:, :1].expand_as(found))
        if config.final_softmax and config.iterations:
            assert_close(found, unary)

    @quick
    @given(configs, sizes, st.permutations(range(4)))
    def test_classes_have_no_order(self, config: CrfConfig, size: tuple[int, int], order: list[int]) -> None:
        unary, kernel = maps(size, classes=4), crf_kernel(picture(size), config)
        assert_close(mean_field(unary[:, order], kernel, config), mean_field(unary, kernel, config)[:, order])

    @quick
    @given(configs, sizes)
    def test_images_of_a_batch_do_not_know_each_other(self, config: CrfConfig, size: tuple[int, int]) -> None:
        unary, image = maps(size, batch=3), picture(size, batch=3)
        alone = [refined(unary[n : n + 1], image[n : n + 1], config) for n in range(3)]
        assert_close(refined(unary, image, config), torch.cat(alone))

    @quick
    @given(configs, sizes)
    def test_rows_and_columns_are_alike(self, config: CrfConfig, size: tuple[int, int]) -> None:
        unary, image = maps(size), picture(size)
        assert_close(refined(unary.mT, image.mT, config), refined(unary, image, config).mT)

    @quick
    @given(configs, sizes)
    def test_no_round_is_the_log_softmax(self, config: CrfConfig, size: tuple[int, int]) -> None:
        unary = maps(size)
        config = dataclasses.replace(config, iterations=0)
        assert torch.equal(refined(unary, picture(size), config), unary.log_softmax(1))

    @quick
    @given(configs, sizes)
    def test_final_softmax(self, config: CrfConfig, size: tuple[int, int]) -> None:
        """It is the softmax of what comes out without it, and sums to 1."""
        config = dataclasses.replace(config, iterations=max(1, config.iterations), final_softmax=True)
        unary, kernel = maps(size), crf_kernel(picture(size), config)
        found = mean_field(unary, kernel, config)
        scores = mean_field(unary, kernel, dataclasses.replace(config, final_softmax=False))
        assert_close(found, scores.softmax(1))
        assert_close(found.sum(1), torch.ones_like(found[:, 0]))

    @quick
    @given(configs, sizes, st.integers(-3, 3))
    def test_only_colour_differences_count(self, config: CrfConfig, size: tuple[int, int], shift: int) -> None:
        unary, image = maps(size), picture(size)
        assert_close(refined(unary, image + shift, config), refined(unary, image, config), 1e-7)

    def test_cleans_up_and_keeps_edges(self) -> None:
        """Labels with a tenth of the pixels wrong become those of the two halves of the picture, to the pixel."""
        label = (torch.arange(64) >= 28).long().expand(1, 48, 64)
        image = label[:, None].float().repeat(1, 3, 1, 1)
        wrong = torch.rand(label.shape, generator=torch.Generator().manual_seed(0)) < 0.1
        unary = torch.nn.functional.one_hot(label ^ wrong.long(), 2).permute(0, 3, 1, 2) * 0.6 + 0.2
        found = refined(unary, image, CrfConfig()).argmax(1)
        assert wrong.any() and torch.equal(found, label)


class TestUse:
    def test_inputs_and_kernel_are_left_alone(self) -> None:
        config = CrfConfig(blur=1, iterations=3, window=5)
        unary, image = maps((9, 10)), picture((9, 10))
        kernel = crf_kernel(image, config)
        before = [each.clone() for each in (unary, image, kernel.blocks)]
        first, second = (mean_field(unary, kernel, config) for _ in range(2))
        assert torch.equal(first, second)
        assert all(torch.equal(*each) for each in zip(before, (unary, image, kernel.blocks), strict=True))

    def test_other_maps_of_the_same_images(self) -> None:
        """One kernel serves another number of classes and of rounds."""
        config = CrfConfig(iterations=2)
        image = picture((17, 22), batch=2)
        kernel, unary = crf_kernel(image, config), maps((17, 22), classes=7, batch=2)
        more = dataclasses.replace(config, iterations=5, final_softmax=True)
        assert mean_field(maps((17, 22), batch=2), kernel, config).shape == (2, 3, 17, 22)
        assert_close(mean_field(unary, kernel, more), brute_force(unary, image, more))

    @pytest.mark.parametrize("blur", [1, 3])
    def test_gradients(self, blur: int) -> None:
        config = CrfConfig(window=3, blur=blur, iterations=3)
        unary, image = (each.requires_grad_() for each in (maps((5, 4), classes=2), picture((5, 4))))
        assert torch.autograd.gradcheck(lambda u, i: refined(u, i, config), (unary, image))

    def test_the_same_with_and_without_gradients(self) -> None:
        config = CrfConfig(iterations=4)
        unary, image = maps((18, 25)), picture((18, 25))
        with torch.no_grad():
            plain = refined(unary, image, config)
        assert torch.equal(refined(unary.clone().requires_grad_(), image, config), plain)

    @pytest.mark.parametrize("chunk", [1, 1500, 2**30])
    def test_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
        config = CrfConfig(iterations=3)
        unary, image = maps((50, 41), batch=2), picture((50, 41), batch=2)
        expected = refined(unary, image, config)
        monkeypatch.setattr(crf, "CPU_CHUNK", chunk)
        assert_close(refined(unary, image, config), expected, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_single(self, dtype: torch.dtype) -> None:
        config = CrfConfig(iterations=5)
        unary, image = maps((16, 20)).to(dtype), picture((16, 20)).to(dtype)
        found = refined(unary, image, config)
        assert found.dtype == torch.float32
        assert torch.equal(found, refined(unary.float(), image.float(), config))

    def test_autocast_changes_nothing(self) -> None:
        config = CrfConfig(iterations=5)
        unary, image = maps((16, 20)).float(), picture((16, 20)).float()
        expected = refined(unary, image, config)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(refined(unary, image, config), expected)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The CPU's numbers, and twice the same ones, gradients too."""
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        config = CrfConfig(iterations=5)
        unary, image = maps((50, 41), batch=2), picture((50, 41), batch=2)
        expected = refined(unary, image, config)
        torch.use_deterministic_algorithms(True)
        try:
            found = []
            for _ in range(2):
                ours = unary.cuda().requires_grad_()
                out = refined(ours, image.cuda(), config)
                (out**2).sum().backward()
                found.append((out.detach(), ours.grad))
        finally:
            torch.use_deterministic_algorithms(False)
        assert_close(found[0][0].cpu(), expected)
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Watch(TorchDispatchMode):
    """Names of the operations that run, and the bytes of the largest tensor that any of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.name().removeprefix("aten::").partition(".")[0])
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes())
        return result


@contextmanager
def watching() -> Iterator[Watch]:
    with Watch() as watch:
        yield watch


class TestCost:
    def test_memory_does_not_grow_with_the_window(self) -> None:
        """No tensor larger than the maps or the kernel, which has about twice a weight per pair of cells."""
        config = CrfConfig(iterations=2)
        unary, image = maps((256, 256), classes=12).float(), picture((256, 256)).float()
        with torch.no_grad(), watching() as watch:
            kernel = crf_kernel(image, config)
        size, largest = kernel.blocks.nbytes, watch.largest
        assert largest <= size <= 2 * 4 * config.window**2 * (256 // config.blur) ** 2
        with torch.no_grad(), watching() as watch:
            mean_field(unary, kernel, config)
        allowed, largest = max(unary.nbytes, size), watch.largest
        assert largest <= allowed

    def test_nothing_is_non_deterministic_on_cuda(self) -> None:
        """By the list in torch.use_deterministic_algorithms, for odd sizes, forwards and backwards."""
        config = CrfConfig(iterations=3)
        unary, image = (each.requires_grad_() for each in (maps((49, 67)), picture((49, 67))))
        with watching() as watch:
            refined(unary, image, config).square().sum().backward()
        suspects = ("upsample", "_pool", "replication_pad", "reflection_pad", "index_put", "index_add", "index_copy",
                    "scatter", "gather", "put", "cumsum", "grid_sampler", "bincount", "histc", "median", "conv",
                    "repeat_interleave", "embedding_bag", "nll_loss")  # fmt: skip
        assert "bmm" in watch.names
        assert [name for name in watch.names if any(each in name for each in suspects)] == []


BAD_SETTINGS = [
    ("window", 14), ("window", 0), ("window", -3), ("window", 7.5), ("window", True), ("blur", 0), ("blur", 2.5),
    ("iterations", -1), ("iterations", 1.5), ("unary_weight", -0.1), ("message_weight", float("nan")),
    ("message_weight", "a lot"), ("position_scale", 0.0), ("position_scale", -1.0), ("position_weight", -3.0),
    ("colour_scale", 0.0), ("colour_weight", float("inf")), ("final_softmax", 1), ("final_softmax", None),
    ("window", "15"),
]  # fmt: skip


class TestMistakes:
    @pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=str)
    def test_bad_settings(self, name: str, value: object) -> None:
        with pytest.raises(ConfigError) as caught:
            read(Crf, {name: value}, "refine")
        error = caught.value
        shown = "null" if value is None else str(value).lower()
        assert error.path == f"refine.{name}" and shown in str(error.found).lower() and error.expected and error.remedy

    def test_settings_from_a_file(self) -> None:
        found = read(Crf, {"name": "own", "iterations": 0, "colour_scale": 1}, "refine")
        assert found == Crf(name="own", iterations=0, colour_scale=1.0)

    @pytest.mark.parametrize(
        "image",
        [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, 3), torch.zeros(1, 3, 8, 8).byte(), torch.zeros(0, 3, 8, 8),
         torch.zeros(1, 3, 0, 8)],
        ids=lambda image: f"{image.dtype}{tuple(image.shape)}",
    )  # fmt: skip
    def test_no_image(self, image: Tensor) -> None:
        with pytest.raises(DataError, match=r"\[B,3,H,W\]"):
            crf_kernel(image, CrfConfig())

    @pytest.mark.parametrize(
        "unary",
        [torch.zeros(2, 8, 9), torch.zeros(1, 4, 8, 9), torch.zeros(2, 4, 9, 8), torch.zeros(2, 4, 8, 9).long(),
         torch.zeros(2, 0, 8, 9), torch.zeros(2, 4, 8, 9, device="meta")],
        ids=lambda unary: f"{unary.dtype}{tuple(unary.shape)}{unary.device}",
    )  # fmt: skip
    def test_maps_of_other_images(self, unary: Tensor) -> None:
        config = CrfConfig()
        with pytest.raises(DataError, match=r"\[2,C,8,9\] on cpu"):
            mean_field(unary, crf_kernel(torch.zeros(2, 3, 8, 9), config), config)

    @pytest.mark.parametrize("change", [{"window": 7}, {"blur": 2}, {"colour_scale": 1.0}, {"position_weight": 0.0}])
    def test_kernel_of_other_settings(self, change: dict[str, Any]) -> None:
        kernel = crf_kernel(torch.zeros(1, 3, 8, 9), CrfConfig())
        with pytest.raises(ConfigError, match=next(iter(change))):
            mean_field(torch.zeros(1, 4, 8, 9), kernel, CrfConfig(**change))
