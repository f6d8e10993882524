"""What one visitor of the page has: pictures, classes, paint, what was learned, results. It knows no browser.

The steps may come in any order and again; what cannot be yet is said in words.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.app import jobs, paint
from slime_bench.app.jobs import Progress
from slime_bench.colours import class_colours
from slime_bench.data.class_files import parse_classes
from slime_bench.data.label_maps import BACKGROUND, IGNORE, RGB, class_pixels, listing, relabelled
from slime_bench.data.layouts import Pair
from slime_bench.data.mask_files import DECODING_ERRORS, read_mask, unreadable
from slime_bench.data.masks import Classes
from slime_bench.data.mini_world.render import render
from slime_bench.data.mini_world.subjects import CLASSES as MINI_CLASSES
from slime_bench.data.reading import check_size, read_image
from slime_bench.errors import ConfigError, DataError, LabelError, SlimeBenchError
from slime_bench.segment import folder, learn, output
from slime_bench.segment.folder import Record
from slime_bench.segment.segmenter import Segmenter
from slime_bench.segment.support import Support
from slime_bench.storage import write_atomic

METHODS: Final = {"slime": "SLiMe", "feature_probe": "feature probe", "feature_knn": "feature kNN"}
"""The methods whose learned state is all that they need."""
PRESETS: Final = ("mini", "paper")
EXAMPLES: Final = 8
Array = NDArray[np.uint8]


@dataclass
class Photo:
    """A picture: its file's name, the name of its results, its place; how it is painted, and what was found in it.

    Attributes:
        label: its paint as a label map uint8 [H,W]; None where it is not painted.
        record: of its result; None where there is none.
        mask: of an example, that which comes with it.
    """

    name: str
    stem: str
    path: Path
    label: Array | None = None
    record: Record | None = None
    mask: Array | None = None


_holder: weakref.ref[Session] | None = None
"""The session whose model is loaded."""


class Session:
    """The state of a page. Its files lie in a folder of their own, which `close` removes."""

    def __init__(self) -> None:
        self.photos: dict[str, Photo] = {}
        self.classes: tuple[str, ...] = (BACKGROUND,)
        self.current: str | None = None
        self.segmenter: Segmenter | None = None
        self.learned_by = ("", "")
        self.failures: dict[str, SlimeBenchError] = {}  # of the pictures that `segment` could not read, by name
        self.stop = threading.Event()
        self._in_view: Array | None = None
        self._folder: Path | None = None
        self._last: tuple[str, Array] | None = None

    def close(self) -> None:
        """Free memory and disk."""
        self.stop.set()
        self.segmenter = None
        self.photos.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def place(self) -> Path:
        """The session's folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="page-"))
            (self._folder / "photos").mkdir()
        return self._folder

    @property
    def colours(self) -> list[RGB]:
        """The colours of the classes, the background's first."""
        return class_colours(len(self.classes))

    # Pictures

    def add_pictures(self, files: Sequence[Path]) -> str:
        """Take pictures up, which are moved into the session's folder; a sentence about it. DataError: some are no
        pictures; the others are taken."""
        refused, taken = [], 0
        for file in files:
            try:
                with Image.open(file) as picture:
                    picture.verify()
            except DECODING_ERRORS as error:
                refused.append((file.name, unreadable("image", file, error, "")))
                continue
            shutil.move(file, self._take_up(file.name, file.suffix.lower()).path)
            taken += 1
        if refused:
            raise DataError(
                f"{len(refused)} of {len(files)} files are no pictures", path=listing([name for name, _ in refused]),
                found=refused[0][1].found, expected="JPEG, PNG, WebP, BMP or TIFF",
                remedy="leave them out, or export them as JPEG or PNG; the other pictures are taken",
            )  # fmt: skip
        return f"{taken} pictures added, {len(self.photos)} in all." if taken else "No pictures were added."

    def take_example(self) -> str:
        """Take pictures of the mini world, the first of them with a mask, and name their classes."""
        for index in range(EXAMPLES):
            split, number = ("support", 0) if index == 0 else ("test", index - 1)
            made = render("car", split, number)
            photo = self._take_up(f"car{index}.png", ".png")
            photo.mask = made.label if index == 0 else None
            Image.fromarray(made.image).save(photo.path)
        if len(self.classes) == 1:
            self.name_classes(", ".join(MINI_CLASSES["car"][1:]))
        return f"{EXAMPLES} pictures of the mini world, drawn by slime-bench itself; paint the first one."

    def _take_up(self, wanted: str, suffix: str) -> Photo:
        """A new picture; it gets a number where another one has its name, on any file system."""
        stem, kind, number, name = Path(wanted).stem, Path(wanted).suffix, 2, wanted
        while name.casefold() in {each.casefold() for each in self.photos}:
            name, number = f"{stem} ({number}){kind}", number + 1
        stems = {photo.stem.casefold() for photo in self.photos.values()}
        path = self.place / "photos" / f"{len(self.photos):05d}{suffix}"
        photo = Photo(name, name if Path(name).stem.casefold() in stems else Path(name).stem, path)
        self.photos[name] = photo
        return photo

    def pixels_of(self, photo: Photo) -> Array:
        """A picture, uint8 [H,W,3]; the last one is remembered. DataError: it cannot be read."""
        if self._last is None or self._last[0] != photo.name:
            try:
                self._last = (photo.name, read_image(photo.path))
            except SlimeBenchError as error:
                raise type(error)(
                    error.summary, path=photo.name, found=error.found, expected=error.expected, remedy=error.remedy
                ) from error  # fmt: skip
        return self._last[1]

    # Classes and paint

    def name_classes(self, text: str) -> None:
        """Names of the parts, with commas between them. As many as before rename; otherwise paint follows its name.
        ConfigError: none, or one of them twice."""
        names = [one.strip() for one in text.replace("\n", ",").split(",") if one.strip()]
        if not names:
            raise ConfigError(
                "the parts have no names", path="Classes", found="nothing", expected="at least one name",
                remedy="name what you are going to paint, e.g. body, wheel, window",
            )  # fmt: skip
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(
                "one class name stands twice", path="Classes", found=listing(twice), expected="each name once",
                remedy="leave one of them out; both are painted in one colour",
            )  # fmt: skip
        classes = tuple(parse_classes(names, "Classes").values)
        if len(classes) != len(self.classes):
            table = {old: classes.index(name) if name in classes else 0 for old, name in enumerate(self.classes)}
            for photo in self.photos.values():
                if photo.label is not None:
                    photo.label = relabelled(photo.label.astype(np.int64), {**table, IGNORE: IGNORE}).astype(np.uint8)
        self.classes = classes

    def open(self, name: str) -> tuple[Array, Array]:
        """Make a picture the one that is painted: the square that is painted on, uint8 [S,S,3], and its paint so far
        [S,S,4]. DataError: it cannot be read."""
        photo = self.photos[name]
        image = self.pixels_of(photo)
        label = np.zeros(image.shape[:2], np.uint8) if photo.label is None else photo.label
        layer = paint.layer_of(label, self.colours)
        self.current, self._in_view = name, paint.painted([layer], self.colours, image.shape)
        return paint.painting_view(image), layer

    def keep_paint(self, layers: Sequence[Array]) -> None:
        """Take over the paint, uint8 [h,w,4] each, of the picture that is painted."""
        if self.current is None or self._in_view is None or len(self.classes) == 1:
            return
        photo, before = self.photos[self.current], self._in_view
        size = self.pixels_of(photo).shape[:2]
        after = paint.painted(layers, self.colours, size)
        if np.array_equal(before, after):
            return
        if photo.label is None:
            photo.label = np.zeros(size, np.uint8)
        photo.label = paint.merged(photo.label, before, after)
        self._in_view = after
        if not photo.label.any():
            photo.label = None

    def clear_paint(self) -> None:
        """Take all paint from the picture that is painted."""
        if self.current is not None:
            self.photos[self.current].label = None

    def load_mask(self, file: str | Path) -> str:
        """Take a mask for the picture that is painted; its classes where none are named. A sentence about it.
        LabelError, DataError: no mask, or not of this picture."""
        photo = self._painted_one()
        mask = read_mask(Path(file))
        check_size(Pair(photo.stem, Path(photo.name), Path(Path(file).name)), self.pixels_of(photo), mask.values)
        self.classes, photo.label, said = paint.understood(mask, self.classes)
        return f"The mask of {photo.name} is loaded; paint over it where it is wrong.{said}"

    def take_example_mask(self) -> str:
        """Paint the picture as the example's own mask has it; ConfigError: it has none."""
        photo = self._painted_one()
        if photo.mask is None or len(self.classes) <= int(photo.mask.max()):
            raise ConfigError(
                "this picture has no mask of its own", path=photo.name, found="a picture without a mask",
                expected="the first picture of the mini example, with its classes",
                remedy="choose that picture, paint by hand, or load a mask",
            )  # fmt: skip
        photo.label = photo.mask
        return f"The mask of {photo.name} is painted."

    def _painted_one(self) -> Photo:
        if self.current is None:
            raise ConfigError(
                "there is no picture to paint", path="Pictures", found="nothing", expected="at least one picture",
                remedy="load a picture, or take the mini example",
            )  # fmt: skip
        return self.photos[self.current]

    def support(self) -> Support:
        """The painted pictures. ConfigError: no picture, no classes; LabelError: nothing, or a class, not painted."""
        self._painted_one()
        if len(self.classes) == 1:
            self.name_classes("")
        painted = [photo for photo in self.photos.values() if photo.label is not None and (photo.label > 0).any()]
        labels = [photo.label for photo in painted if photo.label is not None]
        counts = sum((class_pixels(label, IGNORE + 1) for label in labels), np.zeros(IGNORE + 1, np.int64))
        pixels = {index: int(counts[index]) for index in range(len(self.classes))}
        if not painted:
            raise LabelError(
                "nothing is painted yet", path=self.current, found="a picture without paint",
                expected=f"paint of {', '.join(self.classes[1:])}", remedy="paint the parts, or load a mask",
            )  # fmt: skip
        empty = [name for index, name in enumerate(self.classes) if index and not pixels[index]]
        if empty:
            raise LabelError(
                "a class without paint is never found", path=listing([photo.name for photo in painted]),
                found=f"no pixel of {listing(empty)}", expected=f"paint of {', '.join(self.classes[1:])}",
                remedy="paint it in at least one picture, or take its name out of Classes",
            )  # fmt: skip
        table = {index: index for index in pixels} | ({IGNORE: IGNORE} if counts[IGNORE] else {})
        classes = Classes(self.classes, tuple(self.colours), table, pixels)
        images = tuple(self.pixels_of(photo) for photo in painted)
        return Support(tuple(photo.name for photo in painted), images, tuple(labels), classes)

    # Learning and segmenting

    def learn(
        self, method: str, preset: str, overrides: Sequence[str] = (), seed: int = 0
    ) -> Generator[Progress, None, None]:
        """Learn from all painted pictures. Results of what was learned before are dropped only when it is done.
        Stopped: the user has stopped it."""
        self.stop.clear()
        support = self.support()
        cfg = learn.configuration(support, preset=preset, overrides=[f"method={method}", *overrides], seed=seed)
        self._alone()
        segmenter = yield from jobs.learning(cfg, support, self.stop)
        self._take(segmenter, (cfg.method.name, str(cfg.preset)))

    def load(self, file: str | Path) -> str:
        """Take up an embeddings file; a sentence about it. ResultError: it is none."""
        segmenter = Segmenter.load(file)
        preset = str(segmenter.facts.get("preset", "mini"))
        self._take(segmenter, (str(segmenter.facts["method"]["name"]), preset))
        if segmenter.classes != self.classes and not any(photo.label is not None for photo in self.photos.values()):
            self.classes = segmenter.classes
        return f"Loaded: {self.learned_by[0]}, preset {preset}, classes {', '.join(segmenter.classes[1:])}."

    def _take(self, segmenter: Segmenter, by: tuple[str, str]) -> None:
        self.segmenter, self.learned_by = segmenter, by
        for photo in self.photos.values():
            photo.record = None
        shutil.rmtree(self.place / "results", ignore_errors=True)

    def _alone(self) -> None:
        """Let no other session keep a loaded model: two could be more than the memory holds."""
        global _holder
        other = None if _holder is None else _holder()
        if other is not None and other is not self and other.segmenter is not None:
            light = other.segmenter
            other.segmenter = Segmenter(light.tensors, light.facts, device=light.device)
        _holder = weakref.ref(self)

    def segment(self) -> Generator[Progress, None, None]:
        """Segment all pictures that are not painted and have no result yet. ConfigError: nothing learned, no pictures;
        Stopped: the user has stopped it; what is done stays."""
        self.stop.clear()
        segmenter = self.learned()
        others = [photo.name for photo in self.photos.values() if photo.label is None]
        if not others:
            raise ConfigError(
                "there are no other pictures", path="Pictures", found=f"{len(self.photos)} painted picture(s)",
                expected="pictures that are not painted", remedy="add the pictures in which the parts are to be found",
            )  # fmt: skip
        self._alone()
        self.failures.clear()

        def one(name: str) -> None:
            try:
                self._segment(self.photos[name], segmenter)
            except DataError as error:
                self.failures[name] = error

        todo = [name for name in others if self.photos[name].record is None]
        yield from jobs.segmenting(todo, one, self.stop, self.learned_by)

    def learned(self) -> Segmenter:
        if self.segmenter is None:
            raise ConfigError(
                "nothing is learned yet", path="Learn", found="neither learned nor loaded embeddings",
                expected="embeddings", remedy="paint a picture and press Learn, or load an embeddings file",
            )  # fmt: skip
        return self.segmenter

    def _segment(self, photo: Photo, segmenter: Segmenter) -> None:
        image = self.pixels_of(photo)
        size = (int(image.shape[0]), int(image.shape[1]))
        label, pixels, confidence = segmenter.found(segmenter.scored_one(image), size)
        results = self.place / "results"
        seen = output.view(Image.fromarray(image))
        drawn = output.overlay(seen, label, segmenter.classes, segmenter.colours)
        write_atomic(results / folder.OVERLAYS / f"{photo.stem}.jpg", drawn)
        write_atomic(results / folder.LABELS / f"{photo.stem}.png", output.label_png(label, segmenter.colours))
        status = photo.path.stat()
        photo.record = Record(photo.name, status.st_size, status.st_mtime_ns, [*size], pixels, confidence)

    # Results

    @property
    def records(self) -> dict[str, Record]:
        """Areas and confidence of the pictures that have results, by the picture's name."""
        return {name: photo.record for name, photo in self.photos.items() if photo.record is not None}

    def result(self, name: str) -> Array:
        """The label map uint8 [H,W] that was found in a picture."""
        with Image.open(self.place / "results" / folder.LABELS / f"{self.photos[name].stem}.png") as label:
            return np.array(label)

    def overlay(self, name: str, shown: Sequence[str], opacity: float) -> Image.Image:
        """A picture with what was found of the classes `shown`, in colours of `opacity` 0..1."""
        segmenter = self.learned()
        kept = [index for index, one in enumerate(segmenter.classes) if one in shown]
        label = self.result(name)
        label[~np.isin(label, kept)] = 0
        seen = output.view(Image.fromarray(self.pixels_of(self.photos[name])))
        return output.blend(seen, label, segmenter.colours, opacity)

    def preview(self, label: Array) -> Image.Image:
        """The first painted picture with what is found in it, uint8 [H,W]."""
        name = next(photo.name for photo in self.photos.values() if photo.label is not None)
        seen = output.view(Image.fromarray(self.pixels_of(self.photos[name])))
        return output.blend(seen, label, self.colours)

    def correct(self, name: str) -> str:
        """Take a result as the paint of its picture, to be mended by hand and learned from; a sentence about it.
        ConfigError: the classes have changed since."""
        segmenter = self.learned()
        if segmenter.classes != self.classes:
            raise ConfigError(
                "the classes are no longer those of the result", path="Classes", found=", ".join(self.classes[1:]),
                expected=", ".join(segmenter.classes[1:]), remedy="name them as they were, or learn again first",
            )  # fmt: skip
        photo = self.photos[name]
        photo.label, photo.record = self.result(name), None
        return f"{name} is now painted as it was found: mend it, then press Learn again to learn from it as well."
