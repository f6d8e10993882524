"""What a trial's fit is made of, by itself or in one batch with others: backbone, method, trainer."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slime_bench.config.schema import PARTS, TrialConfig, implementation_of
from slime_bench.results.identity import canonical_json
from slime_bench.trial import checkpoint
from slime_bench.trial.spec import TrialSpec

_cached: tuple[str, Any] | None = None
"""The backbone cache: the last trial's backbone, for the next trial of the same process that has the same one."""
# The backbone's weights have the precision themselves (`backbone.dtype`); maps, losses and embeddings are float32 in
# any case. Only fp16 needs more: without the scaling of the loss, which comes with it here, small gradients become 0.
_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "32-true", "fp16": "16-mixed"}


@contextmanager
def backbone_of(spec: TrialSpec) -> Iterator[Any]:
    """The backbone of a trial: the one cached from the last trial, if it is the same, or a new one.

    It is cached for the next trial when the block succeeds, and dropped when it fails, as it may then be in any state.
    At most one is cached; its memory is free before another is loaded.
    """
    global _cached
    cfg = spec.cfg
    key = canonical_json([cfg.plain["backbone"], spec.fingerprints["backbone"], cfg.trainer.device])
    if _cached is None or _cached[0] != key:
        drop_backbone()  # also where none is cached: a failed trial's may still lie about
    backbone = _cached[1] if _cached is not None else cfg.build("backbone")
    _cached = None  # it belongs to the block until that has succeeded
    yield backbone
    _cached = (key, backbone)


def drop_backbone() -> None:
    """Free the memory of the cached backbone."""
    global _cached
    _cached = None
    gc.collect()  # a trainer and its module hold each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def method_of(cfg: TrialConfig, classes: Sequence[str], backbone: Any, **more: Any) -> Any:
    """A trial's method, with its protocol and refinement, on a loaded backbone; `more` for its constructor."""
    protocol = cfg.build("protocol")
    method = cfg.build("method", protocol=protocol, backbone=backbone, classes=classes, seed=cfg.seed, **more)
    method.refine = cfg.refine
    return method


def origin_of(spec: TrialSpec) -> dict[str, str]:
    """The `checkpoint.origin` of the trial."""
    parts = [implementation_of(spec.cfg.parts[group]) for group in PARTS]
    return checkpoint.origin(spec.signature, *parts)


def steps_of(cfg: TrialConfig, data: Any, method: Any) -> int:
    """Steps of the trial's optimisation; 0 for a method that learns nothing."""
    steps = int(method.epochs) * math.ceil(len(data.support_ids) / (method.support_group or cfg.data.train_batch_size))
    return min(steps, method.max_steps or steps)


def lightning_trainer(cfg: TrialConfig, method: Any, steps: int, folder: Path, callbacks: Sequence[Any]) -> Any:
    """Lightning's trainer for the fit and the test of `method`.

    Args:
        steps: of the optimisation. callbacks: None among them is left out; checkpoints restore before others.
    """
    import lightning

    return lightning.Trainer(
        accelerator=cfg.trainer.device,
        devices=1,
        precision=_PRECISION[cfg.trainer.precision],
        max_epochs=math.ceil(method.epochs / int(cfg.data.passes_per_epoch)),
        max_steps=steps or -1,
        num_sanity_val_steps=0,
        logger=False,  # see `tracking.loggers.curve_callback`
        callbacks=[each for each in callbacks if each is not None],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        deterministic="warn" if cfg.trainer.deterministic else False,
        default_root_dir=folder,
    )


@contextmanager
def threads(count: int | None, deterministic: bool) -> Iterator[None]:
    """Set torch's CPU threads for a while; the global generator is seeded only so that nothing unseeded can leak in."""
    before, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if count is not None:
        torch.set_num_threads(count)
    torch.manual_seed(0)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA first multiplies
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(was_deterministic)
