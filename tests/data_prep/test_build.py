"""data_prep.build: whole or absent, the same bytes however it was interrupted, and an error for whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.place import RECORDS, print_report
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.data.reading import FolderDataset
from slime_bench.data.verify import verify_splits
from slime_bench.errors import DataError, StorageError
from tests.fixtures import toy_build
from tests.fixtures.toy_build import CLASSES, jobs, make, picture, recipe


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its content."""
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def building(out: Path) -> Path:
    return out.with_name(f".{out.name}.building")


def finished(out: Path) -> list[str]:
    """Keys of the jobs that have a record, but for the one that makes no sample."""
    records = (json.loads(file.read_text()) for file in (building(out) / RECORDS).glob("*.json"))
    return sorted({sample["facts"]["source"] for each in records for sample in each.get("samples", ())})


def calls(log: Path) -> list[str]:
    return sorted(log.read_text().split()) if log.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the toy of 12 jobs, built at one go."""
    out = tmp_path_factory.mktemp("whole") / "car"
    make(out)
    return tree(out)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """As `whole`, of six jobs."""
    out = tmp_path_factory.mktemp("six") / "car"
    make(out, count=6)
    return tree(out)


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    folder = tmp_path / "faults"
    folder.mkdir()
    return folder


class TestContent:
    def test_files_and_manifest(self, tmp_path: Path) -> None:
        out = tmp_path / "data" / "car"
        report = make(out)
        manifest = read_manifest(out)
        expected: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for index in range(12):
            if index % 7 != 6:
                for part in range(1 if index % 3 == 0 else 2):
                    split = ("support", "val", "test")[index % 3]
                    expected[f"{split}/2008_{index:06d}_{part}"] = picture(10 * index + part)
        expected["test/2008_000001_0"] = expected.pop("val/2008_000001_0")  # moved by `assign`
        assert set(manifest["samples"]) == set(expected)
        assert len(manifest["files"]) == 2 * len(expected)
        for name, arrays in expected.items():
            split, stem = name.split("/")
            for kind, array in zip(("images", "labels"), arrays, strict=True):
                relative = f"{split}/{kind}/{stem}.png"
                with Image.open(out / relative) as file:
                    assert file.format == "PNG" and file.mode == ("RGB" if kind == "images" else "L")
                    assert np.array_equal(np.asarray(file), array)
                assert manifest["files"][relative] == hashlib.sha256(array.tobytes()).hexdigest()
            facts = manifest["samples"][name]
            counts = [int((arrays[1] == label).sum()) for label in range(3)]
            assert facts["size"] == list(arrays[1].shape) and facts["pixels"] == counts
            assert sum(facts["pixels"]) == arrays[1].size - 1  # one pixel is 255
            assert facts["source"] == stem[:-2] and facts["object"] == int(stem[-1]) + 1
            assert facts["box"] == [0, 0.5, 9, 8]
        assert manifest["dropped"] == {"overlaps another box": 3, "too small": 1}
        assert manifest["dropped_samples"]["too small"] == ["support/2008_000006 object 1"]
        assert manifest["settings"] == {"rule": "paper"} and manifest["sources"] == {"voc": "VOC2010"}
        assert manifest["name"] == "toy_car" and manifest["classes"] == list(CLASSES) and manifest["faulty"] == []
        assert str(tmp_path) not in (out / MANIFEST).read_text()
        assert report.kept == {"support": 3, "val": 7, "test": 9} and report.manifest == manifest
        assert report.made == 12 and report.resumed == 0
        assert not building(out).exists()
        splits = {name: FolderDataset(out / name, CLASSES) for name in ("support", "val", "test")}
        assert verify_splits(splits, out).usable
        found = {file.name: file.read_text() for file in (out / "splits").iterdir()}
        assert set(found) == {"drawn-1-seed0.txt", "first-2.txt"}
        lines = [line.split("#")[0].strip() for line in found["first-2.txt"].splitlines()]
        assert [line for line in lines if line] == ["2008_000000_0", "2008_000001_0"]

    def test_no_torch_in_the_workers(self, repository: Path) -> None:
        code = "import sys, data_prep.pascal_part.work, data_prep.celebamask_hq.read; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


class TestResume:
    @pytest.mark.parametrize(("workers", "what"), [(1, KeyboardInterrupt), (2, KeyError)])
    def test_interrupted(
        self, tmp_path: Path, faults: Path, whole: dict[str, bytes], workers: int, what: type[BaseException]
    ) -> None:
        out, log = tmp_path / "car", tmp_path / "log"
        (faults / "2008_000008").write_text("interrupt" if workers == 1 else "bug")
        with pytest.raises(what) as caught:
            make(out, workers=workers, log=log, faults=faults)
        assert workers == 1 or caught.value.__notes__ == ["while preparing 2008_000008"]
        assert not out.exists() and not (building(out) / MANIFEST).exists()
        done = finished(out)
        assert "2008_000008" not in done and len(done) >= (7 if workers == 1 else 1)
        (faults / "2008_000008").unlink()
        log.unlink()
        report = make(out, workers=workers, log=log, faults=faults)
        assert not set(calls(log)) & set(done) and len(calls(log)) == report.made == 12 - report.resumed
        assert tree(out) == whole

    @settings(max_examples=12, deadline=None)
    @given(data=st.data())
    def test_cut_anywhere(
        self, data: st.DataObject, six: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Records and pictures of the building folder lost, cut or added: the same data set."""
        folder = tmp_path_factory.mktemp("cut")
        out, faults = folder / "car", folder / "faults"
        faults.mkdir()
        (faults / "2008_000005").write_text("interrupt")
        with pytest.raises(KeyboardInterrupt):
            make(out, count=6, faults=faults)
        (faults / "2008_000005").unlink()
        pictures = sorted(building(out).rglob("*.png"))
        intact = pictures[0].read_bytes()
        records = sorted((building(out) / RECORDS).iterdir())
        for file in data.draw(
            st.lists(st.sampled_from([*pictures, *records]), unique=True, max_size=4), label="spoilt"
        ):
            if data.draw(st.booleans(), label="removed"):
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: data.draw(st.integers(0, file.stat().st_size - 1))])
        if data.draw(st.booleans(), label="strays"):
            pictures[0].with_name("stray.png").write_bytes(intact)
            (pictures[0].parent / f".{pictures[0].name}.77.tmp").write_bytes(b"half")
            (pictures[0].parent / "folder").mkdir()
        make(out, count=6)
        assert tree(out) == six

    def test_killed(self, tmp_path: Path, repository: Path, workers: int = 2) -> None:
        """kill -9 in the middle: no data set, no process left; the same command then gives the same bytes."""
        out, log = tmp_path / "car", tmp_path / "log"
        command = [sys.executable, toy_build.__file__, str(out), str(workers), str(log)]
        environment = os.environ | {"PYTHONPATH": str(repository)}
        process = subprocess.Popen([*command, "0.05"], env=environment, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(calls(log)) >= 12)
        then = below(process.pid)
        process.kill()
        process.wait()
        assert len(then) >= workers or not Path("/proc").exists()
        wait_for(lambda: not any(Path(f"/proc/{each}").exists() for each in then))
        assert not out.exists() and not (building(out) / MANIFEST).exists() and building(out).is_dir()
        log.unlink()
        report = make(out, workers=1, count=60, log=log)
        assert report.resumed >= 4 and len(calls(log)) == 60 - report.resumed
        make(tmp_path / "again", count=60)
        assert tree(out) == tree(tmp_path / "again")

    def test_ctrl_c(self, tmp_path: Path, repository: Path, workers: int = 2) -> None:
        out, log = tmp_path / "car", tmp_path / "log"
        process = subprocess.Popen(
            [sys.executable, toy_build.__file__, str(out), str(workers), str(log), "0.05"],
            env=os.environ | {"PYTHONPATH": str(repository)}, stderr=subprocess.PIPE, text=True, start_new_session=True,
            # A shell's background job ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        wait_for(lambda: len(calls(log)) >= 8)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers too
        _, printed = process.communicate(timeout=30)
        assert process.returncode == 130 and time.monotonic() - began < 15
        assert "the same command goes on" in printed and "Traceback" not in printed
        assert not out.exists()
        assert make(out, count=60).resumed >= 3

    def test_another_recipe_starts_afresh(self, tmp_path: Path, faults: Path, whole: dict[str, bytes]) -> None:
        (faults / "2008_000008").write_text("interrupt")
        for changed in (
            {"settings": {"rule": "lagm"}},
            {"name": "other"},
        ):
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / "car", faults=faults, of=recipe(**changed))
        (faults / "2008_000008").unlink()
        assert make(tmp_path / "car").resumed == 0
        assert tree(tmp_path / "car") == whole

    @pytest.mark.parametrize("step", ["lists", "renaming", "tidying"])
    def test_near_the_end(self, tmp_path: Path, whole: dict[str, bytes], monkeypatch: Any, step: str) -> None:
        """Only the samples that had moved to their last split are made again."""
        out, log = tmp_path / "car", tmp_path / "log"
        with monkeypatch.context() as patch:
            if step == "renaming":
                patch.setattr(Path, "rename", interrupted)
            if step == "tidying":
                patch.setattr("data_prep.build.tidy", interrupted)
            with pytest.raises(KeyboardInterrupt):
                make(out, log=log, of=recipe(splits=interrupted) if step == "lists" else None)
        assert out.exists() == (step == "tidying")
        log.unlink()
        report = make(out, log=log)
        assert calls(log) == ([] if step == "tidying" else ["2008_000001"]) and report.made == len(calls(log))
        assert tree(out) == whole


