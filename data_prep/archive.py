"""Downloaded archives, extracted safely and as a whole or not at all.

    python -m data_prep.archive CelebAMask-HQ.zip --out data/raw/CelebAMask-HQ

`tarfile` (filter `data`) and `zipfile` keep every member below the given folder; absurd sizes are refused here.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, NamedTuple

from tqdm import tqdm

from data_prep.commands import plain_parser, run
from slime_bench.errors import DataError, StorageError
from slime_bench.paths import user_path
from slime_bench.storage import alone

MAX_FILES: Final = 2_000_000
MAX_BYTES: Final = 64 << 30
"""What an archive may hold, and declare; no more than that is read. Ten times what the largest of the data sets holds:
CelebAMask-HQ has 400,000 files, VOC2010 1.3 GB."""

RECORD: Final = ".extracted.json"
"""Written into the extracted folder before it gets its name: which archive it is of, so that it need not be again."""

Wanted = Callable[[str], bool]
_SUFFIXES: Final = (".tar.gz", ".tgz", ".tar", ".zip")
_DAMAGE: Final = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, ValueError, IndexError,
)  # fmt: skip
"""What the libraries raise on archives that are cut off, damaged, encrypted or of another kind."""


class Download(NamedTuple):
    """What a command needs: the option for it, the place that this named, its file, and where that is published."""

    option: str
    place: Path
    file: str
    address: str


def check_there(*downloads: Download) -> None:
    """Raise one DataError that names every download that is missing, before any is unpacked."""
    missing = [each for each in downloads if not each.place.exists()]
    if missing:
        wanted = [
            f"{each.file} from {each.address} ({each.option} <file, or the folder that it holds>)" for each in missing
        ]
        raise DataError(
            "the data are not there", path=", ".join(str(each.place) for each in missing), found="nothing",
            expected="the downloads, as archives or as folders",
            remedy="\n    ".join(["download what is missing to there, or say where it is:", *wanted]),
        )  # fmt: skip


def opened(source: Path, work: Path, wanted: Wanted | None = None) -> Path:
    """The folder that `source` is, or the one that the archive `source` holds, extracted once below `work`; errors as
    `extract`."""
    return source if source.is_dir() else extract(source, work / stem(source), wanted=wanted)


def stem(archive: Path) -> str:
    """The archive's name without `.tar.gz` and the like."""
    suffix = next((suffix for suffix in _SUFFIXES if archive.name.lower().endswith(suffix)), "")
    return archive.name[: len(archive.name) - len(suffix)] or archive.name


