"""The schema of the whole configuration: what keys there are, of what type, and what object a group becomes.

The groups `metric`, `trainer`, `logger` and `launcher` have their dataclasses here. A group with a `_target_` (method,
backbone, data, protocol, refine) is checked against the dataclass of the class it names: its attribute `Config`, or the
class itself where that is a dataclass. So a new method is one Python file and one YAML file, and a typing error in
either is found before anything runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Final, Literal, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from slime_bench.config.parts import NO_NUMBERS
from slime_bench.config.read import MISSING, join, nearest, plain, read, unknown_key
from slime_bench.errors import ConfigError

DEFAULT_TRIAL: Final = "the default trial"
"""Name of a command's only trial that has no overrides."""
TARGET: Final = "_target_"
PARTS: Final = ("method", "backbone", "data", "protocol", "refine")
"""The groups with a `_target_`: the parts that a trial is made of."""
Convention = Literal["slime", "dataset", "present_or_predicted"]
CONVENTIONS: Final[tuple[str, ...]] = get_args(Convention)
Launcher = Literal["sequential", "joblib", "submitit_local", "submitit_slurm", "ray"]
LAUNCHERS: Final[tuple[str, ...]] = get_args(Launcher)
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class MetricConfig:
    """How counts become a table's numbers: a reduction of the stored counts, of which every result holds all.

    Args:
        convention: rule of `slime_bench.metrics.iou`; there is no default, as it changes published numbers.
        background: whether class 0 counts in the average over classes.
    """

    convention: Convention
    background: bool = True


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how a trial computes.

    Args:
        device: `auto` is CUDA where there is one, else MPS (the GPU of a Mac) where there is one, else the CPU.
        precision: of the frozen backbone's and the method's arithmetic.
        threads: CPU threads; null leaves torch's own choice.
        progress: show progress bars.
        deterministic: use deterministic algorithms only; MPS has no such mode, and its last digits may differ.
        checkpoint_every: steps of the optimisation between two checkpoints, from which a killed trial goes on; fewer
            are written where they would take more than 2 % of the time. 0 for none.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: Positive | None = field(default=None, metadata=NO_NUMBERS)
    progress: bool = field(default=True, metadata=NO_NUMBERS)
    deterministic: bool = True
    checkpoint_every: Natural = field(default=10, metadata=NO_NUMBERS)


@dataclass(frozen=True)
class LoggerConfig:
    """Where a trial's curve and result are mirrored to; results are files whatever is chosen here.

    Args:
        name: `csv` writes metrics.csv into the trial's folder, `wandb` makes a W&B run of each trial.
        project: W&B project. (The account or team is that of the key, or of WANDB_ENTITY: no user's name is written.)
        mode: of W&B; null is WANDB_MODE, else online where there is a key, and offline where there is none.
        timeout: seconds to wait for W&B's server at the start; then the run is kept offline.
        finish_timeout: seconds to wait for the last upload; what is left can be sent with `wandb sync`.
    """

    name: Literal["none", "csv", "wandb"] = "none"
    project: str = "slime-bench"
    mode: Literal["online", "offline", "disabled"] | None = None
    timeout: Annotated[float, Field(ge=1)] = 30.0
    finish_timeout: Annotated[float, Field(ge=1)] = 300.0


@dataclass(frozen=True)
class LauncherConfig:
    """How the trials of a sweep are run.

    Args:
        name: `sequential` is one after another in this process; the others start processes, here or on a cluster.
        keep_going: go on with the other trials after one has failed.
        jobs: trials at the same time, for the launchers that start processes.
        options: what the launcher's library takes, see its file in conf/launcher.
        trials_per_batch: trials that `sequential` fits in one batch, where only their seeds or settings such as the
            learning rate differ: `auto` is as many as pay and fit the memory, 1 none.
    """

    name: Launcher = "sequential"
    keep_going: bool = True
    jobs: Positive = 2
    options: dict[str, Any] = field(default_factory=dict)
    trials_per_batch: Positive | Literal["auto"] = "auto"


