"""What is known of a Stable Diffusion before its weights are loaded, and the mistakes that can be found from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from slime_bench.backbones.files import CONFIGS, RESTORE
from slime_bench.backbones.locate import Settings, Source, source
from slime_bench.errors import BackboneError

PREDICTIONS: Final = ("epsilon", "v_prediction")
_LATER: Final = ".transformer_blocks.0"


class LayerSettings(Settings, Protocol):
    cross_layers: list[str]
    self_layers: list[str]


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


def describe(settings: LayerSettings) -> BackboneFacts:
    """Facts from the JSON files of the backbone that `settings` points to; no weights are read.

    Raises:
        BackboneError: files are missing or no JSON, the model predicts something else than noise or velocity, a layer
            that it lacks is named, no layer is named, or self-attention layers of different grids.
    """
    configs = read_configs(source(settings))
    facts = BackboneFacts(
        num_tokens=prompt_length(configs["tokenizer"].get("model_max_length"), configs["text_encoder"]),
        num_timesteps=int(configs["scheduler"].get("num_train_timesteps", 1000)),
        text_width=int(configs["text_encoder"]["hidden_size"]),
        downscale=downscale(configs["vae"]),
        layers=attention_layers(configs["unet"]),
    )
    check_prediction(configs["scheduler"].get("prediction_type", "epsilon"))
    check_layers(facts.layers, settings.cross_layers, settings.self_layers)
    return facts


def read_configs(place: Source) -> dict[str, dict[str, Any]]:
    """The parts' configurations by the part's name.

    Raises:
        BackboneError: a file that is no JSON, or lacks what every such configuration has.
    """
    needed = {"text_encoder": "hidden_size", "vae": "block_out_channels", "unet": "block_out_channels"}
    configs = {part: _json(place.configs / part / name) for part, name in CONFIGS.items()}
    for part, key in needed.items():
        if key not in configs[part]:
            raise _unreadable(place.configs / part, f"no {key} in {CONFIGS[part]}")
    return configs


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
    from diffusers import UNet2DConditionModel
    from diffusers.models.modeling_utils import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            unet = UNet2DConditionModel.from_config(config)
    except Exception as error:
        raise _unreadable(Path("unet"), f"{type(error).__name__}: {str(error).splitlines()[:1]}") from error
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
        if not names:
            raise BackboneError(
                f"{key} names no attention layer",
                path=key,
                found="an empty list",
                expected="at least one name",
                remedy=f"e.g. {key}=[{next(reversed(layers), 'up_blocks.1.attentions.0')}]",
            )
        for name in names:
            if _short(name, kind) not in layers:
                close = get_close_matches(name, layers, n=3, cutoff=0.5)
                raise BackboneError(
                    "the backbone has no attention layer of this name",
                    path=key,
                    found=name,
                    expected=f"one of {', '.join(layers)}",
                    remedy=f"did you mean {' or '.join(close)}?" if close else "name one of these layers",
                )
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise BackboneError(
                "an attention layer is named twice", path=key, found=twice[0], remedy="name every layer once"
            )
    grids = {name: layers[_short(name, "attn1")] for name in self_}
    if len(set(grids.values())) > 1:
        raise BackboneError(
            "the self-attention layers have maps of different sizes",
            path="backbone.self_layers",
            found=", ".join(f"{name}: latent grid / {2**halvings}" for name, halvings in grids.items()),
            expected="layers of one size: their maps are averaged before anything else (Eq. 5)",
            remedy="name layers of one block, e.g. those of the last",
        )


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


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path.parent, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise _unreadable(path.parent, f"{path.name} holds no mapping")
    return content


def _unreadable(path: Path, found: str) -> BackboneError:
    return BackboneError(
        f"the configuration of the backbone's {path.name} cannot be read",
        path=path,
        found=found,
        expected="the JSON files of a Stable Diffusion",
        remedy=RESTORE,
    )
