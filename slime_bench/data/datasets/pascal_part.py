"""PASCAL-Part: crops of cars or horses of PASCAL VOC 2010 with merged parts, as `data_prep.pascal_part` makes them."""

from __future__ import annotations

from typing import ClassVar

from slime_bench.data.folder import FolderData


class PascalPartData(FolderData):
    """The cars or the horses; `data.subject` says which."""

    commands: ClassVar[dict[str, tuple[str, str]]] = {
        subject: (
            f"prepare-{subject} VOC=<folder or archive of VOC 2010> PARTS=<folder or archive of PASCAL-Part>",
            f"python -m data_prep.pascal_part --subject {subject} --voc <folder or archive of VOC 2010> "
            "--parts <folder or archive of PASCAL-Part> --out {root}",
        )
        for subject in ("car", "horse")
    }
    choices = ("rule", "paint", "test")