@dataclass(frozen=True)
class RootConfig:
    """The keys of conf/config.yaml that are not parts.

    Args:
        preset: name of the preset, set by the preset's own file.
        per_preset: values that files of parts refer to because they differ between presets: name -> key -> value.
        data_root: folder of the data sets.
        output_root: folder of runs and reports.
        shots: annotated support images, k; 0 for a method that needs none.
        seed: of the trial; 0 is a seed.
        force: compute a finished trial again.
        save_maps: test images whose maps are kept for the qualitative figure.
        ablates: the method whose settings the chosen ablation or table varies; set by its file, null without one.
    """

    preset: str
    metric: MetricConfig = field(metadata=NO_NUMBERS)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig, metadata=NO_NUMBERS)
    launcher: LauncherConfig = field(default_factory=LauncherConfig, metadata=NO_NUMBERS)
    data_root: str = field(default="data", metadata=NO_NUMBERS)
    output_root: str = field(default="outputs", metadata=NO_NUMBERS)
    shots: Natural = 1
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    force: bool = field(default=False, metadata=NO_NUMBERS)
    # What it holds stands where it is used.
    per_preset: dict[str, Any] = field(default_factory=dict, metadata=NO_NUMBERS)
    save_maps: Natural = field(default=4, metadata=NO_NUMBERS)
    ablates: str | None = field(default=None, metadata=NO_NUMBERS)


@dataclass(frozen=True)
class TrialConfig(RootConfig):
    """The configuration of one trial, checked and complete.

    Attributes:
        method, backbone, data, protocol, refine: the settings of the parts, each of the part's own dataclass.
        parts: by group, the class that its `_target_` names; a light one, see `slime_bench.config.parts`.
    """

    method: Any = None
    backbone: Any = None
    data: Any = None
    protocol: Any = None
    refine: Any = None
    parts: Mapping[str, type[Any]] = field(default_factory=dict, repr=False, metadata=NO_NUMBERS)

    def build(self, group: str, **arguments: Any) -> Any:
        """The object that a part stands for: its class called as `cls(config=<its settings>, **arguments)`, or the
        settings themselves where they are the part.

        Raises:
            ConfigError: the class cannot be loaded.
        """
        return build_part(self.parts[group], getattr(self, group), **arguments)

    def replace(self, **values: Any) -> TrialConfig:
        """The same with other values. A group's value may be a mapping of its keys that change."""
        changes = {
            key: dataclasses.replace(getattr(self, key), **value)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(self, key))
            else value
            for key, value in values.items()
        }
        return dataclasses.replace(self, **changes)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Everything as plain values, with the names of the parts' classes."""
        values = {each.name: plain(getattr(self, each.name)) for each in dataclasses.fields(RootConfig)}
        for group in PARTS:
            part = self.parts[group]
            name = f"{part.__module__}.{part.__qualname__}"
            values[group] = {TARGET: name, **plain(getattr(self, group))}
        return values


def validate(cfg: DictConfig) -> TrialConfig:
    """The checked configuration of a trial, with every default filled in and every interpolation followed.

    Args:
        cfg: as Hydra composes it, without the `hydra` node.

    Raises:
        ConfigError: an unknown, missing or ill-typed key, a `_target_` that cannot be imported, or values that
            contradict each other; the message names the key, what was found, what is expected and the nearest name.
    """
    check_ablated(cfg)
    values = resolved(cfg)
    names = [each.name for each in dataclasses.fields(RootConfig)]
    for key in values:
        if key not in (*names, *PARTS):
            raise unknown_key(key, [*names, *PARTS], _dotted(values))
    root = read(RootConfig, {key: value for key, value in values.items() if key not in PARTS})
    found = {group: read_part(values.get(group), group, values) for group in PARTS}
    return TrialConfig(
        **{name: getattr(root, name) for name in names},
        **{group: config for group, (_, config) in found.items()},
        parts={group: part for group, (part, _) in found.items()},
    )


