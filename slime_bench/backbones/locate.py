"""Find a backbone's weights: a bundled asset, a folder, one file, or the hub's local cache. Offline first."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from slime_bench.backbones.files import (
    CONFIGS,
    PICKLED,
    check_complete,
    is_complete,
    model_files,
    vocabulary_files,
)
from slime_bench.backbones.hashes import digest, sha256
from slime_bench.errors import BackboneError

ASSETS: Final = Path(__file__).resolve().parent.parent / "assets"
SD_CONFIGS: Final = "sd_configs"
"""Folder of `ASSETS` with the configurations that go with single-file checkpoints."""
CLIP_VOCABULARY: Final = "clip_vocabulary"
"""Folder of `ASSETS` with the vocabulary of CLIP's text encoders."""

_RESTORE = "restore it: git checkout, or reinstall slime-bench"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The parts' full-precision weights; not the single-file checkpoints and half-precision copies beside them.
_WANTED = ("model_index.json", *(f"{part}/*.{kind}" for part in CONFIGS for kind in ("json", "txt", "safetensors")))
_UNWANTED = ("*.fp16.*", "*non_ema*")


class Settings(Protocol):
    """What a backbone's configuration says of where it lies."""

    weights: str
    revision: str | None
    single_file_config: str | None


@dataclass(frozen=True)
class Source:
    """Where a backbone lies.

    Attributes:
        weights: a folder in the Stable Diffusion layout, or one `.safetensors` file.
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


def source(settings: Settings) -> Source:
    """Where the backbone of a configuration lies; everything that it needs is there.

    Raises:
        BackboneError: something is missing, or a single file comes without a word on its architecture.
    """
    weights = locate(settings.weights, settings.revision)
    if weights.is_dir():
        check_complete(weights)
        return Source(weights, weights)
    bundled_configs = sorted(path.name for path in (ASSETS / SD_CONFIGS).glob("*") if path.is_dir())
    name = settings.single_file_config
    if name is None:
        raise BackboneError(
            "a single-file checkpoint does not say which architecture it holds",
            path="backbone.single_file_config",
            found="null",
            expected=f"one of {', '.join(bundled_configs)}, or a folder with the parts' configurations",
            remedy="e.g. backbone.single_file_config=sd15 for a Stable Diffusion 1.x",
        )
    configs = ASSETS / SD_CONFIGS / name if name in bundled_configs else locate(name, weights=False)
    if configs.is_file():
        raise BackboneError(
            "this is no folder of configurations",
            path="backbone.single_file_config",
            found=str(configs),
            expected=f"one of {', '.join(bundled_configs)}, or a folder",
            remedy="name the folder that holds unet/config.json",
        )
    check_complete(configs, weights=False)
    return Source(weights, configs)


def locate(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """Folder or file of the weights named by `name`.

    Args:
        name: of a folder in `slime_bench/assets`, path of a folder or of a `.safetensors` file, or hub id `owner/name`.
        revision: commit of a hub id.
        weights: False where configurations are enough.

    Raises:
        BackboneError: nothing of that name here, a pickled file, or the hub does not answer.
    """
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    for folder in (ASSETS / name, path):
        if folder.is_dir():
            return folder.resolve()
    if path.suffix in PICKLED:
        raise BackboneError(
            "pickled checkpoints are not read",
            path=path,
            found=f"a {path.suffix} file",
            expected="a .safetensors file: reading a pickle runs whatever code it holds",
            remedy="take the .safetensors file of the same model, or convert it once: "
            "torch.load(..., weights_only=True), then safetensors.torch.save_file",
        )
    if path.is_file() and path.suffix == ".safetensors":
        return path.resolve()
    remedy = f"put the model in a folder and set backbone.weights=<folder>; bundled: {sorted(bundled())}"
    if path.suffix == ".safetensors" or path.is_file() or not HUB_ID.fullmatch(name) or name.startswith("."):
        raise BackboneError(
            "no such backbone",
            path=name,
            expected="a folder, a .safetensors file, a bundled name or a hub id",
            remedy=remedy,
        )
    return _from_hub(name, revision, weights, remedy)


def fetch_command(name: str, revision: str | None = None) -> str:
    """The command that puts a model of the hub into its local cache, where it is found without a network."""
    words = ["hf", "download", name, *(["--revision", revision] if revision else [])]
    words += [f'--include "{each}"' for each in _WANTED] + [f'--exclude "{each}"' for each in _UNWANTED]
    return " ".join(words)


def _from_hub(name: str, revision: str | None, weights: bool, remedy: str) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "unet/config.json", revision=revision)
    if isinstance(cached, str):  # otherwise None, or a sign that the hub has no such file
        folder = Path(cached).parent.parent
        if not weights or is_complete(folder):
            return folder
    wanted = [each for each in _WANTED if weights or not each.endswith(".safetensors")]
    remedy = (
        "fetch it where there is a connection (a gated model also needs HF_TOKEN):\n"
        f"    {fetch_command(name, revision)}\n"
        f"  another repository has other commits: set backbone.revision with backbone.weights; or {remedy}"
    )
    silent = no_answer(name, revision)
    offline = silent is not None
    try:
        for unwanted in (_UNWANTED, _UNWANTED[1:]):  # perhaps the half-precision copies are all there is
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=wanted,
                    ignore_patterns=list(unwanted),
                    local_files_only=offline,
                )
            )
            if not weights or is_complete(folder):
                break
    except Exception as error:  # the hub client raises a dozen kinds: offline, not found, gated, timed out
        raise not_downloaded(name, silent, error, remedy) from error
    try:
        check_complete(folder, weights)
    except BackboneError as error:  # a download that was cut short, or a repository of another kind
        raise incomplete(error, remedy) from error
    return folder


def not_downloaded(name: str, silent: str | None, error: Exception, remedy: str) -> BackboneError:
    """The error for a model of the hub that is not here.

    Args:
        silent: why the hub does not answer, None where it does. error: of the download.
    """
    return BackboneError(
        "the backbone is neither here nor could it be downloaded",
        path=name,
        found="; ".join([*([silent] if silent else []), brief(error)]),
        expected="a folder, a file in the hub's local cache, or access to the hub",
        remedy=remedy,
    )


def incomplete(error: BackboneError, remedy: str) -> BackboneError:
    """The error of a check of completeness, with what to do about a model of the hub."""
    return BackboneError(error.summary, path=error.path, found=error.found, expected=error.expected, remedy=remedy)


def no_answer(name: str, revision: str | None) -> str | None:
    """Why the hub does not answer, or None where it does: asked once, where a download would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:
        return brief(error)
    return None


