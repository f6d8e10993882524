"""Freed memory is used again: a process of its own counts the pages that the kernel had to hand out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from slime_bench.backbones.heap import keep_freed_memory

PROGRAM = """
import resource, sys
from slime_bench.backbones.heap import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(6):
    block = bytearray(b"x") * 40_000_000
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(done, faults[-1] - faults[1])
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def run(mode: str, **environment: str) -> tuple[str, int]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, env={**kept, **environment}
    ).stdout.split()
    return answer[0], int(answer[1])


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_blocks_are_used_again() -> None:
    plain, kept = run("plain"), run("keep")
    assert kept[0] == "True"
    assert plain[1] > 4 * 40_000_000 // 4096 * 0.9  # all pages of every block
    assert kept[1] < plain[1] / 20


@pytest.mark.skipif(not GLIBC, reason="another C library")
@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD"])
def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1000000")
    assert keep_freed_memory() is False
