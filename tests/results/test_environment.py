"""`environment.json`: what it says is so, here and on machines that are only played, and it names nobody."""

from __future__ import annotations

import getpass
import json
import mmap
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.results import environment as module
from slime_bench.results.environment import (
    ENVIRONMENT_FILE,
    environment,
    git_state,
    peak_rss,
    read_environment,
    reset_peaks,
    without_home,
)

FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}
LINUX = sys.platform == "linux"


@pytest.fixture
def facts() -> dict[str, Any]:
    return environment("cpu", {"fit": 1.5, "test": 0.5}, FINGERPRINTS)


class TestFacts:
    def test_they_are_plain_and_say_what_they_were_told(self, facts: dict[str, Any]) -> None:
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts
        assert facts["fingerprints"] == FINGERPRINTS and facts["seconds"] == {"fit": 1.5, "test": 0.5}
        assert facts["python"] == platform.python_version() and facts["threads"]["torch"] == torch.get_num_threads()
        assert facts["gpu"] is None and facts["peak_gpu_bytes"] is None
        assert facts["cpu"]["model"] and facts["cpu"]["usable_cores"] <= facts["cpu"]["cores"]
        assert re.fullmatch(r".+ CPU, \d+ threads", facts["device"]) and facts["platform"]
        assert re.match(r"\d{4}-\d\d-\d\dT", facts["finished"])
        assert facts["packages"]["torch"] == metadata.version("torch") and "pytest" not in facts["packages"]


class TestGpu:
    """There is none here: what CUDA would answer is played."""

    @pytest.fixture
    def h200(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000, major=9, minor=0)
        answers = {
            "get_device_name": "NVIDIA H200", "get_device_properties": facts, "current_device": 0,
            "max_memory_allocated": 7, "reset_peak_memory_stats": None,
        }  # fmt: skip
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
        monkeypatch.setattr(module, "_driver", lambda: "570.86.15")

    @pytest.mark.usefixtures("h200")
    def test_device_driver_and_libraries(self) -> None:
        facts = environment("cuda", {}, {})
        assert facts["device"] == "NVIDIA H200" and facts["peak_gpu_bytes"] == 7
        assert facts["gpu"] == {
            "name": "NVIDIA H200", "memory_bytes": 150_000_000_000, "capability": "9.0", "driver": "570.86.15",
            "cuda": "12.8", "cudnn": "91002",
        }  # fmt: skip
        assert isinstance(facts["arithmetic"]["cudnn_tf32"], bool)


def touched(size: int) -> mmap.mmap:
    """Memory of its own pages: malloc may give out freed ones that the process still holds, and then no peak rises."""
    block = mmap.mmap(-1, size)
    for _ in range(size // 2**20):
        block.write(b"\1" * 2**20)
    return block


class TestPeak:
    def test_it_is_that_of_the_trial(self) -> None:
        with touched(120 * 2**20):
            high = peak_rss()
        reset_peaks("cpu")
        low = peak_rss()
        assert high is not None and low is not None and high - low > 100 * 2**20
        with touched(120 * 2**20):
            later = peak_rss()
        assert later is not None and later - low > 100 * 2**20


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class TestGit:
    @pytest.fixture
    def checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A checkout with a package that is not in it yet."""
        git(tmp_path, "init", "-q")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", "somebody's project")
        package = tmp_path / "site" / "slime_bench"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        monkeypatch.setattr(module, "__file__", str(package / "environment.py"))
        return tmp_path

    def test_commit_and_changes(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert git_state.__wrapped__() is None, "an installed copy is not the project around it"
        git(checkout, "add", ".")
        git(checkout, "commit", "-q", "-m", "the bench")
        commit = git(checkout, "rev-parse", "HEAD")
        monkeypatch.setenv("GIT_DIR", "/nowhere/.git")  # of a hook that calls the bench
        assert git_state.__wrapped__() == {"commit": commit, "dirty": False}
        (checkout / "site" / "slime_bench" / "__init__.py").write_text("changed = True\n")
        assert git_state.__wrapped__() == {"commit": commit, "dirty": True}
        monkeypatch.setenv("PATH", "")
        assert git_state.__wrapped__() is None


HOME = "/home/canary.q7x"
TEXT = st.text(max_size=8) | st.sampled_from([HOME, f"{HOME}/data", f"x {HOME}: y", f"{HOME}er", f"/mnt{HOME}"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


class TestPrivacy:
    def test_no_name_of_user_or_host(self, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        names = {getpass.getuser(), platform.node()} - {"root", "localhost", ""}
        text = json.dumps(facts)
        assert [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)] == []
        for variable in ("USER", "LOGNAME", "HOSTNAME", "HOME", "OMP_NUM_THREADS"):
            monkeypatch.setenv(variable, HOME)
        monkeypatch.setattr(platform, "node", lambda: "canary.q7x")
        assert "canary.q7x" not in json.dumps(environment("cpu", {}, {"start": f"{HOME}/own"}))

    @settings(deadline=None)
    @given(VALUES)
    def test_everywhere_and_nothing_else(self, value: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", HOME)
            found = without_home(value)
            assert without_home(f"file://{HOME}/a and {HOME}er") == f"file://~/a and {HOME}er"
            if HOME not in json.dumps(value, ensure_ascii=False):
                assert found == value
            assert not re.search(rf"(?<![\w.-]){re.escape(HOME)}(?![\w.-])", " ".join(texts(found)))

    def test_the_root_as_home_leaves_paths_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/")
        assert without_home("/data/car") == "/data/car"


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("content", [None, "{", "null", b"\xff"])
def test_a_file_that_says_nothing(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / ENVIRONMENT_FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_environment(tmp_path) is None
