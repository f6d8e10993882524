"""Builds a saved W&B workspace of the bench's runs, of a subject or of one ablation, or prints an ablation as a sweep.

    python -m slime_bench.tracking.workspace --subject car [--ablation lr] [--project slime-bench] [--entity <team>]
    python -m slime_bench.tracking.workspace --subject car --ablation lr --print-sweep > lr.yaml

The first needs `pip install 'slime-bench[workspaces]'`, an account that may save views, and the network. Runs that were
kept offline are in it once they are synced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from slime_bench.config.compose import plan
from slime_bench.console import printable
from slime_bench.errors import ConfigError, SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.paths import config_dir
from slime_bench.results.identity import flatten, recorded
from slime_bench.tracking import media


def layout(classes: Sequence[str]) -> dict[str, list[tuple[str, str, tuple[str, ...]]]]:
    """Sections of panels, from what a reader asks first to what only some methods have.

    A panel is its kind, its title, and the keys that it shows (`slime_bench.tracking.media`). `curves` over the steps,
    and `bars`, are means over runs of one group (the seeds), with their spread; `media` are pictures and `table` is a
    table, of single runs.

    Args:
        classes: K names, `background` first.
    """
    conventions = tuple(media.iou("miou", name) for name in CONVENTION_RULES)
    return {
        "Result": [
            ("bars", "mIoU (%)", (media.MIOU,)),
            ("bars", "IoU per class (%)", tuple(media.iou(name) for name in classes)),
            ("bars", "mIoU under each convention (%)", conventions),
            ("table", "Classes, beside the published numbers", (media.CLASSES,)),
        ],
        "Test images": [
            ("media", "Prediction and ground truth", (media.EXAMPLES,)),
            ("table", "Test images", (media.IMAGES,)),
            *(("media", f"Score map: {name}", (media.score_map(name),)) for name in classes),
        ],
        "Optimisation": [
            ("curves", "Validation mIoU (%)", (media.VALIDATION,)),
            ("curves", "Loss", (media.LOSS,)),
            ("curves", "Terms of the loss", ("train/cross_entropy", "train/was", "train/diffusion")),
            ("curves", "Learning rate", ("train/lr",)),
            ("curves", "Timestep t", ("train/t",)),
        ],
        "Layers": [("table", "InfoScore of the layers", (media.LAYERS,))],
    }


def classes_of(subject: str) -> list[str]:
    """Class names of a subject of the papers, background first."""
    return sorted(_read("paper", subject, "--subject")["columns"], key=lambda name: bool(name != "background"))


def grid(ablation: str) -> dict[str, list[str]]:
    """Key -> its values, swept or fixed, of a file of conf/ablation, as they stand on a command line."""
    file = _read("ablation", ablation, "--ablation")
    found: dict[str, list[str]] = {}
    for key, text in file.pop("hydra")["sweeper"]["params"].items():
        override = OverridesParser.create().parse_override(f"{key}={text}")
        found[key] = list(override.sweep_string_iterator()) if override.is_sweep_override() else [text]
    return found | {key: [str(value)] for key, value in flatten(file)}


def sweep(ablation: str, experiment: str) -> dict[str, Any]:
    """The ablation's grid as `wandb sweep` reads it; its agents run the trials one after the other."""
    parameters = {
        key: {"value": values[0]} if len(values) == 1 else {"values": values} for key, values in grid(ablation).items()
    }
    return {
        "program": "slime-bench",
        "command": ["${env}", "${program}", f"experiment={experiment}", "logger=wandb", "${args_no_hyphens}"],
        "method": "grid", "metric": {"name": media.MIOU, "goal": "maximize"}, "parameters": parameters,
    }  # fmt: skip


def runs_of(ablation: str, experiment: str) -> tuple[dict[str, Any], list[str]]:
    """How an ablation's runs are found: key -> value of what they have in common, and the keys in which they differ.

    In common are the preset, the shots, and what other ablations vary, where that is a number or a word.
    """
    varied = [key for key, values in grid(ablation).items() if len(values) > 1 and key != "seed"]
    trial = plan([f"experiment={experiment}", f"ablation={ablation}"], sweep=True).trials[0]
    others = {key for path in (config_dir() / "ablation").glob("*.yaml") for key in grid(path.stem)} | {"preset"}
    common = {
        key: value
        for key, value in flatten(recorded(trial))
        if isinstance(value, int | float | str) and _under(key, others) and not _under(key, {*varied, "seed"})
    }
    return common, varied


