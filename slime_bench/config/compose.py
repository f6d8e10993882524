"""From overrides to typed trials, all of them before the first one starts; Hydra's errors in the bench's own words.

A command that runs trials enters by `hydra.main`, and this bench's Hydra launcher (`slime_bench.sweep.launcher`) is
given all of them at once; a command that only asks which trials there are (`status`, `report`) calls `plan`.
"""

from __future__ import annotations

import copy
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

import yaml
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from slime_bench.config.read import nearest
from slime_bench.config.schema import DEFAULT_TRIAL, LAUNCHERS, TrialConfig, check_ablated, validate
from slime_bench.config.secrets import is_secret
from slime_bench.errors import ConfigError
from slime_bench.paths import config_dir, user_path

CONFIG_NAME: Final = "config"
VERSION_BASE: Final = "1.3"
LAUNCHER: Final = "hydra_plugins.slime_bench.SweepLauncher"
SWEEPER: Final = "hydra_plugins.slime_bench.Sweeper"
"""Hydra takes plugins of the namespace `hydra_plugins` alone; see `slime_bench.sweep.launcher`."""


_HOME = re.compile(r"(?<=[=,\[:])~(?=/)")
_UNKNOWN_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")
_stamp = ""
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What a command line asks for.

    Attributes:
        trials: one configuration for each trial, in the order in which they run.
        names: of the trials: the overrides that set each apart from the others.
    """

    trials: list[TrialConfig]
    names: tuple[str, ...]


def new_stamp() -> str:
    """A folder name for one command: the time, to be read, and a random part, to be the only one of its name."""
    global _stamp
    _stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{uuid.uuid4().hex[:8]}"
    return _stamp


def pick(key: str, options: Mapping[str, Any], otherwise: Any = "???") -> Any:
    """What a file chooses by the preset or the method: the option called `key`, else `otherwise`; Hydra asks for `???`.

    In a file: `${slime_bench.pick:${preset},{mini:mini_horse,paper:pascal_part_horse}}`.
    """
    return options.get(key, otherwise)


OmegaConf.register_new_resolver("slime_bench.stamp", lambda: _stamp or new_stamp(), replace=True)
OmegaConf.register_new_resolver("slime_bench.home", os.path.expanduser, replace=True)
OmegaConf.register_new_resolver("slime_bench.pick", pick, replace=True)
for _group, _node in (
    ("hydra/launcher", {"_target_": LAUNCHER}),
    ("hydra/sweeper", {"_target_": SWEEPER, "max_batch_size": None, "params": None}),
):
    ConfigStore.instance().store("slime_bench", _node, group=_group, provider="slime-bench")


def plan(overrides: Sequence[str], *, sweep: bool = False, extra_dir: str | None = None) -> Plan:
    """Compose and validate every trial of a command line.

    Args:
        overrides: Hydra overrides, e.g. `["method.lr=0.01", "seed=0,1,2"]`.
        sweep: whether several values of one key are several trials (`--multirun`).
        extra_dir: a further folder of configuration files, which goes before the bench's own (`--config-dir`).

    Raises:
        ConfigError: a secret on the command line, an override that cannot be read, an unknown key, group or option,
            or whatever `validate` raises.
    """
    overrides = with_home(overrides)
    refuse_secrets(overrides)
    check_ablation(overrides, extra_dir)
    with _hydra(extra_dir):
        return with_additions(overrides, lambda texts: _plan(texts, sweep))


def with_home(texts: Sequence[str]) -> list[str]:
    """Overrides and options with the home folder for the `~` of a path, which Hydra's grammar lacks."""
    return [_HOME.sub(lambda _: os.path.expanduser("~"), text) for text in texts]


