"""Where a backbone's files are: found offline first, fetched from the hub, checked and hashed; nothing is loaded here.

A backbone is named by a bundled asset, a folder, one file, or a hub id. What files a kind of model consists of is its
`Layout`. Nothing in this module imports torch: a trial is told from others before anything heavy is loaded.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Final

from slime_bench.backbones.hashes import digest, sha256
from slime_bench.backbones.other_models import OtherModelError, refuse_other_file, refuse_other_folder
from slime_bench.errors import BackboneError
from slime_bench.paths import user_path

ASSETS: Final = Path(__file__).resolve().parent.parent / "assets"
SD_CONFIGS: Final = "sd_configs"
"""Folder of `ASSETS` with the configurations that go with single-file checkpoints."""
CLIP_VOCABULARY: Final = "clip_vocabulary"
"""Folder of `ASSETS` with the vocabulary of CLIP's text encoders."""

RESTORE: Final = "restore the files (git checkout, reinstall, or download again)"
PUT_IN_A_FOLDER: Final = "put the model in a folder and set backbone.weights=<folder>"
PICKLED: Final = (".ckpt", ".pth", ".pt", ".bin", ".pkl")
"""Suffixes of files that run code when they are read."""

PARTS: Final[dict[str, str]] = {
    "vae": "config.json",
    "unet": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""The parts of a Stable Diffusion folder, and the file that describes each."""
NETWORKS: Final = ("vae", "unet", "text_encoder")
"""The parts with weights."""
HALF: Final = "fp16"
"""The hub's word for files that hold a half-precision copy: `model.fp16.safetensors`."""

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSORS: Final = (PREPROCESSOR, "processor_config.json")
"""Descriptions of the image processor; newer libraries write the second alone."""
VOCABULARIES: Final = ("vocab.txt", "tokenizer.json")
TOKENIZER: Final = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


class Layout(ABC):
    """The files of one kind of model.

    Attributes:
        marker: file by which a snapshot in the hub's cache is found.
        wanted: patterns of the files to download. unwanted: patterns to leave out, one list for every attempt.
        expected: what may stand in `backbone.weights`. remedy: what to do where nothing of that name is here.
        takes_files: whether one safetensors file will do as well.
    """

    marker: ClassVar[str]
    wanted: tuple[str, ...]
    unwanted: ClassVar[tuple[tuple[str, ...], ...]]
    expected: ClassVar[str]
    takes_files: bool = False
    remedy: str = PUT_IN_A_FOLDER

    @abstractmethod
    def files(self, folder: Path) -> dict[str, Path]:
        """Every file of the folder that is loaded, by the name that counts; others beside them decide nothing.

        Raises:
            BackboneError: one that will be needed is missing.
        """

    def command(self, name: str, revision: str | None = None) -> str:
        """The command that puts a model of the hub into its local cache, where it is found without a network."""
        words = ["hf", "download", name, *(["--revision", revision] if revision else [])]
        words += [f'--include "{each}"' for each in self.wanted]
        return " ".join([*words, *(f'--exclude "{each}"' for each in self.unwanted[0])])

    def fingerprint(self, folder: Path) -> str:
        """sha256 over the names and contents of `files`."""
        return digest(self.files(folder))


def find(name: str, revision: str | None, layout: Layout) -> Path:
    """Folder of the model called `name`, with everything that will be loaded; or the file, where the layout takes one.

    Args:
        name: of a folder in `slime_bench/assets`, path of a folder or of a `.safetensors` file, or hub id `owner/name`.
        revision: commit of a hub id; None for its main branch.

    Raises:
        BackboneError: nothing of that name here, something missing in it, another kind of model, pickled weights, or a
            hub that does not answer.
    """
    path = user_path(name)
    for folder in (ASSETS / name, path):
        if name and folder.is_dir():
            folder = folder.resolve()
            layout.files(folder)
            return folder
    if path.suffix in PICKLED:
        raise _pickled(path.parent, [path.name])
    if layout.takes_files and path.is_file() and path.suffix == ".safetensors":
        refuse_other_file(path)
        return path.resolve()
    if path.exists() or path.suffix == ".safetensors" or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise BackboneError(
            "no such backbone", path=name or "backbone.weights", found="a file" if path.is_file() else None,
            expected=layout.expected, remedy=layout.remedy,
        )  # fmt: skip
    return _from_hub(name, revision, layout)


def _from_hub(name: str, revision: str | None, layout: Layout) -> Path:
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    lacking: BackboneError | None = None  # of a download that was cut short, or of a repository of another kind
    cause: Exception | None = None

    def is_whole(folder: Path) -> bool:
        nonlocal lacking
        try:
            layout.files(folder)
        except OtherModelError:
            raise
        except BackboneError as error:
            lacking = error
            return False
        return True

    cached = try_to_load_from_cache(name, layout.marker, revision=revision)
    if isinstance(cached, str):  # otherwise None, or a sign that the hub has no such file
        folder = Path(cached).parents[layout.marker.count("/")]
        if is_whole(folder):
            return folder
    try:
        # Asked once: where there is no network, a download would try for half a minute.
        HfApi().model_info(name, revision=revision, timeout=10)
        for unwanted in layout.unwanted:
            folder = Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=list(layout.wanted), ignore_patterns=list(unwanted)
                )
            )
            if is_whole(folder):
                return folder
    except OtherModelError:
        raise
    except Exception as error:  # the hub client raises a dozen kinds: offline, not found, gated, timed out
        cause = error
    found = [f"{lacking.found} in {lacking.path}"] if lacking else []
    if cause is not None:
        found.append(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0][:200]}")
    raise BackboneError(
        "the backbone is neither here nor could it be downloaded", path=name, found="; ".join(found),
        expected="a folder, a file in the hub's local cache, or access to the hub",
        remedy="fetch it where there is a connection (a gated model also needs HF_TOKEN):\n"
        f"    {layout.command(name, revision)}\n"
        f"  another repository or commit: set backbone.weights and backbone.revision; or {layout.remedy}",
    ) from (cause or lacking)  # fmt: skip


