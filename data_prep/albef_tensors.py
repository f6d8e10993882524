"""From ALBEF's tensors to those of BLIP's stock modules: names, the one sum, and the architecture that the shapes tell.

Source: ../shared/golden/infoscore/README.md, section 9. Names of ALBEF on the left, of BLIP on the right of the tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from slime_bench.errors import BackboneError

TEXT_EPS: Final = 1e-12
VISION_EPS: Final = 1e-6

_VISION: Final = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"encoder.layers.\1.mlp.fc\2.\3"),
    (r"norm\.(weight|bias)", r"post_layernorm.\1"),
)
_TEXT: Final = (  # equal names
    r"embeddings\.(word|position)_embeddings\.weight",
    r"embeddings\.LayerNorm\.(weight|bias)",
    r"encoder\.layer\.\d+\.(attention|crossattention)\.self\.(query|key|value)\.(weight|bias)",
    r"encoder\.layer\.\d+\.(attention\.|crossattention\.|)output\.(dense|LayerNorm)\.(weight|bias)",
    r"encoder\.layer\.\d+\.intermediate\.dense\.(weight|bias)",
)
_DROPPED: Final = (
    (r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..*", "momentum copy"),
    (r"(image|text|idx)_queue|queue_ptr|ptr_queue", "queue of contrastive training"),
    (r"(vision_proj|text_proj)\..*", "projection of the contrastive loss, which maps do not need"),
    (r"temp", "temperature of the contrastive loss"),
    (r"text_encoder\.cls\..*", "head of masked language modelling"),
    (r"text_encoder\.(bert\.)?embeddings\.position_ids", "0, 1, 2, ...: made when the model is built"),
    (r"text_encoder\.(bert\.)?pooler\..*", "pooling that ALBEF does not use"),
)
_TYPES: Final = "embeddings.token_type_embeddings.weight"
_POSITIONS: Final = "embeddings.position_embeddings.weight"


@dataclass
class Conversion:
    """Tensors under BLIP's names, and what became of every tensor of the checkpoint.

    Attributes:
        tensors: float32, by BLIP's name. used: BLIP's name by ALBEF's. dropped: reason by ALBEF's name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def convert(state: Mapping[str, Tensor]) -> Conversion:
    """Rename ALBEF's tensors; the first row of the token types joins every row of the text positions.

    Raises:
        BackboneError: a tensor of the two towers that ALBEF does not have, a name twice, or no text positions.
    """
    made = Conversion()
    types: Tensor | None = None
    for name, value in state.items():
        reason = next((why for pattern, why in _DROPPED if re.fullmatch(pattern, name)), None)
        new = None if reason else new_name(name)
        if new == f"text_encoder.{_TYPES}":
            types, made.used[name] = value[0].float(), f"text_encoder.{_POSITIONS} (row 0, added to every row)"
        elif new is not None:
            if new in made.tensors:
                raise _foreign(name, f"two tensors for {new}")
            made.tensors[new], made.used[name] = value.float().contiguous(), new
        elif reason or not name.startswith(("visual_encoder.", "text_encoder.")):
            made.dropped[name] = reason or "nothing that maps need"
        else:
            raise _foreign(name, "a tensor that ALBEF does not have")
    positions = made.tensors.get(f"text_encoder.{_POSITIONS}")
    if types is None or positions is None or types.shape != positions.shape[1:]:
        raise _foreign("text_encoder.embeddings", "no position or token type embeddings that go together")
    made.tensors[f"text_encoder.{_POSITIONS}"] = positions + types
    return made


def new_name(name: str) -> str | None:
    """BLIP's name for a tensor of ALBEF's; None for one that has no place there."""
    if name.startswith("visual_encoder."):
        for pattern, new in _VISION:
            if found := re.fullmatch(pattern, name.removeprefix("visual_encoder.")):
                return f"vision_model.{found.expand(new)}"
    if name.startswith("text_encoder."):
        rest = name.removeprefix("text_encoder.").removeprefix("bert.")
        if rest == _TYPES or any(re.fullmatch(pattern, rest) for pattern in _TEXT):
            return f"text_encoder.{rest}"
    return name if name in ("itm_head.weight", "itm_head.bias") else None


