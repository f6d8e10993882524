"""The files of a Stable Diffusion folder: which are there, which are loaded, which are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from slime_bench.errors import BackboneError

RESTORE: Final = "restore the files (git checkout, reinstall, or download again)"

CONFIGS: Final[dict[str, str]] = {
    "vae": "config.json",
    "unet": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""The parts of a Stable Diffusion folder, and the file that describes each."""

NETWORKS: Final = ("vae", "unet", "text_encoder")
"""The parts with weights."""

PICKLED: Final = (".ckpt", ".pth", ".pt", ".bin", ".pkl")
"""Suffixes of files that run code when they are read."""

HALF: Final = "fp16"
"""The hub's word for files that hold a half-precision copy: `model.fp16.safetensors`."""


def weight_files(folder: Path, part: str) -> tuple[list[Path], str | None]:
    """The safetensors files that hold a network's weights, and their variant.

    Returns:
        The full-precision files and None; where there are none, the half-precision ones and `fp16`; ([], None) where
        there are neither. Copies without weight averaging (`non_ema`) never count.
    """
    found = [path for path in sorted((folder / part).glob("*.safetensors")) if "non_ema" not in path.name]
    half = [path for path in found if f".{HALF}" in path.name]
    full = [path for path in found if path not in half]
    return (full, None) if full or not half else (half, HALF)


def description_files(folder: Path) -> list[Path]:
    """The JSON and text files of the parts: configurations and vocabulary."""
    found = [path for part in CONFIGS for suffix in ("json", "txt") for path in (folder / part).glob(f"*.{suffix}")]
    return sorted(found)


def vocabulary_files(folder: Path) -> list[Path]:
    """The files in a tokenizer's folder that hold its vocabulary; none where it is not complete."""
    for names in (["tokenizer.json"], ["merges.txt", "vocab.json"]):
        files = [folder / name for name in names]
        if all(path.is_file() for path in files):
            return files
    return []


def model_files(folder: Path) -> list[Path]:
    """Every file of the folder that is loaded; others beside them (safety checker, previews) decide nothing."""
    weights = [path for part in NETWORKS for path in weight_files(folder, part)[0]]
    return sorted([*description_files(folder), *weights])


def is_complete(folder: Path) -> bool:
    """Whether nothing is missing from the folder; see `check_complete`."""
    try:
        check_complete(folder)
    except BackboneError:
        return False
    return True


def check_complete(folder: Path, weights: bool = True) -> None:
    """Refuse a folder in which a file is missing that will be needed.

    Args:
        weights: False for a folder that holds configurations alone, perhaps without a vocabulary.

    Raises:
        BackboneError: a part, its configuration or its weights are not there.
    """
    absent = [part for part in CONFIGS if not (folder / part).is_dir()]
    if absent:
        raise BackboneError(
            "this folder does not hold a Stable Diffusion model",
            path=folder,
            found=f"no {', '.join(absent)}",
            expected=f"the folders {', '.join(CONFIGS)}",
            remedy="give the folder that holds model_index.json",
        )
    for part, name in CONFIGS.items():
        if not (folder / part / name).is_file():
            raise _missing(folder / part, f"no {name}", name)
    if not weights:
        return
    if not vocabulary_files(folder / "tokenizer"):
        # The library would go on with a vocabulary of three tokens.
        raise _missing(folder / "tokenizer", "no vocabulary", "tokenizer.json, or vocab.json and merges.txt")
    for part in NETWORKS:
        if not weight_files(folder, part)[0]:
            pickled = [path.name for path in sorted((folder / part).iterdir()) if path.suffix in PICKLED]
            raise _missing(
                folder / part,
                f"only pickled weights: {', '.join(pickled)}" if pickled else "no *.safetensors",
                "weights as safetensors, which cannot run code when they are read",
            )


def _missing(path: Path, found: str, expected: str) -> BackboneError:
    return BackboneError(
        f"a file of the backbone's {path.name} is missing",
        path=path,
        found=found,
        expected=expected,
        remedy=RESTORE,
    )
