"""A lock on a folder that one process at a time may work on, which says who holds it.

The system itself lets go of the lock when its process ends, however it ends: none is ever left behind, and no clock has
a say in it. The lock is on `.<name>.lock` beside the folder, which stays there; its text only names the holder. Where
the file system has no such lock (some network drives) filelock's marker file beside it takes its place; it is stale
once its process is gone, which only a process of the same machine can tell.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slime_bench.errors import SlimeBenchError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_LOCKS_HERE: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_POLL: Final = 0.5  # seconds between two looks at a lock that another process holds
_UNKNOWN: Final = "an unknown process"


@dataclass(frozen=True)
class Holder:
    """Who works on a folder.

    Attributes:
        pid, host: the process. since: when it began, by the clock of its machine, ISO 8601; for people only.
    """

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class BusyError(SlimeBenchError):
    """Another process works on the folder.

    Args:
        folder: the one that is held. holder: by whom, where that is known. remedy: what else the user can do.
    """

    def __init__(self, folder: Path, holder: Holder | None, remedy: str = "wait for it, or end it") -> None:
        self.folder, self.holder = folder, holder
        super().__init__("another process works on this", path=folder, found=holder or _UNKNOWN, remedy=remedy)

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.holder, self.remedy)


@contextmanager
def held(folder: Path, wait: Callable[[Holder | None], None] | None = None) -> Iterator[None]:
    """Hold `folder`, which need not be there, against other processes.

    Args:
        wait: None to give up at once when another process holds it; otherwise called once before waiting for it.

    Raises:
        BusyError: another process holds it, and `wait` is None.
        OSError: the lock's file cannot be made; callers know what the user can do about their folder.
    """
    from filelock import FileLock, SoftFileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = FileLock(_file(folder), fallback_to_soft=False, on_acquired=_sign, poll_interval=_POLL)
    try:
        _acquire(lock, folder, wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        lock = SoftFileLock(_soft_file(folder), poll_interval=_POLL)
        _acquire(lock, folder, wait)
        with open(_file(folder), "ab") as file:
            _sign(file.fileno())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.truncate(_file(folder), 0)
        lock.release()


def holder(folder: Path) -> Holder | None:
    """Who holds `folder` now, or None; nothing is written. A holder that cannot be read is `Holder(0, "?", "?")`."""
    taken = _soft_file(folder).exists() or _is_locked(folder)
    return (_read(folder) or Holder(0, "?", "?")) if taken else None


def left_by(folder: Path) -> Holder | None:
    """The process that held `folder` and was killed while it did, or None."""
    return None if holder(folder) else _read(folder)


def _acquire(lock: BaseFileLock, folder: Path, wait: Callable[[Holder | None], None] | None) -> None:
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
    except Timeout:
        if wait is None:
            raise BusyError(folder, _read(folder)) from None
        wait(_read(folder))
        lock.acquire()


def _file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _soft_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.softlock")


def _sign(descriptor: int) -> None:
    """Write this process's name into the lock's file. A full disk takes the name, not the lock."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    name = json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), now))).encode()
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, name)


def _read(folder: Path) -> Holder | None:
    try:
        return Holder(**json.loads(_file(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or empty: nobody holds it
        return None


def _is_locked(folder: Path) -> bool:
    """Whether the lock is taken, found out without writing anything, so that it works on a read-only disk."""
    from filelock import lock_descriptor, unlock_descriptor

    try:
        descriptor = os.open(_file(folder), os.O_RDONLY)
    except OSError:
        return False
    try:
        if not lock_descriptor(descriptor, blocking=False):
            return True
        unlock_descriptor(descriptor)
        return False
    except OSError:
        return False
    finally:
        os.close(descriptor)
