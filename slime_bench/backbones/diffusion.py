"""What is known of a Stable Diffusion before its weights are loaded, and the mistakes that can be found from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from slime_bench.backbones.base import DiffusionModel, Precision, check_names
from slime_bench.backbones.hashes import digest
from slime_bench.backbones.weights import (
    ASSETS,
    CLIP_VOCABULARY,
    DIFFUSION,
    DIFFUSION_CONFIGS,
    PARTS,
    SD_CONFIGS,
    find,
    read_json,
    unusable,
    vocabulary_files,
)
from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.errors import BackboneError, ConfigError

PREDICTIONS: Final = ("epsilon", "v_prediction")
_LATER: Final = ".transformer_blocks.0"


@dataclass(frozen=True)
class BackboneFacts:
    """What a method may ask of a backbone before it is loaded.

    Attributes:
        num_tokens: tokens T of a prompt. num_timesteps: of the noise schedule. text_width: D of a token's embedding.
        downscale: pixels per latent cell along a side.
        layers: name of every attention layer that may be named in `cross_layers` and `self_layers`, in running order,
            and how many times the latent grid has been halved there.
    """

    num_tokens: int
    num_timesteps: int
    text_width: int
    downscale: int
    layers: dict[str, int]


@dataclass(frozen=True)
class Source:
    """Where a Stable Diffusion lies.

    Attributes:
        weights: a folder in its layout, or one `.safetensors` file.
        configs: the folder with the parts' configurations and vocabulary; `weights` itself where that is a folder.
    """

    weights: Path
    configs: Path

    @property
    def is_file(self) -> bool:
        return self.weights != self.configs

    @property
    def vocabulary(self) -> Path:
        """Folder of the tokenizer's vocabulary: that of `configs`, else the one that all Stable Diffusions share."""
        own = self.configs / "tokenizer"
        return own if vocabulary_files(own) else ASSETS / CLIP_VOCABULARY

    def fingerprint(self) -> str:
        """sha256 over the names and contents of the files that are loaded; a single file's own name decides nothing."""
        if not self.is_file:
            return DIFFUSION.fingerprint(self.weights)
        vocabulary = {f"tokenizer/{path.name}": path for path in vocabulary_files(self.vocabulary)}
        return digest({**DIFFUSION_CONFIGS.files(self.configs), **vocabulary, "checkpoint": self.weights})


