"""Where the project's own files lie: beside the packages in a checkout, inside the package in a built wheel."""

from __future__ import annotations

from pathlib import Path

from slime_bench.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
_ROOT = "config.yaml"


def config_dir(package: Path = PACKAGE) -> Path:
    """The folder `conf/` with config.yaml and its groups.

    Args:
        package: folder of the package `slime_bench`.

    Raises:
        ConfigError: neither place holds a config.yaml.
    """
    candidates = (package / "conf", package.parent / "conf")
    for folder in candidates:
        if (folder / _ROOT).is_file():
            return folder
    raise ConfigError(
        "the configuration folder is not there",
        path=candidates[0],
        found="nothing",
        expected=f"{_ROOT} there or in {candidates[1]}",
        remedy="install slime-bench again (`make setup` in a checkout)",
    )
