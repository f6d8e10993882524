"""The members of a tar or zip archive, one after the other, each checked before anybody sees its bytes.

Archives come from strangers: what is read here is the data of an attacker until it is proved harmless. Nothing is
written here; `data_prep.archive` does that.
"""

from __future__ import annotations

import gzip
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from slime_bench.errors import DataError

BLOCK: Final = 1 << 20
"""Bytes of a member that are in memory at a time."""

_LARGEST_HEADER: Final = 4 << 20
_LONGEST_TAIL: Final = 64 << 20
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, struct.error, UnicodeError,
    ValueError, IndexError, RecursionError,
)  # fmt: skip
_AGAIN = "download the archive again, and compare its size with the one that the data set's page states"
_DRIVE = re.compile(r"^[A-Za-z]:")
_WEB_PAGE = re.compile(rb"^\s*(<!doctype\s+html|<html|<\?xml[^>]*>\s*<!doctype\s+html)", re.IGNORECASE)


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        path: relative, without `.`, `..` or empty parts; safe to join to a folder.
        kind: `file`, `folder`, or what else it claims to be: a link, a device, ... (never to be written).
        size: bytes that the archive declares for a file.
        position: bytes of the archive that lie before this member, for a progress bar.
        blocks: reads a file's bytes, at most `BLOCK` at a time; raises DataError for a damaged one. To be called at
            most once, and before the next member is asked for.
    """

    path: PurePosixPath
    kind: str
    size: int
    position: int
    blocks: Callable[[], Iterator[bytes]]


def members(archive: Path) -> Iterator[Member]:
    """The members of a `.zip`, `.tar`, `.tar.gz` or `.tgz`, which it is by its first bytes, whatever its name.

    Raises:
        DataError: not a whole archive of these kinds, an encrypted member, or a name that leaves the folder it is
            extracted to. OSError: the file system's own errors.
    """
    kind = kind_of(archive)
    return _zip_members(archive) if kind == "zip" else _tar_members(archive, compressed=kind == "tar.gz")


def kind_of(archive: Path) -> str:
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
    if head[257:262] == b"ustar" or _is_old_tar(head):
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
        (_DRIVE.match(name) is not None, "a name with a Windows drive letter"),
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


def damaged(archive: Path, error: object, member: str | None = None) -> DataError:
    """The error for bytes that cannot be what was packed."""
    return DataError(
        "the archive is cut off or damaged",
        path=archive,
        found=f"{printable(member)}: {error}" if member else str(error),
        expected=f"a whole archive; this one has {archive.stat().st_size} bytes",
        remedy=_AGAIN,
    )


@contextmanager
def _damage(archive: Path, member: str | None = None) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:  # a zip compression that this Python does not know
        raise DataError(
            "the archive is packed in a way that cannot be read here", path=archive,
            found=f"{printable(member or '')}: {error}", expected="zip members stored or deflated",
            remedy="unpack it with another program and name the folder instead",
        ) from error  # fmt: skip
    except _DAMAGE as error:
        raise damaged(archive, error or type(error).__name__, member) from error


def _zip_members(archive: Path) -> Iterator[Member]:
    with _damage(archive), archive.open("rb") as file:
        try:
            opened = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:  # "File is not a zip file", although it begins like one
            raise zipfile.BadZipFile("the list of members, which ends a zip file, is missing or damaged") from error
        for info in opened.infolist():
            if info.flag_bits & 1:
                raise DataError(
                    "the archive is encrypted", path=archive, found=printable(info.filename),
                    expected="members without a password", remedy="unpack it yourself and name the folder instead",
                )  # fmt: skip
            # `filename` ends at a NUL; `orig_filename` is what stands in the archive.
            path = safe_path(info.orig_filename, archive)
            kind = "folder" if info.is_dir() else _kind_of_mode(info.external_attr >> 16)
            yield Member(path, kind, info.file_size, info.header_offset, _zip_blocks(archive, opened, info))


def _zip_blocks(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], Iterator[bytes]]:
    def blocks() -> Iterator[bytes]:
        with _damage(archive, info.filename), opened.open(info) as file:
            yield from _read_through(file)

    return blocks


def _tar_members(archive: Path, compressed: bool) -> Iterator[Member]:
    with _damage(archive), archive.open("rb") as raw:
        stream = _Bounded(gzip.GzipFile(fileobj=raw) if compressed else raw, archive)
        opened = tarfile.TarFile(fileobj=stream, tarinfo=_StrictInfo)  # type: ignore[arg-type]
        while (info := opened.next()) is not None:
            opened.members.clear()  # type: ignore[attr-defined]  # it would keep a million of them
            path = safe_path(info.name, archive)
            yield Member(path, _kind_of_tar(info), info.size, raw.tell(), _tar_blocks(archive, opened, info))
        for _ in range(_LONGEST_TAIL // BLOCK):  # padding, and the checksum of the compressed stream behind it
            if not stream.read(BLOCK):
                return
        raise tarfile.ReadError("much data after the end mark")


def _tar_blocks(archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], Iterator[bytes]]:
    def blocks() -> Iterator[bytes]:
        with _damage(archive, info.name):
            file = opened.extractfile(info)
            if file is None:
                raise tarfile.ReadError("not a file")
            yield from _read_through(file)  # which ends with an error where bytes are missing

    return blocks


class _StrictInfo(tarfile.TarInfo):
    """A header that is cut off, damaged or absent is an error.

    `TarFile.next` takes all of these for the end of the archive, once it has read one member; only two blocks of
    zeros are.
    """

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


class _Bounded:
    """A stream that is never asked for an absurd number of bytes at once, as long names and attributes can be."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, archive: Path) -> None:
        self._stream, self._archive = stream, archive
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise DataError(
                "the archive declares an absurd header", path=self._archive, found=f"{size} bytes",
                expected=f"at most {_LARGEST_HEADER}", remedy="do not use this archive",
            )  # fmt: skip
        return self._stream.read(size)


def _read_through(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _kind_of_mode(mode: int) -> str:
    """What the upper half of a zip member's attributes says, where it was packed on Unix; 0 elsewhere."""
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "a device or pipe")


def _kind_of_tar(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a symbolic link" if info.issym() else "a hard link"
    if info.isdir():
        return "folder"
    return "file" if info.isreg() else "a device or pipe"


def _is_old_tar(head: bytes) -> bool:
    """Whether the first block is a header without the `ustar` mark (before 1988), by its checksum."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
