"""The trials of a sweep as this process runs them, and which of them are fitted in one batch."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from slime_bench.config.schema import TrialConfig
from slime_bench.errors import SlimeBenchError
from slime_bench.results import identity
from slime_bench.results.result import find_finished
from slime_bench.trial.runner import spec_of
from slime_bench.trial.spec import TrialSpec, check

_OWN: Final = ("seed", "refine", "logger", "launcher", "save_maps", "force", "per_preset", "ablates")
"""Keys that do not keep trials from one batch, whatever the method."""
_log = logging.getLogger(__name__)


class Trials:
    """The trials of a command that run one after another in this process: each identified once, some fitted in one
    batch.

    Args:
        trials: the command's configurations, in order. limit: of trials in one batch; None for as many as are of use.

    Attributes:
        spec: the spec of the trial at an index; raises as `spec_of`.
    """

    def __init__(self, trials: Sequence[TrialConfig], limit: int | None) -> None:
        self._trials, self._limit = list(trials), limit
        self.spec = cache(lambda index: spec_of(self._trials[index]))
        self._kind = cache(self._kind_of)
        self._fitted: dict[str, dict[str, Any]] = {}
        self._tried: set[int] = set()

    def fitted(self, index: int) -> dict[str, Any] | None:
        """The state of the trial at `index` after a fit in one batch with later ones; None for one to be fitted alone.

        Raises:
            KeyboardInterrupt: whatever else goes wrong in the batch is a warning, and its trials are fitted alone.
        """
        if self._limit == 1 or len(self._trials) < 2:
            return None
        if index not in self._tried:
            self._fit(index)
        return self._fitted.pop(self.spec(index).signature, None)

    def _fit(self, index: int) -> None:
        self._tried.add(index)
        wanted = self._kind(index)
        if wanted is None or self._is_finished(first := self.spec(index)):
            return
        from slime_bench.trial import checkpoint
        from slime_bench.trial.batching import fit_batch, is_pending

        begun = (first.folder / checkpoint.BATCH_FILE).exists()
        if not (is_pending(first, begun) and _is_sound(first)):
            return
        candidates = {first.signature: (index, first)}
        for place in range(index + 1, len(self._trials)):
            if place in self._tried or self._kind(place) != wanted:
                continue
            spec = self.spec(place)
            if spec.signature not in candidates and is_pending(spec, begun) and _is_sound(spec):
                candidates[spec.signature] = (place, spec)
        if len(candidates) < 2:
            return
        try:
            found = fit_batch([spec for _, spec in candidates.values()], self._limit, begun)
        except Exception as error:
            summary = error.summary if isinstance(error, SlimeBenchError) else f"{type(error).__name__}: {error}"
            _log.warning(
                "%d trials could not be fitted in one batch, and go on one by one: %s", len(candidates), summary
            )
            self._tried.update(place for place, _ in candidates.values())
            return
        self._fitted |= found
        self._tried.update(candidates[signature][0] for signature in found)

    def _kind_of(self, index: int) -> str | None:
        """See `kind`; None too for a trial that cannot be identified, which will say so itself."""
        try:
            return kind(self.spec(index))
        except Exception:
            return None

    @staticmethod
    def _is_finished(spec: TrialSpec) -> bool:
        return not spec.cfg.force and find_finished(spec.folder, spec.signature) is not None


def _is_sound(spec: TrialSpec) -> bool:
    """Whether the trial can run; one that cannot will say so itself."""
    try:
        check(spec)
    except Exception:
        return False
    return True


def kind(spec: TrialSpec) -> str | None:
    """What trials of one batch have in common, as a hash; None for a trial that has to be fitted alone."""
    allowed = spec.cfg.parts["method"].may_differ
    # Half precision scales the loss, by a factor that would be one for all.
    if allowed is None or spec.cfg.trainer.precision == "fp16":
        return None
    config = {key: value for key, value in spec.cfg.plain.items() if key not in _OWN}
    config["method"] = {key: value for key, value in config["method"].items() if key not in allowed}
    prints = {name: spec.fingerprints[name] for name in ("data", "backbone")}
    return hashlib.sha256(identity.canonical_json([config, prints]).encode()).hexdigest()