class DiffusionLayout(Layout):
    """A Stable Diffusion: folders of folders, or one file in the original naming.

    Args:
        weights: False for configurations alone, perhaps without a vocabulary.
    """

    marker = "unet/config.json"
    # Perhaps the half-precision copies are all there is.
    unwanted = ((f"*.{HALF}.*", "*non_ema*"), ("*non_ema*",))
    expected = "a folder, a .safetensors file, a bundled name or a hub id"

    def __init__(self, weights: bool = True) -> None:
        self.takes_files = weights
        kinds = ("json", "txt", "safetensors") if weights else ("json", "txt")
        # Not the single-file checkpoints beside the parts.
        self.wanted = ("model_index.json", *(f"{part}/*.{kind}" for part in PARTS for kind in kinds))
        self.remedy = f"{PUT_IN_A_FOLDER}; bundled: {sorted(bundled())}"

    def files(self, folder: Path) -> dict[str, Path]:
        refuse_other_folder(folder)
        absent = [f"{part}/{name}" for part, name in PARTS.items() if not (folder / part / name).is_file()]
        if absent:
            raise unusable(folder, f"no {', '.join(absent)}", f"a Stable Diffusion: the folders {', '.join(PARTS)}")
        found = [path for part in PARTS for suffix in ("json", "txt") for path in (folder / part).glob(f"*.{suffix}")]
        if self.takes_files:
            if not vocabulary_files(folder / "tokenizer"):  # the library would go on with a vocabulary of three tokens
                raise unusable(folder / "tokenizer", "no vocabulary", "tokenizer.json, or vocab.json and merges.txt")
            for part in NETWORKS:
                weights, _ = part_weights(folder, part)
                if not weights:
                    raise _no_weights(folder / part, "*.safetensors")
                found += weights
        return {path.relative_to(folder).as_posix(): path for path in found}


def part_weights(folder: Path, part: str) -> tuple[list[Path], str | None]:
    """The safetensors files that hold the weights of a Stable Diffusion's network, and their variant.

    Returns:
        The full-precision files and None; where there are none, the half-precision ones and `fp16`; ([], None) where
        there are neither. Copies without weight averaging (`non_ema`) never count.
    """
    found = [path for path in sorted((folder / part).glob("*.safetensors")) if "non_ema" not in path.name]
    half = [path for path in found if f".{HALF}" in path.name]
    full = [path for path in found if path not in half]
    return (full, None) if full or not half else (half, HALF)