def check_ablation(overrides: Sequence[str], extra_dir: str | None = None) -> None:
    """Refuse an ablation of another method than the chosen one before Hydra looks up what its file sweeps.

    Raises:
        ConfigError: see `schema.check_ablated`; whatever composing raises.
    """
    parsed = _parse(list(overrides))
    if any(each.key_or_group == "ablation" for each in parsed):
        fixed = [text for text, each in zip(overrides, parsed, strict=True) if not each.is_sweep_override()]
        with _hydra(extra_dir):
            with_additions(fixed, lambda texts: check_ablated(_composed(texts)))


def _plan(overrides: list[str], sweep: bool) -> Plan:
    parsed = _parse(overrides)
    if not sweep:
        cfg = _composed(overrides, with_hydra=True)
        if cfg.hydra.mode != RunMode.MULTIRUN:
            return Plan([validate(without_hydra(cfg))], names([overrides]))
    # Hydra, too, leaves the swept keys out where it looks for the sweep's own settings.
    fixed = [text for text, each in zip(overrides, parsed, strict=True) if not each.is_sweep_override()]
    jobs = _jobs(overrides, _composed(fixed, with_hydra=True).hydra)
    shared = _Shared()
    return Plan([validate(with_additions(job, shared.composed)) for job in jobs], names(jobs))


