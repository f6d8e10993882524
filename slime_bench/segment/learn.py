"""Learning embeddings from annotated images, and building the method that segments with them.

What this command takes from `config` and `trial` is here: a trial's configuration and optimisation, without its test.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from slime_bench.colours import class_colours
from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig, build_part, read_part, validate
from slime_bench.data.config import DataConfig
from slime_bench.data.folder import FolderData
from slime_bench.data.label_maps import RGB
from slime_bench.data.reading import Sample
from slime_bench.errors import ConfigError, DeviceError
from slime_bench.results import identity
from slime_bench.results.state import NODES
from slime_bench.segment.support import Support
from slime_bench.tracking.loggers import curve_callback, trial_logger
from slime_bench.trial import fitting
from slime_bench.trial.device import check_precision, pick_device
from slime_bench.trial.spec import backbone_facts, check_parts

# What a preset's data set says about any pictures; the rest of its node is about its own files.
_LENT = (
    "image_size", "fit", "resize", "batch_size", "train_batch_size", "num_workers", "passes_per_epoch", "augment",
    "min_pixels",
)  # fmt: skip
_SETTLED = ("shots", "data.root", "data.name", "data.classes", "data.support_ids")
_READING = ("batch_size", "image_size", "fit", "resize")  # the first changes no label
_PARTS = ("method", "protocol", "backbone", "refine")
_DATA = {
    "_target_": f"{FolderData.__module__}.{FolderData.__qualname__}",
    "name": "segment",
    "subject": "any",
    "root": "support",
}


@dataclass(frozen=True)
class Recipe:
    """All that decides a label map besides the image and the learnt tensors.

    Attributes:
        parts: class and settings of method, protocol, backbone and refinement. data: how images are read.
        classes: K names. colours: K. seed: of the noise.
    """

    parts: dict[str, tuple[type[Any], Any]]
    data: DataConfig
    classes: tuple[str, ...]
    colours: tuple[RGB, ...]
    seed: int

    def settings_hash(self) -> str:
        """SHA-256 of it, with the content of the backbone's weights, which have to be there, instead of their place."""
        part, config = self.parts["backbone"]
        said = {
            **{name: [part.__qualname__, identity.deciding_of(config)] for name, (part, config) in self.parts.items()},
            "data": {name: getattr(self.data, name) for name in _READING[1:]},
            "classes": list(self.classes),
            "seed": self.seed,
        }
        text = identity.canonical_json({"settings": said, "backbone": part.content_hash_of(config)})
        return hashlib.sha256(text.encode()).hexdigest()


class SupportData(FolderData):
    """A support set alone, which was read and checked before."""

    def __init__(self, config: DataConfig, support: Support, seed: int) -> None:
        super().__init__(config, len(support.ids), seed)
        read = zip(support.ids, support.images, support.labels, strict=True)
        self.support_ids = support.ids
        self.support = [Sample(key, image, label.astype(np.int64)) for key, image, label in read]

    def prepare_data(self) -> None:
        """There is neither a test split nor anything to verify."""


