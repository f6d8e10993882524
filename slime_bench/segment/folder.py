"""Which images `slime-bench segment` reads, what their results are called, and what the output folder holds already."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from slime_bench.data.label_maps import listing
from slime_bench.data.manifest import stamp
from slime_bench.data.pictures import SUFFIXES, broken_link
from slime_bench.errors import DataError, ResultError, StorageError
from slime_bench.lock import BusyError, held
from slime_bench.storage import write_atomic

RUN, EMBEDDINGS, LABELS, OVERLAYS, SCORES = "run.json", "embeddings.safetensors", "labels", "overlays", "scores"
LOCK = "segment"
"""The lock is `.segment.lock` in the output folder."""
AREAS, GRID, CLASSES = "areas.csv", "grid.png", "classes.yaml"


@dataclass(frozen=True)
class Record:
    """An image that was segmented: its file's name, bytes and time of change, [H, W], the pixels of each class, and its
    confidence in each where that is known."""

    file: str
    bytes: int
    changed: int
    size: list[int]
    pixels: list[int]
    confidence: list[float | None] | None = None

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` is still the one that was segmented."""
        return (self.file, (self.bytes, self.changed)) == (path.name, stamp(path))


@dataclass
class Run:
    """What `run.json` says.

    Attributes:
        origin: hashes of what decides the label maps: `embeddings`, `settings`.
        images: name of the results -> record.
    """

    origin: dict[str, str] = field(default_factory=dict)
    images: dict[str, Record] = field(default_factory=dict)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the output folder against other processes.

    The lock lies inside, so that it is one for all the paths that lead there, and the folder above may be read-only.

    Raises:
        BusyError: another command works on it. StorageError: it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(out / LOCK))
        except BusyError as error:
            remedy = "wait for it, end it, or choose another --out; the same command then goes on with what is there"
            raise BusyError(out, error.holder, remedy) from error
        except OSError as error:
            raise _unwritable(out, error.strerror or str(error)) from error
        yield


def list_images(places: Sequence[Path], out: Path) -> tuple[dict[str, Path], list[str]]:
    """The images of folders (not of folders in them) and single files: name of the results -> file.

    Results are named after the file's stem, and after its full name where files share a stem. A link to nothing is
    among them, if it is called like an image: that it cannot be read is said where others are, too.

    Returns:
        also what is left out, in words: for each reason its files.

    Raises:
        DataError: a place that is not there or is among the results, no image at all, two files of one name.
    """
    files: dict[Path, Path] = {}  # with the folder resolved -> as named
    others: dict[str, list[str]] = {}
    for place in places:
        if not place.exists():
            raise DataError(
                "there are no such images", path=place, found=broken_link(place) or "nothing",
                expected="an image file, or a folder that holds some",
                remedy="correct --images, or restore what is missing",
            )  # fmt: skip
        _check_apart(place, out)
        if not place.is_dir():
            files.setdefault(place.parent.resolve() / place.name, place)
            continue
        for each in sorted(place.iterdir()):
            if each.name.startswith(".") or os.path.realpath(each) == os.path.realpath(out):
                continue
            if reason := _left_out(each):
                others.setdefault(reason, []).append(each.name)
            else:
                files.setdefault(each.parent.resolve() / each.name, each)
    words = [f"{reason}: {listing(names)}" for reason, names in others.items()]
    if not files:
        raise DataError(
            "there are no images", path=", ".join(map(str, places)), found="; ".join(words) or "nothing",
            expected=f"image files, or folders that hold some: {', '.join(SUFFIXES)}",
            remedy="correct --images; folders inside a folder are not looked at; export other kinds as JPEG or PNG",
        )  # fmt: skip
    return _named(list(files.values())), words


def _left_out(path: Path) -> str | None:
    """Why something in a folder is not segmented; None if it is."""
    if path.is_dir():
        return "folders"
    suffix = path.suffix.lower()
    if suffix in (".heic", ".heif"):
        return "HEIC, which is to be exported as JPEG"
    if suffix not in SUFFIXES:
        return "not called like an image"
    return None if path.is_file() or path.is_symlink() else "neither file nor folder"


