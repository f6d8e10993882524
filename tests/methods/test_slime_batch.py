"""Several SLiMe trials in one pass: each trial's step is the one that it takes alone, on exactly the same draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.attention.capture import LayerAttention
from slime_bench.backbones.memory import TRAINING_MAPS, training_images
from slime_bench.backbones.stable_diffusion import DiffusionAttention
from slime_bench.methods.slime.config import LossWeights, SlimeConfig
from slime_bench.methods.slime.method import Slime
from slime_bench.methods.slime.passes import joined, split

SIZE = 64
CLASSES = ("background", "wheel", "window")
Make = Callable[..., Slime]


@pytest.fixture
def make(tiny_backbone: Any, slime_code: Any) -> Make:
    def build(seed: int = 0, protocol: dict[str, Any] | None = None, **settings: Any) -> Slime:
        config = SlimeConfig(**{"train_map_size": 16, **settings})
        return Slime(config, replace(slime_code, token_gate=0.0, **(protocol or {})), tiny_backbone, CLASSES, seed)

    return build


def batch(seed: int, count: int = 1, epoch: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, len(CLASSES), (count, SIZE // 8, SIZE // 8), generator=draw)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    ids = [f"picture-{seed}-{index}" for index in range(count)]
    images = torch.rand(count, 3, SIZE, SIZE, generator=draw)
    return {"image": images, "label": label, "id": ids, "epoch": torch.full((count,), epoch)}


TRIALS: dict[str, list[dict[str, Any]]] = {
    "seeds": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
    "loss weights": [
        {"seed": 0, "loss_weights": LossWeights(1.0, 0.05)},
        {"seed": 0, "loss_weights": LossWeights(0.0, 0.005)},
        {"seed": 0, "loss_weights": LossWeights(1.0, 0.0)},
    ],
    "timesteps": [{"seed": 0, "t_opt": [5, 20]}, {"seed": 3, "t_opt": [5, 900]}],
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "code": {},
    "both halves": {"halves": "both"},
    "mean of the posterior, plain noise loss": {"sample_latents": False, "diffusion_loss": "plain"},
}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
@pytest.mark.parametrize("trials", TRIALS.values(), ids=TRIALS.keys())
def test_a_step_in_a_batch_is_the_step_of_the_trial_alone(
    make: Make, trials: list[dict[str, Any]], protocol: dict[str, Any]
) -> None:
    methods = [make(protocol=protocol, **each) for each in trials]
    batches = [batch(place, count=1 + place % 2) for place in range(len(methods))]
    batched = Slime.training_terms(methods, batches)
    torch.stack([terms["loss"] for terms in batched]).sum().backward()
    for settings, own, terms, method in zip(trials, batches, batched, methods, strict=True):
        alone = make(protocol=protocol, **settings)
        (expected,) = Slime.training_terms([alone], [own])
        expected["loss"].backward()
        assert terms.keys() == expected.keys() and terms["t"] == expected["t"]
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)
        distance = (method.embeddings.grad - alone.embeddings.grad).norm() / alone.embeddings.grad.norm()
        assert distance < 1e-3 and alone.embeddings.grad.norm() > 0


def test_no_trial_reaches_anothers_numbers(make: Make) -> None:
    """Another neighbour, and a trial's own gradient is the same to rounding."""
    found = []
    for neighbour in (1, 2):
        methods = [make(seed=0), make(seed=neighbour)]
        with torch.no_grad():
            methods[1].embeddings *= neighbour
        Slime.training_terms(methods, [batch(0), batch(neighbour)])[0]["loss"].backward()
        assert methods[1].embeddings.grad is None or not methods[1].embeddings.grad.any()
        found.append(methods[0].embeddings.grad)
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


