"""Where a backbone's files are: found offline first, fetched from the hub, checked and hashed; nothing is loaded here.

A backbone is named by a bundled asset, a folder, one file, or a hub id. What files a kind of model consists of is its
`Layout`. Nothing in this module imports torch: a trial is told from others before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Final

from slime_bench.backbones.hashes import digest, sha256
from slime_bench.errors import BackboneError

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
_SAFE: Final = "weights as safetensors, which cannot run code when they are read"


class Layout(ABC):
    """The files of one kind of model.

    Attributes:
        marker: file by which a snapshot in the hub's cache is found.
        wanted: patterns of the files to download. unwanted: patterns to leave out, one list for every attempt.
        expected: what may stand in `backbone.weights`. remedy: what to do where nothing of that name is here.
        takes_files: whether one safetensors file will do as well. converter: a command of ours for such weights.
    """

    marker: ClassVar[str]
    wanted: tuple[str, ...]
    unwanted: ClassVar[tuple[tuple[str, ...], ...]]
    expected: ClassVar[str]
    takes_files: bool = False
    remedy: str = PUT_IN_A_FOLDER
    converter: ClassVar[str] = ""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Refuse a folder in which a file is missing that will be needed.

        Raises:
            BackboneError: it names what is missing.
        """

    @abstractmethod
    def files(self, folder: Path) -> dict[str, Path]:
        """Every file of the folder that is loaded, by the name that counts; others beside them decide nothing."""

    @abstractmethod
    def fetch(self, name: str, revision: str | None) -> str:
        """What to do where the hub id `name` is not here: the command that fetches it, and what else will do."""

    def command(self, name: str, revision: str | None = None) -> str:
        """The command that puts a model of the hub into its local cache, where it is found without a network."""
        words = ["hf", "download", name, *(["--revision", revision] if revision else [])]
        words += [f'--include "{each}"' for each in self.wanted]
        return " ".join([*words, *(f'--exclude "{each}"' for each in self.unwanted[0])])

    def pickled(self, folder: Path, names: list[str]) -> BackboneError:
        """The error for weights that would run code when they are read, with the command that converts them."""
        file = folder / ("pytorch_model.bin" if "pytorch_model.bin" in names else names[0])
        code = (
            "import torch; from safetensors.torch import save_file; "
            f"w = torch.load({str(file)!r}, map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
            f"save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {str(folder / WEIGHTS)!r})"
        )
        return BackboneError(
            "pickled checkpoints are not read", path=folder, found=f"only pickled weights: {', '.join(names)}",
            expected=f"{WEIGHTS}: reading a pickle runs whatever code it holds",
            remedy="take a revision with safetensors, or convert the file once, without running its code"
            f'{self.converter}:\n    python -c "{code}"',
        )  # fmt: skip

    def fingerprint(self, folder: Path) -> str:
        """sha256 over the names and contents of `files`."""
        return digest(self.files(folder))


def find(name: str, revision: str | None, layout: Layout) -> Path:
    """Folder of the model called `name`, with everything that will be loaded; or the file, where the layout takes one.

    Args:
        name: of a folder in `slime_bench/assets`, path of a folder or of a `.safetensors` file, or hub id `owner/name`.
        revision: commit of a hub id; None for its main branch.

    Raises:
        BackboneError: nothing of that name here, something missing in it, pickled weights, or a hub that does not
            answer.
    """
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    for folder in (ASSETS / name, path):
        if name and folder.is_dir():
            folder = folder.resolve()
            layout.check(folder)
            return folder
    if path.suffix in PICKLED:
        raise layout.pickled(path.parent, [path.name])
    if layout.takes_files and path.is_file() and path.suffix == ".safetensors":
        return path.resolve()
    if path.exists() or path.suffix == ".safetensors" or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise BackboneError(
            "no such backbone", path=name or "backbone.weights", found="a file" if path.is_file() else None,
            expected=layout.expected, remedy=layout.remedy,
        )  # fmt: skip
    return _from_hub(name, revision, layout)


def _from_hub(name: str, revision: str | None, layout: Layout) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, layout.marker, revision=revision)
    if isinstance(cached, str):  # otherwise None, or a sign that the hub has no such file
        folder = Path(cached).parents[layout.marker.count("/")]
        with contextlib.suppress(BackboneError):  # a download that was cut short: it goes on below
            layout.check(folder)
            return folder
    remedy, silent = layout.fetch(name, revision), _no_answer(name, revision)
    incomplete: BackboneError | None = None
    for unwanted in layout.unwanted:
        try:
            place = snapshot_download(
                name, revision=revision, allow_patterns=list(layout.wanted), ignore_patterns=list(unwanted),
                local_files_only=silent is not None,
            )  # fmt: skip
        except Exception as error:  # the hub client raises a dozen kinds: offline, not found, gated, timed out
            raise BackboneError(
                "the backbone is neither here nor could it be downloaded", path=name,
                found="; ".join([*([silent] if silent else []), _brief(error)]),
                expected="a folder, a file in the hub's local cache, or access to the hub", remedy=remedy,
            ) from error  # fmt: skip
        try:
            layout.check(Path(place))
        except BackboneError as error:  # a download that was cut short, or a repository of another kind
            incomplete = error
        else:
            return Path(place)
    assert incomplete is not None  # there is at least one attempt
    raise BackboneError(
        incomplete.summary, path=incomplete.path, found=incomplete.found, expected=incomplete.expected, remedy=remedy
    ) from incomplete


