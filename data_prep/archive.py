"""Downloaded archives, extracted safely and as a whole or not at all.

    python -m data_prep.archive CelebAMask-HQ.zip --out data/raw/CelebAMask-HQ

Only plain files and folders are written, below the given folder, with the permissions that the user's own new files
have. Links, devices, absolute names, `..`, name clashes, encrypted or damaged members and absurd sizes are refused.
"""

from __future__ import annotations

import argparse
import errno
import gzip
import json
import os
import re
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from tqdm import tqdm

from data_prep.commands import run, storage_error
from slime_bench.errors import DataError
from slime_bench.storage import alone

MAX_FILES: Final = 2_000_000
MAX_BYTES: Final = 64 << 30
"""Ten times what the largest of the data sets holds: CelebAMask-HQ has 400,000 files, VOC2010 1.3 GB."""

RECORD: Final = ".extracted.json"
"""Written into the extracted folder before it gets its name: what was extracted, so that it need not be again."""

Wanted = Callable[[str], bool]
_VERSION: Final = 1
_NOBODYS: Final = {RECORD, ".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in any folder that is looked at is no change of what was extracted."""
_SUFFIXES: Final = (".tar.gz", ".tgz", ".tar", ".zip")
_BLOCK: Final = 1 << 20
_LARGEST_HEADER: Final = 4 << 20
_LONGEST_TAIL: Final = 64 << 20
_DAMAGE: Final = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, struct.error, UnicodeError,
    ValueError, IndexError, RecursionError,
)  # fmt: skip
_AGAIN: Final = "download the archive again, and compare its size with the one that the data set's page states"
_WEB_PAGE = re.compile(rb"^\s*(<!doctype\s+html|<html|<\?xml[^>]*>\s*<!doctype\s+html)", re.IGNORECASE)


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
            remedy="check the path; docs/data.md says where the data sets can be downloaded",
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
        max_bytes: bytes that its files may have, as declared; no more than that is read.

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


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was extracted to `folder`; None where there is no (readable) record.

    Keys: `archive`, `size`, `mtime_ns`: its name, bytes and time; `files` and `bytes` that were extracted; `skipped`:
    members that were not wanted, because another command may want them.
    """
    try:
        record = dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.get("version") == _VERSION else None


def _is_extracted(archive: Path, into: Path, wanted: Wanted | None) -> bool:
    if not into.exists():
        return False
    record = read_record(into)
    intact = record is not None and [record["files"], record["bytes"]] == _contents(into)
    if record is not None and intact and archive.is_file():
        same = {key: record[key] for key in ("archive", "size", "mtime_ns")} == _facts(archive)
        if same and not any(wanted is None or wanted(name) for name in record["skipped"]):
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


def _facts(archive: Path) -> dict[str, Any]:
    status = archive.stat()
    return {"archive": archive.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _contents(folder: Path) -> list[int]:
    """[files, bytes] below a folder, without the record and what file managers add."""
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if name not in _NOBODYS)
    sizes = [os.lstat(file).st_size for file in files]
    return [len(sizes), sum(sizes)]


def _replace(archive: Path, into: Path, wanted: Wanted | None, max_files: int, max_bytes: int) -> None:
    building = into.with_name(f".{into.name}.extracting")
    shutil.rmtree(building, ignore_errors=True)  # of a command that was killed: `alone` says that none is at work
    try:
        building.mkdir()
        skipped = _extract_all(archive, building, wanted, max_files, max_bytes)
        files, total = _contents(building)
        record = {"version": _VERSION, **_facts(archive), "files": files, "bytes": total, "skipped": skipped}
        (building / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
        if into.exists():
            shutil.rmtree(into)
        building.rename(into)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _extract_all(archive: Path, folder: Path, wanted: Wanted | None, max_files: int, max_bytes: int) -> list[str]:
    """Write the wanted members below `folder`; names of the others. Every member is checked before any of its bytes."""
    kind = _kind_of(archive)
    count = declared = 0
    written: set[str] = set()
    skipped: list[str] = []
    name: str | None = None
    try:
        with archive.open("rb") as raw, tqdm.wrapattr(
            raw, "read", total=archive.stat().st_size, desc=f"extracting {archive.name}",
            mininterval=0.25 if sys.stderr.isatty() else 10,
        ) as file:  # fmt: skip
            for member in _zip_members(file, archive) if kind == "zip" else _tar_members(file, kind):
                name = member.name
                path = safe_path(name, archive)
                count, declared, key = count + 1, declared + member.size, str(path)
                if count > max_files:
                    raise _refused(archive, "too many members", key, f"member {count}", f"at most {max_files}")
                if declared > max_bytes:
                    found = f"{declared} bytes declared up to here, {member.size} of them by this member"
                    raise _refused(archive, "too large", key, found, f"at most {max_bytes} bytes")
                apple = "__MACOSX" in path.parts or path.name.startswith("._") or path.name in _NOBODYS
                if apple or member.kind == "folder":
                    continue
                if wanted is not None and not wanted(key):
                    skipped.append(key)
                    continue
                if member.kind != "file":
                    raise _refused(archive, "not a plain file", key, member.kind, "files and folders only")
                if key in written:
                    raise _refused(archive, "twice the same name", key, "two members of this name", "each name once")
                written.add(key)
                _write(archive, key, folder / path, member)
                name = None
    except NotImplementedError as error:  # a zip compression that this Python does not know
        raise DataError(
            "the archive is packed in a way that cannot be read here",
            path=archive,
            found=f"{printable(name or '')}: {error}",
            expected="zip members stored or deflated",
            remedy="unpack it with another program and name the folder instead",
        ) from error
    except _DAMAGE as error:
        found = str(error) or type(error).__name__
        raise DataError(
            "the archive is cut off or damaged",
            path=archive,
            found=f"{printable(name)}: {found}" if name else found,
            expected=f"a whole archive; this one has {archive.stat().st_size} bytes",
            remedy=_AGAIN,
        ) from error
    if not written:
        first = ", ".join(printable(each) for each in skipped[:5])
        raise DataError(
            "the archive holds none of the files that are needed",
            path=archive,
            found=f"{count} members" + (f", such as {first}" if first else ""),
            remedy="check that this is the right archive",
        )
    return skipped


@dataclass(frozen=True)
class _Member:
    """One entry of an archive: its name as it stands there; `file`, `folder`, or what else it claims to be, a link, a
    device, ...; the bytes that a file declares; and how a file's are read."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