def vocabulary_files(folder: Path) -> list[Path]:
    """The files in a tokenizer's folder that hold its vocabulary; none where it is not complete."""
    for names in (["tokenizer.json"], ["merges.txt", "vocab.json"]):
        files = [folder / name for name in names]
        if all(path.is_file() for path in files):
            return files
    return []


def bundled() -> list[str]:
    """Names of the Stable Diffusions that come with the package."""
    return [folder.name for folder in ASSETS.glob("*") if (folder / "model_index.json").is_file()]


class VlmLayout(Layout):
    """A vision-language model: one configuration, weights (perhaps in shards) and vocabulary side by side.

    Args:
        vocabularies: files of which one must be there. processors: descriptions of the image processor of which one
            must be there; () where there need be none. kind: what such a model is called. weights: False for the
            configuration alone.
    """

    marker = CONFIG
    wanted = ("*.json", "vocab.txt", "model*.safetensors")
    unwanted = ((f"*.{HALF}.*", "*.bf16.*"),)
    expected = f"a folder with {CONFIG}, a bundled name or a hub id"

    def __init__(
        self,
        remedy: str = PUT_IN_A_FOLDER,
        vocabularies: tuple[str, ...] = VOCABULARIES,
        processors: tuple[str, ...] = (),
        kind: str = "a vision-language model",
        weights: bool = True,
    ) -> None:
        self.remedy, self._vocabularies, self._processors, self._kind = remedy, vocabularies, processors, kind
        self._weights = weights

    def files(self, folder: Path) -> dict[str, Path]:
        # Without a vocabulary the library would go on with one of five tokens.
        for names in ((CONFIG,), self._vocabularies, self._processors):
            if names and not any((folder / name).is_file() for name in names):
                raise unusable(folder, f"no {' and no '.join(names)}", f"{self._kind}: {' or '.join(names)}")
        if not self._weights:
            return {CONFIG: folder / CONFIG}
        weights = weight_files(folder)
        for path in weights:
            if not path.is_file():
                raise _no_weights(folder, path.name)
        described = (CONFIG, INDEX, *PROCESSORS) if self._processors else (CONFIG, PREPROCESSOR)
        found = [*(folder / name for name in (*described, *TOKENIZER)), *weights]
        return {path.name: path for path in found if path.is_file()}


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the files that its index lists where the weights are distributed over several."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise unusable(folder / INDEX, "no weight_map")
    return [folder / Path(str(name)).name for name in sorted(set(listed.values()))]


DIFFUSION: Final = DiffusionLayout()
DIFFUSION_CONFIGS: Final = DiffusionLayout(weights=False)
# A vocabulary alone does not say where in a text a token lies.
LLAVA: Final = VlmLayout(vocabularies=("tokenizer.json",), processors=PROCESSORS)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        BackboneError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise unusable(path, "no mapping")
    return content


def unusable(path: Path, found: str, expected: str = "the JSON files of such a model") -> BackboneError:
    """The error for a file that is missing or does not say what it should."""
    return BackboneError(
        "a file of the backbone is missing or cannot be used", path=path, found=found, expected=expected, remedy=RESTORE
    )


def _no_weights(folder: Path, name: str) -> BackboneError:
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
    return _pickled(folder, pickles) if pickles else unusable(folder, f"no {name}", "weights as safetensors")


def _pickled(folder: Path, names: Iterable[str]) -> BackboneError:
    return BackboneError(
        "pickled checkpoints are not read", path=folder, found=f"only pickled weights: {', '.join(names)}",
        expected="safetensors: reading a pickle runs whatever code it holds",
        remedy="take a revision with safetensors, or convert it once with huggingface.co/spaces/safetensors/convert"
        " (an ALBEF .pth: python -m data_prep.convert_albef)",
    )  # fmt: skip


def check_hashes(folder: Path) -> None:
    """Compare the folder with its `sha256.json`, where it has one (the bundled backbones do).

    Raises:
        BackboneError: a listed file is missing or differs.
    """
    listing = folder / "sha256.json"
    for name, expected in (read_json(listing) if listing.is_file() else {}).items():
        path = folder / name
        found = sha256(path) if path.is_file() else None
        if found != expected:
            raise BackboneError(
                f"a file of the backbone is {'missing' if found is None else 'corrupt'}", path=path,
                found=f"sha256 {found}" if found else None, expected=f"sha256 {expected}", remedy=RESTORE,
            )  # fmt: skip
