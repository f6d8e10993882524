"""`python -m data_prep.pretrain.mini_gan` from nothing to a model folder, in seconds; and what it is trained with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_prep.pretrain import gan_export, gan_pool, mini_gan
from data_prep.pretrain.discriminator import Pair, deviation
from data_prep.pretrain.gan_pool import Pool
from slime_bench.backbones.gan import Architecture, StyleGan2
from slime_bench.backbones.stylegan2 import Generator, StyleGan2Backbone
from slime_bench.backbones.weights import check_hashes
from slime_bench.data.mini_world.render import STREAM, Picture, render
from slime_bench.methods.regan.config import Inversion
from tests.fixtures.pretraining import pretrain

TINY = Architecture(size=16, style_dim=8, n_mlp=1, channels={4: 8, 8: 8, 16: 4})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_gan, "SIZES", TINY)
    monkeypatch.setattr(mini_gan, "BATCH", 4)
    monkeypatch.setattr(mini_gan, "PICTURES", 12)
    monkeypatch.setattr(mini_gan, "POOL", 6)
    monkeypatch.setattr(gan_export, "INVERTED", 1)
    measure = gan_export.inversion_error
    monkeypatch.setattr(gan_export, "inversion_error", lambda model: measure(model, Inversion(starts=2, steps=2)))


def test_from_nothing_to_a_model(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretrain(monkeypatch, mini_gan, tmp_path)
    model = tmp_path / "model"
    check_hashes(model)
    card = json.loads((model / "card.json").read_text())
    assert card["stages"]["gan64"]["steps"] == 3 and 0 < card["measured"]["inversion"] < 1
    assert (model / "samples.png").is_file() and "no use for horses" in (model / "README.md").read_text()
    config = StyleGan2.Config(weights=str(model))
    assert StyleGan2Backbone(config).sizes == TINY
    first = StyleGan2.content_hash_of(config)
    # The budget is spent: the same command trains nothing and writes the same weights.
    pretrain(monkeypatch, mini_gan, tmp_path)
    assert StyleGan2.content_hash_of(config) == first


def test_bytes() -> None:
    """In half precision at most 3 MB."""
    assert 2 * sum(each.numel() for each in Generator(mini_gan.SIZES).state_dict().values()) < 3e6


def test_the_pool_shows_cars_of_the_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def rendered(subject: str, split: str, index: int) -> Picture:
        seen.append((subject, split, index))
        return render(subject, split, index)

    monkeypatch.setattr(gan_pool, "render", rendered)
    pool = Pool(5, 3, 64)
    batch = pool.batch(40, np.random.default_rng(0))
    assert batch.shape == (40, 3, 64, 64) and -1 <= batch.min() < batch.max() <= 1
    assert sorted(seen) == [("car", STREAM, index) for index in (5, 6, 7)], "each is rendered once"
    whole = torch.from_numpy(render("car", STREAM, 5).image.copy()).permute(2, 0, 1)[None].double()
    expected = F.avg_pool2d(whole, 2)[0].permute(1, 2, 0)
    assert np.abs(pool[0] - expected.numpy()).max() <= 0.5, "the mean of four pixels, rounded"


class TestLosses:
    def losses(self, every: int) -> tuple[Pair, torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        pair, real = Pair(TINY, gamma=3.0), torch.randn(4, 3, 16, 16)
        noises = [torch.randn(4, 1, side, side) for side in pair.generator.noise_sides]
        return pair, real, pair(real.clone(), torch.randn(4, 8), noises, every)

    def test_each_network_has_the_gradient_of_its_own_loss(self) -> None:
        pair, _, found = self.losses(0)
        for name, network in {"generator": pair.generator, "discriminator": pair.discriminator}.items():
            values = list(network.parameters())
            own, whole = (
                torch.autograd.grad(found[loss], values, retain_graph=True, allow_unused=True)
                for loss in (name, "loss")
            )
            for one, other in zip(own, whole, strict=True):
                assert one is not None and other is not None and torch.equal(one, other)
        (other,) = torch.autograd.grad(found["discriminator"], [pair.generator.input.input], allow_unused=True)
        assert other is None, "the discriminator's loss does not move the generator"

    def test_r1_is_the_squared_slope(self) -> None:
        pair, real, found = self.losses(5)
        seen = real.clone().requires_grad_()
        (slope,) = torch.autograd.grad(pair.discriminator(seen).sum(), seen)
        torch.testing.assert_close(found["r1"], slope.square().sum() / 4)
        torch.testing.assert_close(found["loss"], found["generator"] + found["discriminator"] + 5 * 1.5 * found["r1"])

    def test_equal_pictures_have_no_deviation(self) -> None:
        assert deviation(torch.randn(1, 2, 4, 4).expand(8, -1, -1, -1)).abs().max() < 1e-3
        found = deviation(torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
        assert found.shape == (8, 1, 4, 4) and found.min() > 0.3
