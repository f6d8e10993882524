"""COCO-Object: the 80 object categories of COCO and the background, read as they are downloaded.

    val2017/<file>.jpg, train2017/<file>.jpg
    annotations/instances_val2017.json, ...     or prepared label maps, see `CocoConfig.label_maps`

Two ways of making label maps are in use. The field's COCO-Object (GroupViT, and all that compare with it) takes the
5000 images of val2017 and the pixel maps of COCO-Stuff with its stuff set to background: prepare those and name them in
`label_maps`. The second paper's lists (github sinahmr/DIaM, data/coco/create_masks.py) take val2014, paint the first
polygon of every object that is no crowd, corners cut to whole pixels, later objects over earlier ones, and leave out
images without such objects: `polygons: first`, `crowd: background`, `test_limit: 10000`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from slime_bench.config.parts import located
from slime_bench.config.read import nearest
from slime_bench.data.coco_json import CocoImage, CocoObject, mask_of, read_coco, region_of
from slime_bench.data.config import SUPPORT, TEST, SceneConfig
from slime_bench.data.label_maps import IGNORE, listing
from slime_bench.data.layouts import IMAGE_SUFFIXES, files_by_stem
from slime_bench.data.reading import FolderDataset
from slime_bench.data.scenes import SceneData
from slime_bench.errors import DataError

Overlap = Literal["later", "smaller"]
Crowd = Literal["class", "ignore", "background"]
Polygons = Literal["all", "first"]

SUFFIX = "_instanceTrainIds"
"""Of prepared label maps in the field's naming."""
SPLIT = "{split}"


@dataclass
class CocoConfig(SceneConfig):
    """Settings of COCO-Object.

    Args:
        label_maps: folder of prepared label maps, relative to the root or absolute, with {split} for the split's name:
            <stem>.png or <stem>_instanceTrainIds.png of 0..80 and 255. null: they are made of the instances.
        overlap: which of two objects a pixel belongs to: the `later` one in the file, or the `smaller` one.
        crowd: regions of many objects: their `class`, `ignore`, or `background`.
        polygons: `all` of an object, filled as COCO's own tools do; or the `first` one, with its corners cut to whole
            pixels and its edge filled.
    """

    label_maps: str | None = field(default=None, metadata=located("data"))
    overlap: Overlap = "later"
    crowd: Crowd = "class"
    polygons: Polygons = "all"


class InstanceDataset(FolderDataset):
    """Images whose label maps are made on demand of one annotation file, an `instances_*.json`.

    Args:
        path: the file.
        classes: class names in label order; those of the file's categories have to be among them.
        rules: whose `overlap`, `crowd` and `polygons` make the label maps.

    Raises:
        DataError: see `read_coco`; or a category that is no class.
    """

    def __init__(self, path: Path, classes: Sequence[str], rules: CocoConfig) -> None:
        super().__init__(path.parent, classes, pairs=[])
        self.path, self.rules = path, rules
        content = read_coco(path)
        self.photos = {Path(each.file_name).stem: each for each in sorted(content.images, key=lambda x: x.file_name)}
        self._objects: dict[int | str, list[CocoObject]] = {}
        for each in content.annotations:
            self._objects.setdefault(each.image_id, []).append(each)
        names = {each.id: each.name for each in content.categories}
        strangers = [name for name in names.values() if name not in classes[1:]]
        if strangers:
            raise DataError(
                f"the annotations have categories that are no class: {listing(strangers)}", path=path,
                found=f"{len(names)} categories", expected=f"the classes {listing(classes[1:])}",
                remedy=f"name them in `data.classes` (the nearest: {listing(nearest(strangers[0], classes[1:]))}), or "
                "download the annotations again (annotations_trainval2017.zip)",
            )  # fmt: skip
        self._label_of = {key: list(classes).index(name) for key, name in names.items()}

    @property
    def meaning(self) -> list[Any]:
        return [self.rules.overlap, self.rules.crowd, self.rules.polygons]

    def shown(self, index: int) -> set[int]:
        """The labels of an image's objects, hidden ones included; no mask is decoded."""
        photo = self.photos[self.pairs[index].id]
        return {self._label_of[each.category_id] for each in self._objects.get(photo.id, [])}

    def label(self, index: int) -> NDArray[np.int64]:
        """0 where no object is. Crowd regions come first, so that single objects lie above them. LabelError as
        `region_of`."""
        photo, rules = self.photos[self.pairs[index].id], self.rules
        label = np.zeros((photo.height, photo.width), np.uint8)
        objects = sorted(self._objects.get(photo.id, []), key=lambda each: not each.iscrowd)  # stable
        if rules.overlap == "smaller":
            objects.sort(key=lambda each: (not each.iscrowd, -int(self._mask(each, photo).sum())))
        for each in objects:
            value = self._label_of[each.category_id]
            if each.iscrowd and rules.crowd != "class":
                if rules.crowd == "background":
                    continue
                value = IGNORE
            if rules.polygons == "first" and isinstance(each.segmentation, list) and each.segmentation:
                label = fill_truncated(label, each.segmentation[0], value)
            else:
                label[self._mask(each, photo)] = value
        return label.astype(np.int64)

    def _mask(self, each: CocoObject, photo: CocoImage) -> NDArray[np.bool_]:
        return region_of(each, (photo.height, photo.width), self.path, photo.file_name)


