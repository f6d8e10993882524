"""Mirrors of the training curve; the results are files whatever is chosen here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def make_logger(cfg: DictConfig, folder: Path) -> Any:
    """Lightning's logger for `cfg.logger.name`; False for `none`."""
    if cfg.logger.name == "csv":
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(folder, name="", version="log")
    if cfg.logger.name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        # The id is the trial's own, so that a repeated trial continues its run instead of opening a second one.
        identity = folder.name
        group = "-".join([cfg.method.name, cfg.data.name, f"{cfg.shots}-shot"])
        return WandbLogger(
            project=cfg.logger.project,
            entity=cfg.logger.entity,
            id=identity,
            name=f"{group}-seed{cfg.seed}",
            group=group,
            save_dir=folder,
        )
    return False


@contextmanager
def closed_logger(cfg: DictConfig) -> Iterator[None]:
    """End the W&B run with the block: a second `wandb.init` in one process would go on writing into the first run."""
    code = 1
    try:
        yield
        code = 0
    finally:
        if cfg.logger.name == "wandb":
            import wandb

            wandb.finish(exit_code=code)
