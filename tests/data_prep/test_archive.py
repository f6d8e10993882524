"""Archives: what is extracted, what is refused, and that nothing half extracted ever looks whole."""

from __future__ import annotations

import errno
import io
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import archive as module
from data_prep import commands
from data_prep.archive import RECORD, extract, opened
from slime_bench.errors import DataError, StorageError

NAMES = ("data/a.txt", "data/deep/er/b.bin", "data/with space/ünïcode – 猫.png", "c")
CONTENT = {name: bytes(random.Random(name).randbytes(3000 + 700 * i)) for i, name in enumerate(NAMES)}


def packed(kind: str, content: dict[str, bytes], *more: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in [*content.items(), *((each, b"") for each in more)]:
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w" if kind == "tar" else "w:gz") as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for info in more:
                tar.addfile(info)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    files = (each for each in folder.rglob("*") if each.is_file() and each.name != RECORD)
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in files}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "given.tar") -> Path:
        path = tmp_path / "downloads" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


Save = Callable[..., Path]


def refused(archive: Path, into: Path, **options: Any) -> DataError:
    """The error that `extract` ends with; the target must be absent, and nothing else left beside it but the lock."""
    with pytest.raises(DataError) as caught:
        extract(archive, into, **options)
    assert not into.exists()
    assert {each.name for each in into.parent.iterdir()} <= {f".{into.name}.lock", "downloads"}
    assert str(archive) in str(caught.value) and caught.value.remedy
    return caught.value