def check_ablated(cfg: DictConfig) -> None:
    """Refuse an ablation of another method: its file sets keys that this one lacks, or has for something else.

    Raises:
        ConfigError: `ablates` names another method than the configuration's.
    """
    ablates, name = cfg.get("ablates"), OmegaConf.select(cfg, "method.name")
    if ablates not in (None, name):
        raise ConfigError(
            f"the chosen ablation or table is one of the method {ablates}", path="method", found=name, expected=ablates,
            remedy="choose a preset or an experiment of that method, e.g. experiment=mini_car, or sweep a key of "
            "this one: --multirun method.<key>=<value>,<value>",
        )  # fmt: skip


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """An OmegaConf node as plain dict, list and scalars with its interpolations followed; `???` stays.

    Raises:
        ConfigError: an interpolation that leads nowhere, e.g. an environment variable that is not set.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        path = str(error.full_key or error.key or "")
        raise ConfigError(
            f"the value of `{path}` cannot be looked up", path=path, found=str(error).split("\n", 1)[0],
            expected="an interpolation of existing keys, or a variable that is set",
            remedy=f"give the value itself: {path}=<value>",
        ) from error  # fmt: skip
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def read_part(values: Any, path: str, everything: Any = None) -> tuple[type[Any], Any]:
    """The class that a node with a `_target_` names, and the settings of the node.

    Args:
        values: plain. path: of the node. everything: the whole configuration, for suggestions.

    Raises:
        ConfigError: as `validate`.
    """
    if values is None or values == MISSING or not isinstance(values, Mapping):
        raise ConfigError(
            f"nothing is chosen for `{path}`", path=path, found="null" if values is None else values,
            expected=f"a mapping with `{TARGET}`", remedy=f"choose a file of the group: {path}=<name>",
        )  # fmt: skip
    here, name = join(path, TARGET), values.get(TARGET, MISSING)
    if not isinstance(name, str) or name == MISSING:
        raise ConfigError(
            f"`{here}` is missing", path=here, found=name, expected="package.module.Class",
            remedy=f"name the class that `{path}` stands for in its YAML file",
        )  # fmt: skip
    target = load_target(name, here)
    rest = {key: value for key, value in values.items() if key != TARGET}
    return target, read(config_class(target, here), rest, path, _dotted(everything))


def load_target(target: str, path: str = TARGET) -> Any:
    """What has the dotted name `target`, mostly a class.

    Raises:
        ConfigError: no such module or class, or an error while the module was imported.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a foreign module may raise any
        close = nearest(name, vars(sys.modules[module])) if module in sys.modules else []
        raise ConfigError(
            f"`{path}` names a class that cannot be imported",
            path=path,
            found=f"{target!r}: {type(error).__name__}: {error}",
            expected="package.module.Class",
            remedy=f"did you mean `{module}.{close[0]}`?"
            if close
            else "correct the name, or install what the module needs; HYDRA_FULL_ERROR=1 shows where it stops",
        ) from error


def build_part(part: type[Any], config: Any, /, **arguments: Any) -> Any:
    """The object that a part stands for, of its class and its settings; see `TrialConfig.build`."""
    return config if part is type(config) else implementation_of(part)(config=config, **arguments)


def implementation_of(target: type[Any]) -> type[Any]:
    """The class that computes what the class `target` of a `_target_` stands for; see `slime_bench.config.parts`."""
    name: str | None = getattr(target, "implementation", None)
    return target if name is None else load_target(name)


def config_class(target: Any, path: str = TARGET) -> type:
    """The dataclass that describes `target`: its attribute `Config`, or the class itself.

    Raises:
        ConfigError: there is neither, or it lacks the text field `name` that tables and folders are named after.
    """
    described = getattr(target, "Config", target)
    names = [each.name for each in dataclasses.fields(described)] if dataclasses.is_dataclass(described) else []
    if not isinstance(described, type) or "name" not in names:
        raise ConfigError(
            f"`{path}` names a class without a schema",
            path=path,
            found=repr(described),
            expected="a dataclass with a field `name: str`, or a class with such a one as its attribute `Config`",
            remedy="declare the class's settings in a dataclass: they are what its YAML file is checked against",
        )
    return described


def _dotted(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if path:
                yield join(path, key)
            yield from _dotted(value, join(path, key))
