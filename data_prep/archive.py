"""Downloaded archives, extracted safely and as a whole or not at all.

    python -m data_prep.archive CelebAMask-HQ.zip --out data/raw/CelebAMask-HQ

Only plain files and folders are written, below the given folder, with the permissions that the user's own new files
have. Links, devices, absolute names, `..`, name clashes, encrypted or damaged members and absurd sizes are refused.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from data_prep.archive_members import Member, members, printable
from data_prep.commands import run, storage_error
from slime_bench.errors import DataError, StorageError
from slime_bench.storage import alone

MAX_FILES: Final = 2_000_000
MAX_BYTES: Final = 64 << 30
"""Ten times what the largest of the data sets holds: CelebAMask-HQ has 400,000 files, VOC2010 1.3 GB."""

RECORD: Final = ".extracted.json"
"""Written into the extracted folder before it gets its name: what was extracted, so that it need not be again."""

Wanted = Callable[[str], bool]
_VERSION = 1
_NOBODYS: Final = {RECORD, ".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in any folder that is looked at is no change of what was extracted."""
_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True)
class Extraction:
    """What lies in an extracted folder.

    Attributes:
        archive, size, mtime_ns: name, bytes and time of the archive.
        files, bytes: number and total size of the extracted files.
        skipped: members that were not wanted, because another command may want them.
    """

    version: int
    archive: str
    size: int
    mtime_ns: int
    files: int
    bytes: int
    skipped: list[str]


def opened(source: Path, work: Path, wanted: Wanted | None = None) -> Path:
    """The folder that `source` is, or the one that the archive `source` holds, extracted once below `work`.

    Raises:
        DataError: `source` is missing, or see `extract`. StorageError: `work` cannot be written.
    """
    source = Path(source)
    if source.is_dir():
        return source
    if not source.exists():
        raise DataError(
            "the data are not there", path=source, found="nothing",
            expected="a folder, or a .tar.gz, .tgz, .tar or .zip file",
            remedy="check the path; README says where the data sets can be downloaded",
        )  # fmt: skip
    return extract(source, Path(work) / stem(source), wanted=wanted)


def stem(archive: Path) -> str:
    """The archive's name without `.tar.gz` and the like."""
    name = archive.name
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name


