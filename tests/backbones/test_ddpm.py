"""Pixel-space diffusion models: checkpoints as they are published, and those that are something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.backbones.ddpm import Ddpm
from slime_bench.backbones.ddpm_unet import DdpmBackbone, tensor_shapes
from slime_bench.backbones.features import module_name
from slime_bench.config.compose import plan
from slime_bench.errors import BackboneError
from tests.fixtures.adm import SMALL, random_tensors, save_adm

LAYERS = plan(["backbone=ddpm_horse"]).trials[0].backbone.layer_groups["hypercolumn"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adm(tmp_path_factory.mktemp("adm") / "small.pt")


@pytest.fixture(scope="module")
def backbone(file: Path) -> DdpmBackbone:
    return DdpmBackbone(Ddpm.Config(weights=str(file), **SMALL))


def refused(path: Path | str, **settings: Any) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        DdpmBackbone(Ddpm.Config(weights=str(path), **{**SMALL, **settings}))
    error = caught.value
    assert error.remedy and error.expected
    return error


class TestFeatures:
    def test_shapes_are_known_without_a_pass(self, backbone: DdpmBackbone) -> None:
        images, noise = torch.rand(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
        found = backbone.features(images, torch.tensor([50, 250]), noise, LAYERS)
        assert {name: tuple(value.shape[1:]) for name, value in found.items()} == backbone.feature_shapes(
            (64, 64), LAYERS
        )
        assert list(found) == LAYERS and all(value.dtype == torch.float32 for value in found.values())

    def test_an_image_is_by_itself(self, backbone: DdpmBackbone) -> None:
        torch.manual_seed(0)  # not what the tests before it have left
        images, noise, steps = torch.rand(3, 3, 64, 64), torch.randn(3, 3, 64, 64), torch.tensor([50, 150, 250])
        whole = backbone.features(images, steps, noise, LAYERS)
        one = backbone.features(images[1:2], steps[1:2], noise[1:2], LAYERS)
        for name in LAYERS:
            torch.testing.assert_close(whole[name][1:2], one[name], rtol=0, atol=1e-4)

    def test_images_of_another_size_are_resized_as_by_pillow(self, backbone: DdpmBackbone) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        small = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
        expected = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        assert torch.equal(backbone.prepared(images), expected)
        assert backbone.latent_shape((96, 96)) == (3, 64, 64)

    @pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.2), ("fp16", 0.03)])
    def test_half_precision_is_near(self, file: Path, backbone: DdpmBackbone, dtype: Any, bound: float) -> None:
        """float16 is what the authors compute in; 3e-2 is what they lose by it on a random model."""
        half = DdpmBackbone(Ddpm.Config(weights=str(file), dtype=dtype, **SMALL))
        assert {value.dtype for value in half.parameters()} == {{"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}
        images, noise, steps = torch.rand(1, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.tensor([150])
        for name, value in half.features(images, steps, noise, LAYERS).items():
            full = backbone.features(images, steps, noise, LAYERS)[name]
            assert 0 < float((value - full).norm() / full.norm()) < bound and value.dtype == torch.float32

    def test_it_stays_frozen_and_in_evaluation(self, backbone: DdpmBackbone) -> None:
        assert not backbone.train().training and not backbone.unet.training
        assert not any(value.requires_grad for value in backbone.parameters())

    @pytest.mark.parametrize("name", ["up_blocks.1.upsamplers.3", "up_blocks.9.resnets.0", "middle_block.1"])
    def test_a_layer_that_is_not_there(self, backbone: DdpmBackbone, name: str) -> None:
        with pytest.raises(BackboneError) as caught:
            module_name(backbone.unet, name, "method.layers")
        assert caught.value.path == "method.layers" and caught.value.found == name

    @pytest.mark.parametrize("name", ["time_embedding.linear_1", "up_blocks"])
    def test_a_module_without_a_map(self, backbone: DdpmBackbone, name: str) -> None:
        with pytest.raises(BackboneError, match="gives no map") as caught:
            backbone.feature_shapes((64, 64), [LAYERS[0], name])
        assert caught.value.found == name


class TestFiles:
    @pytest.mark.parametrize("name", ["ddpm_horse", "ddpm_ffhq", "adm_uncond"])
    def test_those_of_the_bench_have_the_published_number_of_parameters(self, name: str) -> None:
        config = plan([f"backbone={name}"]).trials[0].backbone
        shapes = tensor_shapes(config)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == 552_814_086
        assert {"input_blocks.0.0.weight", "middle_block.1.qkv.bias", "output_blocks.17.0.in_layers.0.bias"} <= set(
            shapes
        )

    def test_both_formats_are_one_model(self, file: Path, backbone: DdpmBackbone, tmp_path: Path) -> None:
        other = DdpmBackbone(Ddpm.Config(weights=str(save_adm(tmp_path / "same.safetensors")), **SMALL))
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in backbone.state_dict().items())
        assert len(Ddpm.content_hash_of(Ddpm.Config(weights=str(file)))) == 64

    def test_missing(self, tmp_path: Path) -> None:
        cfg = plan(["backbone=ddpm_horse", f"backbone.weights={tmp_path}/lsun_horse.pt"]).trials[0]
        with pytest.raises(BackboneError, match="not here") as caught:
            cfg.parts["backbone"].content_hash_of(cfg.backbone)
        assert "https://openaipublic.blob.core.windows.net" in str(caught.value.remedy)
        assert "backbone.weights=" in str(caught.value.remedy)

    def test_no_file_of_weights(self, tmp_path: Path) -> None:
        assert refused(tmp_path).found == "a folder"
        (tmp_path / "weights.txt").write_text("")
        assert refused(tmp_path / "weights.txt").found == "the suffix .txt"

    def test_another_architecture(self, file: Path) -> None:
        error = refused(file, multipliers=[1, 1, 1, 1, 1, 1])
        assert error.path == file.resolve() and "of another shape, such as" in str(error.found)
        assert "[1, 1, 1, 1, 1, 1]" in str(error.expected) and "backbone.multipliers" in str(error.remedy)
        shallow = refused(file, multipliers=[1, 1, 1], attention_levels=[2])
        assert "of no use, such as" in str(shallow.found)

    def test_a_conditional_model(self, tmp_path: Path) -> None:
        tensors = random_tensors(Ddpm.Config(**SMALL)) | {"label_emb.weight": torch.zeros(1000, 128)}
        torch.save(tensors, tmp_path / "cond.pt")
        assert "label_emb.weight" in str(refused(tmp_path / "cond.pt").found)

    def test_a_pickle_with_code_runs_none(self, tmp_path: Path) -> None:
        class Harm:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "harm"),)

        torch.save({"weight": Harm()}, tmp_path / "harm.pt")
        error = refused(tmp_path / "harm.pt")
        assert "more than tensors" in str(error) and "mkdir" in str(error.found)
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, [torch.zeros(1)]])
    def test_no_state_dict(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "other.pt")
        error = refused(tmp_path / "other.pt")
        assert "no state dict" in str(error) and ("dict" in str(error.found) or "list" in str(error.found))

    @pytest.mark.parametrize("name", ["torn.pt", "torn.safetensors"])
    def test_torn(self, file: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(file.read_bytes()[:5000])
        assert "download it again" in str(refused(tmp_path / name).remedy)

    def test_a_side_that_cannot_be_halved(self, file: Path) -> None:
        error = refused(file, image_size=72)
        assert error.path == "backbone.image_size" and error.remedy == "e.g. backbone.image_size=64"


def test_it_is_described_without_torch(file: Path) -> None:
    code = (
        "import sys; from slime_bench.backbones.ddpm import Ddpm; "
        f"config = Ddpm.Config(weights={str(file)!r}); print(Ddpm.describe(config), Ddpm.content_hash_of(config)); "
        "print(*{'torch', 'numpy', 'diffusers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == ""