def architecture(tensors: Mapping[str, Tensor], head_width: int) -> dict[str, Any]:
    """What `config.json` says: sizes read off the tensors.

    Args:
        tensors: under BLIP's names. head_width: numbers per attention head, which no tensor tells; 64 in ALBEF.

    Raises:
        BackboneError: tensors are missing, or shapes that are not ALBEF's.
    """
    patch = _shape(tensors, "vision_model.embeddings.patch_embedding.weight", 4)
    positions = _shape(tensors, "vision_model.embeddings.position_embedding", 3)
    vision = _shape(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)
    words = _shape(tensors, "text_encoder.embeddings.word_embeddings.weight", 2)
    text = _shape(tensors, "text_encoder.encoder.layer.0.intermediate.dense.weight", 2)
    side = math.isqrt(max(0, positions[1] - 1))
    if side**2 != positions[1] - 1 or side == 0 or patch[2] != patch[3]:
        raise _foreign("visual_encoder", f"{positions[1]} positions and patches of {patch[2]}x{patch[3]} pixels")
    for name, width in (("visual_encoder", vision[1]), ("text_encoder", words[1])):
        if width % head_width:
            raise _foreign(name, f"a width of {width}, no multiple of {head_width}: see --head-width")
    layers = _count(tensors, "text_encoder.encoder.layer.")
    fused = _fused(tensors, layers)
    image_width = _shape(tensors, f"text_encoder.encoder.layer.{fused}.crossattention.self.key.weight", 2)[1]
    return {
        "architectures": ["AlbefBackbone"],
        "model_type": "albef",
        "fusion_layer": fused,
        "text_config": {
            "hidden_size": words[1],
            "encoder_hidden_size": image_width,
            "intermediate_size": text[0],
            "num_hidden_layers": layers,
            "num_attention_heads": words[1] // head_width,
            "max_position_embeddings": _shape(tensors, f"text_encoder.{_POSITIONS}", 2)[0],
            "vocab_size": words[0],
            "hidden_act": "gelu",
            "layer_norm_eps": TEXT_EPS,
        },
        "vision_config": {
            "hidden_size": vision[1],
            "intermediate_size": vision[0],
            "num_hidden_layers": _count(tensors, "vision_model.encoder.layers."),
            "num_attention_heads": vision[1] // head_width,
            "image_size": side * patch[2],
            "patch_size": patch[2],
            "hidden_act": "gelu",
            "layer_norm_eps": VISION_EPS,
        },
    }


def _fused(tensors: Mapping[str, Tensor], layers: int) -> int:
    """Index of the first text layer with cross-attention, which all later ones have too."""
    found = {int(hit[1]) for name in tensors if (hit := re.match(r".*\.layer\.(\d+)\.crossattention\.", name))}
    first = min(found, default=layers)
    if not found or found != set(range(first, layers)):
        raise _foreign("text_encoder", f"cross-attention in layers {sorted(found)} of {layers}")
    return first


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != axes:
        found = f"of {tensors[name].ndim} axes" if name in tensors else "missing"
        raise _foreign(name, f"{found}; expected {axes} axes")
    return tuple(tensors[name].shape)


def _foreign(name: str, found: str) -> BackboneError:
    return BackboneError(
        "this checkpoint does not hold an ALBEF",
        path=name,
        found=found,
        expected="a vision transformer (visual_encoder), a BERT whose later layers look at the image (text_encoder) and"
        " itm_head",
        remedy="take ALBEF.pth, mscoco.pth, flickr30k.pth or refcoco.pth of github.com/salesforce/ALBEF",
    )