def extract(
    archive: Path,
    into: Path,
    *,
    wanted: Wanted | None = None,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Extract `archive` to the folder `into`, which appears when it is whole, and return `into`.

    The members are written to `.<name>.extracting` beside it, which is renamed at the end. Where `into` already is an
    extraction of this archive (same name, size and time; as many files and bytes as there were), nothing is done. An
    older extraction of another archive or choice is replaced; a folder that was not extracted here never is.
    `__MACOSX/` and `._*`, which macOS adds, are left out.

    Args:
        archive: `.tar.gz`, `.tgz`, `.tar` or `.zip`; the first bytes decide, not the name.
        into: the folder to make.
        wanted: chooses files by their path in the archive (`CelebAMask-HQ/CelebA-HQ-img/0.jpg`); None takes all.
            Names and sizes of the others are checked as well, as they are passed over.
        max_files: members that the archive may hold.
        max_bytes: bytes that its files may have, as declared and as counted while reading.

    Raises:
        DataError: the archive is missing, cut off, damaged, encrypted, of another kind or refused for one of its
            members; it holds nothing that is wanted; or `into` holds something else. In each case `into` is as before.
        StorageError: full disk, no permission and the like.
    """
    archive, into = Path(archive), Path(into)
    try:
        with alone(into):
            if not _is_extracted(archive, into, wanted):
                _replace(archive, into, wanted, max_files, max_bytes)
    except OSError as error:
        raise storage_error(error, error.filename or into) from error
    return into


def read_record(folder: Path) -> Extraction | None:
    """What was extracted to `folder`; None where there is no (readable) record."""
    try:
        record = Extraction(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.version == _VERSION else None


def _is_extracted(archive: Path, into: Path, wanted: Wanted | None) -> bool:
    if not into.exists():
        return False
    record = read_record(into)
    intact = record is not None and (record.files, record.bytes) == _contents(into)
    if record is not None and intact and archive.is_file():
        facts = archive.stat()
        same = (record.archive, record.size, record.mtime_ns) == (archive.name, facts.st_size, facts.st_mtime_ns)
        if same and not any(wanted is None or wanted(name) for name in record.skipped):
            return True
    if intact or (into.is_dir() and not any(into.iterdir())):
        return False
    raise DataError(
        "the folder for the extracted files holds something else",
        path=into,
        found="files that were changed, added or removed since" if record else "files that were not extracted here",
        expected=f"nothing, or what was extracted from {archive.name}",
        remedy="to use the folder as it is, name it instead of the archive; to have it unpacked again, move it away",
    )


def _contents(folder: Path) -> tuple[int, int]:
    """(files, bytes) below a folder, without the record and what file managers add."""
    files = total = 0
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name not in _NOBODYS:
                    files += 1
                    total += entry.stat(follow_symlinks=False).st_size
    return files, total


def _replace(archive: Path, into: Path, wanted: Wanted | None, max_files: int, max_bytes: int) -> None:
    building = into.with_name(f".{into.name}.extracting")
    shutil.rmtree(building, ignore_errors=True)  # of a command that was killed: `alone` says that none is at work
    try:
        building.mkdir()
        writer = _Writer(archive, building, wanted, max_files, max_bytes)
        progress = _Progress(archive)
        for member in members(archive):
            writer.take(member)
            progress.show(member.position, writer.files)
        writer.finish()
        progress.finish(writer.files)
        if into.exists():
            shutil.rmtree(into)
        building.rename(into)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


class _Writer:
    """Writes wanted members below a folder and counts what the archive asks for."""

    def __init__(self, archive: Path, folder: Path, wanted: Wanted | None, max_files: int, max_bytes: int) -> None:
        self.archive, self.folder, self.wanted = archive, folder, wanted
        self.max_files, self.max_bytes = max_files, max_bytes
        self.members = self.declared = self.files = self.bytes = 0
        self.written: set[str] = set()
        self.made: set[str] = set()
        self.skipped: list[str] = []

    def take(self, member: Member) -> None:
        name = str(member.path)
        self.members += 1
        self.declared += member.size if member.kind == "file" else 0
        if self.members > self.max_files:
            raise self._refuse("too many members", name, f"member {self.members}", f"at most {self.max_files}")
        if self.declared > self.max_bytes:
            found = f"{self.declared} bytes declared up to here, {member.size} of them by this member"
            raise self._refuse("too large", name, found, f"at most {self.max_bytes} bytes")
        if _is_apple(member) or member.kind == "folder":
            return
        if self.wanted is not None and not self.wanted(name):
            self.skipped.append(name)
            return
        if member.kind != "file":
            raise self._refuse("not a plain file", name, member.kind, "files and folders only")
        if name in self.written:
            raise self._refuse("twice the same name", name, "two members of this name", "each name once")
        self.written.add(name)
        self._write(member, name)

    def finish(self) -> None:
        if not self.files:
            first = ", ".join(printable(name) for name in self.skipped[:5])
            raise DataError(
                "the archive holds none of the files that are needed",
                path=self.archive,
                found=f"{self.members} members" + (f", such as {first}" if first else ""),
                remedy="check that this is the right archive",
            )
        facts = self.archive.stat()
        record = Extraction(
            _VERSION, self.archive.name, facts.st_size, facts.st_mtime_ns, self.files, self.bytes, self.skipped
        )
        (self.folder / RECORD).write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")

    def _write(self, member: Member, name: str) -> None:
        target = self.folder / member.path
        try:
            if str(member.path.parent) not in self.made:
                target.parent.mkdir(parents=True, exist_ok=True)
                self.made.add(str(member.path.parent))
            # Exclusive: on a file system without upper and lower case, `A` would overwrite `a`.
            with target.open("xb") as file:
                for block in member.blocks():
                    self.bytes += len(block)
                    if self.bytes > self.max_bytes:
                        found = f"more than {self.max_bytes} bytes"
                        raise self._refuse("too large", name, found, f"at most {self.max_bytes} bytes")
                    file.write(block)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            found = "its name, or a folder of it, is another member's on this file system"
            raise self._refuse("names that clash", name, found, "each name once") from error
        except ValueError as error:
            raise self._refuse("a name that cannot be", name, str(error), "a file name") from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                found = f"{len(name)} characters"
                raise self._refuse("a name that is too long", name, found, "a file name") from error
            raise
        self.files += 1

    def _refuse(self, what: str, member: str, found: str, expected: str) -> DataError:
        return DataError(
            f"the archive is refused: {what}",
            path=self.archive,
            found=f"{printable(member)}: {found}",
            expected=expected,
            remedy="download the official archive again; or unpack it yourself, look at it, and name the folder",
        )


class _Progress:
    """A line on stderr: redrawn on a terminal, a new one every ten seconds elsewhere."""

    def __init__(self, archive: Path) -> None:
        self._name, self._total = archive.name, max(1, archive.stat().st_size) if archive.is_file() else 1
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def show(self, position: int, files: int) -> None:
        now = time.monotonic()
        if now - self._shown >= (0.25 if self._terminal else 10):
            self._shown = now
            self._write(f"{100 * min(1, position / self._total):.0f} %, {files} files", end="")

    def finish(self, files: int) -> None:
        self._write(f"{files} files in {time.monotonic() - self._began:.0f} s", end="\n")

    def _write(self, text: str, end: str) -> None:
        start, end = ("\r\x1b[K", end) if self._terminal else ("", "\n")
        print(f"{start}extracting {self._name}: {text}", end=end, file=sys.stderr, flush=True)


def _is_apple(member: Member) -> bool:
    name = member.path.name
    return "__MACOSX" in member.path.parts or name.startswith("._") or name in _NOBODYS


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.archive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a .tar.gz, .tgz, .tar or .zip")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    args = parser.parse_args(arguments)
    folder = extract(args.file, args.out)
    record = read_record(folder)
    if record is None:  # another process took it away
        raise StorageError("the extracted folder is gone", path=folder, remedy="run the command again")
    print(f"{folder}: {record.files} files, {record.bytes} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
