"""Single-file checkpoints, as the original Stable Diffusion code writes them, through the library's own conversion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_AVERAGED = "model_ema."


def load_networks(file: Path, configs: Path, dtype: torch.dtype) -> dict[str, Any]:
    """`unet`, `vae` and `text_encoder` of a checkpoint, in `dtype`.

    Args:
        file: a `.safetensors` checkpoint of Stable Diffusion 1.x or 2.x. Where it holds averaged weights beside the
            trained ones, the U-Net's are the averaged ones, as in the hub's folders.
        configs: folder with the parts' configurations; nothing is asked of the hub.

    Raises:
        ValueError: tensors are missing. RuntimeError: tensors of another shape. Others: whatever the libraries raise.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from safetensors.torch import load_file
    from transformers import CLIPTextModel

    checkpoint = load_file(file)
    averaged = any(name.startswith(_AVERAGED) for name in checkpoint)
    networks: dict[str, Any] = {}
    for part, kind, extra in (
        ("unet", UNet2DConditionModel, {"extract_ema": averaged}),
        ("vae", AutoencoderKL, {}),
    ):
        with _built_in(dtype):
            networks[part] = _strict(kind).from_single_file(
                checkpoint,
                config=str(configs),
                subfolder=part,
                local_files_only=True,
                low_cpu_mem_usage=False,
                torch_dtype=dtype,
                **extra,
            )
    with _built_in(dtype):
        networks["text_encoder"] = create_diffusers_clip_model_from_ldm(
            _strict(CLIPTextModel),
            checkpoint,
            config=str(configs),
            subfolder="text_encoder",
            local_files_only=True,
            torch_dtype=dtype,
        )
    for part, network in networks.items():
        left = [name for name, value in network.named_parameters() if value.is_meta]
        if left:  # where the library loads through `accelerate`, it passes by `load_state_dict`
            raise _absent(part, left)
    return networks


def _strict(kind: Any) -> Any:
    """The class `kind`, but with an error for tensors that a checkpoint lacks; the library would leave them as made."""

    class Strict(kind):
        def load_state_dict(self, state_dict: Any, strict: bool = True, **settings: Any) -> Any:
            outcome = super().load_state_dict(state_dict, strict=False, **settings)
            if outcome.missing_keys:
                raise _absent(kind.__name__, outcome.missing_keys)
            return outcome

    Strict.__name__ = Strict.__qualname__ = kind.__name__  # by which the library knows its classes
    return Strict


def _absent(part: str, names: list[str]) -> ValueError:
    return ValueError(f"{part}: {len(names)} tensors are missing, such as {min(names)}")


@contextmanager
def _built_in(dtype: torch.dtype) -> Iterator[None]:
    """Make networks in `dtype` and without their random start: no float32 copy, and seconds instead of minutes."""
    from diffusers.models.modeling_utils import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            yield
    finally:
        torch.set_default_dtype(before)
