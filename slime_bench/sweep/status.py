"""`slime-bench status`: which trials of a sweep are done, running, failed or missing, for the overrides of the sweep.

Nothing is run, loaded or written. Other states: `oom` (the GPU has too little memory), `killed` (its process was; the
same command goes on with it), `unreadable` (its result is damaged, or another trial's; it runs again), `unknown` (data
or weights are not here, and no finished trial says that it was this one).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from slime_bench import lock
from slime_bench.config.compose import Plan, plan
from slime_bench.config.schema import DEFAULT_TRIAL, MetricConfig, TrialConfig
from slime_bench.errors import DataError, ResultError, SlimeBenchError
from slime_bench.results import identity
from slime_bench.results import status as states
from slime_bench.results.result import RESULT_FILE, read_result
from slime_bench.results.status import STATES, TrialStatus
from slime_bench.trial.device import pick_device
from slime_bench.trial.failure import ERROR_FILE
from slime_bench.trial.spec import identify, nameless_folder

_DEVICES: Final = ("cpu", "cuda", "mps")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return 0.

    Raises:
        ConfigError: overrides that make no trial.
    """
    parser = argparse.ArgumentParser(
        prog="slime-bench status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for the sweep, e.g. experiment=mini_car")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--config-dir", help="a further folder of configuration files, as it was given to the sweep")
    args = parser.parse_intermixed_args(argv)
    planned, sweep = plan(args.overrides, sweep=True, extra_dir=args.config_dir), Sweep()
    found = [sweep.status(cfg, name) for cfg, name in zip(planned.trials, planned.names, strict=True)]
    if args.json:
        count = Counter(each.state for each in found)
        print(json.dumps({"trials": [asdict(each) for each in found], "count": dict(count)}, indent=1, sort_keys=True))
    else:
        print("\n".join(table(found)))
    return 0


def planned_trials(
    overrides: Sequence[str], outputs: Path | None, extra_dir: str | None
) -> list[tuple[dict[str, Any], TrialStatus]]:
    """What reports are told of a sweep's trials: of each the configuration as plain values, under `decided` what of it
    decides the numbers, and its status.

    Args:
        overrides: as they were given to the sweep.
        outputs: folder with runs/; that of the configuration by default.
        extra_dir: a further folder of configuration files.

    Raises:
        ConfigError: see `compose.plan`.
    """
    return states_of(plan(overrides, sweep=True, extra_dir=extra_dir), outputs)


def states_of(found: Plan, outputs: Path | None) -> list[tuple[dict[str, Any], TrialStatus]]:
    """The same of trials that are composed already."""
    sweep, trials = Sweep(), []
    for cfg, name in zip(found.trials, found.names, strict=True):
        there = cfg if outputs is None else cfg.replace(output_root=str(outputs))
        trials.append(({**there.plain, "decided": identity.deciding(there)}, sweep.status(there, name)))
    return trials


class Sweep:
    """Looks at the trials of one command; the files of data and weights that they share are read once."""

    def __init__(self) -> None:
        self._prints: dict[str, str | SlimeBenchError] = {}

    def status(self, cfg: TrialConfig, name: str) -> TrialStatus:
        """How far the trial of a configuration is. `auto` may mean another device where it was run."""
        blank = TrialStatus(name, cfg.method.name, cfg.data.name, cfg.shots, cfg.seed, states.MISSING)
        found = [self._on(cfg.replace(trainer={"device": each}), blank) for each in _devices(cfg.trainer.device)]
        return min(found, key=lambda each: STATES.index(each.state))  # of equals the first, which is this machine's

    def _on(self, cfg: TrialConfig, blank: TrialStatus) -> TrialStatus:
        data = cfg.build("data", shots=cfg.shots, seed=cfg.seed)
        try:
            backbone = cfg.parts["backbone"]
            prints = {
                "data": self._print([cfg.plain["data"], cfg.shots], lambda: _data_print(cfg, data)),
                "backbone": self._print(cfg.plain["backbone"], lambda: backbone.content_hash_of(cfg.backbone)),
            }
            return of_folder(identify(cfg, data, prints).folder, blank, cfg.metric)
        except SlimeBenchError as problem:
            nameless = nameless_folder(cfg)
            found = [of_folder(nameless, blank, cfg.metric), *_by_configuration(cfg, nameless.parent, blank, problem)]
            best = min(found, key=lambda each: STATES.index(each.state))
            unknown = replace(blank, state=states.UNKNOWN, detail=_line(problem))
            return unknown if best.state == states.MISSING else best

    def _print(self, settings: Any, make: Callable[[], str]) -> str:
        key = identity.canonical_json(settings)
        if key not in self._prints:
            try:
                self._prints[key] = make()
            except SlimeBenchError as error:
                self._prints[key] = error
        found = self._prints[key]
        if isinstance(found, SlimeBenchError):
            raise found
        return found


