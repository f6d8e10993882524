"""Find a backbone's weights: a bundled asset, a folder, or the hub's local cache. Offline first."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from slime_bench.errors import BackboneError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_RESTORE = "restore it: git checkout, or reinstall slime-bench"


def locate(weights: str, revision: str | None = None) -> Path:
    """Folder of the weights named by `weights`.

    Args:
        weights: name of a folder in `slime_bench/assets`, a path, or a hub id `owner/name`.
        revision: commit of a hub id.

    Raises:
        BackboneError: nothing of that name here, and the hub does not answer.
    """
    for folder in (ASSETS / weights, Path(weights).expanduser()):
        if folder.is_dir():
            return folder.resolve()
    remedy = f"put the model in a folder and set backbone.weights=<folder>; bundled: {sorted(bundled())}"
    if weights.count("/") != 1 or weights.startswith((".", "/", "~")):
        raise BackboneError(
            "no such backbone folder", path=weights, expected="a folder, a bundled name or a hub id", remedy=remedy
        )
    from huggingface_hub import snapshot_download

    # Full-precision weights of the parts; not the single-file checkpoints and half-precision copies beside them.
    wanted, unwanted = ["*.json", "*/*.txt", "*/*.safetensors"], ["*.fp16.safetensors", "*non_ema*"]
    try:  # without a connection the client itself falls back on what is cached
        return Path(snapshot_download(weights, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # the hub client raises a dozen kinds: offline, not found, gated, timed out
        raise BackboneError(
            "the backbone is neither here nor could it be downloaded",
            path=weights,
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
            expected="a folder, or access to the model hub",
            remedy=f"check the connection (a gated model also needs HF_TOKEN), or {remedy}",
        ) from error


def bundled() -> list[str]:
    """Names of the backbones that come with the package."""
    return [folder.name for folder in ASSETS.iterdir() if folder.is_dir()] if ASSETS.is_dir() else []


def fingerprint(folder: Path) -> str:
    """sha256 over the relative names and contents of the folder's model files (json, txt, safetensors).

    Large files are hashed too: 5 GB take some ten seconds, once per process.
    """
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix in {".json", ".txt", ".safetensors"} and p.name != "card.json"
    ):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise BackboneError(
                "a file of the backbone is corrupt",
                path=path,
                found=f"sha256 {found}",
                expected=f"sha256 {expected}",
                remedy=_RESTORE,
            )