def _no_answer(name: str, revision: str | None) -> str | None:
    """Why the hub does not answer, or None where it does: asked once, where a download would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:
        return _brief(error)
    return None


def _brief(error: Exception) -> str:
    """An exception's kind and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


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

    def check(self, folder: Path) -> None:
        absent = [part for part in PARTS if not (folder / part).is_dir()]
        if absent:
            raise BackboneError(
                "this folder does not hold a Stable Diffusion model", path=folder, found=f"no {', '.join(absent)}",
                expected=f"the folders {', '.join(PARTS)}", remedy="give the folder that holds model_index.json",
            )  # fmt: skip
        for part, name in PARTS.items():
            if not (folder / part / name).is_file():
                raise _missing(folder / part, f"no {name}", name, part)
        if not self.takes_files:
            return
        if not vocabulary_files(folder / "tokenizer"):
            # The library would go on with a vocabulary of three tokens.
            raise _missing(
                folder / "tokenizer", "no vocabulary", "tokenizer.json, or vocab.json and merges.txt", "tokenizer"
            )
        for part in NETWORKS:
            if not part_weights(folder, part)[0]:
                names = [path.name for path in sorted((folder / part).iterdir()) if path.suffix in PICKLED]
                found = f"only pickled weights: {', '.join(names)}" if names else "no *.safetensors"
                raise _missing(folder / part, found, _SAFE, part)

    def files(self, folder: Path) -> dict[str, Path]:
        found = [path for part in PARTS for suffix in ("json", "txt") for path in (folder / part).glob(f"*.{suffix}")]
        if self.takes_files:
            found += [path for part in NETWORKS for path in part_weights(folder, part)[0]]
        return {path.relative_to(folder).as_posix(): path for path in found}

    def fetch(self, name: str, revision: str | None) -> str:
        return (
            "fetch it where there is a connection (a gated model also needs HF_TOKEN):\n"
            f"    {self.command(name, revision)}\n"
            f"  another repository has other commits: set backbone.revision with backbone.weights; or {self.remedy}"
        )


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
    """A vision-language model: one configuration, weights and vocabulary side by side, as the hub stores them."""

    marker = CONFIG
    wanted = ("*.json", "vocab.txt", "model*.safetensors")
    unwanted = ((f"*.{HALF}.*", "*.bf16.*"),)
    expected = f"a folder with {CONFIG}, a bundled name or a hub id"
    described: ClassVar[tuple[str, ...]] = (CONFIG, PREPROCESSOR, *TOKENIZER)
    """Files beside the weights that are loaded where they are there."""
    converter = " (an ALBEF .pth: python -m data_prep.convert_albef)"

    def __init__(self, remedy: str = PUT_IN_A_FOLDER) -> None:
        self.remedy = remedy

    def check(self, folder: Path) -> None:
        if not (folder / CONFIG).is_file():
            raise BackboneError(
                "this folder does not hold a vision-language model", path=folder, found=f"no {CONFIG}",
                expected=f"{CONFIG}, {WEIGHTS} and {' or '.join(VOCABULARIES)}",
                remedy="give the folder that holds these files",
            )  # fmt: skip
        absent = [path.name for path in weight_files(folder) if not path.is_file()]
        if absent:
            pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
            raise self.pickled(folder, pickles) if pickles else _missing(folder, f"no {absent[0]}", _SAFE)
        if not any((folder / name).is_file() for name in VOCABULARIES):
            # The library would go on with a vocabulary of five tokens.
            raise _missing(folder, "no vocabulary", " or ".join(VOCABULARIES))

    def files(self, folder: Path) -> dict[str, Path]:
        found = [*(folder / name for name in self.described), *weight_files(folder)]
        return {path.name: path for path in found if path.is_file()}

    def fetch(self, name: str, revision: str | None) -> str:
        command = f"hf download {name}{f' --revision {revision}' if revision else ''}"
        return (
            "fetch it where there is a connection:\n"
            f"    {self.command(name, revision)}\n"
            "  a commit without safetensors: set backbone.revision to another one; or\n"
            f'    {command} --include "*.json" --include vocab.txt --include pytorch_model.bin --local-dir <folder>\n'
            "  and backbone.weights=<folder>: the next message has the command that converts it"
        )


class LlavaLayout(VlmLayout):
    """A LLaVA in the library's own layout, its weights perhaps in shards."""

    described = (CONFIG, INDEX, *PROCESSORS, *TOKENIZER)

    def check(self, folder: Path) -> None:
        super().check(folder)
        if not (folder / "tokenizer.json").is_file():
            # A vocabulary alone does not say where in a text a token lies.
            raise _missing(folder, "no tokenizer.json", "tokenizer.json")
        if not any((folder / name).is_file() for name in PROCESSORS):
            raise _missing(folder, "no description of the image processor", " or ".join(PROCESSORS))


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
LLAVA: Final = LlavaLayout()


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
    """The error for a configuration file that does not say what it should."""
    return BackboneError(
        "a configuration file of the backbone cannot be used", path=path, found=found, expected=expected, remedy=RESTORE
    )


def _missing(path: Path, found: str, expected: str, part: str | None = None) -> BackboneError:
    summary = f"a file of the backbone's {part} is missing" if part else "a file of the backbone is missing"
    return BackboneError(summary, path=path, found=found, expected=expected, remedy=RESTORE)


def check_hashes(folder: Path) -> None:
    """Compare the folder with its `sha256.json`, where it has one (the bundled backbones do).

    Raises:
        BackboneError: a listed file is missing or differs.
    """
    listing = folder / "sha256.json"
    if not listing.is_file():
        return
    for name, expected in read_json(listing).items():
        path = folder / name
        found = sha256(path) if path.is_file() else None
        if found != expected:
            raise BackboneError(
                f"a file of the backbone is {'missing' if found is None else 'corrupt'}", path=path,
                found=f"sha256 {found}" if found else None, expected=f"sha256 {expected}", remedy=RESTORE,
            )  # fmt: skip
