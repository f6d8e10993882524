"""The frame of a MATLAB 5 file, walked before scipy sees it.

scipy's reader trusts what it reads: cut or changed bytes can end the process (segmentation fault in scipy 1.17), and a
small file can ask for any amount of memory. Here every length is held against the one around it, every count against
the bytes that are there, and the inflated size is bounded; only arrays, texts, cells and structs pass.

Layout: MathWorks, "MAT-File Format" (R2019b), chapter 1: a header of 128 bytes, then variables, each an element of
type 14 (matrix) or 15 (a matrix, deflated). An element is a tag (type, bytes) and its bytes, padded to 8; up to 4 bytes
lie in the tag itself.
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path
from typing import Final

from slime_bench.errors import DataError

MAX_BYTES: Final = 1 << 29
"""Most that one file may hold once inflated: 512 MiB, about eighty times the largest real ones."""
REMEDY: Final = "unpack the annotations again, or remove the file: a picture without one is counted and passed over"

_HEADER, _TAG = 128, 8
_MATRIX, _COMPRESSED = 14, 15
_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
"""Bytes of one value of each element type: int8, uint8, int16, ..., UTF-8, UTF-16, UTF-32."""
_INT8, _INT32, _UINT32, _UTF8 = 1, 5, 6, 16
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_DEPTH = 16
_HDF5 = b"\x89HDF\r\n\x1a\n"


class _Damage(Exception):
    """What is wrong with the bytes."""


def plain_content(path: Path) -> bytes:
    """The file with its deflated variables inflated, which is a valid MATLAB 5 file too, safe to be read by scipy.

    Raises:
        DataError: missing, empty, cut short, damaged, of another kind or version (MATLAB 7.3 is HDF5), or too large.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        found = "nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError("cannot read the annotation", path=path, found=found, remedy=REMEDY) from error
    if content[:10] == b"MATLAB 7.3" or _HDF5 in (content[:8], content[512:520]):
        raise DataError(
            "the annotation is a MATLAB 7.3 file, which is HDF5",
            path=path,
            found="HDF5",
            expected="a MATLAB 5 file, as PASCAL-Part is published",
            remedy="take the published file, or save it again in MATLAB with `save(file, 'anno', '-v7')`",
        )
    try:
        return _inflated(content)
    except _Damage as damage:
        raise unreadable(path, str(damage)) from damage


def unreadable(path: Path, found: str) -> DataError:
    """The error for bytes that are no whole MATLAB 5 file."""
    return DataError(
        "cannot read the annotation", path=path, found=found, expected="a complete MATLAB 5 file", remedy=REMEDY
    )


def _inflated(content: bytes) -> bytes:
    if not content:
        raise _Damage("an empty file")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise _Damage(f"{len(content)} bytes that are no MATLAB 5 file")
    pieces, place = [content[:_HEADER]], _HEADER
    size = _HEADER
    while place < len(content):
        if place + _TAG > len(content):
            raise _Damage(f"a file that ends within a variable, after {len(content)} bytes")
        kind, length = struct.unpack_from(f"{order}II", content, place)
        end = place + _TAG + length
        if kind not in (_COMPRESSED, _MATRIX):
            raise _Damage(f"a variable of the unknown type {kind} at byte {place}")
        if end > len(content):
            raise _Damage(f"a file that ends after {len(content)} of {end} bytes")
        piece = content[place:end]
        if kind == _COMPRESSED:
            piece = _inflate(content[place + _TAG : end], MAX_BYTES - size)
        if _matrix(memoryview(piece), 0, len(piece), order, 0) != len(piece):
            raise _Damage("bytes after the end of a variable")
        pieces.append(piece)
        size += len(piece)
        place = end
    return b"".join(pieces)


