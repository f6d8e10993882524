"""Convert a released ALBEF checkpoint into a folder that `slime_bench.backbones.blip` loads.

    python -m data_prep.convert_albef --checkpoint refcoco.pth --out models/albef_refcoco

Written are config.json, model.safetensors (float32), the BERT vocabulary, conversion.json (what was used, what was
dropped and why) and sha256.json. The checkpoint is read as numbers only: no code in it is run. Checkpoints: see
github.com/salesforce/ALBEF. Vocabulary: vocab.txt of bert-base-uncased, from --vocab or the hub's local cache.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from data_prep.checkpoint import json_bytes, read_tensors, refuse_filled, write_model
from data_prep.commands import plain_parser, run
from slime_bench.backbones.load import blip_class, guarded
from slime_bench.errors import BackboneError
from slime_bench.paths import user_path

BERT: Final = ("google-bert/bert-base-uncased", "bert-base-uncased")
"""Where the hub keeps, or kept, the vocabulary."""

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES: Final = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]"}

TEXT_EPS: Final = 1e-12
VISION_EPS: Final = 1e-6

# ALBEF's names on the left, BLIP's on the right; source: section 9 of golden/infoscore/README.md.
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
    r"embeddings\.(word|position|token_type)_embeddings\.weight",
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
    (r"(?!(visual_encoder|text_encoder|itm_head)\.).*", "nothing that maps need"),
)
_TYPES: Final = "text_encoder.embeddings.token_type_embeddings.weight"
_POSITIONS: Final = "text_encoder.embeddings.position_embeddings.weight"


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    parser = plain_parser("convert_albef", __doc__)
    parser.add_argument("--checkpoint", type=user_path, required=True, help="the authors' .pth file")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the converted model; new or empty")
    parser.add_argument(
        "--vocab", type=user_path, help="vocab.txt of bert-base-uncased (default: the hub's local cache)"
    )
    parser.add_argument("--head-width", type=int, default=64, help="numbers per attention head (64 in ALBEF)")
    args = parser.parse_args(arguments)
    refuse_filled(args.out)
    made = convert(read_checkpoint(args.checkpoint))
    config = architecture(made.tensors, args.head_width)
    words = read_vocabulary(args.vocab or cached_vocabulary(), config["text_config"]["vocab_size"])
    config["text_config"] |= {f"{role}_token_id": words.index(token) for role, token in _ROLES.items()}
    check_network(made.tensors, config, args.checkpoint)
    length = config["text_config"]["max_position_embeddings"]
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": length}
    more = {"vocab.txt": ("\n".join(words) + "\n").encode(), "tokenizer_config.json": json_bytes(tokenizer)}
    said = {"used": made.used, "dropped": made.dropped}
    write_model(args.out, parser.prog, args.checkpoint, made.tensors, config, said, **more)
    print(f"{len(made.used)} tensors used, {len(made.dropped)} dropped (see {args.out / 'conversion.json'})")
    print(f"use it with backbone=albef backbone.weights={args.out.resolve()}")
    return 0


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, those under its key `model` where it has one; BackboneError as `read_tensors`, or
    without tensors."""
    remedy = "fetch the file again; of a model of your own, save the tensors alone: "
    tensors = read_tensors(path, "model", remedy + "torch.save({'model': model.state_dict()}, 'weights.pth')")
    if not tensors:
        raise _foreign(str(path), "no tensors, neither at the top nor under the key 'model'")
    return tensors


