"""COCO-Object: the 80 object categories of COCO and the background, read as they are downloaded.

    val2017/<file>.jpg, train2017/<file>.jpg
    annotations/instances_val2017.json, ...     or prepared label maps, see `CocoConfig.label_maps`

Two ways of making label maps are in use. The field's COCO-Object (GroupViT, and all that compare with it) takes the
5000 images of val2017 and the pixel maps of COCO-Stuff with its stuff set to background: prepare those and name them in
`label_maps`. The second paper's lists (github sinahmr/DIaM, data/coco/create_masks.py) take val2014, paint the first
polygon of every object that is no crowd, corners cut to whole pixels, later objects over earlier ones, and leave out
images without such objects: `polygons: first`, `crowd: background`, `max_test_images: 10000`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_bench.config.parts import located
from slime_bench.data.datasets.coco_annotations import ALL, CLASS, CROWDS, LATER, OVERLAPS, POLYGONS, Instances, Photo, Rules
from slime_bench.data.config import SUPPORT, TEST
from slime_bench.data.folder import FolderDataset, Sample, read_image
from slime_bench.data.layouts import IMAGE_SUFFIXES, Pair, files_by_stem, listing
from slime_bench.data.scene_config import SceneConfig
from slime_bench.data.scene_splits import SceneDataset
from slime_bench.data.scenes import SceneDataModule
from slime_bench.errors import DataError, LabelError

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
        polygons: `all` of an object, filled where a pixel's centre is inside; or the `first` one, with its corners cut
            to whole pixels and its edge filled.
    """

    label_maps: str | None = field(default=None, metadata=located("data"))
    overlap: str = field(default=LATER, metadata={"choices": OVERLAPS})
    crowd: str = field(default=CLASS, metadata={"choices": CROWDS})
    polygons: str = field(default=ALL, metadata={"choices": POLYGONS})


class InstanceDataset(SceneDataset):
    """Images whose label maps are made of an annotation file on demand."""

    def __init__(
        self, instances: Instances, classes: Sequence[str], rules: Rules, samples: Sequence[tuple[Pair, Photo]]
    ) -> None:
        super().__init__(instances.path.parent, classes, pairs=[pair for pair, _ in samples])
        self.instances, self.rules = instances, rules
        self.photos = [photo for _, photo in samples]

    @property
    def meaning(self) -> list[Any]:
        """As the base class; the rules too."""
        return [*super().meaning, vars(self.rules)]

    def __getitem__(self, index: int) -> Sample:
        pair, label = self.pairs[index], self.label(index)
        image = read_image(pair.image)
        if image.shape[-2:] != label.shape:
            raise LabelError(
                "image and annotations differ in size",
                path=pair.image,
                found=f"{image.shape[2]}x{image.shape[1]} (width x height)",
                expected=f"{label.shape[1]}x{label.shape[0]}, as {pair.label} says",
                remedy="restore the image from COCO's archive; resized images do not fit the annotations",
            )
        return Sample(pair.id, image, label)

    def label(self, index: int) -> Tensor:
        return torch.from_numpy(self.instances.label(self.photos[index], self.rules)).long()

    def select(self, ids: Sequence[str]) -> InstanceDataset:
        places = {pair.id: index for index, pair in enumerate(self.pairs)}
        chosen = [(self.pairs[places[key]], self.photos[places[key]]) for key in ids]
        return InstanceDataset(self.instances, self.classes, self.rules, chosen)


class CocoDataModule(SceneDataModule):
    """COCO-Object; `data.splits` names folders of images: support from `train2017`, test on `val2017`."""

    Config = CocoConfig
    config: CocoConfig

    def index_file(self, name: str) -> Path:
        return self.root / "annotations" / f"instances_{name}.json"

    def is_there(self, name: str) -> bool:
        if self.config.label_maps is None:
            return super().is_there(name)
        return self._label_folder(name).is_dir() and (self.root / name).is_dir()

    def read_split(self, name: str) -> SceneDataset:
        """The images of the annotation file, in order of their names; with prepared label maps those of the folder.

        Raises:
            DataError: annotations, images or label maps are missing or faulty.
        """
        pictures = files_by_stem(self.root / name, IMAGE_SUFFIXES)
        if self.config.label_maps is not None:
            return self._prepared_split(name, pictures)
        instances = Instances(self.index_file(name), self.classes)
        missing = [each.file for each in instances.photos if Path(each.file).stem not in pictures]
        if missing or not instances.photos:
            raise DataError(
                f"{len(missing)} annotated image(s) of `{name}` are not there"
                if missing
                else "the annotations name no image",
                path=self.root / name if missing else instances.path,
                found=f"no {listing(missing)}" if missing else "an empty list of images",
                expected=f"the {len(instances.photos)} images of {self.index_file(name).name}",
                remedy=self.how_to_get(),
            )
        samples = [(Path(photo.file).stem, photo) for photo in instances.photos]
        pairs = [(Pair(stem, pictures[stem], instances.path), photo) for stem, photo in samples]
        rules = Rules(self.config.overlap, self.config.crowd, self.config.polygons)
        return InstanceDataset(instances, self.classes, rules, pairs)

    def candidates(self, dataset: FolderDataset) -> list[list[int]]:
        """By the annotations, where there are any: no mask need be decoded."""
        if not isinstance(dataset, InstanceDataset):
            return super().candidates(dataset)
        found: list[list[int]] = [[] for _ in self.classes[1:]]
        for index, photo in enumerate(dataset.photos):
            for label in dataset.instances.shown(photo):
                found[label - 1].append(index)
        return found

    def prepared(self) -> dict[str, str]:
        config = self.config
        rules = {name: str(getattr(config, name)) for name in ("overlap", "crowd", "polygons")}
        if config.label_maps is not None:
            rules = {"label maps": "prepared"}
        return super().prepared() | rules

    def how_to_get(self) -> str:
        names = ", ".join(f"{self.config.splits[each]}.zip" for each in (SUPPORT, TEST))
        return (
            f"download {names} and the archive of their annotations, e.g. annotations_trainval2017.zip "
            f"(cocodataset.org), and unzip all of them in {self.root}"
        )

    def _label_folder(self, name: str) -> Path:
        return self.root / str(self.config.label_maps).replace(SPLIT, name)

    def _prepared_split(self, name: str, pictures: dict[str, Path]) -> SceneDataset:
        folder = self._label_folder(name)
        found = files_by_stem(folder, (".png",))
        labels = {stem.removesuffix(SUFFIX): file for stem, file in found.items() if stem.endswith(SUFFIX)} or found
        if not labels.keys() & pictures.keys():
            raise DataError(
                "no label maps of these images", path=folder, found=listing([file.name for file in found.values()]) or
                "no PNG file", expected=f"<stem>.png or <stem>{SUFFIX}.png for the images of {self.root / name}",
                remedy=f"name the folder in `data.label_maps`, with {SPLIT} for {name}",
            )  # fmt: skip
        strangers = [file.name for stem, file in labels.items() if stem not in pictures]
        if strangers:
            raise DataError(
                f"{len(strangers)} label map(s) without an image", path=folder, found=listing(strangers),
                expected=f"an image of the same stem in {self.root / name}", remedy=self.how_to_get(),
            )  # fmt: skip
        pairs = [Pair(stem, pictures[stem], labels[stem]) for stem in sorted(labels)]
        return SceneDataset(folder, self.classes, pairs=pairs)

    def _layout(self) -> str:
        names = [self.config.splits[each] for each in (SUPPORT, TEST)]
        return f"{names[0]}/, {names[1]}/ and annotations/instances_{names[1]}.json"