class _Shared:
    """Compositions of one sweep, whose jobs often differ in single values alone, such as the seed: those are composed
    once, and get their values as Hydra would give them, by `OmegaConf.update` after everything else."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[list[Override], DictConfig]] = {}
        self._options = cache(GlobalHydra.instance().config_loader().get_group_options)

    def composed(self, overrides: list[str]) -> DictConfig:
        """The configuration of a job."""
        job = _parse(overrides)
        keys = [each.key_or_group for each in job]
        if len(set(keys)) < len(keys) or not all(map(_gives_a_value, job)):  # their order may count
            return _composed(overrides)
        kind = tuple(str(each.input_line) if self._options(each.key_or_group) else each.key_or_group for each in job)
        if kind not in self._known:
            self._known[kind] = job, _composed(overrides)
        first, base = self._known[kind]
        cfg = copy.deepcopy(base)
        with translated():
            for each, before in zip(job, first, strict=True):
                if each.input_line != before.input_line:
                    OmegaConf.update(cfg, each.key_or_group, each.value())
        return cfg


def _gives_a_value(override: Override) -> bool:
    """Whether it is `key=value` or `group=option`, and not an addition, a deletion, a list or a mapping."""
    return override.type is OverrideType.CHANGE and isinstance(override.value(), bool | int | float | str | None)


def with_additions(overrides: Sequence[str], attempt: Callable[[list[str]], T]) -> T:
    """What `attempt` makes of the overrides, with `++` before each key that no YAML file lists.

    Hydra would refuse such a key, but it may be a field that has a default. The schema decides, and where there is no
    such field it names the nearest one.
    """
    texts = list(overrides)
    while True:
        try:
            return attempt(texts)
        except ConfigError as error:
            unknown = _UNKNOWN_KEY.match(str(error.__cause__))
            key = unknown["key"] if unknown else "hydra"
            places = [index for index, text in enumerate(texts) if text.startswith(f"{key}=")]
            if not places or key.partition(".")[0].partition("/")[0] == "hydra":
                raise
            for index in places:
                texts[index] = f"++{texts[index]}"


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration of a trial alone."""
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def names(jobs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What sets each trial apart from a command's others: its overrides that not all of them have."""
    shown = [[each.lstrip("+") for each in job] for job in jobs]
    shared = set.intersection(*map(set, shown)) if len(shown) > 1 else set()
    return tuple(" ".join(each for each in job if each not in shared) or DEFAULT_TRIAL for job in shown)


def _jobs(overrides: list[str], base: DictConfig) -> list[list[str]]:
    if not str(base.sweeper._target_).endswith((".BasicSweeper", SWEEPER)):
        return [overrides]  # another sweeper knows its own jobs
    with translated():
        parameters = [f"{key}={value}" for key, value in (base.sweeper.params or {}).items()]
        # The loader knows the options that `glob()` chooses among.
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides([*parameters, *overrides])
    return list(BasicSweeper.split_arguments(parsed, None)[0])


def _parse(overrides: list[str]) -> list[Override]:
    with translated():
        return list(OverridesParser.create().parse_overrides(overrides))


def _composed(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    with translated():
        return compose(CONFIG_NAME, list(overrides), return_hydra_config=with_hydra)


@contextmanager
def _hydra(extra_dir: str | None = None) -> Iterator[None]:
    """Hydra with the bench's configuration files, and before them those of `--config-dir`, as its entry point does."""
    places = create_config_search_path(str(config_dir()))
    if extra_dir is not None:
        folder = user_path(extra_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(
                "the configuration folder is not there", path=folder, found="nothing", expected="a folder of YAML files"
            )
        places.prepend("command-line", folder.as_uri(), SearchPathQuery(provider="schema"))
    setbase(VERSION_BASE)
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("slime-bench", places)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Raise a ConfigError for an override whose key looks like a secret's: command lines end in logs and histories."""
    for override in overrides:
        key, sign, _ = override.partition("=")
        key = key.lstrip("+~")
        if sign and any(is_secret(part) for part in re.split(r"[./@]", key)):
            raise ConfigError(
                "a secret does not belong on the command line",
                path=key,
                found="a key that looks like a secret's (its value is not repeated here)",
                expected="secrets in the environment only",
                remedy="use the service's own login or variable, e.g. `wandb login` or WANDB_API_KEY",
            )


@contextmanager
def translated() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and the YAML reader raise into a ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise explain(error) from error


def explain(error: Exception) -> ConfigError:
    """A ConfigError that says what an error of the composition means and what to do."""
    text = str(error)
    first, _, rest = text.partition("\n")
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            "an override cannot be read",
            path=error.override,
            found=text.split("\nSee ", 1)[0].replace("\n", "; "),
            expected="key=value, key=[a,b] or key='text with signs'",
            remedy="where the value holds spaces, brackets, commas, =, ~ or letters that are not English, put it in "
            "quotes of its own inside the shell's: \"key='value (ä), ~'\"",
        )
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        return ConfigError(
            "a configuration file is not valid YAML",
            path=f"{mark.name}, line {mark.line + 1}" if mark else None,
            found=getattr(error, "problem", None) or first,
            remedy="correct the file",
        )
    quoted = re.search(r"'([^']+)'", first)
    key = getattr(error, "full_key", None) or (quoted[1] if quoted else None)
    if first.startswith(("Ambiguous value", "Sweep parameters")):
        return ConfigError(
            "several values are given for one trial",
            path=key,
            found="values separated by commas, or a function such as glob() that stands for several",
            expected="one value, or a list in brackets",
            remedy="give one value; `slime-bench --multirun` runs one trial for each",
        )
    return ConfigError(
        f"the configuration cannot be composed: {first}",
        path=key,
        found=rest.replace("\n", " ").strip() or None,
        remedy="`slime-bench --cfg job` prints the configuration, `slime-bench --help` lists the groups; a key that is "
        "there already takes no `+`, and a variable that is asked for has to be set",
    )


def _unknown_option(error: MissingConfigException) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or [])
    if not group:
        return ConfigError("a configuration file is not there", path=error.missing_cfg_file, found="nothing")
    close = nearest(name, options)
    remedy = f"did you mean {group}={close[0]}?" if close else f"choose another {group}"
    if group == "hydra/launcher" and name in LAUNCHERS:
        remedy = f"did you mean launcher={name}? Hydra's own plugin of that name is not installed, and not needed"
    return ConfigError(
        f"unknown {group} `{name}`",
        path=f"{group}={name}",
        found=repr(name),
        expected=f"one of {', '.join(options)}" if options else f"a file in conf/{group}/, which holds none",
        remedy=remedy,
    )