def _check_apart(place: Path, out: Path) -> None:
    """Results must neither be taken for images nor written over them."""
    folder, results = (place if place.is_dir() else place.parent).resolve(), out.resolve()
    if folder in (results, results / LABELS, results / OVERLAYS):
        raise DataError(
            "images and results are in one folder", path=place, found=f"--out {out}",
            expected="a folder for the results alone; it may lie inside the folder of images",
            remedy="e.g. --images photos --out photos/masks",
        )  # fmt: skip


def _named(files: Sequence[Path]) -> dict[str, Path]:
    shared = Counter(_folded(file.stem) for file in files)
    named: dict[str, Path] = {}
    owners: dict[str, Path] = {}
    for file in sorted(files, key=lambda each: (each.name, str(each))):
        name = file.name if shared[_folded(file.stem)] > 1 else file.stem
        other = owners.setdefault(_folded(name), file)
        if other is not file:
            raise DataError(
                "two images have one name", path=file, found=f"also {other}", expected="names that differ",
                remedy="rename one of them, or segment their folders one after the other, each with its own --out",
            )  # fmt: skip
        named[name] = file
    return named


def _folded(name: str) -> str:
    """Names that some file system takes for one are equal."""
    return unicodedata.normalize("NFC", name).casefold()


def check_folder(out: Path) -> None:
    """Refuse (ResultError) a folder that holds files of these names from elsewhere; a file is refused when it is
    written to."""
    names = (LABELS, OVERLAYS, SCORES, AREAS, GRID, CLASSES, EMBEDDINGS)
    strangers = [name for name in names if (out / name).exists()]
    if strangers and not (out / RUN).exists():
        raise ResultError(
            "the folder is in use", path=out, found=f"{', '.join(strangers)}, but no {RUN}",
            expected="results of `slime-bench segment`, an empty folder, or nothing", remedy="choose another --out",
        )  # fmt: skip


def read_run(out: Path) -> Run:
    """What the output folder holds; an empty run where there is none. ResultError: `run.json` cannot be read."""
    path = out / RUN
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Run(dict(content["origin"]), {name: Record(**one) for name, one in content["images"].items()})
    except FileNotFoundError:
        return Run()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            "the record of an earlier run cannot be read", path=path, found=f"{type(error).__name__}: {error}",
            expected="what `slime-bench segment` writes", remedy="choose another --out, or move this folder away",
        ) from error  # fmt: skip


def write_run(out: Path, run: Run) -> None:
    """Raises StorageError as `write`."""
    write(out / RUN, (json.dumps(asdict(run), indent=1, sort_keys=True) + "\n").encode())


def results_of(out: Path, name: str, scores: bool = True) -> list[Path]:
    """The files that hold the results of one image; its score maps are not always wanted."""
    both = [out / LABELS / f"{name}.png", out / OVERLAYS / f"{name}.jpg"]
    return [*both, out / SCORES / f"{name}.npz"] if scores else both


def remaining(files: dict[str, Path], out: Path, run: Run, scores: bool) -> list[str]:
    """Names of the images that are still to be segmented, or whose score maps are wanted and missing."""

    def is_there(name: str, path: Path) -> bool:
        record = run.images.get(name)
        written = results_of(out, name, scores)
        return record is not None and record.is_of(path) and all(each.is_file() for each in written)

    return [name for name, path in files.items() if not is_there(name, path)]


def write(path: Path, content: bytes) -> None:
    """`write_atomic`, whose StorageError gets a remedy that fits this command."""
    try:
        write_atomic(path, content)
    except StorageError as error:
        raise _unwritable(error.path, error.found) from error


def _unwritable(path: str | Path | None, found: object) -> StorageError:
    return StorageError(
        "a result could not be written", path=path, found=found,
        expected="a folder with the right permissions, on a disk with free space",
        remedy="mend that, or choose another --out; what is written stays, and the same command goes on there",
    )  # fmt: skip
