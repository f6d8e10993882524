"""What is declared of a method: known before anything heavy is imported, and all that general code knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from slime_bench.config.parts import Part


@dataclass(frozen=True)
class NoSwitches:
    """The protocol of a method that has no switches: conf/protocol/none.yaml."""

    name: str


class MethodDescription(Part):
    """Facts and checks of a method. A method of one's own inherits them with `SegmentationMethod` and needs no second
    class; one of the bench's own has a light class, so that a command which computes nothing imports no torch.

    Attributes:
        Protocol, Backbone: classes that the trial's protocol and backbone must be of.
        least_shots: support images that a trial needs at least; 0 for a method that can do without.
        only_shots: the numbers of support images that a trial can have; None for any from `least_shots`.
        self_contained: whether the learned state is all that segmenting a folder of images needs
            (`slime-bench segment`).
        whole_set: whether it is trained on a whole annotated set, as the papers' starred rows: tables star its rows,
            and expect none with one or ten support images.
        may_differ: settings in which trials may differ and still be fitted in one batch, beside the seed: keys of the
            method, with everything below them. None where trials cannot share a pass of the backbone; otherwise the
            method is a `slime_bench.methods.batch.BatchedMethod`.
        own_report: name of the report that shows its trials, which have no row in the main tables; None for those.
        table_order: of its rows among those of equal shots; rows of equal order are sorted by the method's name.
    """

    Protocol: ClassVar[type] = object
    Backbone: ClassVar[type] = object
    least_shots: int = 1
    only_shots: tuple[int, ...] | None = None
    self_contained: bool = True
    whole_set: bool = False
    may_differ: tuple[str, ...] | None = None
    own_report: str | None = None
    table_order: int = 0

    @classmethod
    def check(cls, config: Any, backbone: Any, classes: Sequence[str], image_size: int, shots: int = 1) -> None:
        """Refuse what is known to go wrong, before any weights are loaded. A method without such knowledge has none.

        Args:
            config: the method's `Config`. backbone: what its class's `describe` tells of it, None where it has none.
            classes: K names. image_size: side of the test images in pixels. shots: support images of the trial.

        Raises:
            SlimeBenchError: a setting that cannot work.
        """

    @classmethod
    def fingerprints(cls, config: Any) -> dict[str, str]:
        """Content hashes of files that `config` points to, by name; they enter the trial's signature."""
        return {}

    @classmethod
    def label(cls, config: Any, shots: int) -> str:
        """What tables call a row, e.g. `InfoScore zero-shot`."""
        return str(config.name)

    @classmethod
    def stated(cls, config: Any) -> dict[str, str]:
        """What a table's caption has to say of the settings, by a heading, e.g. {"prompts": "car, single"}."""
        return {}

    @classmethod
    def facts(cls, config: Any, shots: int) -> dict[str, Any]:
        """What tables need of a trial of the method, as plain JSON values; it stands in the trial's `result.json`."""
        return {
            "label": cls.label(config, shots),
            "least_shots": cls.least_shots,
            "only_shots": None if cls.only_shots is None else list(cls.only_shots),
            "own_report": cls.own_report,
            **({"whole_set": True} if cls.whole_set else {}),
            "table_order": cls.table_order,
            "stated": cls.stated(config),
        }