def _inflate(piece: bytes, room: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(piece, max(1, room))
    except zlib.error as error:
        raise _Damage(f"damaged bytes ({error})") from error
    if stream.unconsumed_tail:
        raise _Damage(f"a file that inflates to an absurd size, more than {MAX_BYTES >> 20} MiB")
    if not stream.eof or stream.unused_data:
        raise _Damage("a deflated variable without its end, or with bytes after it")
    return inflated


def _matrix(data: memoryview, start: int, end: int, order: str, depth: int) -> int:
    """Walk the matrix at `start`, which must end by `end`; returns where it ends."""
    kind, begin, stop, after = _element(data, start, end, order)
    if kind != _MATRIX or depth > _DEPTH:
        raise _Damage(f"no matrix at byte {start}" if kind != _MATRIX else "structs nested without end")
    if begin == stop:  # an empty matrix may be left out altogether
        return after
    place = _part(data, begin, stop, order, (_UINT32,), 8)
    flags = struct.unpack_from(f"{order}I", data, place[0])[0]
    kind, is_complex = flags & 0xFF, bool(flags & 0x0800)
    sizes = _part(data, place[2], stop, order, (_INT32,))
    dims = struct.unpack_from(f"{order}{(sizes[1] - sizes[0]) // 4}i", data, sizes[0])
    count = prod(dims)
    if not 2 <= len(dims) <= _DEPTH or min(dims) < 0 or count > MAX_BYTES:
        raise _Damage(f"a matrix of the size {'x'.join(map(str, dims[:5]))}")
    inner = _part(data, sizes[2], stop, order, (_INT8,))[2]
    if kind == _CELL:
        inner = _matrices(data, inner, stop, order, depth, count)
    elif kind == _STRUCT:
        width_at = _part(data, inner, stop, order, (_INT32,), 4)
        width = struct.unpack_from(f"{order}i", data, width_at[0])[0]
        names = _part(data, width_at[2], stop, order, (_INT8,))
        if width < 1 or (names[1] - names[0]) % width:
            raise _Damage("field names without their length")
        fields = (names[1] - names[0]) // width
        inner = _matrices(data, names[2], stop, order, depth, count * fields)
    elif kind == _CHAR:
        found = _part(data, inner, stop, order, tuple(_BYTES))
        values = (found[1] - found[0]) // _BYTES[found[3]]
        if values != count and not (found[3] == _UTF8 and values >= count):  # letters of several bytes
            raise _Damage(f"a text of {values} letters instead of {count}")
        inner = found[2]
    elif kind in _NUMBERS:
        for _ in range(1 + is_complex):
            found = _part(data, inner, stop, order, tuple(_BYTES))
            if found[3] >= _UTF8 or (found[1] - found[0]) // _BYTES[found[3]] != count:
                raise _Damage(f"{found[1] - found[0]} bytes for {count} numbers")
            inner = found[2]
    else:
        raise _Damage(f"a matrix of the class {kind}, which is no array, text, cell or struct")
    if inner != stop:
        raise _Damage(f"a matrix that ends at byte {inner} instead of {stop}")
    return after


def _matrices(data: memoryview, place: int, end: int, order: str, depth: int, count: int) -> int:
    if count * _TAG > end - place:
        raise _Damage(f"{count} matrices in {end - place} bytes")
    for _ in range(count):
        place = _matrix(data, place, end, order, depth + 1)
    return place


def _part(
    data: memoryview, place: int, end: int, order: str, kinds: tuple[int, ...], length: int | None = None
) -> tuple[int, int, int, int]:
    """The element at `place`: where its bytes begin and stop, where the next one begins, and its type."""
    kind, begin, stop, after = _element(data, place, end, order)
    if kind not in kinds or (stop - begin) % _BYTES[kind] or (length is not None and stop - begin != length):
        raise _Damage(f"an element of type {kind} and {stop - begin} bytes at byte {place}")
    return begin, stop, after, kind


def _element(data: memoryview, place: int, end: int, order: str) -> tuple[int, int, int, int]:
    """(type, begin, stop, after) of the element at `place`."""
    if place + _TAG > end:
        raise _Damage(f"a matrix that ends within an element, at byte {end}")
    kind, length = struct.unpack_from(f"{order}II", data, place)
    if kind >> 16:  # a small element: its length and its up to 4 bytes lie in the tag
        kind, length = kind & 0xFFFF, kind >> 16
        if length > 4:
            raise _Damage(f"a small element of {length} bytes")
        return kind, place + 4, place + 4 + length, place + _TAG
    begin = place + _TAG
    stop = begin + length
    after = stop if kind == _MATRIX else begin + -(-length // 8) * 8
    if after > end:
        raise _Damage(f"an element of {length} bytes where {end - begin} are left")
    return kind, begin, stop, after
