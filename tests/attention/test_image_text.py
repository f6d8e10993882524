"""Maps of image-text scores against the paper's steps written out in numpy, and what must hold for any input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.attention.image_text import class_maps, ensemble, match_scores, prompt_maps, to_image, token_maps
from tests.fixtures import oracle_infoscore as oracle

B, H, T, GRID, SIZE = 3, 4, 6, (3, 4), (13, 22)
N = GRID[0] * GRID[1]
SPANS = [(0, 3), (3, 4), (4, 7), (7, 9)]
P = SPANS[-1][1]

seeds = st.integers(0, 2**31 - 1)


def scores(seed: int = 0, prefix: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(B, P, H, T, prefix + N, generator=draw, dtype=torch.float64)


def lengths(seed: int = 0) -> torch.Tensor:
    """Mask bool [P,T] of prompts of different lengths; the longest fills T, and one is shorter."""
    count = torch.randint(2, T, (P,), generator=torch.Generator().manual_seed(seed + 1))
    count[seed % P] = T
    return torch.arange(T)[None] < count[:, None]


def probabilities(seed: int = 0) -> torch.Tensor:
    return torch.rand(B, P, T, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)


def every_step(scores: torch.Tensor, mask: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Class maps [B,K,N] by the authors' choices."""
    return class_maps(prompt_maps(token_maps(scores, mask, prefix=1), match_scores(match, mask)), SPANS)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_default_steps_are_the_papers(seed: int) -> None:
    layers, mask, match = [scores(seed), scores(seed + 1)], lengths(seed), probabilities(seed)
    found = ensemble([every_step(each, mask, match) for each in layers], GRID, SIZE)
    for image in range(B):
        maps = []
        for each in layers:
            sums = oracle.token_sum(each[image].numpy(), mask.numpy())
            maps.append(oracle.class_map(oracle.prompt_map(sums, oracle.matching(match[image].numpy())), SPANS))
        assert found[image].numpy() == pytest.approx(oracle.unary(maps, GRID, SIZE), abs=1e-12)


def test_token_maps_in_every_way() -> None:
    given_, mask = scores().numpy(), lengths()
    for attention, values in (
        ("scores", given_),
        ("probabilities", np.exp(given_) / np.exp(given_).sum(-1)[..., None]),
    ):
        for heads, one in (("max", values.max(2)), ("mean", values.mean(2))):
            for tokens in ("sum", "mean"):
                wanted = np.zeros((B, P, N))
                for p in range(P):
                    kept = one[:, p, mask[p].numpy()][..., 1:]
                    wanted[:, p] = kept.sum(1) if tokens == "sum" else kept.mean(1)
                found = token_maps(scores(), mask, prefix=1, attention=attention, heads=heads, tokens=tokens)
                assert found.numpy() == pytest.approx(wanted, abs=1e-12), (attention, heads, tokens)


