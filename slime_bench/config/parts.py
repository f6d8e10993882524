"""What is known of a part of a trial (method, backbone, data set, protocol, refinement) before the heavy imports.

A configuration names the class of each part in its key `_target_`. Where that class computes, importing it takes
seconds; `slime-bench status` must not wait for that. So a part may come in two classes: a light one, which `_target_`
names, with everything that is known without loading (its `Config`, its declared facts, its checks), and its subclass
that computes, which the light one names in `implementation`. A part of one's own may well be one class.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

NO_NUMBERS: Final[dict[str, Any]] = {"identity": False}
"""Metadata of a configuration's field that cannot change a trial's counts: `field(default=10, metadata=NO_NUMBERS)`."""

FILE_NAME: Final[dict[str, Any]] = {"identity": "file name"}
"""Metadata of a field that holds a file's path, of which only the name counts: the content's fingerprint decides."""


def located(fingerprint: str) -> dict[str, Any]:
    """Metadata of a field that says where something lies: the content hash called `fingerprint` decides instead."""
    return {"identity": False, "fingerprint": fingerprint}


class Part:
    """A part of a trial.

    Attributes:
        Config: dataclass of its settings, with a field `name`.
        implementation: dotted name of the subclass that computes; None where this class does so itself.
    """

    Config: ClassVar[type]
    implementation: ClassVar[str | None] = None
