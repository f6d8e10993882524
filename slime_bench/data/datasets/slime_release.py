"""The prepared data that SLiMe's authors published: a zip with car, horse and celeba / train_1, train_10, val, test."""

from __future__ import annotations

from slime_bench.data.folder import FolderData


class SlimeReleaseData(FolderData):
    """One subject of the zip, as it is: each image lies beside its label map, `<id>.png` and `<id>.npy`."""

    def how_to_get(self) -> str:
        """The command that unpacks the zip."""
        return (
            "download the authors' zip (its link stands in the README of github aliasgharkhani/SLiMe), then "
            f"python -m data_prep.archive <zip> --out {self.root.parent}"
        )
