"""Mirrors of a trial's curve and result; the results are files whatever is chosen here, and no mirror can lose a trial.

`csv` writes log/metrics.csv into the trial's folder. `wandb` makes one W&B run of each trial.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.config.schema import TrialConfig

if TYPE_CHECKING:
    from slime_bench.results.result import TrialResult
    from slime_bench.tracking.session import Session

_log = logging.getLogger(__name__)
# W&B itself has one current run for each process, and what logs to it is far from what opens it.
_session: ContextVar[Session | None] = ContextVar("session", default=None)


def make_logger(cfg: TrialConfig, folder: Path) -> Any:
    """Lightning's logger for `cfg.logger.name`; False for `none`, and for W&B where `closed_logger` has no run open."""
    if cfg.logger.name == "csv":
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(folder, name="", version="log")
    session = _session.get()
    if cfg.logger.name != "wandb" or session is None:
        return False
    from slime_bench.tracking.lightning_logger import WandbLogger

    return WandbLogger(session, folder)


@contextmanager
def closed_logger(
    cfg: TrialConfig,
    folder: Path | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """A block that computes a trial: its W&B run is opened before and ended after it, with the block's exit code.

    Args:
        folder: of the trial; None for something that is no trial, which has no W&B run.
        fingerprints: content hashes, see `identity.signature`.

    Raises:
        ConfigError: a W&B run is active already, on which the trial's curve would be drawn, or WANDB_MODE is no mode.
            Whatever else goes wrong with W&B is a warning.
    """
    if cfg.logger.name != "wandb":
        yield
        return
    if folder is None:
        _log.warning("W&B mirrors trials, and this is none: nothing is logged.")
        yield
        return
    from slime_bench.tracking import session

    opened = session.opened(cfg, folder, fingerprints or {})
    token, code = _session.set(opened), 0
    try:
        yield
    except BaseException as error:
        code = session.exit_code(error)
        raise
    finally:
        _session.reset(token)
        if opened is not None:
            opened.close(code)


def log_result(folder: Path, result: TrialResult) -> None:
    """Log what the finished trial's files hold, where a W&B run is open: IoU, pictures, maps, InfoScore."""
    session = _session.get()
    if session is not None:
        session.log_result(folder, result)


def mirror_finished(cfg: TrialConfig, folder: Path, fingerprints: Mapping[str, str], result: TrialResult) -> None:
    """Log a trial that was finished before, from its files and so without its curve, unless W&B has it already.

    A trial may have finished without W&B, or W&B may have failed. A sweep of W&B's own waits for a result of each run
    that it asked for.
    """
    if cfg.logger.name != "wandb":
        return
    from slime_bench.tracking import record, session

    if record.is_complete(folder) and not session.in_sweep():
        return
    with closed_logger(cfg, folder, fingerprints):
        log_result(folder, result)
