"""What tables know of methods: how a row is called, which shots to expect of it, and what its settings say in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

RANKING = "infoscore_ranking"
"""The method whose trials keep a study of their layers."""
OWN_REPORT = frozenset({RANKING})
"""Methods that have a report of their own and no row in the main tables."""

_LEAST_SHOTS = {"infoscore": 0, RANKING: 0}
_ONLY_SHOTS = {RANKING: (0,)}
_NAMES = {"infoscore": "InfoScore"}


def expected_shots(method: str, shots: Iterable[int]) -> list[int]:
    """Those of `shots` that a method can have: a method that learns from support images has no 0."""
    least, only = _LEAST_SHOTS.get(method, 1), _ONLY_SHOTS.get(method)
    return [number for number in shots if number >= least and (only is None or number in only)]


def display_name(method: str, shots: int | None) -> str:
    """How tables call a row, e.g. `InfoScore zero-shot`; the method's own name where there is no other."""
    if method not in _NAMES or shots is None:
        return method
    return f"{_NAMES[method]} {'zero' if shots == 0 else shots}-shot"


def stated(config: Mapping[str, Any]) -> dict[str, str]:
    """What a caption has to say of a recorded configuration: `crf`, `layers` and `prompts`, each where it has them."""
    method = config.get("method")
    method = method if isinstance(method, Mapping) else {}
    crf = method.get("crf")
    found = {}
    if isinstance(crf, Mapping) and "enabled" in crf:
        found["crf"] = f"on, {crf.get('iterations')} iterations" if crf["enabled"] else "off"
    if "rank_on" in method:
        found["layers"] = _layers(method)
    if "prompts" in method:
        words = "multi (with related words)" if method.get("multi_prompt") else "single (one word for each class)"
        found["prompts"] = f"{_file(str(method['prompts']))}, {words}"
    return found


def ranked_on(rank_on: str, number: str) -> str:
    """The images that layers were ranked on, in words.

    Args:
        rank_on: `train` or `test`. number: of images, e.g. "up to 100".
    """
    return "TEST IMAGES (transductive)" if rank_on == "test" else f"{number} unlabelled images of the training side"


def listed(names: Sequence[str]) -> str:
    """Distinct texts in their order, with commas."""
    return ", ".join(dict.fromkeys(names))


def _layers(method: Mapping[str, Any]) -> str:
    names = method.get("layers")
    if names is not None:
        return f"named: {listed([str(name) for name in names])}"
    number = "all" if method.get("rank_images") is None else f"up to {method['rank_images']}"
    words = " of single prompts" if method.get("multi_prompt") else ""
    return f"the best {method.get('top')} by InfoScore{words}, ranked on {ranked_on(str(method['rank_on']), number)}"


def _file(name: str) -> str:
    """Name of a file of conf/prompts; of a path its last part, since a table says nothing of folders."""
    return PurePath(name).name
