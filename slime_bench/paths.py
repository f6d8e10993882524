"""Where the project's own files lie: beside the packages in a checkout, inside the package in a built wheel."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path = PACKAGE) -> Path:
    """The folder `conf/` with config.yaml and its groups.

    Args:
        package: folder of the package `slime_bench`.
    """
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def advised(target: str, otherwise: str, package: Path = PACKAGE) -> str:
    """The command to run: `make <target>` where the working folder is the checkout, which has the Makefile; elsewhere
    the other one."""
    here = Path("Makefile").resolve() == package.parent / "Makefile" and Path("Makefile").is_file()
    return f"make {target}" if here else otherwise


def user_path(text: str) -> Path:
    """A path as a person gives it: the shell expands `~` in `--out ~/masks` but not in `--out=~/masks`, nor does it in
    a variable or a file."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises for an unknown user
