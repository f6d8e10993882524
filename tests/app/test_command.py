"""`slime-bench app` before there is a page: what it needs, and where it listens."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from slime_bench.app import command, server
from slime_bench.errors import ConfigError


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for folder, remedy in ((tmp_path, "pip install 'slime-bench[app]'"), (repository, "make app")):
        monkeypatch.chdir(folder)
        with pytest.raises(ConfigError, match="needs Gradio") as caught:
            command.main([])
        assert caught.value.remedy == remedy


def test_a_port_that_is_taken_gives_way_to_the_next() -> None:
    with server.bound("127.0.0.1", 47860) as first, server.bound("127.0.0.1", 47860) as second:
        assert second.getsockname()[1] > first.getsockname()[1] >= 47860
        assert socket.create_connection(second.getsockname(), timeout=5).close() is None
    with pytest.raises(ConfigError, match="cannot be served there"):
        server.bound("192.0.2.1", 47860)
    with pytest.raises(ConfigError, match="no such port"):
        command.main(["--port", "70000"])
