"""Learning and segmenting in steps that the page can show: each job is a generator of `Progress`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from slime_bench.config.schema import TrialConfig
from slime_bench.data.transforms import fit_image
from slime_bench.segment.segmenter import Segmenter, label_map, noise_key
from slime_bench.segment.support import Support
from slime_bench.trial.failure import typed_error

Array = NDArray[np.uint8]
SECONDS: Final[dict[tuple[str, str, str], float]] = {
    # (what, method, preset): on two cores of a laptop; what is measured here takes their place
    ("start", "slime", "mini"): 3.0,
    ("step", "slime", "mini"): 0.3,
    ("picture", "slime", "mini"): 0.2,
    ("start", "feature_probe", "mini"): 5.0,
    ("picture", "feature_probe", "mini"): 0.3,
    ("start", "feature_knn", "mini"): 3.0,
    ("picture", "feature_knn", "mini"): 0.3,
}
"""Seconds until the first step (all of it, for a method without steps), of a step, and of a picture."""
_PREVIEWS: Final = 4
_TICK: Final = 0.5  # seconds between two looks at a job that says nothing


class Stopped(Exception):
    """The user has stopped the job."""


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    Attributes:
        stage: what is done now. done, total: steps or pictures; `total` is 0 where there are none to count.
        elapsed, left: seconds; `left` is None where nothing is known.
        losses: (step, loss) so far. preview: label map of the first painted picture, uint8 [H,W].
    """

    stage: str
    done: int = 0
    total: int = 0
    elapsed: float = 0.0
    left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    preview: Array | None = None


class _Watch(Callback):
    """Looks at an optimisation, and ends it between two steps.

    Args:
        cfg: of the trial. shown: a painted picture uint8 [H,W,3], segmented now and then. stop: set to end it.
    """

    def __init__(self, cfg: TrialConfig, shown: Array, stop: threading.Event) -> None:
        self._data, self._kind, self._shown, self._stop = cfg.data, (cfg.method.name, str(cfg.preset)), shown, stop
        self._began, self._first = time.monotonic(), math.nan  # when it began, and when its first step did
        self._step = self._total = self._previews = 0
        self._losses: list[tuple[int, float]] = []
        self._preview: Array | None = None

    def learn(self, cfg: TrialConfig, support: Support) -> Segmenter:
        """See `learning`."""
        segmenter = Segmenter.learned(cfg, support, callbacks=[self])
        if self._stop.is_set():
            raise Stopped
        if math.isnan(self._first):  # a method without steps
            SECONDS["start", *self._kind] = time.monotonic() - self._began
        self._preview = segmenter.segment(self._shown)
        return segmenter

    def progress(self) -> Progress:
        """Where it stands."""
        now, stage = time.monotonic(), "loading the model, reading the painted pictures"
        if math.isnan(self._first):
            expected = SECONDS.get(("start", *self._kind))
            left = None if expected is None else max(0.0, expected - (now - self._began))
        else:
            each = (now - self._first) / self._step if self._step else SECONDS.get(("step", *self._kind))
            left = None if each is None else each * (self._total - self._step)
            stage = "learning" if self._step < self._total else "looking at the painted picture"
        return Progress(stage, self._step, self._total, now - self._began, left, tuple(self._losses), self._preview)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._first, self._total = time.monotonic(), int(trainer.max_steps)
        SECONDS["start", *self._kind] = self._first - self._began

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if self._stop.is_set():
            raise Stopped
        self._step = int(trainer.global_step)
        SECONDS["step", *self._kind] = (time.monotonic() - self._first) / self._step
        if isinstance(outputs, dict) and "loss" in outputs:
            self._losses.append((self._step, float(outputs["loss"])))
        due = self._step * _PREVIEWS // self._total
        if self._step < self._total and due > self._previews:
            self._previews, self._preview = due, self._looked(pl_module)

    def _looked(self, method: Any) -> Array:
        """The label map of the picture; nothing of the optimisation is touched, and its noise is keyed."""
        was, data = method.training, self._data
        method.eval()
        with torch.no_grad():
            image = fit_image(self._shown, data.image_size, data.resize, data.fit).float()[None] / 255
            (scores,) = method.refined_scores(image.to(method.device), [noise_key(self._shown)]).float().cpu()
        method.train(was)
        return label_map(scores, self._shown.shape[:2], data.fit)


def learning(cfg: TrialConfig, support: Support, stop: threading.Event) -> Generator[Progress, None, Segmenter]:
    """Learn from painted pictures; returns what was learned, after a last preview.

    The work is done in another thread, so that closing the generator ends it after its step.

    Raises:
        Stopped: `stop` was set. SlimeBenchError: see `Segmenter.learned`.
    """
    watch, done = _Watch(cfg, support.images[0], stop), Future[Segmenter]()

    def work() -> None:
        try:
            done.set_result(watch.learn(cfg, support))
        except BaseException as error:
            done.set_exception(typed_error(error))

    worker = threading.Thread(target=work, name="learning", daemon=True)
    worker.start()
    try:
        while not wait([done], timeout=_TICK).done:
            yield watch.progress()
        segmenter = done.result()
    finally:
        stop.set()
        worker.join()
    yield replace(watch.progress(), stage="learned", left=0.0)
    return segmenter


def segmenting(
    names: list[str], one: Callable[[str], None], stop: threading.Event, kind: tuple[str, str]
) -> Generator[Progress, None, None]:
    """Call `one` with each name.

    Raises:
        Stopped: `stop` was set between two of them.
    """
    began = time.monotonic()
    for done, name in enumerate(names):
        elapsed = time.monotonic() - began
        each = elapsed / done if done else SECONDS.get(("picture", *kind))
        yield Progress(name, done, len(names), elapsed, None if each is None else each * (len(names) - done))
        if stop.is_set():
            raise Stopped
        one(name)
    elapsed = time.monotonic() - began
    if len(names) > 1:
        SECONDS["picture", *kind] = elapsed / len(names)
    yield Progress("done", len(names), len(names), elapsed, 0.0)


def expectation(method: str, preset: str) -> str:
    """How long learning from one picture and segmenting another take, in words."""
    if preset == "paper":
        return (
            "Stable Diffusion 2.1, which must be on this machine: minutes on a GPU, an hour or more without one. "
            "The bar says how long once it has begun."
        )
    known = " The mini backbone knows its own drawn world only."
    start, picture = (SECONDS.get((what, method, preset)) for what in ("start", "picture"))
    if start is None:
        return f"How long it takes here is not known yet; the bar says so after the first step.{known}"
    step = SECONDS.get(("step", method, preset), 0.0)
    steps = " for 200 steps (one painted picture; 400 for two or more)" if step else ""
    found = "" if picture is None else f", then {duration(picture)} for each picture"
    return f"Learning takes about {duration(start + 200 * step)}{steps}{found}.{known}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `0.4 s`, `35 s`, `4 min`."""
    if seconds < 10:
        return f"{max(0.1, seconds):.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
