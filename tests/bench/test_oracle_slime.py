"""The memory-linear path against the plain implementation of `slime_bench.bench.reference_slime`, which stores every
N x N map of both guidance halves in float64: values and gradients, on random shapes and on a whole step of a small
diffusion model.

Tolerances. float32: products of at most 16 numbers and softmaxes over at most 100 keys, a few times 1e-7 of the result;
gradients sum over a map's pixels and cancel, hence 2e-5. bfloat16 keeps 8 bits, so one rounding is at most 2^-9 of the
value. The queries and keys are the same rounded numbers on both sides and cross maps are float32 all the same, so that
they keep the float32 bar. WAS rounds the maps, the softmax's weights and the result, and all three are convex
combinations: at most 3 x 2^-9 of the largest value, 4 with what the order of rounding adds. A gradient through WAS also
takes differences of such numbers, for which rounding is not relative: 2^-5 of the norm.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import average, class_logits, resize, was
from slime_bench.bench import reference_slime as oracle
from slime_bench.methods.slime.config import patch_boxes
from slime_bench.methods.slime.inference import cross_maps, merge_patches, patch_scores
from slime_bench.methods.slime.losses import class_weights, cross_entropy, guided, was_error
from slime_bench.methods.slime.method import Slime, SlimeConfig
from tests.fixtures.rounding import TINY, rounding

ROUNDING = 2.0**-9
# Scores of an example are products of up to 16 numbers of size 1.5, and reach 10; products, softmax and mean round.
SCORE_BAR = rounding(10.0, terms=16, steps=3)
# A probability p moves by p (1 - p), a quarter at most, of what its score does; WAS is a mean of probabilities.
MAP_BAR = SCORE_BAR / 4
WAS_BAR = {torch.float32: MAP_BAR, torch.bfloat16: 4 * ROUNDING}
# Relative: a gradient is made of products of two probabilities, each of which is off by a share of its score's error.
GRADIENT_BAR = {torch.float32: 2 * SCORE_BAR, torch.bfloat16: 2.0**-5}
GUIDANCE, ALPHA, BETA = 100.0, 1.0, 0.005


@dataclass(frozen=True)
class Shapes:
    """Sizes of one example; heads and widths are of each layer."""

    batch: int
    classes: int
    tokens: int
    cross: tuple[tuple[int, int], ...]  # (heads, width)
    self_: tuple[tuple[int, int], ...]
    grid: tuple[int, int]
    size: tuple[int, int]
    seed: int


@st.composite
def shapes(draw: st.DrawFn) -> Shapes:
    classes = draw(st.integers(2, 12))
    layers = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 16)), min_size=1, max_size=3).map(tuple)
    side = st.integers(2, 10)
    return Shapes(
        batch=draw(st.integers(1, 3)),
        classes=classes,
        tokens=draw(st.integers(classes, 77)),
        cross=draw(layers),
        self_=draw(layers),
        grid=draw(st.tuples(side, side)),
        size=draw(st.tuples(side, side)),
        seed=draw(st.integers(0, 2**31)),
    )


# More classes than a head is wide; and a single token more than classes on a tall grid.
WIDE = Shapes(2, 12, 77, ((2, 4), (1, 1)), ((3, 2), (1, 5)), (3, 9), (8, 8), 0)
TALL = Shapes(1, 2, 3, ((1, 16),), ((4, 8),), (10, 2), (4, 7), 1)


class Example:
    """Queries and keys of both halves, the empty prompt's first: leaves in `dtype`, and the same numbers in float64."""

    def __init__(self, shape: Shapes, dtype: torch.dtype) -> None:
        self.shape, self.draw = shape, torch.Generator().manual_seed(shape.seed)
        height, width = shape.grid
        # Cross layers lie on coarser grids, as in a U-Net.
        self.cross_grids = [(-(-height // 2**n), -(-width // 2**n)) for n in range(len(shape.cross))]
        self.ours: dict[str, list[LayerAttention]] = {"cross": [], "self": []}
        self.plain: dict[str, list[oracle.Stored]] = {"cross": [], "self": []}
        self.leaves: list[torch.Tensor] = []
        self.plain_leaves: list[torch.Tensor] = []
        for kind, layers in (("cross", shape.cross), ("self", shape.self_)):
            for index, (heads, channels) in enumerate(layers):
                grid = self.cross_grids[index] if kind == "cross" else shape.grid
                positions = grid[0] * grid[1]
                self._add(kind, heads, channels, grid, shape.tokens if kind == "cross" else positions, dtype)

    def _add(self, kind: str, heads: int, channels: int, grid: Any, keys: int, dtype: torch.dtype) -> None:
        both = [self.normal(2 * self.shape.batch, heads, n, channels).to(dtype) for n in (grid[0] * grid[1], keys)]
        leaves = [x[self.shape.batch :].clone().requires_grad_() for x in both]
        plain = [x.double().requires_grad_() for x in both]
        scale = channels**-0.5
        self.ours[kind].append(LayerAttention(leaves[0], leaves[1], scale))
        self.plain[kind].append(oracle.Stored(plain[0] @ plain[1].mT * scale, grid))
        self.leaves += leaves
        self.plain_leaves += plain

    def normal(self, *size: int) -> torch.Tensor:
        return 1.5 * torch.randn(*size, generator=self.draw)

    def label(self) -> torch.Tensor:
        shape = (self.shape.batch, *self.shape.size)
        return torch.randint(0, self.shape.classes, shape, generator=self.draw)

    def logits(self, size: tuple[int, int]) -> torch.Tensor:
        pairs = zip(self.ours["cross"], self.cross_grids, strict=True)
        return average([class_logits(layer, self.shape.classes, grid) for layer, grid in pairs], size)


def distance(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm of what is wanted, all tensors together."""
    ours, theirs = (torch.cat([x.double().flatten() for x in each]) for each in (found, wanted))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-6))


def close(found: torch.Tensor, wanted: torch.Tensor, bar: float) -> None:
    found, wanted = found.detach().double(), wanted.detach()
    torch.testing.assert_close(found, wanted, rtol=0, atol=bar * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes())
@example(shape=WIDE)
@example(shape=TALL)
@torch.no_grad()
def test_maps(dtype: torch.dtype, slime_code: Any, shape: Shapes) -> None:
    one = Example(shape, dtype)
    cross, k = one.plain["cross"], shape.classes
    logits = one.logits(shape.grid)
    close(logits, oracle.cross_maps(cross, k, shape.grid, softmax=False), SCORE_BAR)
    found = cross_maps(one.ours["cross"], one.cross_grids, k, shape.size, slime_code)
    close(found, oracle.cross_maps(cross, k, shape.size, softmax=True), MAP_BAR)
    maps = logits.softmax(1)
    wanted = oracle.was(oracle.self_attention(one.plain["self"]), maps.double())
    close(was(one.ours["self"], maps), wanted, WAS_BAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes())
@example(shape=WIDE)
@example(shape=TALL)
def test_losses_and_their_gradients(dtype: torch.dtype, shape: Shapes) -> None:
    one, k = Example(shape, dtype), shape.classes
    label = one.label()
    predicted, noise = one.normal(2 * shape.batch, 4, 3, 3), one.normal(shape.batch, 4, 3, 3)
    wanted = oracle.losses(
        one.plain["cross"], one.plain["self"], predicted.double(), noise.double(), label, k,
        guidance=GUIDANCE, alpha=ALPHA, beta=BETA,
    )  # fmt: skip
    weights = class_weights(label, k, "foreground")
    first = cross_entropy(one.logits(shape.size), label, weights)
    second = was_error(resize(was(one.ours["self"], one.logits(shape.grid).softmax(1)), shape.size), label, "mean")
    empty, text = predicted.chunk(2)
    third = F.mse_loss(guided(text, empty, GUIDANCE), noise)
    close(first, wanted.cross_entropy, 2 * SCORE_BAR)  # a logit, and the logarithm of a sum over them
    # Each pixel's K differences sum to 2 at most, so its K squares move by at most 4 times the error of WAS.
    close(second, wanted.was, 4 * WAS_BAR[dtype])
    close(third, wanted.diffusion, 1e-5)
    close(first + ALPHA * second + BETA * third, wanted.total, 4 * WAS_BAR[dtype] + 2 * SCORE_BAR + 1e-5)
    for ours, theirs, bar in (
        (first, wanted.cross_entropy, 2 * ROUNDING if dtype == torch.bfloat16 else GRADIENT_BAR[dtype]),
        (second, wanted.was, GRADIENT_BAR[dtype]),
    ):
        found = torch.autograd.grad(ours, one.leaves, retain_graph=True, materialize_grads=True)
        plain = torch.autograd.grad(theirs, one.plain_leaves, retain_graph=True, materialize_grads=True)
        assert all(not x[: shape.batch].any() for x in plain)  # the empty prompt's half has no part in the maps
        assert distance(list(found), [x[shape.batch :] for x in plain]) < bar


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes(), per_side=st.integers(1, 3), side=st.integers(6, 20), gate=st.floats(0.02, 0.6), data=st.data())
def test_patched_prediction(
    slime_code: Any, shape: Shapes, per_side: int, side: int, gate: float, data: st.DataObject
) -> None:
    patch = data.draw(st.integers(max(2, -(-side // per_side)), side), label="patch")
    one = Example(replace(shape, batch=per_side**2), torch.float32)
    boxes = patch_boxes((side, side), patch, per_side)
    protocol = replace(slime_code, token_gate=gate)
    maps = oracle.cross_maps(one.plain["cross"], shape.classes, shape.grid, softmax=True).detach()
    matrix = oracle.self_attention(one.plain["self"]).detach()
    spread = least_range(maps, matrix)
    assume(spread > 1e-4 and not rounding_decides(maps, gate))
    wanted = oracle.predict(maps, matrix, boxes, side, side, gate)
    with torch.no_grad():
        cross = cross_maps(one.ours["cross"], one.cross_grids, shape.classes, shape.grid, protocol)
        scores, passed = patch_scores(cross, one.ours["self"], protocol, True, (patch, patch))
        found = merge_patches(scores[None], passed[None], boxes, (side, side))[0]
    close(found, wanted, WAS_BAR[torch.float32] / spread)  # the rescaling divides by the range of WAS


def rounding_decides(maps: torch.Tensor, gate: float) -> bool:
    """Whether a pixel lies at its map's mean, or a class at the gate."""
    flat = maps.flatten(2)
    at_mean = (flat - flat.mean(2, keepdim=True)).abs().min() < MAP_BAR
    return bool(at_mean) or bool((flat.amax(2) - gate).abs().min() < MAP_BAR)


def least_range(maps: torch.Tensor, matrix: torch.Tensor) -> float:
    """The smallest range of a WAS map, with and without the zeroing below the mean."""
    flat = maps.flatten(2)
    zeroed = torch.where(flat > flat.mean(2, keepdim=True), flat, 0.0)
    spread = [torch.einsum("pqn,pkn->pkq", matrix, each) for each in (flat, zeroed)]
    return min(float((each.amax(2) - each.amin(2)).min()) for each in spread)


@pytest.fixture(scope="module")
def noisy() -> tuple[torch.Tensor, ...]:
    """Noisy latents and noise [2,4,16,16], timesteps [2], labels [2,32,32] of four classes."""
    draw = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(2, 4, 16, 16, generator=draw) for _ in range(2))
    return latents, noise, torch.tensor([20, 90]), torch.randint(0, 4, (2, 32, 32), generator=draw)


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Any) -> Any:
    """The tiny model with self-attention keys unlike its queries, which it starts alike: scores are not symmetric."""
    changed = copy.deepcopy(tiny_backbone)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in changed.self_names:
            torch.nn.init.orthogonal_(changed.unet.get_submodule(name).to_k.weight, gain=2.0)
    return changed


def test_a_whole_step_of_a_diffusion_model(backbone: Any, slime_code: Any, noisy: tuple[torch.Tensor, ...]) -> None:
    """Losses and gradients on the embeddings: the bench captures in one half, the oracle stores both in float64."""
    latents, noise, timesteps, label = noisy
    method = Slime(SlimeConfig(train_map_size=16), slime_code, backbone, ["background", "a", "b", "c"], seed=0)
    found = backbone.attention(latents, timesteps, method.text(), with_noise=True)
    terms = method.losses(found, method.unconditional(latents, timesteps), label, noise)
    tokens = method.embeddings.detach().double().requires_grad_()
    prompt = method.prompt.double()
    text = torch.cat([prompt[:, :1], tokens[None], prompt[:, 4:]], 1)
    unet = copy.deepcopy(backbone.unet).double()
    stored = oracle.both_halves(
        unet, backbone.cross_names, backbone.self_names, latents.double(), timesteps,
        method.empty.double(), text,
    )  # fmt: skip
    small, weighted = label[:, ::2, ::2], method.config.loss_weights
    wanted = oracle.losses(
        stored.cross, stored.self_, stored.noise, noise.double(), small, 4,
        guidance=slime_code.guidance_scale, alpha=weighted.alpha, beta=weighted.beta,
    )  # fmt: skip
    names = {"cross_entropy": "cross_entropy", "was": "was", "diffusion": "diffusion", "loss": "total"}
    for ours, theirs in names.items():
        value = getattr(wanted, theirs)
        assert abs(float(terms[ours].detach()) / float(value.detach()) - 1) < 1e-5, ours
        (gradient,) = torch.autograd.grad(terms[ours], method.embeddings, retain_graph=True)
        (plain,) = torch.autograd.grad(value, tokens, retain_graph=True)
        assert float(plain.norm()) > 1e-6, ours
        assert distance([gradient], [plain]) < 1e-4, ours


def test_the_storing_processor_is_the_models_own_attention(tiny_backbone: Any, noisy: tuple[torch.Tensor, ...]) -> None:
    latents, _, timesteps, _ = noisy
    text, empty = torch.randn(2, 1, 77, 32, generator=torch.Generator().manual_seed(4))
    prompts = torch.cat([empty.expand(2, -1, -1), text.expand(2, -1, -1)])
    with torch.no_grad():
        plain = tiny_backbone.unet(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), prompts).sample
        stored = oracle.both_halves(
            tiny_backbone.unet, tiny_backbone.cross_names, tiny_backbone.self_names, latents, timesteps, empty, text
        )
    close(stored.noise, plain.double(), rounding(1.0, **TINY))
    assert [x.grid for x in stored.cross] == [(4, 4), (4, 4), (8, 8), (8, 8)]
    assert [x.scores.shape for x in stored.self_] == [(4, 2, 256, 256)] * 2