def below(pid: int) -> list[int]:
    """Processes that a process has started, and those have, where the system tells."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(each) for each in file.read_text().split()] if file.exists() else []
    return [each for child in children for each in (child, *below(child))]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


class TestFaultySources:
    def test_stop(self, tmp_path: Path, faults: Path, whole: dict[str, bytes], workers: int = 2) -> None:
        out, log = tmp_path / "car", tmp_path / "log"
        for key in ("2008_000002", "2008_000007"):
            (faults / key).write_text("faulty")
        with pytest.raises(DataError, match="2 of 12 source pictures are faulty") as caught:
            make(out, workers=workers, log=log, faults=faults)
        text = str(caught.value)
        assert "/voc/2008_000002.jpg: cannot read the image (0 bytes)" in text and "--faulty skip" in text
        assert text.index("000002") < text.index("000007")
        assert not out.exists() and len(calls(log)) == 12
        for each in faults.iterdir():
            each.unlink()
        log.unlink()
        make(out, workers=workers, log=log, faults=faults)
        assert calls(log) == ["2008_000002", "2008_000007"]
        assert tree(out) == whole

    def test_skip(self, tmp_path: Path, faults: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "car"
        (faults / "2008_000002").write_text("faulty")
        report = make(out, faults=faults, faulty="skip")
        assert report.manifest["faulty"] == [
            {"source": "2008_000002", "what": "cannot read the image (2008_000002.jpg)"}
        ]
        assert report.manifest["dropped"]["unreadable: cannot read the image"] == 1
        assert not any("2008_000002" in name for name in report.manifest["files"])
        # Nothing is to be done any more, and the report still says what is missing.
        again = make(out, faults=faults)
        print_report(again)
        printed = capsys.readouterr().out
        assert "1 faulty source(s) left out" in printed and "2008_000002: cannot read the image" in printed
        assert again.made == 0 and "nothing was done" in printed

    def test_a_full_disk(self, tmp_path: Path, faults: Path, whole: dict[str, bytes]) -> None:
        out = tmp_path / "car"
        (faults / "2008_000008").write_text("full disk")
        with pytest.raises(StorageError) as caught:
            make(out, workers=2, faults=faults)
        assert "No space left on device" in str(caught.value) and "what is finished stays valid" in str(caught.value)
        assert not out.exists()
        (faults / "2008_000008").unlink()
        report = make(out, workers=1, faults=faults)
        assert report.resumed >= 1 and tree(out) == whole

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_worker_that_dies(self, tmp_path: Path, faults: Path, whole: dict[str, bytes], workers: int) -> None:
        out = tmp_path / "car"
        (faults / "2008_000008").write_text("killed")
        with pytest.raises(DataError, match="a worker process died") as caught:
            make(out, workers=workers, faults=faults)
        assert "2008_000008" in str(caught.value.path) and "fewer --workers" in str(caught.value.remedy)
        assert len(str(caught.value.path).split(", ")) <= workers  # one alone is named exactly
        assert not out.exists()
        (faults / "2008_000008").unlink()
        assert make(out, workers=2, faults=faults).resumed >= 1
        assert tree(out) == whole


class TestPlace:
    def test_nothing_kept(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no sample of toy_car was kept") as caught:
            make(tmp_path / "car", the_jobs=jobs()[6:7])
        assert caught.value.found == "too small: 1" and not (tmp_path / "car").exists()

    def test_again(self, tmp_path: Path) -> None:
        out, log = tmp_path / "car", tmp_path / "log"
        first = make(out)
        times = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
        again = make(out, log=log)
        assert calls(log) == [] and {file: file.stat().st_mtime_ns for file in out.rglob("*")} == times
        assert again.manifest == first.manifest and again.made == 0
        make(out, log=log, of=recipe(sources={"voc": "VOC2012"}))  # whatever the sources are called
        assert calls(log) == []

    @pytest.mark.parametrize(
        ("arguments", "found", "expected"),
        [
            ({"of": recipe(settings={"rule": "lagm"})}, "rule paper", "rule lagm"),
            ({"count": 13}, "'count': 12", "'count': 13"),
        ],
    )
    def test_another_data_set(self, tmp_path: Path, arguments: dict[str, Any], found: str, expected: str) -> None:
        out = tmp_path / "car"
        make(out)
        before = tree(out)
        with pytest.raises(DataError, match="another data set is there already") as caught:
            make(out, **arguments)
        assert found in str(caught.value.found) and expected in str(caught.value.expected)
        assert "--force" in str(caught.value.remedy) and tree(out) == before
        report = make(out, force=True, **arguments)
        assert report.made and tree(out) != before
        assert {file.name for file in tmp_path.iterdir()} == {"car", ".car.lock"}

    def test_force_makes_the_same_again(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        make(tmp_path / "car")
        (tmp_path / "car" / ".verified.json").write_text("{}")
        shutil.copytree(tmp_path / "car", tmp_path / ".car.replaced")  # of a replacement that was interrupted
        assert make(tmp_path / "car", force=True).made == 12
        assert tree(tmp_path / "car") == whole
        assert {file.name for file in tmp_path.iterdir()} == {"car", ".car.lock"}

    def test_force_that_is_interrupted(self, tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The old data set stays until the new one is whole; between the two renamings the same command mends it."""
        out, other = tmp_path / "car", recipe(settings={"rule": "lagm"})
        make(out)
        before = tree(out)
        (faults / "2008_000008").write_text("interrupt")
        with pytest.raises(KeyboardInterrupt):
            make(out, of=other, faults=faults, force=True)
        assert tree(out) == before
        (faults / "2008_000008").unlink()
        rename = Path.rename

        def second_fails(self: Path, target: Path) -> Path:
            if self.name == ".car.building":
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", second_fails)
            with pytest.raises(KeyboardInterrupt):
                make(out, of=other, force=True)
        assert not out.exists()
        make(out, of=other)
        assert read_manifest(out)["settings"] == {"rule": "lagm"}
        assert {file.name for file in tmp_path.iterdir()} == {"car", ".car.lock", "faults"}

    @pytest.mark.parametrize("force", [False, True])
    def test_what_was_not_made_here_is_not_touched(self, tmp_path: Path, force: bool) -> None:
        out = tmp_path / "car"
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
        with pytest.raises(DataError, match="is not touched"):
            make(out, force=force)
        (out / "thesis.tex").unlink()
        make(out)
        (out / "notes.md").write_text("mine")
        with pytest.raises(DataError, match="is not touched") as caught:
            make(out, force=force)
        assert caught.value.found == "notes.md" and (out / "notes.md").read_text() == "mine"
        (tmp_path / "file").write_text("mine")
        with pytest.raises(DataError, match="is not touched"):
            make(tmp_path / "file", force=force)

    def test_an_empty_folder_and_a_link(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        (tmp_path / "car").mkdir()
        make(tmp_path / "car")
        (tmp_path / "disk" / "car").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "car")
        make(tmp_path / "link")
        (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "later")
        make(tmp_path / "dangling")
        assert tree(tmp_path / "car") == tree(tmp_path / "disk" / "car") == tree(tmp_path / "disk" / "later") == whole
        assert (tmp_path / "link").is_symlink()


class TestReport:
    def test_tables(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        report = make(tmp_path / "car")
        labels = [Image.open(file) for file in sorted((tmp_path / "car" / "test" / "labels").iterdir())]
        wheels = [int((np.asarray(label) == 2).sum()) for label in labels]
        counted = sum(int((np.asarray(label) != 255).sum()) for label in labels)
        capsys.readouterr()
        print_report(report)
        lines = capsys.readouterr().out.splitlines()
        wheel = next(line for line in lines if "wheel" in line)
        assert f"{sum(each > 0 for each in wheels)} ({sum(wheels) / counted:6.2%})" in wheel
        assert any("overlaps another box" in line and "3" in line for line in lines)
        assert any(line.startswith("12 source pictures in") for line in lines)
