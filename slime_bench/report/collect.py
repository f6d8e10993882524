"""What lies under an outputs folder: results, failures, what was kept beside them, and where and with what they ran."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from slime_bench import lock
from slime_bench.errors import ConfigError, ResultError
from slime_bench.paths import config_dir, user_path
from slime_bench.results import identity
from slime_bench.results.environment import read_environment, read_json
from slime_bench.results.identity import canonical_json, flatten, parse_trial_folder
from slime_bench.results.result import RESULT_FILE, TrialResult, read_result
from slime_bench.results.status import FAILED, MISSING, RUNNING

Family = tuple[str, str, str, str, str, str, int]
"""Names of method, backbone, data, subject, preset and protocol, and shots."""
Defaults = Mapping[Family, Mapping[str, str]]
"""Default settings of a family: dotted key -> text, as `settings` gives them."""
Config = Mapping[str, Any]
T = TypeVar("T")
_OWN_COLUMNS = ("seed", "shots", "metric")
_LONGEST = 40
"""Characters of a value in a label, e.g. of a list of images."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedTrial:
    """A trial folder with `error.json` and no valid result."""

    folder: Path
    data: str
    method: str
    shots: int
    seed: int
    summary: str
    own_report: str | None = None

    def __str__(self) -> str:
        return f"{self.method} on {self.data}, {self.shots}-shot, seed {self.seed}"


@dataclass(frozen=True)
class Collected:
    """What lies under an outputs folder.

    Attributes:
        results: valid results, one per signature, sorted by data, method, shots, series and seed.
        folders: signature -> the trial's folder.
        invalid: files that are no valid result, with the reason.
        failed: trials that ended in an error and have no valid result.
    """

    results: list[TrialResult]
    folders: dict[str, Path]
    invalid: list[tuple[Path, str]]
    failed: list[FailedTrial]

    @property
    def own_reports(self) -> dict[str, str]:
        """Method -> name of the report that its trials have instead of rows in the main tables."""
        failed = {one.method: one.own_report for one in self.failed if one.own_report}
        return failed | {one.method: name for one in self.results if (name := one.facts.get("own_report"))}

    def of_report(self, name: str | None) -> Collected:
        """The trials of the methods that have the report `name`; of the main tables for None."""
        own = self.own_reports
        return replace(
            self,
            results=[one for one in self.results if own.get(one.method) == name],
            failed=[one for one in self.failed if own.get(one.method) == name],
        )

    def state(self, like: TrialResult, shots: int, seed: int) -> str:
        """`running`, `failed` or `missing`: of the unfinished trial with all other settings of a finished one."""
        decided = {key: value for key, value in like.config.items() if key != "metric"} | {"shots": shots, "seed": seed}
        place = self.folders[like.signature].parents[1] / f"{shots}-shot"
        # A trial whose data or weights are not there fails in a folder that is named without them.
        names = (identity.signature_of(decided, like.fingerprints), identity.digest(decided))
        folders = [place / f"seed{seed}-{each}" for each in names]
        if any(lock.holder(each) for each in folders):
            return RUNNING
        return FAILED if any(one.folder in folders for one in self.failed) else MISSING


def collect(root: Path) -> Collected:
    """Reads `<root>/runs/**/result.json`; what is not valid is listed and does not stop the report."""
    results: dict[str, TrialResult] = {}
    folders: dict[str, Path] = {}
    invalid: list[tuple[Path, str]] = []
    for path in sorted((root / "runs").glob(f"**/{RESULT_FILE}")):
        try:
            result = read_result(path)
        except ResultError as error:
            found = "" if error.found is None else f" ({error.found})"
            invalid.append((path, f"{error.summary}{found}"))
            continue
        trial = parse_trial_folder(path.parent)
        if trial is None or any(trial[name] != getattr(result, name) for name in trial):
            invalid.append((path, "The result does not belong to the folder it lies in."))
        elif result.signature in results:
            invalid.append((path, f"A second result of {folders[result.signature]}; only the first is used."))
        else:
            results[result.signature], folders[result.signature] = result, path.parent
    ordered = sorted(results.values(), key=lambda one: (one.data, one.method, one.shots, one.series, one.seed))
    valid = set(folders.values())
    failed = []
    for path in sorted((root / "runs").glob("**/error.json")):
        where = parse_trial_folder(path.parent)
        if where is not None and path.parent not in valid:
            del where["signature"]
            own = ((read_json(path) or {}).get("facts") or {}).get("own_report")
            failed.append(FailedTrial(path.parent, summary=failure(path.parent), own_report=own, **where))
    return Collected(ordered, folders, invalid, failed)


