"""Default settings of what is reported: what the configuration's files say when nothing is overridden."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_bench.errors import ConfigError
from slime_bench.report.aggregate import Family, Usual, family, settings
from slime_bench.results.identity import canonical_json, deciding, recorded
from slime_bench.results.result import TrialResult

if TYPE_CHECKING:
    from slime_bench.config.schema import TrialConfig

_LOG = logging.getLogger(__name__)
_OF_THE_MACHINE = "trainer.device"


def plain(cfg: TrialConfig) -> dict[str, Any]:
    """A configuration as plain values, and under `decided` what of it decides the trial's numbers."""
    return {**cfg.plain, "decided": deciding(cfg)}


def default_settings(results: Sequence[TrialResult], extra_dir: str | None = None) -> Usual:
    """Family -> its default settings, for every family whose results have several settings.

    A family whose names are no files of conf/ is left out: nobody knows its default. Composing costs seconds, because
    the classes are imported against which settings are checked; where there is one setting it is not needed.
    """
    found: dict[Family, set[str]] = defaultdict(set)
    for result in results:
        found[family(result)].add(canonical_json(settings(result.config)))
    usual = {}
    for names, different in found.items():
        if len(different) > 1 and (default := _composed(names, extra_dir)) is not None:
            usual[names] = default
    return usual


def _composed(names: Family, extra_dir: str | None) -> dict[str, str] | None:
    from slime_bench.config.compose import plan

    method, backbone, data, subject, preset, protocol = names
    groups = [f"method={method}", f"backbone={backbone}", f"data={data}", f"preset={preset}", f"protocol={protocol}"]
    # An experiment may set what its preset leaves open, e.g. the patches of the paper's faces.
    for chosen in ([f"experiment={preset}_{subject}", *groups], groups):
        try:
            (cfg,) = plan(chosen, extra_dir=extra_dir).trials
        except ConfigError as error:
            _LOG.debug("no default settings for %s: %s", chosen, error.summary)
        else:
            values = settings(recorded(cfg))
            return {key: text for key, text in values.items() if key != _OF_THE_MACHINE}
    return None
