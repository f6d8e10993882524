"""Learning embeddings from annotated images: a trial's configuration and optimisation, without its test."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig, validate
from slime_bench.data.folder import FolderData
from slime_bench.errors import ConfigError
from slime_bench.results import identity
from slime_bench.segment.progress import Lines, fit_callback
from slime_bench.segment.state import write_state
from slime_bench.segment.support import Support
from slime_bench.tracking.loggers import trial_logger
from slime_bench.trial import fitting
from slime_bench.trial import runner as trial
from slime_bench.trial.device import check_precision, pick_device
from slime_bench.trial.failure import typed_error
from slime_bench.trial.spec import backbone_facts, check_parts

# What a preset's data set says about any pictures; the rest of its node is about its own files.
_KEPT = (
    "image_size", "fit", "resize", "batch_size", "train_batch_size", "num_workers", "passes_per_epoch", "augment",
    "min_pixels",
)  # fmt: skip
_SETTLED = ("shots", "data.root", "data.name", "data.classes", "data.support_ids")


class SupportData(FolderData):
    """A support set alone, which was read and checked before it was laid out."""

    def prepare_data(self) -> None:
        """There is neither a test split nor anything to verify."""


def configuration(
    support: Support,
    overrides: Sequence[str],
    *,
    preset: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    weights: str | None = None,
) -> TrialConfig:
    """The configuration of a trial on the annotated images.

    The preset's data set lends size, fit and augmentation. Pictures of any size are shrunk with `antialias` unless
    `data.resize` says otherwise. With one image the preset decides whether it is its own validation; with several the
    last embeddings are taken, unless `data.validation=support`.

    Raises:
        ConfigError: an override that cannot be, one of what the annotated images decide, or a method that `segment`
            does not take.
    """
    settled = [each for each in overrides if each.lstrip("+~").partition("=")[0] in _SETTLED]
    if settled:
        raise ConfigError(
            "the annotated images decide this", path=settled[0].partition("=")[0], found=settled[0],
            expected="overrides of the method, the backbone, the protocol, or of data.augment and the like",
            remedy="leave it out; --image and --mask, or --support, say it all",
        )  # fmt: skip
    chosen = [] if any(each.startswith("preset=") for each in overrides) and preset is None else [preset or "mini"]
    (cfg,) = plan([*(f"preset={name}" for name in chosen), "data.resize=antialias", *overrides]).trials
    plain = copy.deepcopy(cfg.plain)
    plain["data"] = {
        **{name: plain["data"][name] for name in _KEPT if name in plain["data"]},
        "_target_": f"{FolderData.__module__}.{FolderData.__qualname__}",
        "name": "segment",
        "subject": "any",
        "root": "support",
        "classes": list(support.classes.names),
        "support_ids": support.ids,
        "validation": _validation(cfg.data.validation, len(support.ids)),
    }
    plain |= {"shots": len(support.ids), "seed": plain["seed"] if seed is None else seed}
    if weights is not None:
        plain["backbone"]["weights"] = weights
    plain["trainer"]["device"] = pick_device(device if device != "auto" else cfg.trainer.device)
    check_precision(plain["trainer"]["precision"], plain["trainer"]["device"])
    made = validate(OmegaConf.create(plain))
    check_method(made)
    return made


def _validation(chosen: str, shots: int) -> str:
    if chosen == "support" or (chosen == "auto" and shots == 1):
        return "support"
    return "none"


def signature(cfg: TrialConfig, support: Support) -> str:
    """What decides the embeddings: configuration, annotated images, backbone.

    Raises:
        BackboneError: the weights are not there.
    """
    fingerprints = {
        "data": support.fingerprint(),
        "backbone": cfg.parts["backbone"].content_hash_of(cfg.backbone),
        **cfg.parts["method"].fingerprints(cfg.method),
    }
    return identity.signature(cfg, fingerprints)


def fit(cfg: TrialConfig, support: Support, folder: Path, lines: Lines) -> Any:
    """The method with optimised embeddings, on the CPU.

    Args:
        folder: where a logger that the configuration names writes to.

    Raises:
        SlimeBenchError: settings that do not fit the backbone, a missing backbone, too little memory.
    """
    classes = support.classes.names
    cfg.parts["method"].check(cfg.method, backbone_facts(cfg), classes, cfg.data.image_size)
    with (
        tempfile.TemporaryDirectory(prefix="slime-bench-") as root,
        memory_errors(),
        trial_logger(cfg, folder) as logger,
    ):
        support.write(Path(root))
        cfg = cfg.replace(data={"root": root}, trainer={"progress": False})
        data = SupportData(cfg.data, shots=cfg.shots, seed=cfg.seed).datamodule()
        data.setup("fit")  # mistakes in the data come before the backbone is loaded
        lines.note("backbone", f"{cfg.backbone.name} on {cfg.trainer.device}")
        method = cfg.build(
            "method", protocol=cfg.build("protocol"), backbone=cfg.build("backbone"), classes=classes, seed=cfg.seed
        )
        with fitting.threads(cfg.trainer.threads, cfg.trainer.deterministic):
            trainer, _ = trial.make_trainer(cfg, data, method, folder, "", logger=logger)
            trainer.callbacks.append(fit_callback(lines, trainer.max_steps))
            if method.epochs > 0:
                trainer.fit(method, data)
                method.use_best_state()
    lines.end()
    return method


def check_method(cfg: TrialConfig) -> None:
    """Refuse a method whose learned state alone segments nothing, and parts that do not go together.

    Raises:
        ConfigError: such a method, or a backbone or protocol of another.
    """
    check_parts(cfg)
    refuse_dependent(cfg.parts["method"], cfg.method.name)


def refuse_dependent(method_class: Any, name: str) -> None:
    """Refuse a method whose learned state alone segments nothing.

    Raises:
        ConfigError: such a method.
    """
    if not method_class.self_contained:
        raise ConfigError(
            f"slime-bench segment does not take the method {name}",
            path="method",
            found=name,
            expected="a method whose learned state is all that it needs, such as slime",
            remedy="run a trial on the images as a data set: "
            "slime-bench preset=mini_infoscore data=folder data.root=<folder> method.prompts=<file.yaml>",
        )


def save(path: Path, method: Any, cfg: TrialConfig, support: Support, fit_signature: str) -> None:
    """Write the embeddings, with all that segmenting with them needs.

    Raises:
        StorageError: the file cannot be written.
    """
    classes = support.classes
    write_state(path, method.learned_state(), cfg.plain, classes.names, classes.colours, fit_signature)


@contextmanager
def memory_errors() -> Iterator[None]:
    """CUDA's out-of-memory error as a DeviceError."""
    try:
        yield
    except Exception as error:
        typed = typed_error(error)
        if typed is error:
            raise
        raise typed from error