def brief(error: Exception) -> str:
    """An exception's kind and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def bundled() -> list[str]:
    """Names of the backbones that come with the package."""
    return [folder.name for folder in ASSETS.glob("*") if (folder / "model_index.json").is_file()]


def fingerprint(place: Source | Path) -> str:
    """sha256 over the relative names and contents of the files that are loaded from a source or folder.

    Large files are hashed too, and remembered: see `slime_bench.backbones.hashes.sha256`.
    """
    place = Source(place, place) if isinstance(place, Path) else place
    files = model_files(place.configs)
    named = {path.relative_to(place.configs).as_posix(): path for path in files}
    if place.is_file:
        named = {name: path for name, path in named.items() if path.suffix != ".safetensors"}
        named |= {f"tokenizer/{path.name}": path for path in vocabulary_files(place.vocabulary)}
        named["checkpoint"] = place.weights  # its own name decides nothing
    return digest(named)


def check_hashes(folder: Path) -> None:
    """Compare the folder with its `sha256.json`, where it has one (the bundled backbones do).

    Raises:
        BackboneError: a listed file is missing or differs.
    """
    listing = folder / "sha256.json"
    if not listing.is_file():
        return
    try:
        hashes = dict(json.loads(listing.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BackboneError(
            "the backbone's list of hashes cannot be read",
            path=listing,
            found=f"{type(error).__name__}: {error}",
            expected="file names and their sha256, as JSON",
            remedy=_RESTORE,
        ) from error
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise BackboneError(
                "a file of the backbone is missing",
                path=path,
                expected=f"sha256 {expected}",
                remedy=_RESTORE,
            )
        found = sha256(path)
        if found != expected:
            raise BackboneError(
                "a file of the backbone is corrupt",
                path=path,
                found=f"sha256 {found}",
                expected=f"sha256 {expected}",
                remedy=_RESTORE,
            )
