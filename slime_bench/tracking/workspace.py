"""Builds a saved W&B workspace of the bench's runs.

    python -m slime_bench.tracking.workspace --subject car [--project slime-bench] [--entity <team>]

It needs `pip install 'slime-bench[workspaces]'`, an account that may save views, and the network. Runs that were kept
offline are in it once they are synced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from slime_bench.errors import ConfigError, SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.paths import config_dir
from slime_bench.tracking import keys
from slime_bench.tracking.layout import COLUMNS, Panel, Section, layout

EXTRA = "pip install 'slime-bench[workspaces]'"


def classes_of(subject: str) -> list[str]:
    """Class names of a subject of the papers, background first.

    Raises:
        ConfigError: no such subject.
    """
    folder = config_dir() / "paper"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if subject not in known:
        raise ConfigError(
            "there is no table of this subject", path="--subject", found=subject, expected=" or ".join(known)
        )
    columns = yaml.safe_load((folder / f"{subject}.yaml").read_text(encoding="utf-8"))["columns"]
    return sorted(columns, key=lambda name: name != "background")


def workspace(sections: Sequence[Section], entity: str, project: str, name: str, subject: str) -> Any:
    """The sections as a workspace, not saved; its runs are those of `subject`, grouped by all but their seed.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    reports, workspaces = _library()
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.title, panels=[_panel(reports, each) for each in section.panels], is_open=not number
            )
            for number, section in enumerate(sections)
        ],
        settings=workspaces.WorkspaceSettings(x_axis=keys.STEP),
        runset_settings=workspaces.RunsetSettings(
            filters=f"Tags in ['{subject}']", groupby=[workspaces.Metric("Group")], pinned_columns=list(COLUMNS)
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build and save; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m slime_bench.tracking.workspace", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--subject", default="car", help="car, horse or face")
    parser.add_argument("--project", default="slime-bench")
    parser.add_argument("--entity", help="a team; the default is the account of the key")
    args = parser.parse_args(argv)
    try:
        save(args.subject, args.project, args.entity)
    except SlimeBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def save(subject: str, project: str, entity: str | None) -> None:
    """Save a new workspace in the account of the key, or of the team `entity`.

    Raises:
        ConfigError: no such subject, or wandb-workspaces is not installed.
        SlimeBenchError: W&B does not take it.
    """
    sections = layout(classes_of(subject), list(CONVENTION_RULES))
    _library()
    import wandb

    try:
        owner = entity or str(wandb.Api(timeout=30).default_entity)
        workspace(sections, owner, project, f"slime-bench: {subject}", subject).save()
    except Exception as error:  # of a library that talks to a server, any
        raise SlimeBenchError(
            "W&B did not save it", path=project, found=(str(error).strip() or type(error).__name__).splitlines()[0],
            expected="a key, the network, and an account that may save views in the project",
            remedy="`wandb login`, and name a team that you belong to with --entity; the same tables and plots are in "
            "`slime-bench report` without any account",
        ) from error  # fmt: skip


def _panel(reports: Any, panel: Panel) -> Any:
    if panel.kind == "curves":
        return reports.LinePlot(
            title=panel.title, x=keys.STEP, y=list(panel.keys), groupby_aggfunc="mean", groupby_rangefunc="stddev"
        )
    if panel.kind == "bars":
        return reports.BarPlot(
            title=panel.title, metrics=list(panel.keys), groupby_aggfunc="mean", groupby_rangefunc="stddev"
        )
    if panel.kind == "media":
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    return reports.WeavePanelSummaryTable(table_name=panel.keys[0])


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            "wandb-workspaces is not installed", path="slime_bench.tracking.workspace", found=str(error),
            expected="the extra `workspaces`", remedy=EXTRA,
        ) from error  # fmt: skip
    return reports, workspaces


if __name__ == "__main__":
    sys.exit(main())
