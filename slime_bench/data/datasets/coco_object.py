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
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from slime_bench.config.parts import located
from slime_bench.config.read import nearest
from slime_bench.data.config import SUPPORT, TEST, SceneConfig
from slime_bench.data.label_maps import IGNORE, listing
from slime_bench.data.layouts import IMAGE_SUFFIXES, Pair, files_by_stem
from slime_bench.data.reading import FolderDataset, Sample, read_image
from slime_bench.data.scenes import SceneData, SceneDataset
from slime_bench.errors import DataError, LabelError

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


_REMEDY: Final = "download the annotations again (annotations_trainval2017.zip), or correct the file"


@dataclass(frozen=True)
class Rules:
    """How the masks of objects become one label map; see `CocoConfig`."""

    overlap: Overlap = "later"
    crowd: Crowd = "class"
    polygons: Polygons = "all"


def _corners(values: list[float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(-1, 2)


Polygon = Annotated[list[FiniteFloat], AfterValidator(_corners)]
"""[N,2] once it is read: corners (x, y) in pixels of the image, whose upper left pixel reaches from 0 to 1."""


@dataclass(frozen=True)
class Runs:
    """A mask as COCO's run lengths: (height, width), and numbers or text."""

    size: tuple[int, int]
    counts: list[int] | str


@dataclass(frozen=True)
class Annotation:
    """One object."""

    image_id: int
    category_id: int
    segmentation: Runs | Annotated[list[Polygon], Field(min_length=1)]
    iscrowd: bool = False


@dataclass(frozen=True)
class Photo:
    """An image of the file."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True)
class InstancesFile:
    """What is used of an `instances_*.json`; every other key is dropped while it is parsed."""

    images: list[Photo]
    annotations: list[Annotation]
    categories: list[Category]


class Instances:
    """The objects of one annotation file, an `instances_*.json`.

    Label maps are made on demand and dropped again.

    Args:
        path: the file.
        classes: class names in label order; those of the file's categories have to be among them.

    Raises:
        DataError: unreadable, not of this kind, an object of an unknown category or image, or a category that is no
            class.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        content = _read(path)
        self.photos = sorted(content.images, key=lambda photo: photo.file_name)
        categories = {each.id: each.name for each in content.categories}
        images = {photo.id for photo in self.photos}
        self._objects: dict[int, list[Annotation]] = {}
        for each in content.annotations:
            if each.category_id not in categories:
                valid = f"the categories {listing([f'{key} {name}' for key, name in categories.items()])}"
                raise self._unknown("category", each.category_id, each.image_id, valid)
            if each.image_id not in images:
                raise self._unknown("image", each.image_id, each.image_id, f"the file's {len(images)} images")
            self._objects.setdefault(each.image_id, []).append(each)
        names = list(classes)
        strangers = [name for name in categories.values() if name not in names[1:]]
        if strangers:
            close = nearest(strangers[0], names[1:])
            raise DataError(
                f"the annotations have categories that are no class: {listing(strangers)}", path=path,
                found=f"{len(categories)} categories", expected=f"the classes {listing(names[1:])}",
                remedy="name them in `data.classes`"
                + (f"; did you mean `{close[0]}` by `{strangers[0]}`?" if close else ""),
            )  # fmt: skip
        self._label_of = {key: names.index(name) for key, name in categories.items()}

    def shown(self, photo: Photo) -> set[int]:
        """The labels of an image's objects, hidden ones included; no mask is decoded."""
        return {self._label_of[each.category_id] for each in self._objects.get(photo.id, [])}

    def label(self, photo: Photo, rules: Rules) -> NDArray[np.uint8]:
        """The label map of an image, uint8 [H,W]: 0 where no object is.

        Crowd regions come first, so that single objects lie above them.

        Raises:
            DataError: run lengths that do not fit the image.
        """
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
            if rules.polygons == "first" and isinstance(each.segmentation, list):
                label = fill_truncated(label, each.segmentation[0], value)
            else:
                label[self._mask(each, photo)] = value
        return label

    def _mask(self, each: Annotation, photo: Photo) -> NDArray[np.bool_]:
        try:
            return mask_of(each.segmentation, photo.height, photo.width)
        except ValueError as error:
            raise DataError(
                "the mask of an object does not fit its image", path=f"{self.path}: {photo.file_name}",
                found=str(error), remedy=_REMEDY,
                expected=f"run lengths of {photo.width}x{photo.height} pixels (width x height)",
            ) from error  # fmt: skip

    def _unknown(self, what: str, found: int, image: int, valid: str) -> DataError:
        return DataError(
            f"an annotation of an unknown {what}", path=self.path, found=f"{what}_id {found} (image {image})",
            expected=f"one of {valid}", remedy=_REMEDY,
        )  # fmt: skip


def mask_of(shape: Runs | Sequence[ArrayLike], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of an object, bool [height,width]: of all its polygons, or of its run lengths.

    Raises:
        ValueError: run lengths of another size, or that do not add up to the image.
    """
    from pycocotools import mask as coco

    if not isinstance(shape, Runs):
        flat = [np.asarray(each, np.float64).ravel().tolist() for each in shape]
        polygons = [each for each in flat if len(each) >= 6]  # fewer corners enclose nothing
        if not polygons:
            return np.zeros((height, width), bool)
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    size, counts = shape.size, shape.counts
    if size != (height, width):
        raise ValueError(f"a mask of {size[1]}x{size[0]}")
    # pycocotools leaves what the run lengths do not reach as the memory happens to be.
    if isinstance(counts, str):
        decoded = coco.decode({"size": size, "counts": counts.encode()})
        if coco.encode(np.asfortranarray(decoded))["counts"] != counts.encode():
            raise ValueError("run lengths of another image")
        return decoded.astype(bool)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {width}x{height}")
    return coco.decode(coco.frPyObjects({"size": size, "counts": counts}, height, width)).astype(bool)


def fill_truncated(label: NDArray[np.uint8], polygon: ArrayLike, value: int) -> NDArray[np.uint8]:
    """`label` [H,W] with a polygon filled whose corners are cut to whole pixels, its edge included, as the masks of the
    authors' lists are. Those are of OpenCV's `fillPoly`, from which 3 pixels in 1000 differ here."""
    corners = np.asarray(polygon).astype(np.int32)
    if len(corners) < 3:
        return label
    picture = Image.fromarray(np.where(mask_of([corners + np.float32(0.5)], *label.shape), np.uint8(value), label))
    ImageDraw.Draw(picture).line([(int(x), int(y)) for x, y in (*corners, corners[0])], fill=value)
    return np.array(picture)


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
        return [*super().meaning, vars(self.rules)]

    def __getitem__(self, index: int) -> Sample:
        pair, label = self.pairs[index], self.label(index)
        image = read_image(pair.image)
        if image.shape[:2] != label.shape:
            raise LabelError(
                "image and annotations differ in size", path=pair.image,
                found=f"{image.shape[1]}x{image.shape[0]} (width x height)",
                expected=f"{label.shape[1]}x{label.shape[0]}, as {pair.label} says",
                remedy="restore the image from COCO's archive; resized images do not fit the annotations",
            )  # fmt: skip
        return Sample(pair.id, image, label)

    def label(self, index: int) -> NDArray[np.int64]:
        return self.instances.label(self.photos[index], self.rules).astype(np.int64)

    def select(self, ids: Sequence[str]) -> InstanceDataset:
        places = {pair.id: index for index, pair in enumerate(self.pairs)}
        chosen = [(self.pairs[places[key]], self.photos[places[key]]) for key in ids]
        return InstanceDataset(self.instances, self.classes, self.rules, chosen)


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

    def read_split(self, name: str) -> SceneDataset:
        """The images of the annotation file, in order of their names; with prepared label maps those of the folder.

        Raises:
            DataError: annotations, images or label maps are missing or faulty.
        """
        pictures = files_by_stem(self.root / name, IMAGE_SUFFIXES)
        if self.config.label_maps is not None:
            return self._prepared_split(name, pictures)
        instances = Instances(self.index_file(name), self.classes)
        missing = [each.file_name for each in instances.photos if Path(each.file_name).stem not in pictures]
        if missing or not instances.photos:
            few = f"{len(missing)} annotated image(s) of `{name}` are not there"
            raise DataError(
                few if missing else "the annotations name no image",
                path=self.root / name if missing else instances.path,
                found=f"no {listing(missing)}" if missing else "an empty list of images",
                expected=f"the {len(instances.photos)} images of {self.index_file(name).name}",
                remedy=self.how_to_get(),
            )
        samples = [(Path(photo.file_name).stem, photo) for photo in instances.photos]
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


def _read(path: Path) -> InstancesFile:
    try:
        return TypeAdapter(InstancesFile).validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            "the annotations are not there", path=path, found="nothing", expected="an instances_*.json", remedy=_REMEDY
        ) from error
    except (OSError, ValidationError) as error:
        found = str(error)
        if isinstance(error, ValidationError):
            # A mask may be of two kinds: what is wrong with the likelier one.
            worst = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
            found = ": ".join([*([".".join(map(str, worst["loc"]))] if worst["loc"] else []), worst["msg"]])
        raise DataError(
            "cannot read COCO's instances", path=path, found=found, remedy=_REMEDY,
            expected="`images` (id, file_name, height, width), `annotations` (image_id, category_id, segmentation) and "
            "`categories` (id, name)",
        ) from error  # fmt: skip