def _write(archive: Path, name: str, target: Path, member: _Member) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive: on a file system without upper and lower case, `A` would overwrite `a`.
        with target.open("xb") as file, member.open() as source:  # type: ignore[union-attr]
            shutil.copyfileobj(source, file, _BLOCK)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        found = "its name, or a folder of it, is another member's on this file system"
        raise _refused(archive, "names that clash", name, found, "each name once") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            found = f"{len(name)} characters"
            raise _refused(archive, "a name that is too long", name, found, "a file name") from error
        raise storage_error(error, target) from error


def _zip_members(file: IO[bytes], archive: Path) -> Iterator[_Member]:
    try:
        opened = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:  # "File is not a zip file", although it begins like one
        raise zipfile.BadZipFile("the list of members, which ends a zip file, is missing or damaged") from error
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a symbolic link"}
    for info in opened.infolist():
        if info.flag_bits & 1:
            raise DataError(
                "the archive is encrypted", path=archive, found=printable(info.filename),
                expected="members without a password", remedy="unpack it yourself and name the folder instead",
            )  # fmt: skip
        # The upper half of the attributes holds the mode where it was packed on Unix, 0 elsewhere.
        kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "a device or pipe")
        # `filename` ends at a NUL; `orig_filename` is what stands in the archive.
        yield _Member(
            info.orig_filename, "folder" if info.is_dir() else kind, info.file_size, partial(opened.open, info)
        )