def test_the_random_streams_are_exactly_those_of_the_trial_alone(
    make: Make, tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode, add_noise = tiny_backbone.encode, tiny_backbone.add_noise

    def watched_encode(images: torch.Tensor, noise: torch.Tensor, **rest: Any) -> Any:
        seen.append(noise)
        return encode(images, noise, **rest)

    def watched_noise(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Any:
        seen.extend([noise, timesteps])
        return add_noise(latents, noise, timesteps)

    monkeypatch.setattr(tiny_backbone, "encode", watched_encode)
    monkeypatch.setattr(tiny_backbone, "add_noise", watched_noise)
    batches = [batch(place) for place in range(3)]
    Slime.training_terms([make(seed=place) for place in range(3)], batches)
    batched, seen = seen, []
    for place in range(3):
        Slime.training_terms([make(seed=place)], [batches[place]])
    for index, tensor in enumerate(batched):
        assert torch.equal(tensor, torch.cat(seen[index::3]))


@pytest.mark.parametrize("per_call", [1, 2, 5, 100])
def test_images_segmented_in_a_batch_are_those_segmented_alone(
    make: Make, tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch, per_call: int
) -> None:
    settings: dict[str, Any] = {"patch_size": 40, "patches_per_side": 2}
    methods = [make(seed=place, t_test=50 + place, **settings) for place in range(3)]
    with torch.no_grad():
        for place, method in enumerate(methods):
            method.embeddings += 0.3 * place
    batches = [batch(place, count=place + 1) for place in range(3)]
    images, ids = [each["image"] for each in batches], [each["id"] for each in batches]
    monkeypatch.setattr(tiny_backbone, "images_per_call", lambda size: per_call)
    for method, own, scores in zip(methods, batches, Slime.score_maps(methods, images, ids), strict=True):
        expected = method.scores(own["image"], own["id"])
        assert scores.shape == (len(own["id"]), len(CLASSES), SIZE, SIZE)
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_each_part_has_its_own_rows(counts: list[int]) -> None:
    total = sum(counts)
    query = torch.arange(total, dtype=torch.float32).view(total, 1, 1, 1)
    found = DiffusionAttention([LayerAttention(query, -query, 0.5)], [(1, 1)], [], [], query)
    parts, start = split(found, counts), 0
    for own, count in zip(parts, counts, strict=True):
        assert own.cross[0].query.flatten().tolist() == list(range(start, start + count))
        assert torch.equal(own.cross[0].key, -own.cross[0].query) and own.cross[0].scale == 0.5
        assert own.noise is not None and own.noise.flatten().tolist() == list(range(start, start + count))
        assert own.propagated is None and own.cross_grids == [(1, 1)] and own.self_ == []
        start += count


def test_both_halves_stand_side_by_side() -> None:
    layer = LayerAttention(torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), 1.0)
    one = DiffusionAttention([layer], [(2, 2)], [layer], [(2, 2)], torch.ones(1))
    other = DiffusionAttention([layer, layer], [(2, 2)] * 2, [layer], [(2, 2)], None)
    found = joined(one, other)
    assert (len(found.cross), len(found.self_grids)) == (3, 2) and found.noise is one.noise
    assert joined(one, DiffusionAttention([], [], [], [], None)) is one


class TestTrialsPerBatch:
    @pytest.mark.parametrize(("side", "images", "expected"), [(64, 1, 8), (512, 1, 1), (256, 1, 4), (256, 2, 2)])
    def test_on_a_cpu_small_images_are_put_together(
        self, tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch, side: int, images: int, expected: int
    ) -> None:
        # 8 pixels to a latent cell, as in Stable Diffusion
        monkeypatch.setattr(tiny_backbone, "latent_shape", lambda size: (4, size[0] // 8, size[1] // 8))
        assert Slime.trials_per_batch(tiny_backbone, side, images, "cpu") == expected

    def test_on_a_gpu_as_many_as_its_memory_holds(self, tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = sum(each.nbytes for each in tiny_backbone.parameters())
        unet, size = tiny_backbone.unet.config, (SIZE, SIZE)
        one = TRAINING_MAPS * (SIZE / tiny_backbone.downscale) ** 2 * unet["block_out_channels"][0] * 4

        def found(maps_of: float) -> int:
            free = int(weights + maps_of * one / 0.8)
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
            return Slime.trials_per_batch(tiny_backbone, SIZE, 1, "cuda")

        assert [found(count) for count in (0.1, 1.5, 3.01, 5.5, 1000)] == [1, 1, 3, 5, 8]
        vae = tiny_backbone.vae.config
        assert training_images(vae, unet, size, 4, int(7.5 * one)) == 7
        assert training_images(vae, unet, (2 * SIZE, 2 * SIZE), 4, int(7.5 * one)) == 1
        assert training_images(vae, unet, size, 2, int(7.5 * one)) == 15