def extract(archive: Path, into: Path, *, wanted: Wanted | None = None) -> Path:
    """Extract `archive` to the folder `into`, which appears when it is whole, and return `into`.

    Where `into` already is an extraction of this archive (same name, size and time), nothing is done; that of another
    archive is replaced; a folder that was not extracted here never is. What macOS adds is left out.

    Args:
        archive: `.tar.gz`, `.tgz`, `.tar` or `.zip`; its content decides, not the name.
        into: the folder to make.
        wanted: chooses files by their path in the archive (`CelebAMask-HQ/CelebA-HQ-img/0.jpg`); None takes all.

    Raises:
        DataError: the archive is missing, cut off, damaged, encrypted, of another kind, too large, or has a member that
            would leave the folder; it holds nothing that is wanted; or `into` holds something else. In each case
            `into` is as before.
        StorageError: full disk, no permission and the like.
    """
    if not archive.is_file():
        raise DataError(
            "the data are not there", path=archive, found="a folder" if archive.exists() else "nothing",
            expected="a .tar.gz, .tgz, .tar or .zip file, or for a data set its folder",
            remedy="check the path; docs/data.md says where the data sets can be downloaded",
        )  # fmt: skip
    status = archive.stat()
    building = into.with_name(f".{into.name}.extracting")
    record = {"archive": archive.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        with alone(into):
            file = into / RECORD
            before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            if before is None and into.exists() and any(into.iterdir()):
                raise DataError(
                    "the folder for the extracted files holds something else", path=into,
                    found="files that were not extracted here", expected=f"nothing, or files of {archive.name}",
                    remedy="to use the folder as it is, name it instead of the archive; else move it away",
                )  # fmt: skip
            if before is not None and {**before, **record} == before:
                return into
            shutil.rmtree(building, ignore_errors=True)  # of a command that was killed: nobody else is at work
            try:
                building.mkdir()
                _extract_all(archive, building, wanted)
                (building / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
                if into.exists():
                    shutil.rmtree(into)
                building.rename(into)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise StorageError.of(error, error.filename or into, "--out") from error
    return into


def _extract_all(archive: Path, folder: Path, wanted: Wanted | None) -> None:
    count = declared = taken = 0
    name = ""
    with archive.open("rb") as raw:
        head = raw.read(16)
    interval = 0.25 if sys.stderr.isatty() else 10  # seconds: a log file gets few lines
    try:
        with archive.open("rb") as raw, tqdm.wrapattr(
            raw, "read", total=archive.stat().st_size, desc=f"extracting {archive.name}", mininterval=interval
        ) as file:  # fmt: skip
            members = (_zip_members if head.startswith(b"PK") else _tar_members)(file, folder)
            for name, size, is_file, write in members:
                count, declared = count + 1, declared + size
                if count > MAX_FILES or declared > MAX_BYTES:
                    raise DataError(
                        "the archive is too large", path=archive,
                        found=f"{count} members with {declared} bytes up to {name}",
                        expected=f"at most {MAX_FILES} members with {MAX_BYTES} bytes",
                        remedy="look at it, unpack it yourself, and name the folder",
                    )  # fmt: skip
                if not _is_macs(name) and is_file and (wanted is None or wanted(name)):
                    write()
                    taken += 1
    except _DAMAGE as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            "the archive cannot be unpacked", path=archive,
            found=f"{archive.stat().st_size} bytes that begin with {head!r}; member {name!r}: {first_line}",
            expected="a whole .zip, .tar or .tar.gz without a password, whose members stay below their folder",
            remedy="download it again, in a browser, and compare its size with what the data set's page states: a "
            "small file that begins with <html is the page of a download that failed",
        ) from error  # fmt: skip
    if not taken:
        raise DataError(
            "the archive holds none of the files that are needed", path=archive,
            found=f"{count} members, the last {name!r}", remedy="check that this is the right archive",
        )  # fmt: skip


_Member = tuple[str, int, bool, Callable[[], Any]]
"""One entry of an archive: its name, the bytes that it declares, whether it is a file or link, what writes it below the
folder."""


def _zip_members(file: IO[bytes], folder: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            yield info.filename, info.file_size, not info.is_dir(), partial(opened.extract, info, folder)


def _tar_members(file: IO[bytes], folder: Path) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, tarinfo=_StrictInfo) as opened:
        for info in opened:
            yield info.name, info.size, not info.isdir(), partial(opened.extract, info, folder, filter="data")
        stream: Any = opened.fileobj
        while stream.read(1 << 20):  # up to the checksum of the compressed stream
            pass


class _StrictInfo(tarfile.TarInfo):
    """A header that is cut off, damaged or absent is an error.

    `TarFile.next` takes these for the end of the archive, once it has read one member; only a block of zeros is.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _StrictInfo:
        from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]

        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"{error} where a member or the end mark should be") from error


def _is_macs(name: str) -> bool:
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"


def main(arguments: list[str]) -> int:
    parser = plain_parser("archive", __doc__)
    parser.add_argument("file", type=user_path, help="a .tar.gz, .tgz, .tar or .zip")
    parser.add_argument("--out", type=user_path, required=True, help="the folder to make")
    args = parser.parse_args(arguments)
    print(f"extracted to {extract(args.file, args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
