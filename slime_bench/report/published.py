"""Published numbers: the rows of `conf/paper/<subject>.yaml`, and layers that a paper names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import TypeAdapter

from slime_bench.errors import ConfigError
from slime_bench.paths import config_dir


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation in percent; None = undefined or not stated."""

    mean: float | None
    std: float | None


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table, in percent.

    Attributes:
        method: name as printed; `key` is the name of our method that runs it, None where none does.
        note: what is different in our run, or why there is none.
        shots: support images, None for a method trained on a whole annotated set.
        supervised: whether the method's training saw annotations beyond the support images.
        n: runs behind the mean, None if not stated.
        source: table, and whether it is second hand.
        per_class: class name -> `Stat`, for the columns of the paper.
        average: mean over the columns as the paper states it.
        average_gap: stated average minus the mean of the stated classes where rounding cannot explain it, else 0.
        backbones: names of our backbones from whose rows it may be subtracted, where not those of the subject.
        setting: what an ablation changed, else empty; `values` are our configuration keys for it, layers by the name of
            their group.
    """

    method: str
    key: str | None
    shots: int | None
    supervised: bool
    n: int | None
    source: str
    per_class: dict[str, Stat]
    average: Stat
    average_gap: float = 0.0
    backbones: list[str] = field(default_factory=list)
    note: str = ""
    setting: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedAblation:
    """One published ablation.

    Attributes:
        name: of the file in conf/ablation with the same grid.
        source: the table. title: what it varies.
        shots: support images of all its rows.
        default: the setting of the main SLiMe row with these shots, as our configuration keys. That row belongs to the
            ablation and is not among `rows`.
        rows: the other settings. A key of `default` that is not among a row's `values` has its value there.
    """

    name: str
    source: str
    title: str
    shots: int
    default: dict[str, Any]
    rows: list[PublishedRow]


@dataclass(frozen=True)
class Published:
    """The published numbers of one subject; `columns` is the paper's column order.

    Attributes:
        method: the `key` of the rows that were measured with `backbone`.
        comparable: `data`, `backbone`, `test` (how the data's test split was prepared): names of ours from whose rows
            these may be subtracted.
    """

    subject: str
    data: str
    backbone: str
    method: str
    comparable: dict[str, list[str]]
    citation: str
    columns: list[str]
    rows: list[PublishedRow]
    ablations: list[PublishedAblation]

    def ablation(self, name: str) -> PublishedAblation | None:
        """The published ablation with the grid of conf/ablation/<name>.yaml, if there is one."""
        return next((each for each in self.ablations if each.name == name), None)

    def runs(self, ours: Iterable[str]) -> list[str]:
        """Lines that say of every row of the main table whether the bench runs it.

        Args:
            ours: names of our methods that have rows in the table.
        """
        have = set(ours)
        said: dict[str, dict[str, None]] = {}
        for row in self.rows:
            kind = "alone" if row.key is None else "too" if row.key in have else "not yet"
            about = "; ".join(filter(None, [f"method={row.key}" if row.key else "", row.note]))
            said.setdefault(kind, {})[f"{row.method} ({about})"] = None
        titles = {"too": "run here too", "not yet": "to be run here", "alone": "as published alone"}
        return [f"{title}: {', '.join(said[kind])}" for kind, title in titles.items() if kind in said]

    def main_row(self, key: str, shots: int) -> PublishedRow | None:
        """The row of the main table that our method `key` compares with."""
        return next((row for row in self.rows if (row.key, row.shots) == (key, shots)), None)


def load_layers(backbone: str, data: str) -> dict[str, Any] | None:
    """Which two `layers` of our backbone InfoScore puts first on our data set, as a `source` states it."""
    found = yaml.safe_load((config_dir() / "paper" / "infoscore_layers.yaml").read_text(encoding="utf-8"))
    return next((each for each in found if each["backbone"] == backbone and data in each["data"]), None)


def load_published(subject: str) -> Published | None:
    """The published numbers of `subject`, or None when there is no file for it.

    Raises:
        ConfigError: the file does not hold what this module documents.
    """
    path = config_dir() / "paper" / f"{subject}.yaml"
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for table in content["ablations"]:
            shared = {"method": table["method"], "shots": table["shots"], "source": table["source"]}
            shared |= {"key": None, "supervised": False, "n": None}
            table |= {"name": table["ablation"], "rows": [{**shared, **row} for row in table["rows"]]}
        found = TypeAdapter(Published).validate_python(content)
        for row in [*found.rows, *(row for each in found.ablations for row in each.rows)]:
            if set(row.per_class) != set(found.columns):
                raise ValueError(f"classes {sorted(row.per_class)} instead of {sorted(found.columns)}")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            "The published numbers cannot be read.", path=path, found=f"{type(error).__name__}: {error}",
            expected="the keys described at the top of the shipped files",
        ) from error  # fmt: skip
    return found