def fill_truncated(label: NDArray[np.uint8], polygon: ArrayLike, value: int) -> NDArray[np.uint8]:
    """`label` [H,W] with a polygon filled whose corners are cut to whole pixels, its edge included, as the masks of the
    authors' lists are. Those are of OpenCV's `fillPoly`, from which 3 pixels in 1000 differ here."""
    corners = np.asarray(polygon).reshape(-1, 2).astype(np.int32)
    if len(corners) < 3:
        return label
    picture = Image.fromarray(np.where(mask_of([corners + np.float32(0.5)], *label.shape), np.uint8(value), label))
    ImageDraw.Draw(picture).line([(int(x), int(y)) for x, y in (*corners, corners[0])], fill=value)
    return np.array(picture)


class CocoData(SceneData):
    """COCO-Object; `data.splits` names folders of images: support from `train2017`, test on `val2017`."""

    Config = CocoConfig
    config: CocoConfig

    def index_file(self, name: str) -> Path:
        return self.root / "annotations" / f"instances_{name}.json"

    def is_there(self, name: str) -> bool:
        if self.config.label_maps is None:
            return super().is_there(name)
        return self._label_folder(name).is_dir() and (self.root / name).is_dir()

    def read_split(self, name: str) -> FolderDataset:
        """The images of the annotation file, in order of their names; with prepared label maps those of the folder."""
        pictures = files_by_stem(self.root / name, IMAGE_SUFFIXES)
        if self.config.label_maps is not None:
            folder = self._label_folder(name)
            found = files_by_stem(folder, (".png",))
            labels = {stem.removesuffix(SUFFIX): file for stem, file in found.items() if stem.endswith(SUFFIX)} or found
            pairs = self.paired(sorted(labels), folder, {self.root / name: pictures, folder: labels})
            return FolderDataset(folder, self.classes, pairs=pairs)
        made = InstanceDataset(self.index_file(name), self.classes, self.config)
        files = {self.root / name: pictures, made.path: dict.fromkeys(made.photos, made.path)}
        made.pairs = self.paired(list(made.photos), made.path, files)
        return made

    def candidates(self, dataset: FolderDataset) -> list[list[int]]:
        """By the annotations, where there are any: no mask need be decoded."""
        if not isinstance(dataset, InstanceDataset):
            return super().candidates(dataset)
        found: list[list[int]] = [[] for _ in self.classes[1:]]
        for index in range(len(dataset)):
            for label in dataset.shown(index):
                found[label - 1].append(index)
        return found

    def prepared(self) -> dict[str, str]:
        rules = {name: str(getattr(self.config, name)) for name in ("overlap", "crowd", "polygons")}
        return super().prepared() | (rules if self.config.label_maps is None else {"label maps": "prepared"})

    def how_to_get(self) -> str:
        names = ", ".join(f"{self.config.splits[each]}.zip" for each in (SUPPORT, TEST))
        return (
            f"download {names} and the archive of their annotations, e.g. annotations_trainval2017.zip "
            f"(cocodataset.org), and unzip all of them in {self.root}; `data.label_maps`, if any, names a folder of "
            f"<stem>.png or <stem>{SUFFIX}.png"
        )

    def _label_folder(self, name: str) -> Path:
        return self.root / str(self.config.label_maps).replace(SPLIT, name)

    def _layout(self) -> str:
        names = [self.config.splits[each] for each in (SUPPORT, TEST)]
        return f"{names[0]}/, {names[1]}/ and annotations/instances_{names[1]}.json"
