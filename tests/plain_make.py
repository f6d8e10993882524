"""`make` as a user's shell would start it, also where the tests themselves were started by `make test ARGS=...`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"


def plain_environment() -> dict[str, str]:
    """This process's environment without what an outer make has put into it.

    An outer make hands its flags on as MAKEFLAGS and the like. What its command line set it also exports under its own
    name, ARGS for one, and the Makefile's `?=` takes any such name from the environment.
    """
    settable = set(re.findall(r"^(\w+)\s*\?=", MAKEFILE.read_text(), re.MULTILINE))
    return {
        name: value
        for name, value in os.environ.items()
        if name not in settable and not name.startswith(("MAKE", "MFLAGS", "GNUMAKEFLAGS"))
    }


def run_make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make <arguments>` in `folder`, with `environment` added to the plain one."""
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=plain_environment() | environment,
    )
