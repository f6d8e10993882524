"""The Stable Diffusion backbone: what it computes, and what it says when its files are not right."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_bench.backbones import weights as finding
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.backbones.weights import DIFFUSION, check_hashes, find
from slime_bench.errors import BackboneError
from tests.fixtures.rounding import TINY, same

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


def load(folder: Path | str, **settings: Any) -> StableDiffusionBackbone:
    return StableDiffusionBackbone(StableDiffusionBackbone.Config(weights=str(folder), **settings))


def failure(folder: Path | str, **settings: Any) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        load(folder, **settings)
    assert caught.value.remedy
    return caught.value


class TestWhatItComputes:
    def test_frozen_and_float32_whatever_is_asked(self, tiny_backbone: Any) -> None:
        assert not any(value.requires_grad for value in tiny_backbone.parameters())
        assert {value.dtype for value in tiny_backbone.parameters()} == {torch.float32}
        tiny_backbone.train()
        assert not any(module.training for module in tiny_backbone.modules())

    def test_sizes(self, tiny_backbone: Any) -> None:
        assert tiny_backbone.num_tokens == 77 and tiny_backbone.num_timesteps == 1000
        assert tiny_backbone.downscale == 4 and tiny_backbone.latent_shape((64, 32)) == (4, 16, 8)
        assert tiny_backbone.embed("a red car").shape == (1, 77, 32)
        assert tiny_backbone.embed("part " * 200).shape == (1, 77, 32)

    def test_latents_are_scaled_draws_of_the_posterior(self, tiny_backbone: Any) -> None:
        images, noise = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 16, 16)
        posterior = tiny_backbone.vae.encode(images * 2 - 1).latent_dist
        factor = tiny_backbone.vae.config.scaling_factor
        torch.testing.assert_close(tiny_backbone.encode(images, None), posterior.mean * factor)
        drawn = tiny_backbone.encode(images, noise)
        torch.testing.assert_close(drawn, (posterior.mean + posterior.std * noise) * factor)

    def test_noising_is_the_schedulers(self, tiny_backbone: Any) -> None:
        latents, noise = torch.randn(2, 3, 4, 4, 4).unbind(1)[:2]
        timesteps = torch.tensor([0, 999])
        expected = tiny_backbone._scheduler.add_noise(latents, noise, timesteps)
        torch.testing.assert_close(tiny_backbone.add_noise(latents, noise, timesteps), expected)

    @torch.no_grad()
    def test_attention_in_the_order_named_with_or_without_the_noise(self, tiny_backbone: Any) -> None:
        noisy, timesteps, text = torch.randn(2, 4, 16, 16), torch.tensor([5, 100]), tiny_backbone.embed("car")
        whole = tiny_backbone.attention(noisy, timesteps, text, with_noise=True)
        short = tiny_backbone.attention(noisy, timesteps, text, with_noise=False)
        assert short.noise is None
        plain = tiny_backbone.predict_noise(noisy, timesteps, text.expand(2, -1, -1))
        same(whole.noise, plain, **TINY)
        assert [layer.query.shape[2] for layer in short.cross] == [16, 16, 64, 64]
        assert [layer.key.shape[2] for layer in short.cross] == [77] * 4
        assert [layer.key.shape[2] for layer in short.self_] == [256, 256]
        for one, other in zip([*whole.cross, *whole.self_], [*short.cross, *short.self_], strict=True):
            assert torch.equal(one.query, other.query) and torch.equal(one.key, other.key)
        assert tiny_backbone.attention(noisy, timesteps, text, with_noise=False, with_self=False).self_ == []


class TestWhatIsNotThere:
    @pytest.mark.parametrize("name", [UNET, "tokenizer/tokenizer.json", "vae/config.json", "scheduler"])
    def test_file(self, folder: Path, name: str) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        error = failure(folder)
        assert str(folder.resolve()) in str(error.path) and Path(name).parts[0] in str(error)

    def test_a_name_of_an_asset_goes_before_the_hub(self, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(finding, "ASSETS", tiny_sd.parent)
        assert find(tiny_sd.name, None, DIFFUSION) == tiny_sd.resolve() and finding.bundled() == [tiny_sd.name]


class TestWhatIsSpoiled:
    def test_truncated_weights(self, folder: Path) -> None:
        content = (folder / UNET).read_bytes()
        (folder / UNET).write_bytes(content[: len(content) // 2])
        error = failure(folder)
        assert error.path == folder.resolve() / "unet" and "restore" in str(error.remedy)

    @pytest.mark.parametrize("name", [UNET, TEXT, "vae/diffusion_pytorch_model.safetensors"])
    def test_missing_tensor_is_not_made_up(self, folder: Path, name: str) -> None:
        tensors = load_file(folder / name)
        gone = sorted(tensors)[3]
        del tensors[gone]
        save_file(tensors, folder / name, metadata={"format": "pt"})
        assert gone.split(".")[-2] in str(failure(folder).found)

    def test_weights_of_another_architecture(self, folder: Path) -> None:
        config = json.loads((folder / "unet/config.json").read_text())
        (folder / "unet/config.json").write_text(json.dumps({**config, "block_out_channels": [32, 32, 64, 64]}))
        assert failure(folder).path == folder.resolve() / "unet"


def write_hashes(folder: Path) -> None:
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "sha256.json").write_text(json.dumps(hashes))


class TestHashes:
    def test_a_changed_file_is_corrupt(self, folder: Path) -> None:
        write_hashes(folder)
        content = bytearray((folder / UNET).read_bytes())
        content[-1] ^= 1
        (folder / UNET).write_bytes(content)
        error = failure(folder)
        assert "corrupt" in error.summary and error.path == folder.resolve() / UNET
        assert hashlib.sha256(content).hexdigest() in str(error.found)

    def test_a_listed_file_is_missing(self, folder: Path) -> None:
        write_hashes(folder)
        (folder / TEXT).unlink()
        error = failure(folder)
        assert "missing" in error.summary and error.path == folder.resolve() / "text_encoder"
        with pytest.raises(BackboneError, match="missing") as caught:
            check_hashes(folder)
        assert caught.value.path == folder / TEXT

    def test_fingerprint_follows_weights_configuration_and_names(self, folder: Path) -> None:
        config = StableDiffusionBackbone.Config(weights=str(folder))
        first = StableDiffusionBackbone.content_hash_of(config)
        assert first == DIFFUSION.fingerprint(folder) and len(first) == 64
        (folder / "README.md").write_text("words decide nothing")
        (folder / "card.json").write_text("{}")
        assert DIFFUSION.fingerprint(folder) == first
        seen = {first}
        content = bytearray((folder / UNET).read_bytes())
        content[-1] ^= 1
        (folder / UNET).write_bytes(content)
        seen.add(DIFFUSION.fingerprint(folder))
        (folder / "scheduler/scheduler_config.json").write_text("{}")
        seen.add(DIFFUSION.fingerprint(folder))
        assert len(seen) == 3
