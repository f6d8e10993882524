"""What is said of a backbone before its weights are read, and the mistakes found then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from slime_bench.backbones.ddpm import Ddpm
from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion, attention_layers, check_layers
from slime_bench.backbones.features import output_shapes
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.backbones.vision_language import Albef, Blip, Llava
from slime_bench.backbones.weights import ASSETS, SD_CONFIGS
from slime_bench.config.compose import plan
from slime_bench.config.schema import implementation_of
from slime_bench.errors import BackboneError

CROSS = ["up_blocks.1.attentions.0", "up_blocks.2.attentions.1"]
SELF = ["up_blocks.3.attentions.0", "up_blocks.3.attentions.1"]


def describe(weights: Path | str, **settings: Any) -> BackboneFacts:
    chosen = {"cross_layers": CROSS, "self_layers": SELF, **settings}
    return StableDiffusionBackbone.describe(StableDiffusionBackbone.Config(weights=str(weights), **chosen))


def failure(weights: Path | str, **settings: Any) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        describe(weights, **settings)
    assert caught.value.remedy
    return caught.value


LIGHT = """
import sys
from slime_bench.backbones.diffusion import StableDiffusion
from slime_bench.backbones.vision_language import Albef, Blip, Llava
for part in (StableDiffusion, Blip):
    print(part.content_hash_of(part.Config()))
print(*sorted({"torch", "numpy", "diffusers", "transformers", "safetensors"} & sys.modules.keys()))
"""


def test_contents_are_told_apart_without_torch() -> None:
    """In a process of its own. The hashes are those of finished trials: they must not change with the code."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "a768d5300c41f327df9fc3b1669ff319ce30cd0e8cc02f78fbd5983dcedebde8",
        "07a0ad69ca1f2bd297812bfb1d86f962eb06ba088d026cf9f6203ec3127db532",
        "",
    ]


@pytest.mark.parametrize("part", [StableDiffusion, Ddpm, Blip, Albef, Llava])
def test_a_light_class_names_the_one_that_computes(part: type[Any]) -> None:
    heavy = implementation_of(part)
    assert issubclass(heavy, part) and issubclass(heavy, torch.nn.Module) and heavy.Config is part.Config
    assert implementation_of(heavy) is heavy


class TestFacts:
    def test_those_of_the_loaded_model(self, tiny_sd: Path, tiny_backbone: Any) -> None:
        facts = describe(tiny_sd)
        assert facts.num_tokens == tiny_backbone.num_tokens == 77
        assert facts.num_timesteps == tiny_backbone.num_timesteps == 1000
        assert facts.text_width == tiny_backbone.embed("").shape[-1] == 32
        assert facts.downscale == tiny_backbone.downscale == 4

    @torch.no_grad()
    def test_layers_are_those_that_run_in_their_order_on_their_grids(self, tiny_sd: Path, tiny_backbone: Any) -> None:
        ran: dict[str, int] = {}
        ending = ".transformer_blocks.0.attn2"

        def note(name: str) -> Any:
            return lambda _module, _inputs, output: ran.__setitem__(name.removesuffix(ending), output.shape[1])

        hooks = [
            module.register_forward_hook(note(name))
            for name, module in tiny_backbone.unet.named_modules()
            if name.endswith(ending)
        ]
        tiny_backbone.unet(torch.randn(1, 4, 32, 32), torch.tensor([1]), torch.randn(1, 77, 32))
        for hook in hooks:
            hook.remove()
        layers = describe(tiny_sd).layers
        assert list(layers) == list(ran) and len(layers) == 10
        assert {name: (32 // 2**halvings) ** 2 for name, halvings in layers.items()} == ran

    def test_no_weights_are_read(self, tiny_sd: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
        for path in folder.rglob("*.safetensors"):
            path.write_bytes(b"")
        assert describe(folder) == describe(tiny_sd)

    @pytest.mark.parametrize("name", ["sd15", "sd21_base", "sd21"])
    def test_bundled_configurations_are_those_of_the_published_models(self, name: str) -> None:
        """Sixteen layers: 2 x 3 on the way down, the middle, 3 x 3 on the way up."""
        layers = attention_layers(json.loads((ASSETS / SD_CONFIGS / name / "unet/config.json").read_text()))
        assert list(layers.values()) == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]


class TestFiles:
    """conf/backbone: every named layer exists, and the groups are the layers in running order."""

    @pytest.mark.parametrize(
        ("name", "sizes", "configs"),
        [
            ("mini_sd", [4, 4, 2], ASSETS / "mini_sd"),
            ("sd21_base", [7, 5, 4], ASSETS / SD_CONFIGS / "sd21_base"),
            ("sd15", [7, 5, 4], ASSETS / SD_CONFIGS / "sd15"),
            ("sd14", [7, 5, 4], ASSETS / SD_CONFIGS / "sd15"),
        ],
    )
    def test_groups(self, name: str, sizes: list[int], configs: Path) -> None:
        config = plan([f"backbone={name}"]).trials[0].backbone
        layers = attention_layers(json.loads((configs / "unet/config.json").read_text()))
        groups = config.layer_groups
        assert [len(groups[each]) for each in ("early", "middle", "late")] == sizes
        assert [*groups["early"], *groups["middle"], *groups["late"]] == list(layers)
        assert config.cross_layers == groups["middle"]
        for each in ("early", "middle", "late"):
            check_layers(layers, groups[each], config.self_layers)

    @pytest.mark.parametrize(
        ("name", "configs", "expected"),
        [
            ("mini_sd", ASSETS / "mini_sd", [(128, 16), (96, 16), (96, 16), (96, 32), (32, 32)]),
            ("sd21_base", ASSETS / SD_CONFIGS / "sd21_base", [(1280, 32), (640, 32), (640, 32), (640, 64), (320, 64)]),
            ("sd15", ASSETS / SD_CONFIGS / "sd15", [(1280, 32), (640, 32), (640, 32), (640, 64), (320, 64)]),
            ("sd14", ASSETS / SD_CONFIGS / "sd15", [(1280, 32), (640, 32), (640, 32), (640, 64), (320, 64)]),
        ],
    )
    def test_hypercolumns(self, name: str, configs: Path, expected: list[tuple[int, int]]) -> None:
        """Channels and grid of SegDDPM's layers, for an image of the side that the model was trained at."""
        config = plan([f"backbone={name}"]).trials[0].backbone
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs / "unet"))
        latent = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        text = (1, 77, unet.config.cross_attention_dim)
        found = output_shapes(unet, config.layer_groups["hypercolumn"], latent, text)
        assert [(channels, width) for channels, _, width in found.values()] == expected

    def test_precision_follows_the_trainer(self) -> None:
        assert plan(["trainer.precision=bf16"]).trials[0].backbone.dtype == "bf16"
        assert plan(["trainer.precision=bf16", "backbone.dtype=fp32"]).trials[0].backbone.dtype == "fp32"

    @pytest.mark.parametrize("name", ["sd21_base", "sd15", "sd14"])
    def test_hub_weights_are_pinned(self, name: str) -> None:
        config = plan([f"backbone={name}"]).trials[0].backbone
        assert config.weights.count("/") == 1 and len(str(config.revision)) == 40
        assert (ASSETS / SD_CONFIGS / str(config.single_file_config) / "unet/config.json").is_file()