class TestExtract:
    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
    def test_all_kinds_whatever_their_name(self, kind: str, save: Save, tmp_path: Path) -> None:
        into = tmp_path / "out put" / "ü"
        macs = {"__MACOSX/data/._a.txt": b"x", "data/._a.txt": b"y", "data/.DS_Store": b"z"}
        assert extract(save(packed(kind, {**CONTENT, **macs}), "données 1.tar.gz"), into) == into
        assert tree(into) == CONTENT

    @pytest.mark.parametrize("kind", ["tar.gz", "zip"])
    def test_only_what_is_wanted(self, kind: str, save: Save, tmp_path: Path) -> None:
        archive = save(packed(kind, CONTENT))
        assert list(tree(extract(archive, tmp_path / "out", wanted=lambda name: name.endswith(".txt")))) == [NAMES[0]]
        error = refused(save(packed(kind, CONTENT)), tmp_path / "none" / "out", wanted=lambda name: False)
        assert "none of the files that are needed" in error.summary

    @settings(max_examples=40, deadline=None)
    @given(name=st.text(alphabet="ab./\\:ü \n", min_size=1, max_size=12), kind=st.sampled_from(["tar", "zip"]))
    def test_no_name_leaves_the_folder(self, name: str, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("names")
        (folder / "given").write_bytes(
            packed(kind, {"fine": b"1", name: b"2", "/" + name: b"3", f"a/../../{name}": b"4"})
        )
        with suppress(DataError, StorageError):
            extract(folder / "given", folder / "out")
        assert {each.name for each in folder.iterdir()} <= {"given", "out", ".out.lock"}


class TestRefused:
    @pytest.mark.parametrize("kind", ["tar", "zip"])
    @pytest.mark.parametrize("limit", [{"MAX_BYTES": 1 << 20}, {"MAX_FILES": 1}])
    def test_more_than_allowed(
        self, kind: str, limit: dict[str, int], save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = save(packed(kind, {"small": b"1", "bomb": bytes(1 << 20)}))
        for name, value in limit.items():
            monkeypatch.setattr(module, name, value)
        error = refused(archive, tmp_path / "out")
        assert "too large" in error.summary and "bomb" in str(error.found)
        monkeypatch.setattr(module, "MAX_BYTES", (1 << 20) + 1)
        monkeypatch.setattr(module, "MAX_FILES", 2)
        extract(archive, tmp_path / "out")

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "../evil"},
            {"name": "odd one", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
            {"name": "odd one", "type": tarfile.LNKTYPE, "linkname": "../evil"},
            {"name": "odd one", "type": tarfile.FIFOTYPE},
        ],
    )
    def test_names_links_and_devices_that_leave_the_folder(
        self, fields: dict[str, Any], save: Save, tmp_path: Path
    ) -> None:
        info = tarfile.TarInfo()
        for key, value in fields.items():
            setattr(info, key, value)
        archive = save(packed("tar", {"fine": b"1"}, info))
        assert fields["name"] in str(refused(archive, tmp_path / "out").found)
        assert tree(extract(archive, tmp_path / "out", wanted=lambda name: name == "fine")) == {"fine": b"1"}

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"<!DOCTYPE html><html>Virus scan warning</html>",
            b"Rar!\x1a\x07\x01\x00" + bytes(600),
            b"\x1f\x8b" * 300,
        ],
    )
    def test_no_archive_at_all(self, content: bytes, save: Save, tmp_path: Path) -> None:
        error = refused(save(content, "CelebAMask-HQ.zip"), tmp_path / "out")
        assert error.summary == "the archive cannot be unpacked" and repr(content[:16]) in str(error.found)

    def test_encrypted(self, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed("zip", {"secret.txt": b"1" * 50}))
        content[content.index(b"PK\x03\x04") + 6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
        assert "is encrypted" in str(refused(save(bytes(content)), tmp_path / "out").found)

    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
    def test_cut_anywhere(self, kind: str, save: Save, tmp_path: Path) -> None:
        whole = packed(kind, CONTENT)
        # A tar file ends with blocks of zeros; one of them is needed.
        end = -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512 if kind == "tar" else len(whole)
        places = random.Random(0).sample(range(1, end), 25)
        boundaries = [512, 1024, 512 + 3072, end - 512, end - 1] if kind == "tar" else [end - 1, end - 8]
        for place in [*places, *boundaries]:
            assert "cannot be unpacked" in refused(save(whole[:place]), tmp_path / "out").summary, place

    @pytest.mark.parametrize(("kind", "place"), [("tar.gz", 0.5), ("zip", 0.5), ("tar", 0.6)])
    def test_damage(self, kind: str, place: float, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed(kind, {"a": CONTENT["c"][:512], "b": b"2"} if kind == "tar" else CONTENT))
        content[1034 if kind == "tar" else len(content) // 2] ^= 0xFF  # of a tar file the second member's header
        assert "cannot be unpacked" in refused(save(bytes(content)), tmp_path / "out").summary


class TestStorage:
    def test_a_killed_command_leaves_nothing_whole_and_no_rest(self, save: Save, tmp_path: Path) -> None:
        rest = tmp_path / ".out.extracting"
        rest.mkdir()
        (rest / "half").write_bytes(b"1")
        assert tree(extract(save(packed("zip", CONTENT)), tmp_path / "out")) == CONTENT
        assert not rest.exists()

    def test_an_interruption_takes_its_files_along(
        self, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(self: Path, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        archive = save(packed("zip", CONTENT))
        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(archive, tmp_path / "out")
        assert {each.name for each in tmp_path.iterdir()} == {"downloads", ".out.lock"}

    def test_a_limit_of_the_system(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("zip", {"a": bytes(200), "large": bytes(100_000)}))
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
            "from data_prep.archive import main, run; sys.exit(run(main))"
        )
        command = [sys.executable, "-c", code, str(archive), "--out", str(tmp_path / "out")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        assert "\nerror: a file cannot be written or read" in ended.stderr
        assert not (tmp_path / "out").exists()


class TestAgain:
    def test_the_same_archive_is_not_extracted_twice_and_another_is(
        self, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archive = save(packed("zip", {"old": b"1"}), "VOC 2010.TAR.gz")
        folder = opened(archive, tmp_path / "raw")
        assert folder == tmp_path / "raw" / "VOC 2010" and opened(folder, tmp_path / "raw") == folder
        before = (folder / RECORD).stat().st_ino
        assert module.main([str(archive), "--out", str(folder)]) == 0 and str(folder) in capsys.readouterr().out
        assert (folder / RECORD).stat().st_ino == before
        with pytest.raises(DataError, match="cannot be unpacked"):
            opened(save(packed("zip", CONTENT)[:-30], archive.name), tmp_path / "raw")
        assert tree(folder) == {"old": b"1"}  # a failed update leaves the old one
        assert tree(opened(save(packed("zip", CONTENT), archive.name), tmp_path / "raw")) == CONTENT

    def test_what_was_not_extracted_here_is_never_replaced(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("zip", CONTENT))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("work")
        with pytest.raises(DataError, match="holds something else"):
            extract(archive, tmp_path / "out")
        with pytest.raises(StorageError, match="Not a directory"):
            extract(archive, tmp_path / "out" / "mine")
        assert (tmp_path / "out" / "mine").read_text() == "work"
        for file in (tmp_path / "out").iterdir():
            file.unlink()
        assert tree(extract(archive, tmp_path / "out")) == CONTENT

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the data are not there"):
            opened(tmp_path / "nothing.zip", tmp_path / "raw")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DataError("wrong data", path="x"), 2, "error: wrong data\n  where: x"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/f"), 2, "error: a file cannot be"),
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on where this one stopped"),
        (RuntimeError("bug"), 1, "unexpected error: RuntimeError: bug"),
    ],
)
def test_endings(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(arguments: list[str]) -> int:
        assert arguments == ["--flag"]
        raise raised

    monkeypatch.setattr(sys, "argv", ["prog", "--flag"])
    assert commands.run(command) == code
    captured = capsys.readouterr()
    assert captured.err.strip().startswith(said)
    assert captured.out == "" and "Traceback" not in captured.err
