"""Learning and segmenting in steps that the page can show: each job is a generator of `Progress`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from slime_bench.config.schema import TrialConfig
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


@dataclass
class _Watch(Callback):
    """Tells of the steps of an optimisation, and ends it between two of them.

    Args:
        shown: a painted picture uint8 [H,W,3], segmented now and then.
    """

    events: queue.SimpleQueue[Any]
    stop: threading.Event
    shown: Array
    fit: str
    resize: Callable[[Array], torch.Tensor]
    said: int = field(default=0, init=False)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.events.put((0, int(trainer.max_steps), None))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if self.stop.is_set():
            raise Stopped
        loss = float(outputs["loss"]) if isinstance(outputs, dict) and "loss" in outputs else None
        step, total = int(trainer.global_step), int(trainer.max_steps)
        self.events.put((step, total, loss))
        if step < total and step * _PREVIEWS // total > self.said:
            self.said = step * _PREVIEWS // total
            self.events.put(self._preview(pl_module))

    def _preview(self, method: Any) -> Array:
        """The label map of the picture; nothing of the optimisation is touched, and its noise is keyed."""
        was = method.training
        method.eval()
        with torch.no_grad():
            image = self.resize(self.shown)[None].to(method.device)
            (scores,) = method.refined_scores(image, [noise_key(self.shown)]).float().cpu()
        method.train(was)
        return label_map(scores, self.shown.shape[:2], self.fit)


def learning(cfg: TrialConfig, support: Support, stop: threading.Event) -> Generator[Progress, None, Segmenter]:
    """Learn from painted pictures; returns what was learned, after a last preview.

    The work is done in another thread, so that closing the generator ends it after its step.

    Raises:
        Stopped: `stop` was set. SlimeBenchError: see `Segmenter.learned`.
    """
    from slime_bench.data.transforms import fit_image

    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    data, shown = cfg.data, support.images[0]

    def resize(image: Array) -> torch.Tensor:
        return fit_image(image, data.image_size, data.resize, data.fit).float() / 255

    watch = _Watch(events, stop, shown, data.fit, resize)

    def work() -> None:
        try:
            segmenter = Segmenter.learned(cfg, support, callbacks=[watch])
            if stop.is_set():
                raise Stopped
            events.put(segmenter.segment(shown))
            events.put(segmenter)
        except BaseException as error:
            events.put(typed_error(error))

    worker = threading.Thread(target=work, name="learning", daemon=True)
    worker.start()
    try:
        return (yield from _told(events, cfg))
    finally:
        stop.set()
        worker.join()


def _told(events: queue.SimpleQueue[Any], cfg: TrialConfig) -> Generator[Progress, None, Segmenter]:
    """The progress that `events` tell of, until the segmenter comes or an error, which is raised."""
    kind = (cfg.method.name, str(cfg.preset))
    began, first = time.monotonic(), None
    step = total = 0
    losses: list[tuple[int, float]] = []
    preview: Array | None = None
    expected = SECONDS.get(("start", *kind))
    while True:
        now = time.monotonic()
        left: float | None = None
        if first is None:
            left = None if expected is None else max(0.0, expected - (now - began))
            stage = "loading the model, reading the painted pictures"
        else:
            each = (now - first) / step if step else SECONDS.get(("step", *kind))
            left = None if each is None else each * (total - step)
            stage = "learning" if step < total else "looking at the painted picture"
        yield Progress(stage, step, total, now - began, left, tuple(losses), preview)
        try:
            waiting = [events.get(timeout=_TICK)]
        except queue.Empty:
            continue
        while not events.empty():
            waiting.append(events.get())
        for event in waiting:
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Segmenter):
                yield Progress("learned", step, total, time.monotonic() - began, 0.0, tuple(losses), preview)
                return event
            if isinstance(event, np.ndarray):
                preview = event
                if first is None:
                    SECONDS["start", *kind] = time.monotonic() - began
                continue
            step, total, loss = event
            if first is None:
                first = time.monotonic()
                SECONDS["start", *kind] = first - began
            elif step:
                SECONDS["step", *kind] = (time.monotonic() - first) / step
            if loss is not None:
                losses.append((step, loss))


def segmenting(
    names: list[str], one: Callable[[str], None], stop: threading.Event, kind: tuple[str, str]
) -> Generator[Progress, None, None]:
    """Call `one` with each name.

    Raises:
        Stopped: `stop` was set between two of them.
    """
    began = time.monotonic()
    for done, name in enumerate(names):
        if stop.is_set():
            raise Stopped
        elapsed = time.monotonic() - began
        each = elapsed / done if done else SECONDS.get(("picture", *kind))
        yield Progress(name, done, len(names), elapsed, None if each is None else each * (len(names) - done))
        one(name)
    elapsed = time.monotonic() - began
    if len(names) > 1:
        SECONDS["picture", *kind] = elapsed / len(names)
    yield Progress("done", len(names), len(names), elapsed, 0.0)


def expectation(method: str, preset: str) -> str:
    """How long learning from one picture and segmenting another take, in words."""
    start, picture = (SECONDS.get((what, method, preset)) for what in ("start", "picture"))
    if start is None:
        return "How long it takes here is not known yet; the bar says so after the first step."
    step = SECONDS.get(("step", method, preset), 0.0)
    steps = " for 200 steps (one painted picture; 400 for two or more)" if step else ""
    found = "" if picture is None else f", then {duration(picture)} for each picture"
    return f"Learning takes about {duration(start + 200 * step)}{steps}{found}."


def duration(seconds: float) -> str:
    """Seconds as people say them: `0.4 s`, `35 s`, `4 min`."""
    if seconds < 10:
        return f"{max(0.1, seconds):.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
