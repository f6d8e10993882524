"""PASCAL VOC 2012, semantic segmentation, in 21 classes, read as it is downloaded.

VOCdevkit/VOC2012/JPEGImages/<id>.jpg
VOCdevkit/VOC2012/SegmentationClass/<id>.png        palette indices 0..20; 255 = void, the rims of objects
VOCdevkit/VOC2012/ImageSets/Segmentation/<list>.txt train (1464), val (1449), trainval
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from slime_bench.data.config import SUPPORT, TEST
from slime_bench.data.layouts import IMAGE_SUFFIXES, files_by_stem
from slime_bench.data.reading import FolderDataset
from slime_bench.data.scenes import SceneData
from slime_bench.data.support import read_list

LISTS = "ImageSets/Segmentation"
PICTURES, LABELS = "JPEGImages", "SegmentationClass"
PLACES = ("VOCdevkit/VOC2012", "VOC2012", ".")
"""Where VOC 2012 lies below the root, whatever of its folders that is."""


class VocData(SceneData):
    """VOC 2012; `data.splits` names lists of ImageSets/Segmentation: support from `train`, test on `val`."""

    @cached_property
    def base(self) -> Path:
        """The folder VOC2012."""
        found = [self.root / place for place in PLACES if (self.root / place / LISTS).is_dir()]
        return found[0] if found else self.root / PLACES[0]

    def index_file(self, name: str) -> Path:
        return self.base / LISTS / f"{name}.txt"

    def read_split(self, name: str) -> FolderDataset:
        """The images of a list, in its order; DataError where the list, a folder or a file is missing."""
        names = read_list(self.index_file(name), remedy=self.how_to_get())
        pictures = files_by_stem(self.base / PICTURES, IMAGE_SUFFIXES)
        labels = files_by_stem(self.base / LABELS, (".png",))
        files = {self.base / PICTURES: pictures, self.base / LABELS: labels}
        return FolderDataset(self.base, self.classes, pairs=self.paired(names, self.index_file(name), files))

    def how_to_get(self) -> str:
        return (
            "download VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012), then "
            f"python -m data_prep.archive <tar> --out {self.root}"
        )

    def _layout(self) -> str:
        lists = ", ".join(f"{self.config.splits[each]}.txt" for each in (SUPPORT, TEST))
        return f"VOCdevkit/VOC2012 with {PICTURES}/, {LABELS}/ and {LISTS}/ ({lists})"
