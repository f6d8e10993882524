"""Locks on folders: one process at a time, free as soon as that process is gone, whatever any clock says."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slime_bench import lock, storage

HOLDS = """
import sys
from pathlib import Path
from slime_bench.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(repository: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """`other(folder)`: a process that holds the folder until a line comes on its standard input."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(folder)], env={**os.environ, "PYTHONPATH": str(repository)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, as some network drives."""
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


class TestHeld:
    def test_nobody_else_gets_in_and_is_told_who_is_there(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "trial"
        with lock.held(folder):
            with pytest.raises(lock.BusyError, match=f"process {os.getpid()} on ") as caught, lock.held(folder):
                pass
            assert caught.value.holder == lock.holder(folder)
            with lock.held(folder.with_name("another")):
                pass
        with lock.held(folder):
            pass
        assert lock.holder(folder) is None and lock.left_by(folder) is None
        assert not folder.exists(), "the folder itself is the business of who holds it"

    def test_a_killed_process_leaves_its_name_and_no_lock(
        self, tmp_path: Path, other: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        process = other(tmp_path / "trial")
        found = lock.holder(tmp_path / "trial")
        assert found is not None and found.pid == process.pid
        with pytest.raises(lock.BusyError), lock.held(tmp_path / "trial"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = lock.left_by(tmp_path / "trial")
        assert lock.holder(tmp_path / "trial") is None and left is not None and left.pid == process.pid
        with lock.held(tmp_path / "trial"):
            assert lock.holder(tmp_path / "trial") != left
        assert lock.left_by(tmp_path / "trial") is None

    def test_who_waits_gets_in_afterwards(self, tmp_path: Path, other: Callable[[Path], subprocess.Popen[str]]) -> None:
        process = other(tmp_path / "trial")
        seen: list[lock.Holder | None] = []

        def waits(holder: lock.Holder | None) -> None:
            seen.append(holder)
            process.communicate("go\n")

        with lock.held(tmp_path / "trial", waits):
            assert [each.pid for each in seen if each] == [process.pid] and process.returncode == 0

    def test_a_full_disk_takes_the_name_and_not_the_lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.write

        def full(descriptor: int, data: bytes) -> int:
            if b"host" in data:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", full)
        with lock.held(tmp_path / "trial"):
            assert lock.holder(tmp_path / "trial") == lock.Holder(0, "?", "?")
            with pytest.raises(lock.BusyError, match="an unknown process"), lock.held(tmp_path / "trial"):
                pass

    def test_the_error_crosses_the_border_between_processes(self, tmp_path: Path) -> None:
        error = lock.BusyError(tmp_path, lock.Holder(7, "there", "2026-01-01"))
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.folder, copy.holder, str(copy)) == (error.folder, error.holder, str(error))


class TestWithoutLocksOfTheSystem:
    @pytest.mark.usefixtures("without_flock")
    def test_a_marker_takes_their_place(self, tmp_path: Path) -> None:
        with lock.held(tmp_path / "trial"):
            found = lock.holder(tmp_path / "trial")
            assert found is not None and found.pid == os.getpid()
            with pytest.raises(lock.BusyError, match=str(os.getpid())), lock.held(tmp_path / "trial"):
                pass
        assert lock.holder(tmp_path / "trial") is None

    @pytest.mark.usefixtures("without_flock")
    def test_that_of_a_process_that_is_gone_is_stale(self, tmp_path: Path) -> None:
        child = os.fork()
        if child == 0:
            with lock.held(tmp_path / "trial"):
                os._exit(0)  # as if killed: nothing is released
        os.waitpid(child, 0)
        assert (tmp_path / ".trial.softlock").exists()
        deadline = time.monotonic() + 30
        while True:  # the library takes one look to see that it is stale, and takes it at a later one
            try:
                with lock.held(tmp_path / "trial"):
                    break
            except lock.BusyError:
                assert time.monotonic() < deadline
        found = lock.holder(tmp_path / "trial")
        assert found is None


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_text_that_names_nobody_and_looking_writes_nothing(tmp_path: Path, text: str) -> None:
    assert lock.holder(tmp_path / "trial") is None and list(tmp_path.iterdir()) == []
    (tmp_path / ".trial.lock").write_text(text)
    assert lock.holder(tmp_path / "trial") is None and lock.left_by(tmp_path / "trial") is None


def test_alone_says_whom_it_waits_for(
    tmp_path: Path, other: Callable[[Path], subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    process = other(tmp_path / "data")
    assert process.stdin is not None
    process.stdin.write("go\n")
    pid = process.pid

    class Starts:
        """Lets go of the folder as soon as the waiting is announced."""

        def write(self, text: str) -> int:
            if str(pid) in text:
                process.stdin.flush()  # type: ignore[union-attr]
            return len(text)

        def flush(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", Starts())
        with storage.alone(tmp_path / "data"):
            pass
    assert process.wait(30) == 0