@given(
    seeds,
    st.sampled_from(["scores", "probabilities"]),
    st.sampled_from(["max", "mean"]),
    st.sampled_from(["sum", "mean"]),
)
@settings(max_examples=15, deadline=None)
def test_tokens_outside_the_mask_have_no_influence(seed: int, attention: str, heads: str, tokens: str) -> None:
    mask = lengths(seed)
    how: dict[str, Any] = {"prefix": 1, "attention": attention, "heads": heads, "tokens": tokens}
    changed = scores(seed).masked_fill(~mask[:, None, :, None], float("nan"))
    assert changed.isnan().any()
    assert torch.equal(token_maps(scores(seed), mask, **how), token_maps(changed, mask, **how))
    longer = torch.cat([scores(seed), torch.randn(B, P, H, 2, 1 + N, dtype=torch.float64)], 3)
    more = torch.cat([mask, torch.zeros(P, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(token_maps(longer, more, **how), token_maps(scores(seed), mask, **how))


def test_a_prompt_without_counted_tokens_has_zeros() -> None:
    mask = lengths()
    mask[2] = False
    for tokens in ("sum", "mean"):
        assert (token_maps(scores(), mask, prefix=1, tokens=tokens)[:, 2] == 0).all()


def test_match_scores() -> None:
    match, mask = probabilities(), lengths()
    assert torch.equal(match_scores(match, mask), match.amax(-1))
    assert torch.equal(match_scores(match, mask, "cls"), match[..., 0])
    assert torch.equal(match_scores(match, mask, "none"), torch.ones(B, P, dtype=torch.float64))
    found = match_scores(match, mask, "tokens")
    for p in range(P):
        assert torch.equal(found[:, p], match[:, p, mask[p]].amax(-1))
    at_padding = torch.where(mask, match, torch.ones_like(match))
    assert torch.equal(match_scores(at_padding, mask, "tokens"), found)  # padding does not win
    assert not torch.equal(match_scores(at_padding, mask, "all"), match_scores(match, mask, "all"))  # there it does


def test_one_match_per_prompt_is_the_score() -> None:
    one = probabilities()[..., :1]
    for how in ("all", "tokens", "cls"):
        assert torch.equal(match_scores(one, lengths(), how), one[..., 0])


@given(seeds, st.permutations(range(P)))
@settings(max_examples=15, deadline=None)
def test_permuted_prompts_give_permuted_maps(seed: int, order: list[int]) -> None:
    mask, match = lengths(seed), probabilities(seed)

    def run(places: list[int]) -> torch.Tensor:
        maps = token_maps(scores(seed)[:, places], mask[places], prefix=1)
        return prompt_maps(maps, match_scores(match[:, places], mask[places]))

    torch.testing.assert_close(run(order), run(list(range(P)))[:, order])


@pytest.mark.parametrize("background", ["sum", "max"])
@pytest.mark.parametrize("foreground", ["sum", "max"])
def test_class_maps(background: str, foreground: str) -> None:
    maps = torch.rand(B, P, N, generator=torch.Generator().manual_seed(5))
    found = class_maps(maps, SPANS, background, foreground)
    assert found.shape == (B, len(SPANS), N)
    for index, (start, end) in enumerate(SPANS):
        own = maps[:, start:end].numpy()
        how = background if index == 0 else foreground
        assert found[:, index].numpy() == pytest.approx(own.sum(1) if how == "sum" else own.max(1))


@given(seeds, st.integers(1, 4), st.booleans())
@settings(max_examples=15, deadline=None)
def test_ensemble_is_the_plain_way(seed: int, count: int, align_corners: bool) -> None:
    """Every layer resized, then averaged, divided when the switch says so."""
    draw = torch.Generator().manual_seed(seed)
    layers = [torch.rand(B, 4, N, generator=draw, dtype=torch.float64) ** 4 for _ in range(count)]
    large = torch.stack([to_image(each, GRID, SIZE, align_corners) for each in layers])
    wanted = {
        "after": large.mean(0) / large.mean(0).sum(1, keepdim=True),
        "per_layer": (large / large.sum(2, keepdim=True)).mean(0),
    }
    mean = torch.stack(layers).mean(0)
    wanted["before_resize"] = to_image(mean / mean.sum(1, keepdim=True), GRID, SIZE, align_corners)
    for normalise, want in wanted.items():
        found = ensemble(layers, GRID, SIZE, align_corners, normalise)
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(found.sum(1), torch.ones(B, *SIZE, dtype=torch.float64))


@pytest.mark.parametrize("normalise", ["after", "per_layer", "before_resize"])
def test_pixels_where_no_class_has_anything_are_zero(normalise: str) -> None:
    found = ensemble([torch.zeros(1, 4, N), torch.zeros(1, 4, N)], GRID, SIZE, normalise=normalise)
    assert (found == 0).all()


def test_gradients() -> None:
    mask, match = lengths()[:, :3], probabilities()[..., :3]
    few = [scores(seed)[:1, :, :2, :3].clone().requires_grad_() for seed in (0, 1)]
    inside = match[:1].clone().requires_grad_()
    mask[:, 0] = True
    assert torch.autograd.gradcheck(
        lambda one, other, match: ensemble([every_step(s, mask, match) for s in (one, other)], GRID, (4, 5)),
        (*few, inside),
    )


def test_among_equal_heads_one_gets_the_gradient() -> None:
    equal = torch.ones(1, P, H, T, 1 + N, requires_grad=True)
    mask = torch.ones(P, T, dtype=torch.bool)
    token_maps(equal, mask, prefix=1).sum().backward()
    assert equal.grad is not None
    patches = equal.grad[..., 1:]
    assert (patches.sum(2) == 1).all() and set(patches.unique().tolist()) == {0.0, 1.0}
    assert (equal.grad[..., 0] == 0).all()
