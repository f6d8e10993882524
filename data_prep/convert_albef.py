"""Convert a released ALBEF checkpoint into a folder that `slime_bench.backbones.blip` loads.

    python -m data_prep.convert_albef --checkpoint refcoco.pth --out models/albef_refcoco

Written are config.json, model.safetensors (float32), the BERT vocabulary, conversion.json (what was used, what was
dropped and why) and sha256.json. The checkpoint is read as numbers only: no code in it is run. Checkpoints: see
github.com/salesforce/ALBEF. Vocabulary: vocab.txt of bert-base-uncased, from --vocab or the hub's local cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from data_prep.albef_tensors import Conversion, architecture, convert
from data_prep.commands import run
from slime_bench.backbones.hashes import sha256
from slime_bench.backbones.load import check_tensors, empty_blip, guarded, trim_to
from slime_bench.errors import BackboneError, StorageError
from slime_bench.storage import ordered, write_atomic

BERT: Final = ("google-bert/bert-base-uncased", "bert-base-uncased")
"""Where the hub keeps, or kept, the vocabulary."""

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES: Final = {"pad": "PAD", "bos": "CLS", "eos": "SEP", "sep": "SEP"}


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    args = _parse(arguments)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise StorageError(
            "the folder for the converted model is not empty",
            path=args.out,
            remedy="name a new folder with --out, or remove this one",
        )
    made = convert(read_checkpoint(args.checkpoint))
    config = architecture(made.tensors, args.head_width)
    words = read_vocabulary(args.vocab or find_vocabulary(), config["text_config"]["vocab_size"])
    config["text_config"] |= {f"{role}_token_id": words.index(f"[{token}]") for role, token in _ROLES.items()}
    check_network(made, config, args.checkpoint)
    write(args.out, made, config, words, args.checkpoint)
    print(f"{len(made.used)} tensors used, {len(made.dropped)} dropped (see {args.out / 'conversion.json'})")
    print(f"use it with backbone=albef backbone.weights={args.out.resolve()}")
    return 0


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth` file, those under its key `model` where it has one; objects other than numbers, texts and
    their containers are refused unread.

    Raises:
        BackboneError: no such file, a torn one, one that asks for code to be run, or one without tensors.
    """
    if not path.is_file():
        raise BackboneError("no such checkpoint", path=path, remedy="give the .pth file with --checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn archive, a pickle that names a class, a file of another kind
        raise BackboneError(
            "the checkpoint cannot be read safely",
            path=path,
            found=_refusal(path, error),
            expected="tensors, numbers and texts only: anything else in a pickle can run code when it is read",
            remedy="fetch the file again; of a model of your own, save the tensors alone: "
            "torch.save({'model': model.state_dict()}, 'weights.pth')",
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(name): each for name, each in items if isinstance(each, torch.Tensor)}
    if not tensors:
        raise BackboneError(
            "the checkpoint holds no tensors",
            path=path,
            found=f"keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else type(content),
            expected="a mapping of names to tensors, or one under the key 'model'",
            remedy="take a checkpoint of github.com/salesforce/ALBEF",
        )
    return tensors


def _refusal(path: Path, error: Exception) -> str:
    """Which code the file asks for, or what the reader stumbled over; torch's own message advises to run it."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # torn, or of a format that has no list
        wanted = []
    if wanted:
        return f"it asks for {', '.join(wanted)}"
    named = re.search(r"Unsupported [^\n]*?(?= was not| by default|\n|$)", str(error))
    return f"{type(error).__name__}: {named[0] if named else (str(error).splitlines() or [''])[0]}"[:300]


def check_network(made: Conversion, config: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that do not fill the network which `config` describes, and leave out none of them.

    Raises:
        BackboneError: tensors that are missing, of another shape or left over, or numbers that are not finite.
    """
    from transformers import BlipConfig

    network = guarded("architecture", path, lambda: empty_blip(BlipConfig.from_dict({**config, "model_type": "blip"})))
    trim_to(config["fusion_layer"])(network)
    expected = network.state_dict()
    check_tensors(made.tensors, expected, path)
    wrong = [f"{name} is left over" for name in made.tensors if name not in expected]
    wrong += [f"{name} is not finite" for name, each in made.tensors.items() if not torch.isfinite(each).all()]
    if wrong:
        raise BackboneError(
            "the checkpoint's tensors cannot be used",
            path=path,
            found=f"{len(wrong)} of them, such as {wrong[0]}",
            remedy="fetch the file again",
        )


def find_vocabulary() -> Path:
    """`vocab.txt` of BERT in the hub's local cache.

    Raises:
        BackboneError: it is not there.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in BERT:
        if isinstance(cached := try_to_load_from_cache(name, "vocab.txt"), str):
            return Path(cached)
    raise BackboneError(
        "the BERT vocabulary is not here",
        path="--vocab",
        expected=f"vocab.txt of {BERT[0]}, which ALBEF was trained with",
        remedy=f"hf download {BERT[0]} vocab.txt where there is a connection, or name the file with --vocab",
    )


def read_vocabulary(path: Path, rows: int) -> list[str]:
    """The words of a `vocab.txt`, one per line, as many as the model has word embeddings.

    Raises:
        BackboneError: unreadable, of another length, without BERT's special tokens, or a word twice.
    """
    try:
        words = path.read_bytes().decode().removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise _vocabulary(path, f"{type(error).__name__}: {error}", "a text file, one word per line") from error
    words = [word.removesuffix("\r") for word in words]
    if len(words) != rows:
        raise _vocabulary(path, f"{len(words)} lines", f"{rows}, as many as the checkpoint has word embeddings")
    absent = [token for token in _SPECIAL if token not in words]
    if absent or len(set(words)) != len(words):
        found = f"no {absent[0]}" if absent else "a word twice"
        raise _vocabulary(path, found, f"different words, {', '.join(_SPECIAL)} among them")
    return words


def write(out: Path, made: Conversion, config: Mapping[str, Any], words: list[str], checkpoint: Path) -> None:
    """The folder; its `config.json`, without which it is no model, comes last.

    Raises:
        StorageError: a file cannot be written.
    """
    from safetensors.torch import save

    tokenizer = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": config["text_config"]["max_position_embeddings"],
    }
    manifest = {
        "made_by": "python -m data_prep.convert_albef",
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint),
        "used": made.used,
        "dropped": made.dropped,
    }
    files = {
        "model.safetensors": ordered(save(made.tensors)),
        "vocab.txt": ("\n".join(words) + "\n").encode(),
        "tokenizer_config.json": _json(tokenizer),
        "conversion.json": _json(manifest),
        "config.json": _json(config),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    last = files.pop("config.json")
    for name, content in {**files, "sha256.json": _json(hashes), "config.json": last}.items():
        write_atomic(out / name, content)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _vocabulary(path: Path, found: str, expected: str) -> BackboneError:
    return BackboneError(
        "this vocabulary cannot be used",
        path=path,
        found=found,
        expected=expected,
        remedy="take vocab.txt of bert-base-uncased",
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.convert_albef",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="the authors' .pth file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the converted model; new or empty")
    parser.add_argument("--vocab", type=Path, help="vocab.txt of bert-base-uncased (default: the hub's local cache)")
    parser.add_argument("--head-width", type=int, default=64, help="numbers per attention head (64 in ALBEF)")
    args = parser.parse_args(arguments)
    if args.head_width < 1:
        parser.error("--head-width must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(run(main))
