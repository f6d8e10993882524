"""Single-file checkpoints: the same model as the folder, from local files alone; and CLIP's vocabulary beside them."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.backbones.weights import ASSETS, SD_CONFIGS
from slime_bench.errors import BackboneError
from tests.fixtures.full_size import fill
from tests.fixtures.ldm_format import checkpoint
from tests.fixtures.rounding import TINY, same

LAYERS = {"cross_layers": ["up_blocks.1.attentions.0"], "self_layers": ["up_blocks.3.attentions.0"]}
STYLES = ["sd15", "sd21_base"]


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def small(style: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A narrow model of the style's architecture: its folder, and the same as one file of the original naming."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    root = tmp_path_factory.mktemp(style)
    folder = Path(shutil.copytree(ASSETS / SD_CONFIGS / style, root / "folder"))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(ASSETS / "clip_vocabulary" / name, folder / "tokenizer")
    read = lambda part: json.loads((folder / part / "config.json").read_text())  # noqa: E731
    heads = 2 if style == "sd15" else [1, 2, 2, 2]
    narrow = {"block_out_channels": [16, 32, 32, 32], "norm_num_groups": 8}
    unet = UNet2DConditionModel.from_config(
        {**read("unet"), **narrow, "cross_attention_dim": 32, "attention_head_dim": heads}
    )
    vae = AutoencoderKL.from_config({**read("vae"), **narrow})
    text = {**read("text_encoder"), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text_encoder = CLIPTextModel(CLIPTextConfig(**{**text, "num_attention_heads": 2, "projection_dim": 32}))
    for seed, (part, model) in enumerate({"unet": unet, "vae": vae, "text_encoder": text_encoder}.items()):
        fill(model, seed)
        for index, value in enumerate(model.parameters()):  # no two tensors alike: a mix-up must show
            value.data += 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(index))
        model.save_pretrained(folder / part)
    file = root / "model.safetensors"
    save_file(checkpoint(unet, vae, text_encoder, open_clip=style != "sd15"), file)
    return folder, file


@pytest.fixture(scope="module")
def configs(small: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder's configurations alone, without weights and vocabulary, as those of the bundled ones."""
    target = tmp_path_factory.mktemp("configs") / "folder"
    return Path(
        shutil.copytree(small[0], target, ignore=shutil.ignore_patterns("*.safetensors", "vocab.json", "merges.txt"))
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(weights: Path, configs: Path | str | None = None, dtype: str = "fp32") -> StableDiffusionBackbone:
    name = None if configs is None else str(configs)
    config = StableDiffusionBackbone.Config(weights=str(weights), single_file_config=name, dtype=dtype, **LAYERS)
    return StableDiffusionBackbone(config)


@torch.no_grad()
def outputs(backbone: StableDiffusionBackbone) -> list[torch.Tensor]:
    """What a method sees: embedding, latents, predicted noise, queries and keys."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    text, latents = backbone.embed("a photo of a cat"), backbone.encode(images, None)
    found = backbone.attention(latents, torch.tensor([5, 900]), text, with_noise=True)
    assert found.noise is not None
    layers = [*found.cross, *found.self_]
    return [text, latents, found.noise, *(layer.query for layer in layers), *(layer.key for layer in layers)]


@pytest.mark.usefixtures("no_network")
class TestTheSameModel:
    def test_outputs(self, small: tuple[Path, Path], configs: Path) -> None:
        folder, file = small
        expected, found = outputs(load(folder)), outputs(load(file, configs))
        assert len(expected) == 7
        for one, other in zip(found, expected, strict=True):
            assert other.abs().max() > 0.01
            same(one, other, **TINY)

    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    def test_in_half_precision(self, small: tuple[Path, Path], configs: Path, dtype: str) -> None:
        folder, file = small
        one, other = load(file, configs, dtype), load(folder, dtype=dtype)
        assert {value.dtype for value in one.parameters()} == {{"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert torch.get_default_dtype() == torch.float32

    def test_averaged_weights_go_before_trained_ones(
        self, small: tuple[Path, Path], configs: Path, tmp_path: Path
    ) -> None:
        tensors, start = load_file(small[1]), "model.diffusion_model."
        both = dict(tensors)
        for name, value in tensors.items():
            if name.startswith(start):
                both["model_ema." + name.removeprefix("model.").replace(".", "")] = value
                both[name] = torch.zeros_like(value)
        save_file(both, tmp_path / "both.safetensors")
        one, other = load(tmp_path / "both.safetensors", configs).unet, load(small[0]).unet
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    def test_fingerprint_follows_file_and_configurations(
        self, small: tuple[Path, Path], configs: Path, tmp_path: Path
    ) -> None:
        def hashed(file: Path, folder: Path) -> str:
            config = StableDiffusionBackbone.Config(weights=str(file), single_file_config=str(folder))
            return StableDiffusionBackbone.content_hash_of(config)

        first = hashed(small[1], configs)
        copy, other = tmp_path / "renamed.safetensors", tmp_path / "configs"
        shutil.copy(small[1], copy)
        shutil.copytree(configs, other)
        assert hashed(copy, other) == first
        (other / "scheduler/scheduler_config.json").write_text('{"num_train_timesteps": 10}')
        content = bytearray(copy.read_bytes())
        content[-1] ^= 1
        copy.write_bytes(content)
        assert len({first, hashed(small[1], other), hashed(copy, configs)}) == 3


@pytest.mark.usefixtures("no_network")
class TestWhatIsRefused:
    def failure(self, weights: Path, configs: Path | str | None) -> BackboneError:
        with pytest.raises(BackboneError) as caught:
            load(weights, configs)
        assert caught.value.remedy
        return caught.value

    def test_no_word_on_the_architecture(self, small: tuple[Path, Path]) -> None:
        error = self.failure(small[1], None)
        assert error.path == "backbone.single_file_config" and "sd21_base" in str(error.expected)

    def test_another_architecture(self, small: tuple[Path, Path]) -> None:
        """A narrow model under the published configurations: shapes differ everywhere."""
        error = self.failure(small[1], "sd15")
        assert error.path == small[1] and "size mismatch" in str(error.__cause__)

    @pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
    @pytest.mark.parametrize("share", ["one", "all"])
    def test_missing_tensors_are_not_made_up(
        self, small: tuple[Path, Path], configs: Path, tmp_path: Path, part: str, share: str
    ) -> None:
        tensors = load_file(small[1])
        gone = [name for name in tensors if name.startswith(part) and name.endswith("bias")]
        gone = gone[:1] if share == "one" else [name for name in tensors if name.startswith(part)]
        file = tmp_path / "torn.safetensors"
        save_file({name: value for name, value in tensors.items() if name not in gone}, file)
        assert self.failure(file, configs).path == file

    def test_configurations_that_are_not_there(self, small: tuple[Path, Path], tmp_path: Path) -> None:
        assert "configs" in str(self.failure(small[1], tmp_path / "configs"))
        assert self.failure(small[1], small[1]).path == "backbone.single_file_config"


class TestVocabulary:
    def tokenizer(self, style: str) -> Any:
        from slime_bench.backbones.diffusion import Source
        from slime_bench.backbones.load import _tokenizer

        return _tokenizer(Source(Path("model.safetensors"), ASSETS / SD_CONFIGS / style))

    @pytest.mark.parametrize(("style", "pad"), [("sd15", 49407), ("sd21_base", 0), ("sd21", 0)])
    def test_known_numbers(self, style: str, pad: int) -> None:
        tokenizer = self.tokenizer(style)
        assert len(tokenizer) == 49408 and tokenizer.model_max_length == 77
        ids = tokenizer("a photo of a cat", padding="max_length", max_length=77).input_ids
        assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, *[pad] * 70]
