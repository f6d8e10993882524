"""What the stages of training share: a budget of pictures, a checkpoint that resumes, averaged weights."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import nn
from torch.optim.swa_utils import AveragedModel

from slime_bench.paths import user_path

CHECKPOINT: Final = "checkpoint.pt"
CHECKPOINT_SECONDS = 180.0
SHOWN_SECONDS = 10.0


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        name: also of its folder. images: its budget. batch: images per step, of all processes together.
        rate: learning rate, after a linear warm-up of `warmup` steps; falls linearly to 2 % from `decay_from` of the
            budget on.
        averaging: decay of the moving average of the weights, to which it grows as steps accumulate; 0: none is kept.
        side: of the pictures in pixels, where stages differ in it.
    """

    name: str
    images: int
    batch: int
    rate: float
    warmup: int = 200
    decay_from: float = 0.7
    averaging: float = 0.0
    side: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate at a step."""
        left = (1 - step * self.batch / self.images) / (1 - self.decay_from) if self.decay_from < 1 else 1.0
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.02, left))


def train(
    fabric: Fabric,
    stage: Stage,
    work: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    losses: Callable[[nn.Module, int], dict[str, torch.Tensor]],
) -> None:
    """Train `model` until the stage's budget is used up, from the newest checkpoint in `work / stage.name` on.

    Args:
        losses: (the model as it is to be called, step) -> `loss`, which is minimised, and what else is to be shown.
    """
    average = (
        AveragedModel(model.to(fabric.device), multi_avg_fn=_average(stage.averaging)) if stage.averaging else None
    )
    module, wrapped = fabric.setup(model, optimiser)
    state: dict[str, Any] = {"model": module, "optimiser": wrapped, "step": 0, "images": 0, "spent": 0.0, "means": {}}
    if average is not None:
        state["average"] = average
    path = work / stage.name / CHECKPOINT
    if path.is_file():
        fabric.load(path, state)
        fabric.print(f"{stage.name}: resumed at step {state['step']}", file=sys.stderr)
    last = saved = shown = time.monotonic()
    while state["images"] < stage.images:
        for group in optimiser.param_groups:
            group["lr"] = stage.rate_at(state["step"])
        terms = losses(module, state["step"])
        wrapped.zero_grad(set_to_none=True)
        fabric.backward(terms["loss"])
        fabric.clip_gradients(module, wrapped, max_norm=1.0, error_if_nonfinite=False)
        wrapped.step()
        if average is not None:
            average.update_parameters(model)
        now = time.monotonic()
        state["spent"] += now - last
        last = now
        state["step"] += 1
        state["images"] += stage.batch
        for name, value in terms.items():
            number = float(value.detach())
            state["means"][name] = 0.98 * state["means"].get(name, number) + 0.02 * number
        if now - shown > SHOWN_SECONDS:
            shown = now
            facts = " ".join(f"{name} {value:.4g}" for name, value in state["means"].items())
            done = f"{state['images']}/{stage.images} pictures, {state['spent'] / 60:.1f} min"
            fabric.print(f"{stage.name} {done} {facts}", file=sys.stderr, flush=True)
        # Rank 0 decides: no process writes while another waits for its gradients.
        if fabric.broadcast(now - saved > CHECKPOINT_SECONDS):
            saved = now
            save(fabric, path, state)
    save(fabric, path, state)


def adamw(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW as transformers are trained here: only matrices decay."""
    gains = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """The checkpoint, which is the old one or the whole new one."""
    temporary = path.with_suffix(".tmp")
    fabric.save(temporary, state)
    if fabric.is_global_zero:
        temporary.replace(path)


def read_checkpoint(work: Path, stage: str) -> dict[str, Any]:
    """What `train` has saved of a stage: `model`, `average`, `step`, `images`, `spent`, `means`, ..."""
    return dict(torch.load(work / stage / CHECKPOINT, map_location="cpu", weights_only=True))


def averaged_weights(work: Path, stage: str) -> dict[str, torch.Tensor]:
    """The averaged weights of a stage, under the model's own names."""
    weights = read_checkpoint(work, stage)["average"]
    return {name.removeprefix("module."): value for name, value in weights.items() if name != "n_averaged"}


def arguments(doc: str | None, name: str, last_stage: str) -> argparse.Namespace:
    """The options of a pre-training command.

    Args:
        doc: of the command's module. name: of the model, for its folders.
        last_stage: of which a checkpoint has to be there for `--export-only`.

    Raises:
        SystemExit: options that cannot be read, or nothing to export.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--processes", type=int, default=0, help="0: one per CPU core, or one on CUDA")
    parser.add_argument("--work", type=user_path, default=Path("outputs/pretrain") / name, help="checkpoints")
    parser.add_argument("--out", type=user_path, default=Path("slime_bench/assets") / name)
    parser.add_argument("--export-only", action="store_true", help="write --out from the newest checkpoint")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.export_only and not (args.work / last_stage / CHECKPOINT).is_file():
        raise SystemExit(
            f"nothing to export: no checkpoint of the last stage in {args.work}; train first, or name --work"
        )
    return args


def fabric_of(device: str, processes: int = 0) -> Fabric:
    """One process, or one per CPU core (0), which beats threads inside one small network. Mixed precision on CUDA
    and on CPUs with bfloat16 units, without which it is slower."""
    size = processes or (1 if device == "cuda" else os.cpu_count() or 1)
    mixed = device == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    several = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    return Fabric(
        accelerator=device, devices=size, strategy="auto" if size == 1 else several,
        precision="bf16-mixed" if mixed else "32-true",
    )  # fmt: skip


def _average(decay: float) -> Callable[..., None]:
    def update(averaged: Any, current: Any, count: torch.Tensor) -> None:
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update