class TestLayers:
    @pytest.mark.parametrize("key", ["cross_layers", "self_layers"])
    def test_unknown(self, tiny_sd: Path, key: str) -> None:
        error = failure(tiny_sd, **{key: ["up_blocks.3.attentions.0", "up_blocks.1.atentions.1"]})
        assert error.path == f"backbone.{key}" and error.found == "up_blocks.1.atentions.1"
        assert "up_blocks.1.attentions.1" in str(error.remedy) and "mid_block.attentions.0" in str(error.expected)

    def test_self_maps_of_two_sizes(self, tiny_sd: Path) -> None:
        error = failure(tiny_sd, self_layers=["up_blocks.2.attentions.1", "up_blocks.3.attentions.0"])
        assert error.path == "backbone.self_layers"
        assert "up_blocks.2.attentions.1: latent grid / 2, up_blocks.3.attentions.0: latent grid / 1" in str(error)

    def test_full_module_names(self, tiny_sd: Path) -> None:
        ending = ".transformer_blocks.0.attn"
        full = {"cross_layers": [f"{name}{ending}2" for name in CROSS], "self_layers": [f"{SELF[0]}{ending}1"]}
        assert describe(tiny_sd, **full) == describe(tiny_sd)
        assert failure(tiny_sd, self_layers=[f"{SELF[0]}{ending}2"]).found == f"{SELF[0]}{ending}2"
        assert failure(tiny_sd, cross_layers=[f"{CROSS[0]}.transformer_blocks.7.attn2"])


class TestBadFiles:
    @pytest.fixture
    def folder(self, tiny_sd: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_sd, tmp_path / "model"))

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
    def test_no_json(self, folder: Path, part: str) -> None:
        path = next(folder.glob(f"{part}/*config.json"))
        for content in (b"{", b"[1]", b"\xff"):
            path.write_bytes(content)
            assert failure(folder).path == path.resolve()

    def test_json_of_something_else(self, folder: Path) -> None:
        (folder / "vae/config.json").write_text('{"colour": "red"}')
        assert failure(folder).path == folder.resolve() / "vae/config.json"

    def test_an_architecture_that_cannot_be_built(self, folder: Path) -> None:
        path = folder / "unet/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "down_block_types": ["NoSuchBlock"] * 4}))
        assert "unet" in str(failure(folder).path)
