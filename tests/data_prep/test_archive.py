"""Archives: what is extracted, what is refused, and that nothing half extracted ever looks whole."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import archive as module
from data_prep import commands
from data_prep.archive import RECORD, extract, opened, read_record, safe_path, stem
from slime_bench.errors import DataError, SlimeBenchError, StorageError

NAMES = ("data/a.txt", "data/deep/er/b.bin", "data/with space/ünïcode – 猫.png", "c")
CONTENT = {name: bytes(random.Random(name).randbytes(3000 + 700 * i)) for i, name in enumerate(NAMES)}


def tar_bytes(entries: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as file:
        for info, content in entries:
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def zip_bytes(entries: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


def packed(kind: str, content: dict[str, bytes]) -> bytes:
    if kind == "zip":
        return zip_bytes(list(content.items()))
    return tar_bytes(
        [tar_entry(*each) for each in content.items()], {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz"}[kind]
    )


def tree(folder: Path) -> dict[str, bytes]:
    files = (each for each in folder.rglob("*") if each.is_file() and each.name != RECORD)
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in files}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes, str], Path]:
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
    assert str(archive) in str(caught.value)
    return caught.value


class TestExtract:
    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "zip"])
    def test_all_kinds(self, kind: str, save: Save, tmp_path: Path) -> None:
        into = tmp_path / "out put" / "ü"
        assert extract(save(packed(kind, CONTENT), f"données 1.{kind}"), into) == into
        assert tree(into) == CONTENT
        record = read_record(into)
        assert record is not None
        assert (record["files"], record["bytes"]) == (len(CONTENT), sum(map(len, CONTENT.values())))

    def test_the_first_bytes_decide_not_the_name(self, save: Save, tmp_path: Path) -> None:
        extract(save(packed("zip", CONTENT), "wrong.tar.gz"), tmp_path / "out")
        assert tree(tmp_path / "out") == CONTENT

    def test_tar_from_before_1988_has_no_mark(self, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed("tar", {"a": b"old"}))
        content[257:265] = b"\0" * 8
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        extract(save(bytes(content)), tmp_path / "out")
        assert tree(tmp_path / "out") == {"a": b"old"}

    def test_permissions_are_the_users_own(self, save: Save, tmp_path: Path) -> None:
        extract(save(tar_bytes([tar_entry("run", b"x", mode=0o6777)])), tmp_path / "out")
        plain = tmp_path / "plain"
        plain.write_bytes(b"")
        assert stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

    def test_what_macos_adds_is_left_out(self, save: Save, tmp_path: Path) -> None:
        extra = {"__MACOSX/data/._a.txt": b"x", "data/._a.txt": b"y", "__MACOSX/._c": b"z"}
        extract(save(packed("zip", {**CONTENT, **extra}), "mac.zip"), tmp_path / "out")
        assert tree(tmp_path / "out") == CONTENT

    def test_names_are_made_plain(self, save: Save, tmp_path: Path) -> None:
        extract(save(packed("tar", {"./a//b/./c": b"1"})), tmp_path / "out")
        assert tree(tmp_path / "out") == {"a/b/c": b"1"}

    @pytest.mark.parametrize("kind", ["tar.gz", "zip"])
    def test_only_what_is_wanted(self, kind: str, save: Save, tmp_path: Path) -> None:
        extract(save(packed(kind, CONTENT), f"a.{kind}"), tmp_path / "out", wanted=lambda name: name.endswith(".txt"))
        assert list(tree(tmp_path / "out")) == ["data/a.txt"]

    def test_links_that_nobody_wants_do_no_harm(self, save: Save, tmp_path: Path) -> None:
        entries = [tar_entry("a.txt", b"1"), tar_entry("latest", type=tarfile.SYMTYPE, linkname="/etc/passwd")]
        extract(save(tar_bytes(entries)), tmp_path / "out", wanted=lambda name: name.endswith(".txt"))
        assert tree(tmp_path / "out") == {"a.txt": b"1"}

    @settings(max_examples=40, deadline=None)
    @given(st.text(alphabet="ab./\\:\0ü \n", min_size=1, max_size=12))
    def test_no_name_leaves_the_folder(self, name: str) -> None:
        try:
            path = safe_path(name, Path(__file__))
        except DataError:
            return
        folder = Path("/somewhere/deep")
        assert Path(os.path.normpath(folder / path)).is_relative_to(folder)
        assert not set(path.parts) & {"..", "/"}


class TestRefused:
    @pytest.mark.parametrize(
        "name",
        [
            "../evil",
            "a/../../evil",
            "a/..",
            "/etc/evil",
            "C:evil",
            "c:/evil",
            "C:\\evil",
            "\\\\server\\evil",
            "a\\..\\b",
        ],
    )
    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_names_that_leave_the_folder(self, kind: str, name: str, save: Save, tmp_path: Path) -> None:
        error = refused(save(packed(kind, {"fine": b"1", name: b"2"})), tmp_path / "out")
        assert "would leave its folder" in error.summary
        assert name in str(error.found)

    def test_also_where_nobody_wants_them(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("tar", {"fine": b"1", "../evil": b"2"}))
        refused(archive, tmp_path / "out", wanted=lambda name: name == "fine")

    def test_a_nul_in_a_zip_name(self, save: Save, tmp_path: Path) -> None:
        content = packed("zip", {"fineX../evil": b"2"}).replace(b"fineX..", b"fine\0..")
        assert "NUL" in str(refused(save(content, "nul.zip"), tmp_path / "out").found)

    @pytest.mark.parametrize(
        ("fields", "kind"),
        [
            ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "symbolic link"),
            ({"type": tarfile.SYMTYPE, "linkname": "fine"}, "symbolic link"),
            ({"type": tarfile.LNKTYPE, "linkname": "fine"}, "hard link"),
            ({"type": tarfile.FIFOTYPE}, "device or pipe"),
            ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "device or pipe"),
            ({"type": tarfile.BLKTYPE, "devmajor": 8}, "device or pipe"),
        ],
    )
    def test_links_and_devices_of_tar(self, fields: dict, kind: str, save: Save, tmp_path: Path) -> None:
        error = refused(save(tar_bytes([tar_entry("fine", b"1"), tar_entry("odd one", **fields)])), tmp_path / "out")
        assert "not a plain file" in error.summary
        assert "odd one" in str(error.found) and kind in str(error.found)

    @pytest.mark.parametrize(
        ("mode", "kind"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "pipe"), (stat.S_IFCHR, "device")]
    )
    def test_links_and_devices_of_zip(self, mode: int, kind: str, save: Save, tmp_path: Path) -> None:
        info = zipfile.ZipInfo("odd one")
        info.external_attr = (mode | 0o777) << 16
        error = refused(save(zip_bytes([("fine", b"1"), (info, b"/etc/passwd")]), "l.zip"), tmp_path / "out")
        assert "odd one" in str(error.found) and kind in str(error.found)

    @pytest.mark.parametrize("kind", ["tar.gz", "zip"])
    def test_more_bytes_than_allowed(self, kind: str, save: Save, tmp_path: Path) -> None:
        archive = save(packed(kind, {"small": b"1", "bomb": bytes(1 << 20)}), f"bomb.{kind}")
        assert archive.stat().st_size < 5000
        error = refused(archive, tmp_path / "out", max_bytes=1 << 20)
        assert "too large" in error.summary and "bomb" in str(error.found)
        extract(archive, tmp_path / "out", max_bytes=(1 << 20) + 1)

    def test_unwanted_bytes_count_too(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("tar.gz", {"bomb": bytes(1 << 20), "small": b"1"}))
        refused(archive, tmp_path / "out", max_bytes=1000, wanted=lambda name: name == "small")

    def test_an_absurd_declared_size(self, save: Save, tmp_path: Path) -> None:
        info = tarfile.TarInfo("huge")
        info.size = 1 << 50
        content = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        assert "too large" in refused(save(content), tmp_path / "out").summary

    @pytest.mark.parametrize("wanted", [None, lambda name: name == "fine"])
    def test_a_negative_declared_size(self, wanted: Any, save: Save, tmp_path: Path) -> None:
        info = tarfile.TarInfo("backwards")
        info.size = -512
        content = packed("tar", {"fine": b"1"})[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        error = refused(save(content), tmp_path / "out", wanted=wanted, max_files=1000)
        assert "cut off or damaged" in error.summary and "backwards: -512 bytes" in str(error.found)

    def test_an_absurd_header(self, save: Save, tmp_path: Path) -> None:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
        content = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        assert "absurd header" in str(refused(save(content), tmp_path / "out").found)

    def test_a_zip_that_lies_about_sizes(self, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed("zip", {"liar": bytes(5000)}))
        for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            at = content.index(mark) + offset
            content[at : at + 4] = (100).to_bytes(4, "little")
        assert "liar" in str(refused(save(bytes(content), "liar.zip"), tmp_path / "out").found)

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_more_members_than_allowed(self, kind: str, save: Save, tmp_path: Path) -> None:
        archive = save(packed(kind, {f"f{i}": b"" for i in range(11)}))
        assert "too many members" in refused(archive, tmp_path / "out", max_files=10).summary
        extract(archive, tmp_path / "out", max_files=11)

    @pytest.mark.parametrize("second", ["a/b", "./a/b", "a//b"])
    def test_two_members_of_one_name(self, second: str, save: Save, tmp_path: Path) -> None:
        error = refused(save(tar_bytes([tar_entry("a/b", b"1"), tar_entry(second, b"2")])), tmp_path / "out")
        assert "twice the same name" in error.summary and "a/b" in str(error.found)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_members_of_one_name_in_a_zip(self, save: Save, tmp_path: Path) -> None:
        error = refused(save(zip_bytes([("a/b", b"1"), ("a/b", b"2")]), "two.zip"), tmp_path / "out")
        assert "twice the same name" in error.summary

    @pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
    def test_a_file_that_is_a_folder_too(self, names: tuple[str, str], save: Save, tmp_path: Path) -> None:
        error = refused(save(packed("tar", dict.fromkeys(names, b"1"))), tmp_path / "out")
        assert "names that clash" in error.summary and names[1] in str(error.found)

    def test_names_of_one_spelling(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("tar", {"a/Face.png": b"1", "a/face.PNG": b"2"}))
        (tmp_path / "probe").write_text("")
        if (tmp_path / "PROBE").exists():  # macOS, Windows: they would be one file
            assert "names that clash" in refused(archive, tmp_path / "out").summary
        else:
            assert len(tree(extract(archive, tmp_path / "out"))) == 2

    def test_a_name_that_is_too_long(self, save: Save, tmp_path: Path) -> None:
        error = refused(save(packed("tar", {"x" * 300: b"1"})), tmp_path / "out")
        assert "too long" in error.summary and "(300 characters)" in str(error.found)

    def test_encrypted(self, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed("zip", {"secret.txt": b"1" * 50}))
        content[content.index(b"PK\x03\x04") + 6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
        error = refused(save(bytes(content), "locked.zip"), tmp_path / "out")
        assert "encrypted" in error.summary and "secret.txt" in str(error.found)

    def test_a_compression_that_is_not_known(self, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed("zip", {"odd.txt": b"1" * 50}))
        for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            content[content.index(mark) + offset] = 9  # deflate64
        error = refused(save(bytes(content), "d64.zip"), tmp_path / "out")
        assert "cannot be read here" in error.summary and "odd.txt" in str(error.found)

    @pytest.mark.parametrize(
        ("content", "summary"),
        [
            (b"", "the archive is empty"),
            (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "this is a web page"),
            (b"\xef\xbb\xbf<HTML>quota exceeded</HTML>", "this is a web page"),
            (b"Rar!\x1a\x07\x01\x00" + bytes(600), "not an archive of a known kind"),
            (b"\x89PNG\r\n\x1a\n" + bytes(600), "not an archive of a known kind"),
            (bytes(2000), "not an archive of a known kind"),
        ],
    )
    def test_no_archive_at_all(self, content: bytes, summary: str, save: Save, tmp_path: Path) -> None:
        error = refused(save(content, "CelebAMask-HQ.zip"), tmp_path / "out")
        assert error.summary.startswith(summary)
        assert error.remedy

    def test_gzip_of_something_else(self, save: Save, tmp_path: Path) -> None:
        import gzip

        assert "damaged" in refused(save(gzip.compress(b"x" * 5000), "a.tar.gz"), tmp_path / "out").summary

    def test_nothing_wanted_in_it(self, save: Save, tmp_path: Path) -> None:
        error = refused(save(packed("zip", CONTENT), "other.zip"), tmp_path / "out", wanted=lambda name: False)
        assert "none of the files that are needed" in error.summary and "data/a.txt" in str(error.found)

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        assert refused(tmp_path / "nothing.zip", tmp_path / "out").found == "nothing"
        (tmp_path / "downloads").mkdir()
        assert refused(tmp_path / "downloads", tmp_path / "out").found == "a folder"


class TestCutOff:
    """However an archive ends too early, nothing is left that could be taken for the whole."""

    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
    def test_anywhere(self, kind: str, save: Save, tmp_path: Path) -> None:
        whole = packed(kind, CONTENT)
        # A tar file ends with blocks of zeros; one of them is needed.
        end = -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512 if kind == "tar" else len(whole)
        places = random.Random(0).sample(range(1, end), 25)
        boundaries = [512, 1024, 512 + 3072, end - 512, end - 1] if kind == "tar" else [end - 1, end - 8]
        for place in [*places, *boundaries]:
            error = refused(save(whole[:place], f"cut.{kind}"), tmp_path / "out")
            assert "cut off or damaged" in error.summary or "not an archive of a known kind" in error.summary, place

    @pytest.mark.parametrize("kind", ["tar.gz", "zip"])
    def test_damage_in_the_middle(self, kind: str, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed(kind, CONTENT))
        content[len(content) // 2] ^= 0xFF
        assert "cut off or damaged" in refused(save(bytes(content), f"bad.{kind}"), tmp_path / "out").summary

    def test_a_damaged_header_behind_the_first(self, save: Save, tmp_path: Path) -> None:
        content = bytearray(packed("tar", {"a": b"1", "b": b"2"}))
        content[1024 + 10] ^= 0xFF
        assert "cut off or damaged" in refused(save(bytes(content)), tmp_path / "out").summary

    def test_without_its_end_mark(self, save: Save, tmp_path: Path) -> None:
        content = packed("tar", {"a": b"1", "b": b"2"})[:2048]
        assert "cut off or damaged" in refused(save(content), tmp_path / "out").summary

    def test_a_killed_command_leaves_nothing_whole_and_no_rest(self, save: Save, tmp_path: Path) -> None:
        rest = tmp_path / ".out.extracting"
        rest.mkdir()
        (rest / "half").write_bytes(b"1")
        assert "half" not in tree(extract(save(packed("zip", CONTENT), "a.zip"), tmp_path / "out"))
        assert not rest.exists()

    def test_an_interruption_takes_its_files_along(
        self, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(save(packed("zip", CONTENT), "a.zip"), tmp_path / "out")
        assert {each.name for each in tmp_path.iterdir()} == {"downloads", ".out.lock"}


class TestStorage:
    @pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free space"), (errno.EACCES, "permissions")])
    def test_full_disk_and_no_permission(
        self, number: int, remedy: str, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = save(packed("zip", CONTENT), "a.zip")
        real = Path.open

        def failing(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if mode == "xb" and self.name == "c":
                raise OSError(number, os.strerror(number), str(self))
            return real(self, mode, *args, **options)

        monkeypatch.setattr(Path, "open", failing)
        with pytest.raises(StorageError) as caught:
            extract(archive, tmp_path / "out")
        assert remedy in str(caught.value.remedy)
        assert {each.name for each in tmp_path.iterdir()} == {"downloads", ".out.lock"}

    def test_a_limit_of_the_system(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("zip", {"a": bytes(200), "large": bytes(100_000)}), "a.zip")
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
            "from data_prep.archive import main, run; sys.exit(run(main))"
        )
        command = [sys.executable, "-c", code, str(archive), "--out", str(tmp_path / "out")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert "\nerror: a file or folder cannot be read or written" in ended.stderr
        assert "large" in ended.stderr and "Traceback" not in ended.stderr
        assert not (tmp_path / "out").exists()

    def test_a_file_where_the_folder_should_be(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("zip", CONTENT), "a.zip")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(StorageError):
            extract(archive, tmp_path / "file" / "out")
        with pytest.raises(DataError, match="holds something else"):
            extract(archive, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"


class TestAgain:
    def test_the_same_archive_is_not_extracted_twice(
        self, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = save(packed("zip", CONTENT), "a.zip")
        first = opened(archive, tmp_path / "raw")
        assert first == tmp_path / "raw" / "a"

        def never(*_: Any) -> None:
            raise AssertionError("extracted again")

        monkeypatch.setattr(module, "_extract_all", never)
        assert opened(archive, tmp_path / "raw") == first

    def test_another_archive_of_the_same_name_is(self, save: Save, tmp_path: Path) -> None:
        opened(save(packed("zip", {"old": b"1"}), "a.zip"), tmp_path / "raw")
        assert tree(opened(save(packed("zip", CONTENT), "a.zip"), tmp_path / "raw")) == CONTENT

    def test_wanting_more_extracts_again_and_wanting_less_does_not(self, save: Save, tmp_path: Path) -> None:
        archive = save(packed("zip", CONTENT), "a.zip")
        some = extract(archive, tmp_path / "out", wanted=lambda name: name.startswith("data"))
        before = (some / RECORD).stat().st_ino
        extract(archive, tmp_path / "out", wanted=lambda name: name.endswith(".txt"))
        assert (some / RECORD).stat().st_ino == before
        assert tree(extract(archive, tmp_path / "out")) == CONTENT

    @pytest.mark.parametrize("change", ["remove", "empty", "add"])
    def test_a_changed_extraction_is_not_taken_for_whole(self, change: str, save: Save, tmp_path: Path) -> None:
        archive = save(packed("zip", CONTENT), "a.zip")
        folder = extract(archive, tmp_path / "out")
        victim = folder / "data" / "a.txt"
        {"remove": victim.unlink, "empty": lambda: victim.write_bytes(b""), "add": (folder / "new").touch}[change]()
        with pytest.raises(DataError, match="holds something else") as caught:
            extract(archive, folder)
        assert "changed, added or removed" in str(caught.value.found)
        assert (folder / "c").exists()

    def test_a_folder_of_the_users_is_never_replaced(self, save: Save, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("work")
        with pytest.raises(DataError, match="holds something else"):
            extract(save(packed("zip", CONTENT), "a.zip"), tmp_path / "out")
        assert tree(tmp_path / "out") == {"mine": b"work"}

    def test_an_empty_folder_is_used(self, save: Save, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert tree(extract(save(packed("zip", CONTENT), "a.zip"), tmp_path / "out")) == CONTENT

    def test_a_failed_update_leaves_the_old_one(self, save: Save, tmp_path: Path) -> None:
        opened(save(packed("zip", CONTENT), "a.zip"), tmp_path / "raw")
        with pytest.raises(DataError, match="cut off"):
            opened(save(packed("zip", CONTENT)[:-30], "a.zip"), tmp_path / "raw")
        assert tree(tmp_path / "raw" / "a") == CONTENT

    def test_a_folder_is_returned_as_it_is(self, tmp_path: Path) -> None:
        assert opened(tmp_path, tmp_path / "raw") == tmp_path
        assert not (tmp_path / "raw").exists()

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the data are not there"):
            opened(tmp_path / "nothing.zip", tmp_path / "raw")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("a.tar.gz", "a"), ("VOC 2010.TGZ", "VOC 2010"), ("x.y.zip", "x.y"), ("b", "b"), (".zip", ".zip")],
    )
    def test_stem(self, name: str, expected: str) -> None:
        assert stem(Path(name)) == expected


class TestCommand:
    def test_extracts_and_says_what(self, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        archive = save(packed("tgz", CONTENT), "a.tgz")
        assert module.main([str(archive), "--out", str(tmp_path / "out")]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"{tmp_path / 'out'}: 4 files, {sum(map(len, CONTENT.values()))} bytes\n"
        assert "extracting a.tgz: 100%" in captured.err

    @pytest.mark.parametrize(
        ("raised", "code", "said"),
        [
            (DataError("wrong data", path="x"), 2, "error: wrong data\n  where: x"),
            (OSError(errno.ENOSPC, "No space left on device", "/data/f"), 2, "error: a file or folder cannot be"),
            (KeyboardInterrupt(), 130, "interrupted: the same command goes on where this one stopped"),
            (RuntimeError("bug"), 1, "unexpected error: RuntimeError: bug"),
        ],
    )
    def test_endings(
        self,
        raised: BaseException,
        code: int,
        said: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def command(arguments: list[str]) -> int:
            assert arguments == ["--flag"]
            raise raised

        monkeypatch.setattr(sys, "argv", ["prog", "--flag"])
        assert commands.run(command) == code
        captured = capsys.readouterr()
        assert captured.err.strip().startswith(said)
        assert captured.out == "" and "Traceback" not in captured.err

    def test_the_exit_code_is_the_commands_own(self) -> None:
        assert commands.run(lambda arguments: 7) == 7

    def test_storage_errors_name_the_file(self) -> None:
        error = commands.storage_error(PermissionError(errno.EACCES, "Permission denied", "/data/x"))
        assert isinstance(error, SlimeBenchError)
        assert (error.path, error.found) == ("/data/x", "Permission denied")
        assert commands.storage_error(OSError(errno.EIO, "oops"), "/data").path == "/data"
