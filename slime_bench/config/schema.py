"""The schema of the whole configuration: what keys there are, of what type, and what object a group becomes.

The groups `metric`, `trainer`, `logger` and `launcher` have their dataclasses here. A group with a `_target_` (method,
backbone, data, protocol) is checked against the dataclass of the class it names: its attribute `Config`, or the class
itself where that is a dataclass. So a new method is one Python file and one YAML file, and a typing error in either
is found before anything runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slime_bench.config.typed import MISSING, check_names, convert, join, nearest, plain, resolved, typed
from slime_bench.errors import ConfigError

TARGET = "_target_"
TARGET_GROUPS = ("method", "backbone", "data", "protocol")
CONVENTIONS = ("slime", "dataset", "present_or_predicted")
LAUNCHERS = ("sequential", "joblib", "submitit_local", "submitit_slurm", "ray")


@dataclass
class MetricConfig:
    """How counts become a table's numbers.

    Args:
        convention: rule of `slime_bench.metrics.iou`; there is no default, as it changes published numbers.
        background: whether class 0 counts in the average over classes.
    """

    convention: str = field(metadata={"choices": CONVENTIONS})
    background: bool = True


@dataclass
class TrainerConfig:
    """Where and how a trial computes.

    Args:
        device: `auto` is CUDA where there is one, otherwise the CPU.
        precision: of the frozen backbone's and the method's arithmetic.
        devices: GPUs that share the test images of a trial, or processes on the CPU; the optimisation takes one.
        threads: CPU threads; null leaves torch's own choice.
        progress: show progress bars.
        deterministic: use deterministic algorithms only.
        checkpoint_every: steps of the optimisation between two checkpoints, from which a killed trial goes on; fewer
            are written where they would take more than 2 % of the time. 0 for none.
    """

    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda")})
    precision: str = field(default="fp32", metadata={"choices": ("fp32", "bf16", "fp16")})
    devices: int = field(default=1, metadata={"min": 1})
    threads: int | None = field(default=None, metadata={"min": 1})
    progress: bool = True
    deterministic: bool = True
    checkpoint_every: int = field(default=10, metadata={"min": 0})


@dataclass
class LoggerConfig:
    """Where a trial's curve and result are mirrored to; results are files whatever is chosen here.

    Args:
        name: `csv` writes metrics.csv into the trial's folder, `wandb` makes a W&B run of each trial.
        project: W&B project. (The account or team is that of the key, or of WANDB_ENTITY: no user's name is written.)
        mode: of W&B; null is WANDB_MODE, else online where there is a key, and offline where there is none.
        timeout: seconds to wait for W&B's server at the start; then the run is kept offline.
        finish_timeout: seconds to wait for the last upload; what is left can be sent with `wandb sync`.
    """

    name: str = field(default="none", metadata={"choices": ("none", "csv", "wandb")})
    project: str = "slime-bench"
    mode: str | None = field(default=None, metadata={"choices": ("online", "offline", "disabled")})
    timeout: float = field(default=30.0, metadata={"min": 1})
    finish_timeout: float = field(default=300.0, metadata={"min": 1})


@dataclass
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

    name: str = field(default="sequential", metadata={"choices": LAUNCHERS})
    keep_going: bool = True
    jobs: int = field(default=2, metadata={"min": 1})
    options: dict[str, Any] = field(default_factory=dict)
    trials_per_batch: int | str = "auto"


@dataclass
class RootConfig:
    """The keys of conf/config.yaml that are not groups with a `_target_`.

    Args:
        preset: name of the preset, set by the preset's own file.
        per_preset: values that method files refer to because they differ between presets: method name -> key -> value.
        data_root: folder of the data sets.
        output_root: folder of runs and reports.
        shots: annotated support images, k; 0 for a method that needs none.
        seed: of the trial; 0 is a seed.
        force: compute a finished trial again.
        save_maps: test images whose maps are kept for the qualitative figure.
    """

    preset: str
    metric: MetricConfig
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    data_root: str = "data"
    output_root: str = "outputs"
    shots: int = field(default=1, metadata={"min": 0})
    seed: int = field(default=0, metadata={"min": 0, "max": 2**63 - 1})
    force: bool = False
    per_preset: dict[str, Any] = field(default_factory=dict)
    save_maps: int = field(default=4, metadata={"min": 0})


def validate(cfg: DictConfig) -> DictConfig:
    """The configuration with every key checked and every default filled in.

    Args:
        cfg: as Hydra composes it, without the `hydra` node.

    Returns:
        A new configuration in struct mode: a key that is not there raises instead of giving None. Interpolations were
        followed for the check but are kept, so that no environment variable is written into a file by accident.

    Raises:
        ConfigError: an unknown, missing or ill-typed key, a `_target_` that cannot be imported, or values that
            contradict each other; the message names the key, what was found, what is expected and the nearest name.
    """
    values = resolved(cfg)
    root_names = [each.name for each in dataclasses.fields(RootConfig)]
    check_names(values, [*root_names, *TARGET_GROUPS], elsewhere=_dotted(values))
    root = typed(RootConfig, {key: value for key, value in values.items() if key not in TARGET_GROUPS})
    checked = plain(root)
    for group in TARGET_GROUPS:
        checked[group] = _checked_node(values.get(group, MISSING), group)
    raw = OmegaConf.to_container(cfg, resolve=False)
    result = OmegaConf.create(_keep_interpolations(raw, checked))
    assert isinstance(result, DictConfig)
    OmegaConf.set_struct(result, True)
    return result


def parse(node: DictConfig) -> Any:
    """The dataclass instance that a node with a `_target_` stands for.

    Raises:
        ConfigError: as `validate`.
    """
    return _parse_node(resolved(node), _path_of(node))[1]


def build(node: DictConfig, /, **arguments: Any) -> Any:
    """The object that a node with a `_target_` stands for.

    A target with an attribute `Config` is called as `target(config=<its Config>, **arguments)`; a target that is a
    dataclass becomes the instance itself and takes no further arguments.

    Raises:
        ConfigError: as `validate`; also further arguments for a dataclass.
    """
    path = _path_of(node)
    target, config = _parse_node(resolved(node), path)
    if target is not type(config):
        return implementation_of(target)(config=config, **arguments)
    if arguments:
        raise ConfigError(
            f"`{path}` takes no further arguments", path=path, found=", ".join(arguments), expected="values in the YAML"
        )
    return config


def load_target(target: str, path: str = TARGET) -> type[Any]:
    """The class at the dotted name `target`.

    Raises:
        ConfigError: no such module or class, or an error while the module was imported.
    """
    module_name, _, class_name = target.rpartition(".")
    if not all(part.isidentifier() for part in target.split(".")) or not module_name:
        raise ConfigError(
            f"`{path}` is not the name of a class",
            path=path,
            found=repr(target),
            expected="package.module.Class",
            remedy="write the full dotted name",
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken_import(error, module_name, path) from error
        close = nearest(module_name, _sibling_modules(module_name))
        raise ConfigError(
            f"`{path}` names a module that is not there",
            path=path,
            found=repr(target),
            expected=f"an importable module; `{error.name}` is none",
            remedy=f"did you mean `{close[0]}`?" if close else "install the package, or correct the name",
        ) from error
    except Exception as error:
        raise _broken_import(error, module_name, path) from error
    found = getattr(module, class_name, None)
    if isinstance(found, type):
        return found
    classes = [name for name, value in vars(module).items() if isinstance(value, type)]
    close = nearest(class_name, classes)
    raise ConfigError(
        f"`{path}` names a class that is not there",
        path=path,
        found=repr(target),
        expected=f"a class of the module {module_name}",
        remedy=f"did you mean `{module_name}.{close[0]}`?" if close else "correct the name",
    )


def implementation_of(target: type[Any]) -> type[Any]:
    """The class that computes what the class `target` of a `_target_` stands for; see `slime_bench.config.parts`."""
    name: str | None = getattr(target, "implementation", None)
    return target if name is None else load_target(name)


def config_class(target: type, path: str = TARGET) -> type:
    """The dataclass that describes `target`: its attribute `Config`, or the class itself.

    Raises:
        ConfigError: there is neither, or it lacks the text field `name` that tables and folders are named after.
    """
    described = getattr(target, "Config", target)
    if not (isinstance(described, type) and dataclasses.is_dataclass(described)):
        raise ConfigError(
            f"`{path}` names a class without a schema",
            path=path,
            found=f"{target.__module__}.{target.__qualname__}",
            expected="a dataclass, or a class with a dataclass as its attribute `Config`",
            remedy="declare the class's settings in a dataclass: they are what its YAML file is checked against",
        )
    if "name" not in {each.name for each in dataclasses.fields(described)}:
        raise ConfigError(
            f"`{path}` names a class whose schema has no `name`",
            path=path,
            found=f"{described.__module__}.{described.__qualname__}",
            expected="a field `name: str`",
            remedy="add the field: tables and result folders are named after it",
        )
    return described


def _parse_node(values: Any, path: str) -> tuple[type, Any]:
    if values is None or values == MISSING or not isinstance(values, Mapping):
        raise ConfigError(
            f"nothing is chosen for `{path}`",
            path=path,
            found="null" if values is None else values,
            expected=f"a mapping with `{TARGET}`",
            remedy=f"choose a file of the group: {path}=<name>",
        )
    here = join(path, TARGET)
    name = values.get(TARGET, MISSING)
    if name == MISSING:
        raise ConfigError(
            f"`{here}` is missing",
            path=here,
            found=f"the keys {', '.join(values) or '(none)'}",
            expected="package.module.Class",
            remedy=f"name the class that `{path}` stands for in its YAML file",
        )
    target = load_target(convert(name, str, here), here)
    rest = {key: value for key, value in values.items() if key != TARGET}
    return target, typed(config_class(target, here), rest, path)


def _checked_node(values: Any, path: str) -> dict[str, Any]:
    _, config = _parse_node(values, path)
    return {TARGET: str(values[TARGET]), **plain(config)}


def _path_of(node: DictConfig) -> str:
    return str(node._get_full_key(None)) or "config"


def _broken_import(error: Exception, module: str, path: str) -> ConfigError:
    return ConfigError(
        f"`{path}` names a module that cannot be imported",
        path=path,
        found=f"{type(error).__name__}: {error}",
        expected=f"`import {module}` to work",
        remedy="mend the module, or install what it needs; HYDRA_FULL_ERROR=1 shows where it stops",
    )


def _sibling_modules(module: str) -> list[str]:
    """Modules of the nearest parent package that exists."""
    parts = module.split(".")
    for count in range(len(parts) - 1, 0, -1):
        parent = ".".join(parts[:count])
        try:
            spec = importlib.util.find_spec(parent)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.submodule_search_locations is not None:
            return [f"{parent}.{each.name}" for each in pkgutil.iter_modules(spec.submodule_search_locations)]
    return []


def _dotted(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if path:
                yield join(path, key)
            yield from _dotted(value, join(path, key))


def _keep_interpolations(raw: Any, checked: Any) -> Any:
    """`checked`, but with the text of `raw` wherever that is an interpolation."""
    if isinstance(raw, str) and "${" in raw:
        return raw
    if isinstance(raw, dict) and isinstance(checked, dict):
        keyed = {str(key): value for key, value in raw.items()}
        return {key: _keep_interpolations(keyed.get(key), value) for key, value in checked.items()}
    if isinstance(raw, list) and isinstance(checked, list) and len(raw) == len(checked):
        return [_keep_interpolations(*pair) for pair in zip(raw, checked, strict=True)]
    return checked