def workspace(subject: str, entity: str, project: str, ablation: str | None = None, experiment: str = "") -> Any:
    """A workspace, not saved, of the subject's runs, grouped by all but their seed; where an ablation is named, of its
    runs alone, and first grouped by what it varies.

    Raises:
        ConfigError: no such subject, ablation or experiment, or wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            "wandb-workspaces is not installed", path="slime_bench.tracking.workspace", found=str(error),
            expected="the extra `workspaces`", remedy="pip install 'slime-bench[workspaces]'",
        ) from error  # fmt: skip
    filters, varied = [f"Tags in ['{subject}']"], list[str]()
    if ablation is not None:
        common, varied = runs_of(ablation, experiment)
        filters += [f"Config('{key}') = {value!r}" for key, value in common.items()]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"slime-bench: {subject}" + (f", {ablation}" if ablation else ""),
        sections=[
            workspaces.Section(
                name=title, panels=[_panel(reports, *each) for each in panels], is_open=title == "Result"
            )
            for title, panels in layout(classes_of(subject)).items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=media.STEP),
        runset_settings=workspaces.RunsetSettings(
            filters=" and ".join(filters),
            groupby=[*(workspaces.Config(key) for key in varied), workspaces.Metric("Group")],
            pinned_columns=[f"summary:{media.MIOU}", "config:seed", "config:shots"],
        ),
    )


def save(subject: str, project: str, entity: str | None, ablation: str | None = None, experiment: str = "") -> None:
    """Save a new workspace in the account of the key, or of the team `entity`."""
    import wandb

    try:
        owner = entity or str(wandb.Api(timeout=30).default_entity)
        workspace(subject, owner, project, ablation, experiment).save()
    except SlimeBenchError:
        raise
    except Exception as error:  # of a library that talks to a server, any
        raise SlimeBenchError(
            "W&B did not save it", path=project, found=(str(error).strip() or type(error).__name__).splitlines()[0],
            expected="a key, the network, and an account that may save views in the project",
            remedy="`wandb login`, and name a team that you belong to with --entity; the same tables and plots are in "
            "`slime-bench report` without any account",
        ) from error  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Build and save, or print; the exit code."""
    printable()
    parser = argparse.ArgumentParser(
        prog="python -m slime_bench.tracking.workspace", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--subject", default="car", help="car, horse or face")
    parser.add_argument("--ablation", help="a file of conf/ablation, such as lr")
    parser.add_argument("--experiment", help="whose trials the ablation varies; the default is mini_<subject>")
    parser.add_argument("--print-sweep", action="store_true", help="print the ablation's grid for `wandb sweep`")
    parser.add_argument("--project", default="slime-bench")
    parser.add_argument("--entity", help="a team; the default is the account of the key")
    args = parser.parse_args(argv)
    experiment = args.experiment or f"mini_{args.subject}"
    try:
        if args.print_sweep:
            print(yaml.safe_dump(sweep(args.ablation or "", experiment), sort_keys=False), end="")
        else:
            save(args.subject, args.project, args.entity, args.ablation, experiment)
    except SlimeBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _under(key: str, keys: Iterable[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def _read(group: str, name: str, option: str) -> dict[str, Any]:
    known = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    if name not in known:
        raise ConfigError("there is no such file", path=option, found=name, expected=" or ".join(known))
    return dict(yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")))


def _panel(reports: Any, kind: str, title: str, keys: Sequence[str]) -> Any:
    spread = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    if kind == "curves":
        return reports.LinePlot(title=title, x=media.STEP, y=list(keys), **spread)
    if kind == "bars":
        return reports.BarPlot(title=title, metrics=list(keys), **spread)
    if kind == "media":
        return reports.MediaBrowser(title=title, media_keys=list(keys))
    return reports.WeavePanelSummaryTable(table_name=keys[0])


if __name__ == "__main__":
    sys.exit(main())