class StableDiffusion(DiffusionModel):
    """Any model in the Stable Diffusion folder layout, SD 1.x and 2.x and the bundled `mini_sd`, or a single-file
    checkpoint of one of them."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.stable_diffusion.StableDiffusionBackbone"

    @dataclass
    class Config:
        """Settings of a Stable Diffusion.

        Args:
            name: in tables and result files.
            weights: bundled name, folder, `.safetensors` file, or hub id.
            revision: commit of a hub id; null for its main branch.
            single_file_config: what a single file holds: a folder of `assets/sd_configs`, another folder, or a hub id.
            image_size: side that the model was trained at, pixels.
            dtype: precision of the frozen weights.
            layer_groups: lists of layers by name, to choose `cross_layers` and methods' layers from.
            cross_layers: modules whose `attn2` gives the cross maps. self_layers: modules whose `attn1` gives the self
                maps, all on one grid.
            memory_gb: what one inference call may take beside the weights, in 10^9 bytes.
            encoder_cache_mb: what the autoencoder has made of images that come again may take, in 10^6 bytes; 0 keeps
                nothing.
        """

        name: str = "mini_sd"
        weights: str = field(default="mini_sd", metadata=located("backbone"))
        revision: str | None = field(default=None, metadata=NO_NUMBERS)
        single_file_config: str | None = field(default=None, metadata=NO_NUMBERS)
        image_size: Annotated[int, Field(ge=8)] = 128
        dtype: Precision = "fp32"
        layer_groups: dict[str, list[str]] = field(default_factory=dict, metadata=NO_NUMBERS)
        cross_layers: list[str] = field(default_factory=list)
        self_layers: list[str] = field(default_factory=list)
        memory_gb: Annotated[float, Field(ge=0)] = field(default=4.0, metadata=NO_NUMBERS)
        encoder_cache_mb: Annotated[float, Field(ge=0)] = field(default=256.0, metadata=NO_NUMBERS)

    @classmethod
    def content_hash_of(cls, config: Config) -> str:
        """sha256 of the weights and configuration files that `config` points to; nothing is loaded."""
        return source(config).fingerprint()

    @classmethod
    def describe(cls, config: Config) -> BackboneFacts:
        """Facts from the JSON files of the backbone that `config` points to; no weights are read.

        Raises:
            BackboneError: files are missing or no JSON, the model predicts something else than noise or velocity, a
                layer that it lacks is named, no layer is named, or self-attention layers of different grids.
        """
        place = source(config)
        parts = {part: _described(place.configs / part / name) for part, name in PARTS.items()}
        facts = BackboneFacts(
            num_tokens=prompt_length(parts["tokenizer"].get("model_max_length"), parts["text_encoder"]),
            num_timesteps=int(parts["scheduler"].get("num_train_timesteps", 1000)),
            text_width=int(parts["text_encoder"]["hidden_size"]),
            downscale=downscale(parts["vae"]),
            layers=attention_layers(parts["unet"]),
        )
        check_prediction(parts["scheduler"].get("prediction_type", "epsilon"))
        check_layers(facts.layers, config.cross_layers, config.self_layers)
        return facts


def source(config: StableDiffusion.Config) -> Source:
    """Where the backbone of a configuration lies; everything that it needs is there.

    Raises:
        BackboneError: something is missing, or a single file comes without a word on its architecture.
    """
    weights = find(config.weights, config.revision, DIFFUSION)
    if weights.is_dir():
        return Source(weights, weights)
    bundled = sorted(path.name for path in (ASSETS / SD_CONFIGS).glob("*") if path.is_dir())
    name = config.single_file_config
    if name is None or Path(name).is_file():
        raise BackboneError(
            "a single-file checkpoint does not say which architecture it holds" if name is None
            else "this is no folder of configurations", path="backbone.single_file_config",
            found="null" if name is None else name,
            expected=f"one of {', '.join(bundled)}, or a folder with the parts' configurations",
            remedy="e.g. backbone.single_file_config=sd15 for a Stable Diffusion 1.x",
        )  # fmt: skip
    return Source(weights, find(f"{SD_CONFIGS}/{name}" if name in bundled else name, None, DIFFUSION_CONFIGS))


def prompt_length(from_tokenizer: Any, text_encoder: dict[str, Any]) -> int:
    """T: what the tokenizer pads to, at most what the text encoder has positions for."""
    positions = int(text_encoder.get("max_position_embeddings", 77))
    return min(int(from_tokenizer), positions) if from_tokenizer else positions


def downscale(vae: Any) -> int:
    """Pixels per latent cell along a side, from the configuration of the autoencoder."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def attention_layers(config: dict[str, Any]) -> dict[str, int]:
    """Names of the transformer modules of a U-Net and the halvings of the latent grid before each, in running order.

    The architecture is built without memory, so that whatever the library makes of a configuration is what is listed.

    Raises:
        BackboneError: the library cannot build it.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.modeling_utils import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            unet = UNet2DConditionModel.from_config(config)
    except Exception as error:
        raise unusable(Path("unet"), f"{type(error).__name__}: {str(error).splitlines()[:1]}") from error
    layers, halvings = {}, 0
    blocks = [(f"down_blocks.{index}", block, 1) for index, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block, 0)]
    blocks += [(f"up_blocks.{index}", block, -1) for index, block in enumerate(unet.up_blocks)]
    for name, block, step in blocks:
        for index, module in enumerate(getattr(block, "attentions", None) or ()):
            if hasattr(module, "transformer_blocks"):
                layers[f"{name}.attentions.{index}"] = halvings
        resizes = getattr(block, "downsamplers" if step > 0 else "upsamplers", None)
        halvings += step if resizes else 0
    return layers


def layer_name(name: str, kind: str) -> str:
    """Full module name of the attention layer that a configuration calls `name`; `kind`: `attn1` (self) or `attn2`."""
    return name if name.endswith((".attn1", ".attn2")) else f"{name}{_LATER}.{kind}"


def check_layers(layers: dict[str, int], cross: Sequence[str], self_: Sequence[str]) -> None:
    """Refuse layer names that cannot give maps.

    Args:
        layers: as `attention_layers` gives them. cross, self_: names of a configuration.

    Raises:
        BackboneError: no name, an unknown name, a name twice, or self-attention layers of different grids.
    """
    for key, names, kind in (("backbone.cross_layers", cross, "attn2"), ("backbone.self_layers", self_, "attn1")):
        check_names(key, [_short(name, kind) for name in names], layers)
    grids = {name: layers[_short(name, "attn1")] for name in self_}
    if len(set(grids.values())) > 1:
        raise BackboneError(
            "the self-attention layers have maps of different sizes",
            path="backbone.self_layers",
            found=", ".join(f"{name}: latent grid / {2**halvings}" for name, halvings in grids.items()),
            expected="layers of one size: their maps are averaged before anything else (Eq. 5)",
            remedy="name layers of one block, e.g. those of the last",
        )


def transformers(layers: Mapping[str, Any], blocks: Sequence[str], key: str) -> list[str]:
    """Every transformer of these blocks, in running order; a transformer by its own name too.

    Args:
        layers: of `BackboneFacts`. key: of the configuration, for the message.

    Raises:
        BackboneError: a name that no transformer has or lies in.
    """
    found: list[str] = []
    for block in blocks:
        inside = [name for name in layers if name == block or name.startswith(f"{block}.")]
        if not inside:
            raise BackboneError(
                "the backbone has no such layer", path=key, found=block, expected=", ".join(layers),
                remedy="name one of these, or a block of them such as up_blocks.2",
            )  # fmt: skip
        found += inside
    return list(dict.fromkeys(found))


def check_timesteps(count: int, steps: Mapping[str, Sequence[int]]) -> None:
    """Refuse timesteps outside a schedule of `count` steps; `steps` is a configuration's key -> its timesteps.

    Raises:
        ConfigError: names the key.
    """
    for key, values in steps.items():
        if max(values) >= count:
            raise ConfigError(
                "a timestep is outside the noise schedule", path=key, found=max(values),
                expected=f"0 to {count - 1}", remedy=f"e.g. {key}={'[100]' if len(values) > 1 else 100}",
            )  # fmt: skip


def check_prediction(kind: str) -> None:
    """Refuse a model whose output cannot be turned into the noise that was added.

    Raises:
        BackboneError: it predicts neither noise nor velocity.
    """
    if kind not in PREDICTIONS:
        raise BackboneError(
            "the output of this diffusion model cannot be used",
            path="scheduler/scheduler_config.json",
            found=f"prediction_type {kind}",
            expected=f"{' or '.join(PREDICTIONS)}: the diffusion loss compares predicted and true noise, which a"
            " prediction of the clean sample does not determine at small timesteps",
            remedy="use a base model, such as Stable Diffusion 2.1-base",
        )


def _short(name: str, kind: str) -> str:
    """The inverse of `layer_name`."""
    return name.removesuffix(f"{_LATER}.{kind}")


_NEEDED: Final = {"text_encoder": "hidden_size", "vae": "block_out_channels", "unet": "block_out_channels"}


def _described(path: Path) -> dict[str, Any]:
    """The configuration of a part, with what every such configuration has."""
    content = read_json(path)
    key = _NEEDED.get(path.parent.name)
    if key is not None and key not in content:
        raise unusable(path, f"no {key}")
    return content
