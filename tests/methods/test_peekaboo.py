"""Peekaboo: the blur against plain loops, maps side by side against torch's own layers, the gradient against finite
differences, the optimisation against a model whose wish is known, and the method on a tiny backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.config.compose import plan
from slime_bench.errors import ConfigError
from slime_bench.methods.base import label_maps
from slime_bench.methods.peekaboo.alpha import AlphaMaps, FourierAlpha, bilateral_blur, bilateral_weights
from slime_bench.methods.peekaboo.config import PeekabooConfig, PeekabooDescription
from slime_bench.methods.peekaboo.method import Peekaboo
from slime_bench.methods.peekaboo.sds import Draws, alpha_gradient, composite, drawn
from slime_bench.seeding import generator
from tests.fixtures.rounding import same

CLASSES = ["background", "wheel", "window"]
SIDE = 32


def streams(count: int) -> list[torch.Generator]:
    return [generator(0, "test", index) for index in range(count)]


# -- alpha maps --------------------------------------------------------------------------------------------------------


def test_blur_is_the_weighted_mean_of_neighbours() -> None:
    """Pixel by pixel, with a window that reaches over every border."""
    image, maps, reach = torch.rand(3, 5, 6), torch.rand(5, 6), 2
    expected = torch.zeros(5, 6, dtype=torch.float64)
    for row in range(5):
        for column in range(6):
            total = value = 0.0
            for y in range(max(0, row - reach), min(5, row + reach + 1)):
                for x in range(max(0, column - reach), min(6, column + reach + 1)):
                    colour = float((image[:, y, x] - image[:, row, column]).double().square().sum())
                    near = (y - row) ** 2 + (x - column) ** 2
                    weight = math.exp(-near / (2 * 1.5**2) - colour / (2 * 0.3**2))
                    total, value = total + weight, value + weight * float(maps[y, x])
            expected[row, column] = value / total
    weights = bilateral_weights(image[None], window=5, tolerance=0.3, sigma=1.5)
    assert weights.shape == (1, 25, 5, 6)
    same(bilateral_blur(maps[None, None], weights, 1)[0, 0], expected.float(), terms=25, steps=3)


def test_blur_keeps_constants_and_stops_at_edges() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1.0
    weights = bilateral_weights(image)
    same(bilateral_blur(torch.full((1, 1, 16, 16), 0.3), weights), torch.full((1, 1, 16, 16), 0.3), terms=9, steps=40)
    spot = torch.zeros(1, 1, 16, 16)
    spot[..., 8, 7] = 1.0
    blurred = bilateral_blur(spot, weights)
    assert blurred[..., :8].sum() > 0.5 and blurred[..., 8:].abs().max() < 1e-20


def test_maps_side_by_side_are_torchs_own_network_each() -> None:
    together = FourierAlpha(streams(3), 12)
    logits = together()
    assert logits.shape == (3, 1, 12, 12)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    for place in range(3):
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(256, 256, 1), nn.ReLU(), nn.BatchNorm2d(256)]
        network = nn.Sequential(*layers, nn.Conv2d(256, 1, 1))
        linear = [each for each in network if isinstance(each, nn.Conv2d)]
        for index, layer in enumerate(linear):
            layer.weight.data.copy_(together.weights[index][place][..., None, None])
            assert layer.bias is not None
            layer.bias.data.copy_(together.biases[index][place, :, 0])
        features = together.get_buffer("features")[place].unflatten(1, (12, 12))[None]
        expected = network(features)
        same(logits[place], expected[0], terms=256, steps=10)
        (expected * weights[place]).sum().backward()
        last = linear[-1].weight.grad
        assert last is not None and together.weights[-1].grad is not None
        torch.testing.assert_close(together.weights[-1].grad[place], last[..., 0, 0], rtol=1e-3, atol=1e-3)


def test_a_start_is_its_streams_alone() -> None:
    three, one = FourierAlpha(streams(3), 8), FourierAlpha(streams(3)[1:2], 8)
    for stacked, single in zip(three.weights, one.weights, strict=True):
        assert torch.equal(stacked[1:2], single) and float(single.detach().abs().max()) <= 1 / 16
    assert torch.equal(three.get_buffer("features")[1:2], one.get_buffer("features"))
    feature = three.get_buffer("features")
    same(feature[:, :128].square() + feature[:, 128:].square(), torch.ones(3, 128, 64), terms=2, steps=4)


@pytest.mark.parametrize("kind", ["fourier", "fourier_bilateral", "raster_bilateral"])
def test_every_kind_is_in_range_and_can_be_optimised(kind: str) -> None:
    maps = AlphaMaps(kind, torch.rand(2, 3, 16, 16), streams(2))
    alpha = maps()
    assert alpha.shape == (2, 1, 16, 16) and alpha.min() > 0 and alpha.max() < 1 and not torch.equal(*alpha)
    alpha.sum().backward()
    assert all(each.grad is not None for each in maps.parameters())


# -- score distillation ------------------------------------------------------------------------------------------------


class Wishing:
    """A diffusion model that knows one picture: its noise prediction is the one that leads there. Its latents are the
    pictures' pixels, without noise of their own."""

    def __init__(self, wish: Tensor) -> None:
        self.wish, side = wish, wish.shape[-1]
        self.config = SimpleNamespace(image_size=side)
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 1000, dtype=wish.dtype)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return 3, *size

    def embed(self, prompt: str) -> Tensor:
        return torch.full((1, 2, 2), float(bool(prompt)))

    def latents(self, pictures: Tensor, posterior: Tensor) -> Tensor:
        return pictures

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        keep = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return keep.sqrt() * latents + (1 - keep).sqrt() * noise

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "no gradient through the U-Net"
        keep = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return text[:, :1, :1, None].to(noisy) * (noisy - keep.sqrt() * self.wish) / (1 - keep).sqrt()


