"""CelebAMask-HQ: faces with merged attribute masks, as `data_prep.celebamask_hq` makes them."""

from __future__ import annotations

from typing import ClassVar

from slime_bench.data.folder import FolderData


class CelebAMaskData(FolderData):
    """The faces of CelebAMask-HQ in ten classes."""

    commands: ClassVar[dict[str, str]] = {"face": "make prepare-face CELEBA=<folder or archive of CelebAMask-HQ>"}
    choices = ("merge", "size", "limit")