def failure(folder: Path) -> str:
    """One line of the error that a trial left in its folder."""
    fields = read_json(folder / "error.json") or {}
    texts = [str(fields[name]) for name in ("type", "summary", "message") if fields.get(name)]
    return ": ".join(texts[:2]).splitlines()[0] if texts else "error.json does not say why"


def read_optional(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file that the report alone needs: a spoilt one costs its own picture, and nothing else.

    None where there is no file, or, with a warning, where `read` raises ResultError.
    """
    if not path.is_file():
        return None
    try:
        return read(path)
    except ResultError as error:
        _LOG.warning("%s", error)
        return None


FOLDERS = ("output_root", "data_root")
"""Keys of the folders of one machine."""


def told(overrides: Iterable[str], but: Sequence[str] = FOLDERS) -> list[str]:
    """The overrides without those of the keys `but`."""
    return [each for each in overrides if each.partition("=")[0].lstrip("+~") not in but]


def multirun(overrides: Iterable[str], but: Sequence[str] = ()) -> str:
    """The command of a sweep, without its overrides of the keys `but`."""
    return shlex.join(["slime-bench", "--multirun", *told(overrides, but)])


def default_outputs() -> Path:
    """The outputs folder where neither an option nor a configuration names one."""
    return user_path(os.environ.get("SLIME_BENCH_OUTPUTS") or "outputs")


def relative(path: Path, root: Path) -> str:
    """A path below the outputs folder as reports tell it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


# ------------------------------------------------------------------------------------------------- where trials ran


@dataclass(frozen=True)
class Provenance:
    """Sorted distinct facts of the trials behind a table.

    Attributes:
        commits: abbreviated, with `+changes` where the checkout held uncommitted ones.
        first, last: days (ISO) on which the first and the last trial finished, empty where none says so.
        unknown: trials without a readable `environment.json`.
    """

    devices: list[str]
    platforms: list[str]
    commits: list[str]
    first: str
    last: str
    unknown: int

    def line(self) -> str:
        """One line for a caption."""
        if not self.devices:
            return "machine, commit and date are not recorded"
        days = self.first if self.first == self.last else f"{self.first} to {self.last}"
        parts = [
            f"ran on {', '.join(self.devices)} ({', '.join(self.platforms)})",
            f"commit {', '.join(self.commits) or 'not recorded'}",
            days or "date not recorded",
        ]
        return "; ".join([*parts, *([f"{self.unknown} trial(s) do not say"] if self.unknown else [])])


def provenance(folders: Iterable[Path]) -> Provenance:
    """The provenance of the trials in these folders; a missing or spoilt file is counted, not an error."""
    found = [read_environment(folder) or {} for folder in folders]
    facts = [each for each in found if isinstance(each.get("device"), str)]
    days = sorted(str(each["finished"])[:10] for each in facts if each.get("finished"))
    return Provenance(
        devices=sorted({each["device"] for each in facts}),
        platforms=sorted({each["platform"] for each in facts if each.get("platform")}),
        commits=sorted({commit for each in facts if (commit := commit_of(each, "+changes"))}),
        first=days[0] if days else "", last=days[-1] if days else "", unknown=len(found) - len(facts),
    )  # fmt: skip


def commit_of(environment: Mapping[str, Any], changes: str) -> str:
    """The abbreviated commit, with `changes` where the checkout held uncommitted ones; empty where it is not known."""
    git = environment.get("git") or {}
    commit = git.get("commit") or ""
    return commit[:9] + (changes if commit and git.get("dirty") else "")


# ----------------------------------------------------------------------------------- settings, and what sets rows apart


def family(result: TrialResult) -> Family:
    """The names under which results stand side by side."""
    names = (result.method, result.backbone, result.data, result.subject)
    return (*names, result.preset, result.protocol, result.shots)


def family_of(planned: Config) -> Family:
    """As `family`, of one of the `planned_configs`."""
    method, backbone, data, protocol = (planned[part]["name"] for part in ("method", "backbone", "data", "protocol"))
    return (method, backbone, data, planned["data"]["subject"], planned["preset"], protocol, planned["shots"])


def settings(config: Config) -> dict[str, str]:
    """Dotted key -> text of what a recorded configuration says, without what has a column of its own."""
    own = {key: value for key, value in config.items() if key not in _OWN_COLUMNS}
    return {key: value if isinstance(value, str) else canonical_json(value) for key, value in flatten(own)}


def planned_configs(overrides: Sequence[str], extra_dir: str | None) -> list[dict[str, Any]]:
    """The trials of a sweep: their configurations as plain values, under `decided` what decides the trial's numbers."""
    from slime_bench.config.compose import plan

    trials = plan(overrides, sweep=True, extra_dir=extra_dir).trials
    return [{**cfg.plain, "decided": identity.deciding(cfg)} for cfg in trials]


def default_settings(trials: Iterable[tuple[Family, Config]], extra_dir: str | None = None) -> Defaults:
    """Family -> its default settings: those of the experiment of its preset and subject, else of its preset alone.

    A family whose names are no files of conf/ is left out: nobody knows its default. Of data that are no file, as one's
    own images, what else the preset says is known. A key that no trial of a family records is one of a newer version of
    the bench, which none of them departs from.

    Args:
        trials: the family of each trial, and what decides its numbers.
    """
    recorded: dict[Family, set[str]] = defaultdict(set)
    for names, config in trials:
        recorded[names].update(settings(config))
    found = {}
    for names, keys in recorded.items():
        if (default := _composed(names, extra_dir)) is not None:
            found[names] = {
                key: text
                for key, text in default.items()
                if any(key == one or _holds(key, one) or _holds(one, key) for one in keys)
            }
    return found


def _holds(key: str, other: str) -> bool:
    """Whether the one key is a mapping with the other in it, e.g. `data.splits`, which is empty by default."""
    return other.startswith(f"{key}.")


def _composed(names: Family, extra_dir: str | None) -> dict[str, str] | None:
    from slime_bench.config.compose import plan

    method, backbone, data, subject, preset, protocol, shots = names
    # The method may choose another refinement, and the preset other data: what is named here has the last word.
    parts = [f"method={method}", f"backbone={backbone}", f"preset={preset}", f"protocol={protocol}", f"shots={shots}"]
    # An experiment may set what its preset leaves open, e.g. the patches of the paper's faces.
    places = [place / "experiment" for place in (config_dir(), *([user_path(extra_dir)] if extra_dir else []))]
    stems = [f"{preset}_{subject}{tail}" for tail in (f"_{method}", "")]
    named = [f"experiment={stem}" for stem in stems if any((place / f"{stem}.yaml").is_file() for place in places)]
    for chosen in (*([f"data={data}", each, *parts] for each in named), [f"data={data}", *parts], parts):
        try:
            (cfg,) = plan(chosen, extra_dir=extra_dir).trials
        except ConfigError as error:
            _LOG.debug("no default settings for %s: %s", chosen, error.summary)
            continue
        unknown = ("trainer.device",) if chosen is not parts else ("trainer.device", "data.")  # a fact of the machine
        values = settings(identity.recorded(cfg))
        return {key: text for key, text in values.items() if not key.startswith(unknown)}
    return None


def is_default(trial: TrialResult, defaults: Defaults | None) -> bool:
    """Whether a trial has the default settings, or it is not known what those are."""
    have = settings(trial.config)
    return all(have.get(key) == text for key, text in (defaults or {}).get(family(trial), {}).items())


def variants(trials: Sequence[TrialResult], defaults: Defaults | None = None) -> dict[str, str]:
    """Series -> label, for one trial of every series.

    Among the series of one family, a label lists the settings in which a series departs from the default, or where that
    is not known from the most common value. Where no value is the most common, every series states its own. A part that
    has another name than the default's (`refine=guided`) is told by it, and its settings are compared with those of its
    namesakes alone.
    """
    families: dict[Family, dict[str, dict[str, str]]] = defaultdict(dict)
    for one in trials:
        families[family(one)][one.series] = (
            settings(one.config)
            | {f"prepared.{name}": value for name, value in one.prepared.items()}
            | {f"fingerprint.{name}": value[:12] for name, value in one.fingerprints.items()}
        )
    labels: dict[str, str] = {}
    for names, members in families.items():
        labels |= _labels(members, (defaults or {}).get(names, {}))
    return labels


def departure(planned: Config, defaults: Defaults) -> str | None:
    """The label of one of the `planned_configs`: how it departs from the default, None where nobody knows."""
    names = family_of(planned)
    return _labels({"": settings(planned["decided"])}, defaults[names])[""] if names in defaults else None


def _labels(every: Mapping[str, Mapping[str, str]], default: Mapping[str, str]) -> dict[str, str]:
    every_key = {key for values in every.values() for key in values}
    keys = sorted(every_key, key=lambda key: (not key.endswith(".name"), key))  # what was chosen, then how it is set
    shown: dict[str, list[str]] = {series: [] for series in every}
    for key in keys:
        name = f"{key.partition('.')[0]}.name"
        namesakes: dict[str, dict[str, str]] = defaultdict(dict)
        for series, values in every.items():
            if key in values or not any(_holds(key, one) for one in values):
                namesakes["" if key == name else values.get(name, "")][series] = values.get(key, "-")
        for kind, texts in namesakes.items():
            common = [*Counter(texts.values()).most_common(2), ("", 0)]
            usual = common[0][0] if common[0][1] > common[1][1] else None
            if key == name or kind == default.get(name, ""):
                usual = default.get(key, "-" if any(_holds(one, key) for one in default) else usual)
            for series, text in texts.items():
                if text != usual:
                    value = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
                    shown[series].append(f"{shortened(key, keys).removesuffix('.name')}={value}")
    labels = {series: ", ".join(parts) for series, parts in shown.items()}
    # Redacted values can be all that sets two series apart: then only the hash can tell them apart.
    twice = Counter(labels.values())
    return {
        series: label if twice[label] == 1 else f"{label + ', ' if label else ''}series={series[:8]}"
        for series, label in labels.items()
    }


def shortened(key: str, keys: Sequence[str]) -> str:
    """The shortest tail of a dotted key that names no other key."""
    parts = key.split(".")
    for length in range(2 if parts[-1] == "enabled" else 1, len(parts)):  # of what? says the part before
        tail = ".".join(parts[-length:])
        if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1 and parts[0] != "fingerprint":
            return tail
    return key


# --------------------------------------------------------------------------- results of trials that were composed alone


@dataclass(frozen=True)
class Matched:
    """What became of planned trials, by their keys.

    Attributes:
        results: of the trials that are finished, all on one device, with the same weights and data.
        failed: trials without a result that left an error behind.
        left_out: further results of the same trials on another device, or with other weights or data.
    """

    results: dict[Any, TrialResult]
    failed: dict[Any, FailedTrial]
    left_out: int


def _world(result: TrialResult) -> str:
    device = result.config.get("trainer", {}).get("device")
    return canonical_json([device, *(result.fingerprints.get(name) for name in ("backbone", "data"))])


def match(planned: Mapping[Any, Config], collected: Collected, world: Callable[[TrialResult], str] = _world) -> Matched:
    """The results of planned trials: those with the same signature.

    What a configuration only points to (weights, data, the device `auto` stands for) is known from the results alone.
    Results that differ in it must not stand in one table: the largest set is taken, of equal ones the latest.

    Args:
        planned: configurations of the trials, see `planned_configs`.
        world: what has to be the same of results in one table.
    """
    worlds: dict[str, dict[Any, TrialResult]] = defaultdict(dict)
    for key, config in planned.items():
        for result in collected.results:
            same = (result.data, result.method) == (config["data"]["name"], config["method"]["name"])
            same &= (result.shots, result.seed) == (config["shots"], config["seed"])
            if same and _signature_on(config, result) == result.signature:
                worlds[world(result)][key] = result
    if not worlds:
        return Matched({}, {}, 0)

    def latest(results: Iterable[TrialResult]) -> float:
        return max((collected.folders[one.signature] / RESULT_FILE).stat().st_mtime for one in results)

    results = worlds.pop(max(worlds, key=lambda name: (len(worlds[name]), latest(worlds[name].values()), name)))
    witness = next(iter(results.values()))
    errors = {trial.folder.name: trial for trial in collected.failed}
    names = {key: f"seed{config['seed']}-{_signature_on(config, witness)}" for key, config in planned.items()}
    failed = {key: errors[name] for key, name in names.items() if key not in results and name in errors}
    return Matched(results, failed, sum(map(len, worlds.values())))


def _signature_on(config: Config, witness: TrialResult) -> str:
    """The signature that the trial has on the device, weights and data of `witness`."""
    decided = config["decided"]
    if decided["trainer"]["device"] == "auto":
        there = witness.config.get("trainer", {}).get("device", "auto")
        decided = {**decided, "trainer": {**decided["trainer"], "device": there}}
    return identity.signature_of(decided, witness.fingerprints)
