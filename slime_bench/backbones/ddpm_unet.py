"""A pixel-space diffusion model as a frozen backbone: guided-diffusion's checkpoints in diffusers' `UNet2DModel`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from slime_bench.backbones.base import Size
from slime_bench.backbones.ddpm import Ddpm, checkpoint
from slime_bench.backbones.features import joined, linear_alphas_cumprod, module_outputs, output_shapes
from slime_bench.backbones.load import DTYPES
from slime_bench.backbones.memory import images_within, keep_freed_memory
from slime_bench.errors import BackboneError
from slime_bench.places import onto

# diffusers' names inside a module -> guided-diffusion's
_RESNET: Final = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ATTENTION: Final = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_ENDS: Final = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_QKV: Final = {"to_q": 0, "to_k": 1, "to_v": 2}


class DdpmBackbone(Ddpm, nn.Module):
    """Frozen. The network computes in the precision of its weights; what goes in and comes out is float32.

    Raises:
        BackboneError: a checkpoint that is missing, cannot be read, or is of another architecture.
    """

    implementation: ClassVar[str | None] = None
    alphas_cumprod: Tensor

    def __init__(self, config: Ddpm.Config) -> None:
        super().__init__()
        keep_freed_memory()
        self.config = config
        self.describe(config)
        self.unet = load_unet(checkpoint(config), config)
        self.register_buffer("alphas_cumprod", linear_alphas_cumprod().float(), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DdpmBackbone:
        """Stays in evaluation mode: a frozen backbone has no dropout, whatever the trainer asks for."""
        return super().train(False)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """(3, S, S), S the side of the network's images, whatever the `size` of those given."""
        return 3, self.config.image_size, self.config.image_size

    def images_per_call(self) -> int:
        """How many images one call may hold within `memory_gb`, at least 1; there is no autoencoder to count."""
        budget, side = int(self.config.memory_gb * 1e9), self.config.image_size
        no_encoder = {"block_out_channels": [0]}
        return images_within(budget, no_encoder, self.unet.config, (side, side), self.unet.dtype.itemsize)

    def prepared(self, images: Tensor) -> Tensor:
        """2 x - 1 of the images at the network's size: float [B,3,H,W] in [0,1] -> float32 [B,3,S,S] in [-1,1].

        Resized by Pillow, bilinear with antialias and rounded to 8 bits, which is how the authors read images.
        """
        side = self.config.image_size
        if tuple(images.shape[-2:]) != (side, side):
            # torch's own antialias differs from Pillow's by 1 of 255, which is seen in the features' second digit.
            pixels = map(Image.fromarray, (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
            resized = np.stack([np.asarray(each.resize((side, side), Image.Resampling.BILINEAR)) for each in pixels])
            images = onto(torch.from_numpy(resized).permute(0, 3, 1, 2), images.device) / 255
        return images.float() * 2 - 1

    @torch.no_grad()
    def features(
        self, images: Tensor, timesteps: Tensor, draws: Tensor, layers: Sequence[str], text: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Hidden states of the U-Net for noised images, x_t = sqrt(abar_t) (2 x - 1) + sqrt(1 - abar_t) e, in calls
        that fit `memory_gb`; each pass ends after the last named module.

        Args:
            images: float [B,3,H,W] in [0,1]. timesteps: int64 [B]. draws: e, standard normal [B,3,S,S].
            layers: names of modules, such as `up_blocks.2.attentions.0`. text: ignored, the model has none.

        Returns:
            Name -> float32 [B,C,h_l,w_l], the module's output on its own grid.
        """
        count, made = self.images_per_call(), []
        for start in range(0, len(images), count):
            here = slice(start, start + count)
            noisy, steps = self.noised(self.prepared(images[here]), timesteps[here], draws[here]), timesteps[here]
            made.append(module_outputs(self.unet, layers, partial(self.unet, noisy.to(self.unet.dtype), steps)))
        return joined(made)

    def noised(self, prepared: Tensor, timesteps: Tensor, draws: Tensor) -> Tensor:
        """x_t, float32 [B,3,S,S], of prepared images [B,3,S,S]; see `features`."""
        keep = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return keep.sqrt() * prepared + (1 - keep).sqrt() * draws

    def feature_shapes(self, size: Size, layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(C, h_l, w_l) of `features`; nothing is computed.

        Raises:
            BackboneError: a module gives no map.
        """
        return output_shapes(self.unet, layers, (1, *self.latent_shape(size)))


def load_unet(path: Path, config: Ddpm.Config) -> Any:
    """The `UNet2DModel` of a configuration with the weights of a checkpoint, in `config.dtype`.

    Raises:
        BackboneError: a file that cannot be read, or of another architecture.
    """
    unet, tensors = _empty(config), read_checkpoint(path)
    _check(path, config, tensors)
    sources, state = _sources(unet, config), {}
    for name, empty in unet.state_dict().items():
        value, part = tensors[sources[name]], name.split(".")[-2]
        if part in _QKV:  # head by head q, k and v, not three blocks
            value = value.reshape(-1, 3, config.head_width, value[0].numel())[:, _QKV[part]]
        state[name] = value.reshape(empty.shape).to(DTYPES[config.dtype])
    unet.load_state_dict(state, assign=True)
    return unet


def tensor_shapes(config: Ddpm.Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a configuration's checkpoint."""
    unet, found = _empty(config), dict[str, tuple[int, ...]]()
    sources = _sources(unet, config)
    for name, empty in unet.state_dict().items():
        shape, source = tuple(empty.shape), sources[name]
        rows = 3 * shape[0] if ".qkv." in source else shape[0]
        along = (1,) if source.endswith((".qkv.weight", ".proj_out.weight")) else ()  # convolutions over one axis
        found[source] = (rows, *shape[1:], *along)
    return found


def _empty(config: Ddpm.Config) -> Any:
    """The network without memory for its weights."""
    from diffusers import UNet2DModel
    from diffusers.models.modeling_utils import no_init_weights

    attention = _attention(config)
    with torch.device("meta"), no_init_weights():
        return UNet2DModel(
            sample_size=config.image_size, in_channels=3, out_channels=6, layers_per_block=config.blocks,
            block_out_channels=[config.width * factor for factor in config.multipliers],
            down_block_types=["AttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attention],
            up_block_types=["AttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in reversed(attention)],
            downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
            attention_head_dim=config.head_width, flip_sin_to_cos=True, freq_shift=0, norm_eps=1e-5,
            # Without the second number the middle attention would have no normalisation.
            norm_num_groups=32, attn_norm_num_groups=32,
        )  # fmt: skip


def _attention(config: Ddpm.Config) -> list[bool]:
    """Whether each level has it."""
    return [level in config.attention_levels for level in range(len(config.multipliers))]


def _sources(unet: nn.Module, config: Ddpm.Config) -> dict[str, str]:
    """guided-diffusion's name of the tensor that each of diffusers' comes from."""
    theirs = dict(_modules(_attention(config), config.blocks))
    parts = {name: name.rpartition(".") for name in unet.state_dict()}
    return {name: f"{theirs[module]}.{kind}" for name, (module, _, kind) in parts.items()}


def _modules(attention: Sequence[bool], blocks: int) -> Iterator[tuple[str, str]]:
    """diffusers' name and guided-diffusion's of every module with weights.

    Args:
        attention: whether each level has it. blocks: residual blocks of a level.
    """
    levels = len(attention)

    def inside(ours: str, theirs: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
        return ((f"{ours}.{one}", f"{theirs}.{two}") for one, two in names.items())

    yield from _ENDS.items()
    place = 0
    for level, attends in enumerate(attention):
        for block in range(blocks):
            place += 1
            yield from inside(f"down_blocks.{level}.resnets.{block}", f"input_blocks.{place}.0", _RESNET)
            if attends:
                yield from inside(f"down_blocks.{level}.attentions.{block}", f"input_blocks.{place}.1", _ATTENTION)
        if level < levels - 1:
            place += 1
            yield from inside(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{place}.0", _RESNET)
    yield from inside("mid_block.resnets.0", "middle_block.0", _RESNET)
    yield from inside("mid_block.attentions.0", "middle_block.1", _ATTENTION)
    yield from inside("mid_block.resnets.1", "middle_block.2", _RESNET)
    for level, attends in enumerate(reversed(attention)):
        for block in range(blocks + 1):
            outer = f"output_blocks.{level * (blocks + 1) + block}"
            yield from inside(f"up_blocks.{level}.resnets.{block}", f"{outer}.0", _RESNET)
            if attends:
                yield from inside(f"up_blocks.{level}.attentions.{block}", f"{outer}.1", _ATTENTION)
        if level < levels - 1:
            yield from inside(f"up_blocks.{level}.upsamplers.0", f"{outer}.{1 + attends}", _RESNET)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; code in a pickle is never run.

    Raises:
        BackboneError: a torn file, a pickle with more than tensors, or no state dict.
    """

    def refused(what: str, found: str, remedy: str) -> BackboneError:
        expected = "a state dict: names with a tensor each, and nothing else"
        return BackboneError(f"the checkpoint {what}", path=path, found=found, expected=expected, remedy=remedy)

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = " ".join(str(error).partition("Please file an issue")[0].split())[-300:]
        remedy = "take the published file, or save the model's state_dict() alone, as .safetensors at best"
        raise refused("holds more than tensors and is not read", said, remedy) from error
    except Exception as error:  # torn zip archives, torn safetensors: each its own
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise refused("cannot be read", said, "download it again") from error
    items = found.items() if isinstance(found, dict) else [("all", found)]
    strange = [f"{key}: {type(value).__name__}" for key, value in items if not isinstance(value, Tensor)]
    if strange or not isinstance(found, dict):
        remedy = "save the state dict alone, e.g. torch.save(checkpoint['state_dict'], 'weights.pt')"
        raise refused("is no state dict", ", ".join(strange[:3]), remedy)
    return {str(name): value for name, value in found.items()}


def _check(path: Path, config: Ddpm.Config, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are missing, of another shape or of no use, as a BackboneError in the checkpoint's names."""
    expected, found = tensor_shapes(config), {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "of no use": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items() if found.get(name, shape) != shape
        ],
    }  # fmt: skip
    if any(wrong.values()):
        raise BackboneError(
            "the checkpoint is of another architecture", path=path,
            found=f"{len(found)} tensors; "
            + "; ".join(f"{len(names)} {what}, such as {names[0]}" for what, names in wrong.items() if names),
            expected=f"an unconditional ADM: width {config.width}, multipliers {config.multipliers}, "
            f"{config.blocks} blocks a level, attention on the levels {config.attention_levels}",
            remedy="choose the backbone file that goes with the checkpoint, or state its architecture: backbone.width, "
            "backbone.multipliers, backbone.blocks, backbone.attention_levels",
        )  # fmt: skip