def check_network(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that do not fill the network which `config` describes, or of which some are left over."""
    from transformers import BlipConfig

    def empty() -> Any:
        with torch.device("meta"):
            return blip_class(config["fusion_layer"])(BlipConfig.from_dict({**config, "model_type": "blip"}))

    network = guarded("architecture", path, empty)
    guarded("checkpoint", path, lambda: network.load_state_dict(tensors, assign=True))


def cached_vocabulary() -> Path:
    """`vocab.txt` of BERT in the hub's local cache; a name where nothing lies if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    hits = (try_to_load_from_cache(name, "vocab.txt") for name in BERT)
    return Path(next((hit for hit in hits if isinstance(hit, str)), "vocab.txt"))


def read_vocabulary(path: Path, rows: int) -> list[str]:
    """The words of a `vocab.txt`, one per line, as many as the model has word embeddings. BackboneError: unreadable, of
    another length, without BERT's special tokens, or a word twice."""
    try:
        words = [word.removesuffix("\r") for word in path.read_bytes().decode().removesuffix("\n").split("\n")]
        found = f"{len(words)} lines, {len(set(words))} different; no {[t for t in _SPECIAL if t not in words]}"
    except (OSError, ValueError) as error:
        words, found = [], f"{type(error).__name__}: {error}"
    if len(words) != rows or len(set(words)) != rows or not set(_SPECIAL) <= set(words):
        raise BackboneError(
            "this vocabulary cannot be used",
            path=path,
            found=found,
            expected=f"{rows} different words, one per line, as many as the checkpoint has word embeddings, "
            f"{', '.join(_SPECIAL)} among them",
            remedy=f"hf download {BERT[0]} vocab.txt where there is a connection, or name that file with --vocab",
        )
    return words


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
    """Rename ALBEF's tensors; the first row of the token types joins every row of the text positions. BackboneError: a
    tensor of the two towers that ALBEF does not have, a name twice, or no text positions."""
    made = Conversion()
    types = torch.empty(0)
    for name, value in state.items():
        reason = next((why for pattern, why in _DROPPED if re.fullmatch(pattern, name)), None)
        new = None if reason else new_name(name)
        if new == _TYPES:
            types, made.used[name] = value[0].float(), f"{_POSITIONS} (row 0, added to every row)"
        elif new is not None and new not in made.tensors:
            made.tensors[new], made.used[name] = value.float().contiguous(), new
        elif reason:
            made.dropped[name] = reason
        else:
            raise _foreign(name, f"two tensors for {new}" if new else "a tensor that ALBEF does not have")
    positions = made.tensors.get(_POSITIONS)
    if positions is None or types.shape != positions.shape[1:]:
        raise _foreign(_POSITIONS, "no position or token type embeddings that go together")
    made.tensors[_POSITIONS] = positions + types
    return made


def new_name(name: str) -> str | None:
    """BLIP's name for a tensor of ALBEF's; None for one that has no place there."""
    tower, _, rest = name.partition(".")
    if tower == "visual_encoder":
        found = next((hit.expand(new) for pattern, new in _VISION if (hit := re.fullmatch(pattern, rest))), None)
        return found and f"vision_model.{found}"
    rest = rest.removeprefix("bert.")
    if tower == "text_encoder":
        return f"text_encoder.{rest}" if any(re.fullmatch(pattern, rest) for pattern in _TEXT) else None
    return name


def architecture(tensors: Mapping[str, Tensor], head_width: int) -> dict[str, Any]:
    """What `config.json` says: sizes read off the tensors.

    Args:
        tensors: under BLIP's names. head_width: numbers per attention head, which no tensor tells; 64 in ALBEF.

    Raises:
        BackboneError: tensors are missing, or shapes that are not ALBEF's.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != axes:
            raise _foreign(name, f"no tensor of {axes} axes: missing, or of another shape")
        return tuple(tensors[name].shape)

    def layers(prefix: str, suffix: str) -> set[int]:
        """Indices of the layers that have a tensor `<prefix>.<index>.<suffix>`."""
        hits = (re.fullmatch(rf"{prefix}\.(\d+)\.{suffix}", name) for name in tensors)
        return {int(hit[1]) for hit in hits if hit}

    patch = shape("vision_model.embeddings.patch_embedding.weight", 4)
    positions = shape("vision_model.embeddings.position_embedding", 3)
    vision = shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)
    words = shape("text_encoder.embeddings.word_embeddings.weight", 2)
    text = shape("text_encoder.encoder.layer.0.intermediate.dense.weight", 2)
    side = math.isqrt(max(0, positions[1] - 1))
    if side**2 != positions[1] - 1 or side == 0:
        raise _foreign("visual_encoder", f"{positions[1]} positions, which are no square and one")
    for name, width in (("visual_encoder", vision[1]), ("text_encoder", words[1])):
        if width % head_width:
            raise _foreign(name, f"a width of {width}, no multiple of {head_width}: see --head-width")
    depth = 1 + max(layers(r"text_encoder\.encoder\.layer", ".*"))
    fused = min(layers(r"text_encoder\.encoder\.layer", r"crossattention\..*"), default=depth)
    return {
        "architectures": ["AlbefBackbone"],
        "model_type": "albef",
        "fusion_layer": fused,
        "text_config": {
            "hidden_size": words[1],
            "encoder_hidden_size": shape(f"text_encoder.encoder.layer.{fused}.crossattention.self.key.weight", 2)[1],
            "intermediate_size": text[0],
            "num_hidden_layers": depth,
            "num_attention_heads": words[1] // head_width,
            "max_position_embeddings": shape(_POSITIONS, 2)[0],
            "vocab_size": words[0],
            "hidden_act": "gelu",
            "layer_norm_eps": TEXT_EPS,
        },
        "vision_config": {
            "hidden_size": vision[1],
            "intermediate_size": vision[0],
            "num_hidden_layers": 1 + max(layers(r"vision_model\.encoder\.layers", ".*")),
            "num_attention_heads": vision[1] // head_width,
            "image_size": side * patch[2],
            "patch_size": patch[2],
            "hidden_act": "gelu",
            "layer_norm_eps": VISION_EPS,
        },
    }


def _foreign(name: str, found: str) -> BackboneError:
    return BackboneError(
        "this checkpoint does not hold an ALBEF",
        path=name,
        found=found,
        expected="a vision transformer (visual_encoder), a BERT whose later layers look at the image (text_encoder) and"
        " itm_head",
        remedy="take ALBEF.pth, mscoco.pth, flickr30k.pth or refcoco.pth of github.com/salesforce/ALBEF",
    )


if __name__ == "__main__":
    sys.exit(run(main))