def _tar_members(file: IO[bytes], kind: str) -> Iterator[_Member]:
    stream: Any = gzip.GzipFile(fileobj=file) if kind == "tar.gz" else file
    opened = tarfile.TarFile(fileobj=stream, tarinfo=_StrictInfo)
    while (info := opened.next()) is not None:
        opened.members.clear()  # type: ignore[attr-defined]  # it would keep a million of them
        kinds = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.DIRTYPE: "folder"}
        found = "file" if info.isreg() else kinds.get(info.type, "a device or pipe")
        yield _Member(info.name, found, info.size if info.isreg() else 0, partial(opened.extractfile, info))
    for _ in range(_LONGEST_TAIL // _BLOCK):  # padding, and the checksum of the compressed stream behind it
        if not stream.read(_BLOCK):
            return
    raise tarfile.ReadError("much data after the end mark")


class _StrictInfo(tarfile.TarInfo):
    """A header that is cut off, damaged, absent or absurd is an error.

    `TarFile.next` takes these for the end of the archive, once it has read one member; only two blocks of zeros are.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _StrictInfo:
        info = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if not info.isreg() and info.size > _LARGEST_HEADER:  # long names and attributes are read at one go
            raise tarfile.ReadError(f"{printable(info.name)}: an absurd header, {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _StrictInfo:
        from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]

        try:
            info = super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"{error} where a member or the end mark should be") from error
        if info.size < 0:  # would send the reader backwards, for ever
            raise ReadError(f"{info.name}: {info.size} bytes declared")
        return info


def _kind_of(archive: Path) -> str:
    """`zip`, `tar` or `tar.gz`, by the first bytes of the file.

    Raises:
        DataError: missing, empty, or of another kind; a web page, the usual outcome of a download that failed, is
            called by its name.
    """
    if not archive.is_file():
        raise DataError(
            "no such archive", path=archive, found="a folder" if archive.is_dir() else "nothing",
            expected="a .tar.gz, .tgz, .tar or .zip file", remedy="check the path",
        )  # fmt: skip
    with archive.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise DataError("the archive is empty", path=archive, found="0 bytes", remedy=_AGAIN)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    with suppress(tarfile.TarError):  # the header's checksum decides: tar files from before 1988 have no `ustar` mark
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        return "tar"
    if _WEB_PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise DataError(
            "this is a web page, not an archive",
            path=archive,
            found=f"HTML, {archive.stat().st_size} bytes",
            expected="a .tar.gz, .tgz, .tar or .zip file",
            remedy="download it in a browser: Google Drive and others answer with a page when a large file must be "
            "confirmed or its quota is used up",
        )
    raise DataError(
        "not an archive of a known kind",
        path=archive,
        found=f"{archive.stat().st_size} bytes that begin with {head[:8]!r}",
        expected="a .tar.gz, .tgz, .tar or .zip file",
        remedy="unpack it with the program that made it and name the folder instead, or download it again",
    )


def printable(name: str) -> str:
    """A member's name for a message: undecodable bytes and control signs escaped, long ones cut."""
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def safe_path(name: str, archive: Path) -> PurePosixPath:
    """A member's name as a relative path that stays inside the folder it is joined to.

    Raises:
        DataError: an absolute name (POSIX, Windows drive or UNC), `..`, a backslash (a separator on Windows only, so
            that one archive would mean two trees), or a NUL.
    """
    reasons = (
        (name.startswith("/"), "an absolute name"),
        (re.match(r"[A-Za-z]:", name) is not None, "a name with a Windows drive letter"),
        ("\\" in name, "a name with a backslash"),
        ("\0" in name, "a name with a NUL"),
        (".." in name.split("/"), "a name with `..`"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise DataError(
                "the archive holds a member that would leave its folder, or could",
                path=archive,
                found=f"{printable(name)}: {reason}",
                expected="relative names with forward slashes",
                remedy="do not use this archive; the official ones hold nothing of the kind",
            )
    return PurePosixPath(*(part for part in name.split("/") if part not in ("", ".")))


def _refused(archive: Path, what: str, member: str, found: str, expected: str) -> DataError:
    return DataError(
        f"the archive is refused: {what}",
        path=archive,
        found=f"{printable(member)}: {found}",
        expected=expected,
        remedy="download the official archive again; or unpack it yourself, look at it, and name the folder",
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.archive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a .tar.gz, .tgz, .tar or .zip")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    args = parser.parse_args(arguments)
    folder = extract(args.file, args.out)
    files, total = _contents(folder)
    print(f"{folder}: {files} files, {total} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