def of_folder(folder: Path, blank: TrialStatus, metric: MetricConfig) -> TrialStatus:
    """How far the trial with this folder is; its score as `metric` has it, whatever it was run with."""
    here = replace(blank, folder=str(folder))
    if (holder := lock.holder(folder)) is not None:
        return replace(here, state=states.RUNNING, detail=str(holder))
    if (folder / RESULT_FILE).exists():
        try:
            result = read_result(folder / RESULT_FILE)
        except ResultError as error:
            return replace(here, state=states.UNREADABLE, detail=_line(error))
        if not folder.name.endswith(result.signature):
            return replace(here, state=states.UNREADABLE, detail="the result of another trial")
        known = metric.convention in result.conventions
        average = result.under(metric.convention, metric.background).average if known else None
        return replace(here, state=states.DONE, detail="" if average is None else f"mIoU {100 * average:.1f}")
    if (folder / ERROR_FILE).exists():
        return _failed(folder / ERROR_FILE, here)
    if (killed := lock.left_by(folder)) is not None:
        return replace(here, state=states.KILLED, detail=str(killed))
    return replace(blank, folder=str(folder) if folder.exists() else None)


def table(found: Sequence[TrialStatus]) -> list[str]:
    """The lines of the table, the counts first."""
    count = Counter(each.state for each in found)
    counts = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
    widths = [max(len(text) for text in column) for column in zip(*map(_cells, found), strict=True)]
    lines = [f"{len(found)} trial{'s' if len(found) > 1 else ''}: {counts}"]
    for each in found:
        cells = "  ".join(text.ljust(width) for text, width in zip(_cells(each), widths, strict=True))
        lines.append(f"  {cells}  {each.detail}".rstrip())
    return lines + [f"note: {note}" for note in dict.fromkeys(each.note for each in found if each.note)]


def _cells(status: TrialStatus) -> tuple[str, ...]:
    more = DEFAULT_TRIAL if status.name == DEFAULT_TRIAL else status.variant
    return status.state, status.method, status.data, f"{status.shots}-shot", f"seed {status.seed}", more


def _devices(name: str) -> Sequence[str]:
    if name != "auto":
        return [name]
    here = pick_device(name)
    return [here, *(other for other in _DEVICES if other != here)]


def _data_print(cfg: TrialConfig, data: Any) -> str:
    if hasattr(data, "present_splits"):  # a trial would make the data, or stop; a hash of nothing would name no trial
        absent = [name for name in data.needed if name not in data.present_splits()]
        if absent:
            raise DataError(
                f"the data set `{cfg.data.name}` is not there", path=getattr(cfg.data, "root", None),
                found=f"no {', '.join(absent)} split", remedy=data.how_to_get(),
            )  # fmt: skip
    return str(data.fingerprint())


def _by_configuration(
    cfg: TrialConfig, folder: Path, blank: TrialStatus, problem: SlimeBenchError
) -> Iterator[TrialStatus]:
    """Finished trials of this configuration, where data or weights are not here to say which of them is meant."""
    note = f"taken for this trial by its configuration alone: {problem.summary}"
    wanted = identity.canonical_json({**identity.recorded(cfg), "metric": None})
    for path in sorted(folder.glob(f"seed{cfg.seed}-*/{RESULT_FILE}")):
        found = of_folder(path.parent, blank, cfg.metric)
        if found.state == states.DONE:
            config = {**read_result(path).config, "metric": None}
            if identity.canonical_json(config) == wanted:
                yield replace(found, note=note)


def _failed(path: Path, here: TrialStatus) -> TrialStatus:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if facts["status"] == "interrupted":
        return replace(here, state=states.KILLED, detail="interrupted")
    state = states.OOM if facts["status"] == "oom" else states.FAILED
    return replace(here, state=state, detail=f"{facts['type']}: {facts['summary'].partition(chr(10))[0]}")


def _line(error: SlimeBenchError) -> str:
    return error.summary if error.path is None else f"{error.summary} ({error.path})"