def test_gradient_on_alpha_is_the_chain_rules() -> None:
    """Of (1 - abar)(e_hat - e) on the latents, with e_hat - e = sqrt(abar / (1 - abar)) (composite - wish)."""
    image, alpha, wish = (torch.rand(2, c, 4, 4, dtype=torch.float64) for c in (3, 1, 3))
    draws = Draws(
        torch.rand(2, 3, 1, 1, dtype=torch.float64), torch.tensor([100, 700]), torch.zeros(2, 3, 4, 4),
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
    )  # fmt: skip
    model: Any = Wishing(wish)
    text, empty = model.embed("a").expand(2, -1, -1).double(), model.embed("a").double()
    found = alpha_gradient(model, image, alpha, draws, text, empty, 7.5)
    keep = model.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
    picture = image * alpha + draws.colours * (1 - alpha)
    upstream = (1 - keep) * (keep / (1 - keep)).sqrt() * (picture - wish)
    expected = (upstream * (image - draws.colours)).sum(1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(composite(image, alpha, draws.colours), picture)


def test_draws_are_their_streams_alone_and_in_range() -> None:
    many = drawn(streams(200), (4, 2, 2), [20, 23], torch.device("cpu"))
    assert set(many.timesteps.tolist()) == {20, 21, 22, 23} and many.timesteps.dtype == torch.long
    assert many.colours.shape == (200, 3, 1, 1) and many.colours.min() >= 0 and many.colours.max() <= 1
    assert not torch.equal(many.posterior, many.noise)
    one = drawn(streams(200)[7:8], (4, 2, 2), [20, 23], torch.device("cpu"))
    for name in ("colours", "timesteps", "posterior", "noise"):
        assert torch.equal(getattr(many, name)[7:8], getattr(one, name))


@pytest.mark.parametrize(("kind", "lr"), [("raster_bilateral", 3.0), ("fourier_bilateral", 0.01)])
def test_what_the_model_wishes_is_found(kind: Any, lr: float) -> None:
    """It wishes for the disc of the image on grey, which random backgrounds are on average."""
    ticks = torch.arange(SIDE) - SIDE / 2
    disc = ticks[:, None] ** 2 + ticks**2 < 8**2
    image = torch.where(
        disc, torch.tensor([0.9, 0.1, 0.2])[:, None, None], torch.tensor([0.1, 0.4, 0.9])[:, None, None]
    )
    model: Any = Wishing(torch.where(disc, image, 0.5)[None])
    config = PeekabooConfig(alpha=kind, size=SIDE, steps=60, lr=lr, guidance=1.0, gravity=0.0)
    method = Peekaboo(config, None, model, CLASSES[:2], seed=0)
    predicted = label_maps(method.scores(image[None], ["a"]))[0] == 1
    assert float((predicted & disc).sum() / (predicted | disc).sum()) > 0.8


# -- the method --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tiny_sd: Path) -> Callable[..., Peekaboo]:
    """make(overrides) -> the method on a tiny Stable Diffusion."""

    def made(*overrides: str, seed: int = 0) -> Peekaboo:
        small = [f"backbone.weights={tiny_sd}", "backbone.image_size=32", "shots=0"]
        sizes = ["method.size=16", "method.steps=2", "method.batch=4", "method.lr=0.1"]
        cfg = plan(["method=peekaboo", *small, *sizes, *overrides]).trials[0]
        return cfg.build("method", protocol=None, backbone=cfg.build("backbone"), classes=CLASSES, seed=seed)

    return made


def images(count: int = 2) -> tuple[Tensor, list[str]]:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, 48, 48, generator=draw), [f"s{number}" for number in range(count)]


