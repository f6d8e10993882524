"""Where the project's own files lie: beside the packages in a checkout, inside the package in a built wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path = PACKAGE) -> Path:
    """The folder `conf/` with config.yaml and its groups.

    Args:
        package: folder of the package `slime_bench`.
    """
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