def configuration(
    support: Support,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    weights: str | None = None,
) -> TrialConfig:
    """The configuration of a trial on the annotated images.

    The preset's data set lends size, fit and augmentation. Pictures of any size are shrunk with `antialias` unless
    `data.resize` says otherwise. With one image the preset decides whether it is its own validation; with several the
    last embeddings are taken, unless `data.validation=support`.

    Args:
        preset, seed, device: None or `auto` for what `overrides` say, else `mini`, 0, and a GPU where there is one.
        weights: folder of the backbone, where it is not the one that the preset names.

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
    said = preset is None and any(each.startswith("preset=") for each in overrides)
    chosen = [] if said else [f"preset={preset or 'mini'}"]
    (cfg,) = plan([*chosen, "data.resize=antialias", *overrides]).trials
    plain = copy.deepcopy(cfg.plain)
    own = cfg.data.validation == "support" or (cfg.data.validation == "auto" and len(support.ids) == 1)
    plain["data"] = {
        **{name: plain["data"][name] for name in _LENT if name in plain["data"]},
        **_DATA,
        "classes": list(support.classes.names),
        "support_ids": support.ids,
        "validation": "support" if own else "none",
    }
    plain |= {"shots": len(support.ids), "seed": plain["seed"] if seed is None else seed}
    if weights is not None:
        plain["backbone"]["weights"] = weights
    plain["trainer"]["device"] = (
        pick_device(cfg.trainer.device) if device == "auto" else pick_device(device, "--device cpu")
    )
    check_precision(plain["trainer"]["precision"], plain["trainer"]["device"])
    cfg = validate(OmegaConf.create(plain))
    check_parts(cfg)
    _refuse_dependent(cfg.parts["method"], cfg.method.name)
    return cfg


def signature(cfg: TrialConfig, support: Support) -> str:
    """What decides the embeddings: configuration, annotated images, backbone, whose weights have to be there."""
    weights = cfg.parts["backbone"].content_hash_of(cfg.backbone)
    hashes = {"data": support.fingerprint(), "backbone": weights, **cfg.parts["method"].fingerprints(cfg.method)}
    return identity.signature(cfg, hashes)


def fit(cfg: TrialConfig, support: Support, folder: Path, callbacks: Sequence[Callback] = ()) -> Any:
    """The method after its fit, on the CPU.

    Args:
        folder: where a logger that the configuration names writes to. callbacks: of Lightning.

    Raises:
        SlimeBenchError: settings that do not fit the backbone, a missing backbone, too little memory.
    """
    classes = support.classes.names
    cfg.parts["method"].check(cfg.method, backbone_facts(cfg), classes, cfg.data.image_size)
    with trial_logger(cfg, folder) as logger:
        data = SupportData(cfg.data, support, cfg.seed).datamodule()
        data.setup("fit")  # mistakes in the data come before the backbone is loaded
        method = fitting.method_of(cfg, classes, cfg.build("backbone"))
        with fitting.threads(cfg.trainer.threads, cfg.trainer.deterministic):
            method.prepare(data, cfg.trainer.device)
            if method.epochs > 0:
                steps = fitting.steps_of(cfg, data, method)
                every = [*callbacks, None if logger is None else curve_callback(logger)]
                trainer = fitting.lightning_trainer(cfg, method, steps, folder, every)
                trainer.fit(method, data)
                method.use_best_state()
            method.cpu()
    return method


def recipe(facts: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a state's facts hold, with `overrides` of its nodes.

    Raises:
        ConfigError: an override of something else, or a value that cannot be.
    """
    keys = [f"data.{name}" for name in _READING]
    chosen, overrides = [[each for each in overrides if each.startswith("refine=") is own] for own in (True, False)]
    for each in overrides:
        key, sign, _ = each.partition("=")
        if not sign or not (key.startswith(tuple(f"{name}." for name in _PARTS)) or key in keys):
            raise ConfigError(
                "this cannot be changed where embeddings are reused", path=key, found=each,
                expected=f"refine, keys of method, protocol, backbone or refine, {', '.join(keys)}",
                remedy="leave it out, or learn new embeddings with --image and --mask",
            )  # fmt: skip
    nodes: Any = {name: facts[name] for name in NODES}
    if chosen:
        preset = [f"preset={facts['preset']}"] if "preset" in facts else []  # of an older file it is not known
        nodes["refine"] = plan([*preset, *chosen]).trials[0].plain["refine"]
    nodes = OmegaConf.to_container(
        OmegaConf.merge(OmegaConf.create(nodes), OmegaConf.from_dotlist(list(overrides))), resolve=True
    )
    start = nodes["method"].get("start")
    if isinstance(start, dict) and start.get("kind") == "file":  # the same prompt; the embeddings are in the state
        start.update(kind="words", path=None)
    # A trial's data set may be of any class, and its files are not needed: how images are read is all.
    reading = {name: nodes["data"][name] for name in _READING if name in nodes["data"]}
    classes = tuple(facts["classes"])
    _, data = read_part({**_DATA, "classes": list(classes), **reading}, "data")
    colours = tuple((one[0], one[1], one[2]) for one in facts.get("colours", class_colours(len(classes))))
    parts = {name: read_part(nodes[name], name) for name in _PARTS}
    return Recipe(parts, data, classes, colours, int(facts["seed"]))


def load_method(made: Recipe, tensors: Mapping[str, torch.Tensor], device: str) -> Any:
    """The method with its learnt tensors; errors for a missing backbone, tensors that are not this method's and
    backbone's, half precision for the CPU."""
    part, config = made.parts["method"]
    _refuse_dependent(part, config.name)
    if device == "cpu" and getattr(made.parts["backbone"][1], "dtype", None) == "fp16":
        raise DeviceError(
            "half precision needs CUDA", path="backbone.dtype", found="embeddings learnt in fp16, and the CPU",
            expected="fp32 or bf16 on the CPU", remedy="add backbone.dtype=fp32; label maps will differ a little",
        )  # fmt: skip
    given = {name: build_part(*made.parts[name]) for name in ("protocol", "backbone")}
    method = build_part(part, config, **given, classes=made.classes, seed=made.seed)
    _, method.refine = made.parts["refine"]
    method.load_learned_state(tensors)
    return method


def _refuse_dependent(method: Any, name: str) -> None:
    """Refuse a method whose learned state alone segments nothing."""
    if not method.self_contained:
        raise ConfigError(
            f"slime-bench segment does not take the method {name}", path="method", found=name,
            expected="a method whose learned state is all that it needs, such as slime",
            remedy="run a trial on the images as a data set: "
            "slime-bench preset=mini_infoscore data=folder data.root=<folder> method.prompts=<file.yaml>",
        )  # fmt: skip
