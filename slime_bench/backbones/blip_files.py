"""The flat folder of a vision-language model: where it lies, what is in it, what is missing. Offline first.

One configuration, one set of weights and one vocabulary side by side, as the hub stores them. Stable Diffusion's
folders of folders are the business of `locate` and `files`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Protocol

from slime_bench.backbones.files import PICKLED, RESTORE
from slime_bench.backbones.hashes import digest
from slime_bench.backbones.locate import ASSETS, HUB_ID, incomplete, no_answer, not_downloaded
from slime_bench.errors import BackboneError

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PREPROCESSOR: Final = "preprocessor_config.json"
VOCABULARIES: Final = ("vocab.txt", "tokenizer.json")
TOKENIZER: Final = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_WANTED: Final = ("*.json", "vocab.txt", "model*.safetensors")
_UNWANTED: Final = ("*.fp16.*", "*.bf16.*")


PUT_IN_A_FOLDER: Final = "put the model in a folder and set backbone.weights=<folder>"


class Settings(Protocol):
    """What a configuration says of where the model lies."""

    weights: str
    revision: str | None


def find_folder(settings: Settings, remedy: str = PUT_IN_A_FOLDER) -> Path:
    """The folder of a bundled name, a path or a hub id; everything that will be loaded is in it.

    Args:
        remedy: what to do where nothing of that name is here.

    Raises:
        BackboneError: nothing of that name here, a file instead of a folder, something missing, pickled weights, or a
            hub that does not answer.
    """
    name = settings.weights
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    for folder in (ASSETS / name, path):
        if name and folder.is_dir():
            check_complete(folder)
            return folder.resolve()
    if path.suffix in PICKLED:
        raise pickled(path.parent, [path.name])
    if path.exists() or path.suffix == ".safetensors" or not HUB_ID.fullmatch(name) or name.startswith("."):
        raise BackboneError(
            "no such backbone",
            path=name or "backbone.weights",
            found="a file" if path.is_file() else None,
            expected=f"a folder with {CONFIG}, a bundled name or a hub id",
            remedy=remedy,
        )
    return _from_hub(name, settings.revision)


def check_complete(folder: Path) -> None:
    """Refuse a folder in which a file is missing that will be needed.

    Raises:
        BackboneError: no configuration, weights or vocabulary, or weights as a pickle only.
    """
    if not (folder / CONFIG).is_file():
        raise BackboneError(
            "this folder does not hold a vision-language model",
            path=folder,
            found=f"no {CONFIG}",
            expected=f"{CONFIG}, {WEIGHTS} and {' or '.join(VOCABULARIES)}",
            remedy="give the folder that holds these files",
        )
    absent = [path.name for path in weight_files(folder) if not path.is_file()]
    if absent:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
        if pickles:
            raise pickled(folder, pickles)
        raise _missing(folder, f"no {absent[0]}", "weights as safetensors, which cannot run code when they are read")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        # The library would go on with a vocabulary of five tokens.
        raise _missing(folder, "no vocabulary", " or ".join(VOCABULARIES))


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the files that its index lists where the weights are spread over several."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise unreadable(folder / INDEX, "no weight_map")
    return [folder / Path(str(name)).name for name in sorted(set(listed.values()))]


def model_files(folder: Path) -> list[Path]:
    """Every file of the folder that is loaded; others beside them decide nothing."""
    described = [folder / name for name in (CONFIG, PREPROCESSOR, *TOKENIZER)]
    return [path for path in [*described, *weight_files(folder)] if path.is_file()]


def fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of the files that are loaded; large ones are remembered, see `hashes`."""
    return digest({path.name: path for path in model_files(folder)})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        BackboneError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise unreadable(path, "no mapping")
    return content


def unreadable(path: Path, found: str) -> BackboneError:
    """The error for a configuration file that does not say what it should."""
    return BackboneError(
        "a configuration file of the backbone cannot be used",
        path=path,
        found=found,
        expected="the JSON files of a vision-language model",
        remedy=RESTORE,
    )


def pickled(folder: Path, names: list[str]) -> BackboneError:
    """The error for weights that would run code when they are read, with the command that converts them."""
    file = folder / ("pytorch_model.bin" if "pytorch_model.bin" in names else names[0])
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"w = torch.load({str(file)!r}, map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {str(folder / WEIGHTS)!r})"
    )
    return BackboneError(
        "pickled checkpoints are not read",
        path=folder,
        found=f"only pickled weights: {', '.join(names)}",
        expected=f"{WEIGHTS}: reading a pickle runs whatever code it holds",
        remedy="take a revision with safetensors, or convert the file once, without running its code (an ALBEF .pth: "
        f'python -m data_prep.convert_albef):\n    python -c "{code}"',
    )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, CONFIG, revision=revision)
    if isinstance(cached, str):  # otherwise None, or a sign that the hub has no such file
        folder = Path(cached).parent
        try:
            check_complete(folder)
        except BackboneError:
            pass  # a download that was cut short: it goes on below
        else:
            return folder
    fetch = f"hf download {name}{f' --revision {revision}' if revision else ''}"
    wanted = " ".join(f'--include "{each}"' for each in _WANTED)
    remedy = (
        "fetch it where there is a connection:\n"
        f"    {fetch} {wanted}\n"
        "  a commit without safetensors: set backbone.revision to another one; or\n"
        f'    {fetch} --include "*.json" --include vocab.txt --include pytorch_model.bin --local-dir <folder>\n'
        "  and backbone.weights=<folder>: the next message has the command that converts it"
    )
    silent = no_answer(name, revision)
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
                local_files_only=silent is not None,
            )
        )
    except Exception as error:  # the hub client raises a dozen kinds: offline, not found, gated, timed out
        raise not_downloaded(name, silent, error, remedy) from error
    try:
        check_complete(folder)
    except BackboneError as error:
        raise incomplete(error, remedy) from error
    return folder


def _missing(folder: Path, found: str, expected: str) -> BackboneError:
    return BackboneError(
        "a file of the backbone is missing", path=folder, found=found, expected=expected, remedy=RESTORE
    )
