"""What every training stage shares: a wall-clock budget, checkpoints that resume, a progress line, autocast."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

CHECKPOINT_SECONDS = 180.0


class Ranks:
    """The training processes: one alone, or one per CPU core, which beats threads inside one small network."""

    def __init__(self, rank: int = 0, size: int = 1, rendezvous: Path | None = None) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the ranks."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agree(self, answer: bool) -> bool:
        """Rank 0's answer, for all: no rank may leave a loop in which another still waits for its gradients."""
        if self.size == 1:
            return answer
        vote = torch.tensor([float(answer)])
        torch.distributed.broadcast(vote, 0)
        return bool(vote)


def arguments(doc: str | None, name: str, minutes: float, last_stage: str) -> argparse.Namespace:
    """The options of a pre-training command.

    Args:
        doc: of the command's module. name: of the model, for its folders. minutes: usual training time.
        last_stage: of which a checkpoint has to be there for `--export-only`.

    Raises:
        SystemExit: options that cannot be read, or nothing to export.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=minutes, help="training time of all stages together")
    parser.add_argument("--processes", type=int, default=0, help="0: one per CPU core, or one on CUDA")
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain") / name, help="checkpoints and logs")
    parser.add_argument("--out", type=Path, default=Path("slime_bench/assets") / name)
    parser.add_argument("--export-only", action="store_true", help="write --out from the newest checkpoint")
    args = parser.parse_args()
    if args.export_only and not (args.work / last_stage / "clock.json").is_file():
        raise SystemExit(
            f"nothing to export: no checkpoint of the last stage in {args.work}; train first, or name --work"
        )
    return args


def in_processes(train_rank: Callable[..., None], args: argparse.Namespace, *more: Any) -> None:
    """`train_rank(rank, size, rendezvous, args, *more)` in as many processes as `args` says."""
    size = args.processes or (1 if pick_device(args.device).type == "cuda" else os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder) / "rendezvous"
        if size == 1:
            train_rank(0, 1, rendezvous, args, *more)
        else:
            torch.multiprocessing.spawn(train_rank, (size, rendezvous, args, *more), nprocs=size)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where the hardware gains by it: CUDA and recent CPUs."""
    return torch.autocast(device.type, torch.bfloat16)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Clock:
    """A stage's budget in seconds of training, its step counter, log and checkpoint (one folder per stage).

    Time spent before an interruption counts, so a resumed stage ends when an uninterrupted one would have.
    """

    def __init__(self, folder: Path, seconds: float, name: str, quiet: bool = False) -> None:
        self.folder, self.seconds, self.name, self.quiet = folder, seconds, name, quiet
        self.step, self.images, self.spent = 0, 0, 0.0
        self._last = self._saved = self._shown = time.monotonic()
        self._means: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def running(self) -> bool:
        return self.spent < self.seconds

    def learning_rate_factor(self, warmup: int, decay_from: float = 0.7) -> float:
        """1, after a linear warm-up of `warmup` steps; falls linearly to 0.02 from `decay_from` of the budget on."""
        done = self.spent / self.seconds
        return min(1.0, (self.step + 1) / warmup, max(0.02, (1 - done) / (1 - decay_from)))

    def tick(
        self, facts: Mapping[str, float], models: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, images: int
    ) -> None:
        """Count one step; show progress every few seconds, save every few minutes."""
        now = time.monotonic()
        self.spent += now - self._last
        self._last, self.step, self.images = now, self.step + 1, self.images + images
        for key, value in facts.items():
            self._means[key] = value if key not in self._means else 0.98 * self._means[key] + 0.02 * value
        if now - self._shown > 10:
            self._shown = now
            self._show()
        if now - self._saved > CHECKPOINT_SECONDS:
            self.save(models, optimiser)
            self._saved = now

    def _show(self) -> None:
        if self.quiet:
            return
        done = min(1.0, self.spent / self.seconds)
        bar = "#" * round(20 * done)
        facts = " ".join(f"{k} {v:.4g}" for k, v in self._means.items())
        minutes = f"{self.spent / 60:.1f}/{self.seconds / 60:.1f} min"
        line = f"{self.name} [{bar:<20}] {minutes} step {self.step} images {self.images} {facts}"
        print(line, file=sys.stderr, flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(
                json.dumps({"step": self.step, "images": self.images, "seconds": round(self.spent), **self._means})
                + "\n"
            )

    def save(self, models: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
        """Weights and optimiser moments as safetensors, counters last: a torn save is never taken for a whole one."""
        if self.quiet:
            return
        if self._means:  # the export reads the last line, which a short stage would not have written yet
            self._show()
        for name, model in models.items():
            _replace(self.folder / f"{name}.safetensors", model.state_dict())
        moments = {
            f"{i}.{k}": v
            for i, state in optimiser.state_dict()["state"].items()
            for k, v in state.items()
            if torch.is_tensor(v)
        }
        _replace(self.folder / "optimiser.safetensors", moments)
        counters = {"step": self.step, "images": self.images, "spent": self.spent}
        temporary = self.folder / "clock.json.tmp"
        temporary.write_text(json.dumps(counters))
        temporary.replace(self.folder / "clock.json")

    def restore(self, models: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> bool:
        """Load the stage's checkpoint where there is one; True if it was loaded."""
        path = self.folder / "clock.json"
        self._last = self._saved = time.monotonic()
        if not path.exists():
            return False
        counters = json.loads(path.read_text())
        self.step, self.images, self.spent = counters["step"], counters["images"], counters["spent"]
        for name, model in models.items():
            model.load_state_dict(load_file(self.folder / f"{name}.safetensors"))
        state = optimiser.state_dict()
        for key, value in load_file(self.folder / "optimiser.safetensors").items():
            index, field = key.split(".", 1)
            state["state"].setdefault(int(index), {})[field] = value
        optimiser.load_state_dict(state)
        print(f"{self.name}: resumed at step {self.step}, {self.spent / 60:.1f} min done", file=sys.stderr)
        return True


def _replace(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary)
    temporary.replace(path)


class Ema:
    """Exponential moving average of a model's parameters, with a decay that grows to `decay` as steps accumulate."""

    def __init__(self, model: nn.Module, shadow: nn.Module, decay: float) -> None:
        self._model, self.shadow, self._decay = model, shadow, decay
        shadow.load_state_dict(model.state_dict())
        shadow.requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        shadow, source = ([p.detach() for p in model.parameters()] for model in (self.shadow, self._model))
        torch._foreach_lerp_(shadow, source, 1 - decay)
