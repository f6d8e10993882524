"""A parity suite as a whole, run on another golden folder. Not a test file: shared by the tests of the suites."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.parity.table import PROPERTY


def run_suite(suite: Path, variable: str, golden: Path, folder: Path) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit status, output and the rows of the file `suite` on a golden folder, in a process of its own.

    Args:
        variable: of the environment, that names the golden folder. folder: for what the run leaves.
    """
    report = folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    environment = {**os.environ, variable: str(golden), "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:  # of the worker that runs this test
        del environment[name]
    root = suite.parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=500, check=False)
    found = ElementTree.parse(report).iter("property")
    rows = [json.loads(each.attrib["value"]) for each in found if each.attrib["name"] == PROPERTY]
    return done.returncode, done.stdout, rows
