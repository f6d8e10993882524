"""CelebAMask-HQ: faces with merged attribute masks, as `data_prep.celebamask_hq` makes them."""

from __future__ import annotations

from typing import ClassVar

from slime_bench.data.folder import FolderData


class CelebAMaskData(FolderData):
    """The faces of CelebAMask-HQ in ten classes."""

    commands: ClassVar[dict[str, tuple[str, str]]] = {
        "face": (
            "prepare-face CELEBA=<folder or archive of CelebAMask-HQ>",
            "python -m data_prep.celebamask_hq --root <folder or archive of CelebAMask-HQ> --out {root}",
        )
    }
    choices = ("merge", "size", "limit")
