"""Mirrors of a trial's curve and result, as Lightning's loggers; no mirror can lose a trial.

`csv` writes log/metrics.csv into the trial's folder. `wandb` makes one W&B run of each trial. Both are given the
method's own curve, which a checkpoint holds: after an interruption they have all of it, each step once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from slime_bench.config.schema import LoggerConfig, TrialConfig
from slime_bench.results.artifacts import CURVES_FILE, read_curves, rows
from slime_bench.results.result import TrialResult
from slime_bench.tracking import COMPLETE, FOLDER, in_sweep

_log = logging.getLogger(__name__)


@contextmanager
def trial_logger(cfg: TrialConfig, folder: Path, fingerprints: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Lightning's logger for `cfg.logger.name`, open as long as the block is; None for `none`, and where W&B fails.

    A W&B run ends with the block's exit code.

    Args:
        folder: of the trial. fingerprints: its content hashes, see `identity.signature`; None for something that is no
            trial, which has no W&B run.

    Raises:
        ConfigError: a W&B run is active already, on which the trial's curve would be drawn, or WANDB_MODE is no mode.
            Whatever else goes wrong with W&B is a warning.
    """
    if cfg.logger.name == "csv":
        from lightning.pytorch.loggers import CSVLogger

        logger = CSVLogger(folder, name="", version="log")
        try:
            yield logger
        finally:
            logger.finalize("")
    elif cfg.logger.name == "wandb" and fingerprints is not None:
        wandb = _wandb()
        with nullcontext() if wandb is None else wandb.trial_run(cfg, folder, fingerprints) as run:
            yield run
    else:
        if cfg.logger.name == "wandb":
            _log.warning("W&B mirrors trials, and this is none: nothing is logged.")
        yield None


def log_figure(config: LoggerConfig, number: int, folder: Path, averages: Mapping[str, float]) -> None:
    """Log a figure of the bench where there is W&B; see `slime_bench.tracking.wandb.log_figure`."""
    if config.name == "wandb" and (wandb := _wandb()) is not None:
        wandb.log_figure(config, number, folder, averages)


def _wandb() -> ModuleType | None:
    """Our module on W&B, None where W&B cannot be imported."""
    try:
        import slime_bench.tracking.wandb as wandb
    except ImportError as error:
        _log.warning("W&B cannot be imported, and the trial goes on without it: %s", error)
        return None
    return wandb


def is_complete(folder: Path) -> bool:
    """Whether W&B has been told everything of the trial in `folder`."""
    return (folder / FOLDER / COMPLETE).exists()


def curve_callback(logger: Any) -> Any:
    """A callback of Lightning's that gives `logger` the curve of the method that is fitted, as it grows.

    After an interruption that begins with what the checkpoint holds.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    logged = 0

    def log(trainer: Any, method: Any, *_: Any) -> None:
        nonlocal logged
        points = method.curve.points(logged)  # of whole steps, validation included
        logged += len(points)
        for step, row in rows(points).items():
            logger.log_metrics(row, step)

    return LambdaCallback(on_train_batch_start=log, on_fit_end=log)


def log_result(logger: Any, folder: Path, result: TrialResult) -> None:
    """Log what the finished trial's files hold, where there is a W&B run: IoU, tables, pictures, maps, InfoScore."""
    if hasattr(logger, "log_result"):
        logger.log_result(folder, result)


def mirror_finished(cfg: TrialConfig, folder: Path, fingerprints: Mapping[str, str], result: TrialResult) -> None:
    """Log a trial that was finished before, from its files, unless W&B has it already.

    A trial may have finished without W&B, or W&B may have failed. A sweep of W&B's own waits for a result of each run
    that it asked for.
    """
    if cfg.logger.name != "wandb" or (is_complete(folder) and not in_sweep()):
        return
    with trial_logger(cfg, folder, fingerprints) as run:
        if run is not None and (folder / CURVES_FILE).exists():
            curve: dict[int, dict[str, float]] = {}
            for name, (steps, values) in read_curves(folder / CURVES_FILE).items():
                for step, value in zip(steps, values, strict=True):
                    curve.setdefault(step, {})[name] = value
            for step, row in sorted(curve.items()):
                run.log_metrics(row, step)
        log_result(run, folder, result)