def test_scores_are_alphas_beside_a_threshold(make: Callable[..., Peekaboo]) -> None:
    found = make("method.threshold=0.4").scores(*images())
    assert found.shape == (2, 3, 48, 48) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found[:, 0], torch.full_like(found[:, 0], 0.4))
    assert found[:, 1:].min() > 0 and found[:, 1:].max() < 1
    coarse = F.interpolate(found[:, 1:], size=(16, 16), mode="area")
    smooth = F.interpolate(coarse, size=(48, 48), mode="bilinear")
    assert float((found[:, 1:] - smooth).abs().mean()) < 0.05, "made on the coarser grid"


@pytest.mark.parametrize(("kind", "lr"), [("raster_bilateral", 0.1), ("fourier_bilateral", 1e-4)])
def test_maps_do_not_depend_on_what_is_beside_them(make: Callable[..., Peekaboo], kind: str, lr: float) -> None:
    pictures, ids = images()
    chosen = [f"method.alpha={kind}", f"method.lr={lr}"]
    whole = make(*chosen, "method.batch=3").scores(pictures, ids)
    torch.manual_seed(1)
    other = make(*chosen, "method.batch=1").scores(pictures, ids)
    torch.testing.assert_close(other, whole, rtol=0, atol=1e-3)
    alone = make(*chosen).scores(pictures[1:2], ids[1:2])
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-3)
    other = make(*chosen, seed=1).scores(pictures[:1], ids[:1])
    whole = whole[:1]
    assert float((other - whole).abs().max()) > 0.01


def test_inference_mode_and_autocast_change_nothing(make: Callable[..., Peekaboo]) -> None:
    method, (pictures, ids) = make(), images(1)
    plain = method.scores(pictures, ids)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.scores(pictures.clone(), ids), plain)
    assert all(each.grad is None and not each.requires_grad for each in method.parameters())


def test_more_draws_and_steps_are_other_maps(make: Callable[..., Peekaboo]) -> None:
    plain = make().scores(*images(1))
    for switch in ("method.draws=2", "method.steps=3", "method.gravity=5", "method.guidance=1"):
        assert not torch.equal(make(switch).scores(*images(1)), plain), switch
    # What is returned is from before the last update, which the authors throw away.
    assert torch.equal(
        make("method.steps=1", "method.lr=9").scores(*images(1)), make("method.steps=1").scores(*images(1))
    )


def test_progress_is_told(make: Callable[..., Peekaboo]) -> None:
    method, told = make("method.batch=3"), list[tuple[int, int]]()
    method.progress = lambda done, total: told.append((done, total))
    method.scores(*images())
    assert told == [(done, 8) for done in (3, 6, 7, 8)]


# -- what is known before ----------------------------------------------------------------------------------------------


def test_prompts() -> None:
    classes = ["background", "head", "neck+torso"]
    config = PeekabooConfig(template="a horse's {}", words={"neck+torso": "torso", "wheel": "tyre"})
    assert config.prompts(classes) == ["a horse's head", "a horse's torso"]
    (horse,) = plan(["method=peekaboo", "shots=0", "data=mini_horse"]).trials
    assert horse.method.prompts(horse.data.classes) == ["head", "torso", "leg", "tail"]


def refused(classes: Sequence[str] = CLASSES, shots: int = 0, **settings: Any) -> ConfigError:
    facts: Any = SimpleNamespace(num_timesteps=1000)
    with pytest.raises(ConfigError) as caught:
        PeekabooDescription.check(PeekabooConfig(**settings), facts, classes, SIDE, shots)
    assert caught.value.remedy
    return caught.value


def test_what_is_refused_before_any_weights() -> None:
    assert refused(shots=1).path == "shots"
    assert refused(timesteps=[500, 100]).path == refused(timesteps=[20, 1000]).path == "method.timesteps"
    assert refused(template="wheel").path == refused(template="{} of {}").path == "method.template"
    assert refused(words={"wheel": " "}).path == "method.words.wheel"
    assert refused(words={"wheel": "window"}).path == "method.words.wheel"
    PeekabooDescription.check(PeekabooConfig(), None, CLASSES, SIDE, 0)
    for bad in ("method.alpha=raster", "method.threshold=1", "method.steps=0", "method.timesteps=[20]"):
        with pytest.raises(ConfigError, match=bad.split("=")[0]):
            plan(["method=peekaboo", "shots=0", bad])


def test_the_papers_backbone_and_what_captions_say() -> None:
    (cfg,) = plan(["method=peekaboo", "shots=0", "preset=paper", "data=pascal_part_car"]).trials
    assert (cfg.backbone.name, cfg.protocol.name) == ("sd14", "none")
    assert {**vars(cfg.method), "words": {}} == vars(PeekabooConfig()), "the authors' values"
    said = PeekabooDescription.stated(PeekabooConfig(template="a {}"))
    assert said["prompts"] == "a {}" and "300 steps" in said["alpha"] and "0.5" in said["background"]
    assert PeekabooDescription.label(PeekabooConfig(), 0) == "Peekaboo zero-shot"
