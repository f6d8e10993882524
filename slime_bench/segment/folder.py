"""Which images `slime-bench segment` reads, what their results are called, and what the output folder holds already."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from slime_bench.data.label_maps import listing
from slime_bench.errors import DataError, ResultError, StorageError
from slime_bench.storage import write_atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
RUN, EMBEDDINGS, LABELS, OVERLAYS = "run.json", "embeddings.safetensors", "labels", "overlays"
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
        status = path.stat()
        return (self.file, self.bytes, self.changed) == (path.name, status.st_size, status.st_mtime_ns)


@dataclass
class Run:
    """What `run.json` says.

    Attributes:
        origin: hashes of what decides the label maps: `embeddings`, `settings`.
        images: name of the results -> record.
    """

    origin: dict[str, str] = field(default_factory=dict)
    images: dict[str, Record] = field(default_factory=dict)


def list_images(places: Sequence[Path], out: Path) -> tuple[dict[str, Path], list[str]]:
    """The images of folders (not of folders in them) and single files: name of the results -> file.

    Results are named after the file's stem, and after its full name where files share a stem.

    Returns:
        also the names of other files, which are left out.

    Raises:
        DataError: a place that is not there or is among the results, no image at all, two files of one name.
    """
    files: dict[Path, Path] = {}  # resolved -> as named
    others: list[str] = []
    for place in places:
        _check_apart(place, out)
        if not place.is_dir():
            files.setdefault(place.resolve(), place)
            continue
        for each in sorted(place.iterdir()):
            if each.is_file() and not each.name.startswith("."):
                if each.suffix.lower() in SUFFIXES:
                    files.setdefault(each.resolve(), each)
                else:
                    others.append(each.name)
    if not files or not all(each.exists() for each in files):
        raise DataError(
            "there are no such images", path=", ".join(map(str, places)),
            found=f"other files: {listing(others)}" if others else "nothing",
            expected=f"image files, or folders that hold some: {', '.join(SUFFIXES)}",
            remedy="correct --images; folders inside a folder are not looked at; export other kinds as JPEG or PNG",
        )  # fmt: skip
    return _named(list(files.values())), others


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
    """Refuse an output folder that holds files of these names from elsewhere; a file is refused when it is written to.

    Raises:
        ResultError.
    """
    names = (LABELS, OVERLAYS, AREAS, GRID, CLASSES, EMBEDDINGS)
    strangers = [name for name in names if (out / name).exists()]
    if strangers and not (out / RUN).exists():
        raise ResultError(
            "the folder is in use", path=out, found=f"{', '.join(strangers)}, but no {RUN}",
            expected="results of `slime-bench segment`, an empty folder, or nothing", remedy="choose another --out",
        )  # fmt: skip


def read_run(out: Path) -> Run:
    """What the output folder holds; an empty run where there is none.

    Raises:
        ResultError: `run.json` cannot be read.
    """
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


def remaining(files: dict[str, Path], out: Path, run: Run) -> list[str]:
    """Names of the images that are still to be segmented."""

    def is_there(name: str, path: Path) -> bool:
        record = run.images.get(name)
        written = (out / LABELS / f"{name}.png", out / OVERLAYS / f"{name}.jpg")
        return record is not None and record.is_of(path) and all(each.is_file() for each in written)

    return [name for name, path in files.items() if not is_there(name, path)]


def write(path: Path, content: bytes) -> None:
    """`write_atomic`, with a remedy that fits this command.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        write_atomic(path, content)
    except StorageError as error:
        raise StorageError(
            "a result could not be written", path=error.path, found=error.found,
            expected="a folder with the right permissions, on a disk with free space",
            remedy="mend that, or choose another --out; what is written stays, and the same command goes on there",
        ) from error  # fmt: skip
