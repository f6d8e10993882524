"""The mini world: 128x128 images of cars, horses and faces, and of scenes of them, with exact part masks and captions.

A picture is a pure function of (subject, split, index). The splits draw from differently keyed generators, so the
pre-training stream shares no picture with `support`, `val` or `test`.

    python -m slime_bench.data.mini_world --root data/mini            write the folder data sets
    python -m slime_bench.data.mini_world --sheet docs/mini_world.png  write a sheet of examples
    python -m slime_bench.data.mini_world --scenes docs/scenes.webp    write one of the figures' scenes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from slime_bench.console import printable
from slime_bench.data.mini_world.canvas import COLOURS, SCENES, SKIN_TONES, Canvas, chance, paint_background
from slime_bench.data.mini_world.scenes import FIGURE_SCENES, merged, paint_scene
from slime_bench.data.mini_world.subjects import CLASSES, SUBJECTS, paint_clutter
from slime_bench.errors import ConfigError, DataError, StorageError
from slime_bench.paths import user_path
from slime_bench.seeding import numpy_generator

WORLD_VERSION = 2
SCENES_VERSION = 1
"""Of the scenes alone, which no backbone depends on."""
SPLIT_SIZES = {"support": 30, "val": 10, "test": 100}
STREAM = "pretrain"  # the unbounded split that backbones are trained on
_WORLD_SEED = 2023
_ATTEMPTS = 200
OTHER_SUBJECT = 4
"""In `Picture.scene`: a subject that is not annotated."""


@dataclass(frozen=True)
class Picture:
    """One rendered example: image uint8 [128,128,3] RGB, label uint8 [128,128] (0 = background), caption.

    Attributes:
        scene: what the background shows, uint8 [128,128]: 0 = a part, 1 and 2 = the caption's first and second surface,
            3 = a block, or a person in front, 4 = a subject that is not annotated.
    """

    image: np.ndarray
    label: np.ndarray
    caption: str
    scene: np.ndarray


def version_of(subject: str) -> int | str:
    """What the pictures of a subject or scene are drawn by; another one means other pictures."""
    return f"{WORLD_VERSION}.{SCENES_VERSION}" if subject in FIGURE_SCENES else WORLD_VERSION


def classes_of(subject: str) -> list[str]:
    """Class names of a subject or scene in label order."""
    return CLASSES[subject] if subject in CLASSES else FIGURE_SCENES[subject].classes


def render(subject: str, split: str, index: int) -> Picture:
    """Picture number `index` of a split of a subject or a scene; scenes have no pre-training split.

    Raises:
        ConfigError: unknown subject or split, or a negative index. DataError: a scene that never shows its subject.
    """
    splits = [*SPLIT_SIZES, *([] if subject in FIGURE_SCENES else [STREAM])]
    if subject not in (*SUBJECTS, *FIGURE_SCENES) or split not in splits or index < 0:
        raise ConfigError(
            "no such picture in the mini world", found=f"{subject}/{split}[{index}]",
            expected=f"one of {[*SUBJECTS, *FIGURE_SCENES]}, one of {splits}, index >= 0",
        )  # fmt: skip
    if subject in FIGURE_SCENES:
        return _render_scene(subject, split, index)
    rng = numpy_generator(_WORLD_SEED, "mini_world", WORLD_VERSION, subject, split, index)
    background, scene, upper = paint_background(rng)
    canvas = Canvas(background)
    paint_clutter(canvas, rng, int(rng.integers(0, 4)), (8, 30), edge_only=False)
    words: list[str] = []
    if chance(rng, 0.08):
        words = ["another " + SUBJECTS[subject](canvas, rng, small=True)[0].split(" ", 1)[1].split(" with ")[0]]
    words = SUBJECTS[subject](canvas, rng) + words
    if chance(rng, 0.3):
        words += ["a " + word for word in paint_clutter(canvas, rng, 1, (6, 18), edge_only=True)]
    return _finished(canvas, rng, words, scene, upper)


def _render_scene(name: str, split: str, index: int) -> Picture:
    scene = FIGURE_SCENES[name]
    for attempt in range(_ATTEMPTS):
        rng = numpy_generator(_WORLD_SEED, "mini_world scene", SCENES_VERSION, scene.pictures, split, index, attempt)
        background, surfaces, upper = paint_background(rng, scene.surfaces)
        canvas = Canvas(background)
        words = paint_scene(scene, canvas, rng, split, background)
        if words is not None:
            picture = _finished(canvas, rng, words, surfaces, upper)
            return replace(picture, label=merged(scene, picture.label))
    raise DataError(
        "a scene does not show its subject", path=f"{name}/{split}[{index}]", found=f"{_ATTEMPTS} drawings without it",
        expected="one that shows all that the scene is about", remedy="draw it larger, or ask less of it: scenes.py",
    )  # fmt: skip


def _finished(canvas: Canvas, rng: np.random.Generator, words: list[str], surfaces: str, upper: np.ndarray) -> Picture:
    image, label = canvas.finish(rng)
    seen = np.where(canvas.blocks, np.uint8(3), np.where(label > 0, np.uint8(0), 1 + upper.astype(np.uint8)))
    seen[canvas.others] = OTHER_SUBJECT
    return Picture(image, label, " , ".join(words) + f" , on {surfaces}", seen)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, and the words that prompts need, sorted."""
    names = {part for classes in CLASSES.values() for part in classes}
    fixed = "a an another with and on of the in , . + car horse face body wheels windows lights plate torso head legs"
    fixed += " tail skin eyes mouth nose brows ears neck cloth hair bald short long cap block part prompt photo image"
    fixed += " picture object background wheel window light leg eye brow ear plates heads tails cars horses faces"
    words = {*names, *fixed.split(), *COLOURS, *SKIN_TONES, *SCENES}
    return sorted(words)


def write_dataset(root: Path, subject: str, first_test: int = 0, pool: int | None = None) -> None:
    """Write `<root>/{support,val,test}/{images,labels}/<id>.png` and `<root>/manifest.json`.

    The manifest holds the sha256 of each file's pixels, the classes and the captions.

    Args:
        first_test: index of the first test picture; in the manifest where it is not 0.
        pool: pictures of the support pool, None for the usual number; in the manifest where it is given.

    The folder is built beside its place and moved there when complete, so a half-written data set is never seen.

    Raises:
        ConfigError: unknown subject. StorageError: the folder cannot be written.
    """
    root = Path(root)
    building = root.with_name(f".{root.name}.building")
    try:
        shutil.rmtree(building, ignore_errors=True)
        files: dict[str, str] = {}
        captions: dict[str, str] = {}
        first, sizes = {"test": first_test}, SPLIT_SIZES | ({} if pool is None else {"support": pool})
        for split, index in (
            (name, first.get(name, 0) + place) for name, size in sizes.items() for place in range(size)
        ):
            picture, name = render(subject, split, index), f"{subject}-{split}-{index:04d}"
            captions[name] = picture.caption
            for kind, array in (("images", picture.image), ("labels", picture.label)):
                path = building / split / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
                files[f"{split}/{kind}/{name}.png"] = hashlib.sha256(array.tobytes()).hexdigest()
        manifest = {
            "version": version_of(subject), "subject": subject, "classes": classes_of(subject), "files": files,
            "captions": captions, **({"first_test": first_test} if first_test else {}),
            **({} if pool is None else {"pool": pool}),
        }  # fmt: skip
        (building / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(root, ignore_errors=True)
        building.rename(root)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise StorageError.of(error, root, "data_root=<folder>") from error


def write_sheet(path: Path, names: Sequence[str], shown: Sequence[tuple[str, int]]) -> None:
    """A sheet of pictures, one pair of rows for each subject or scene: (split, index) of each that is `shown`, image
    above label map."""
    palette = np.array([[0, 0, 0], *[v for k, v in COLOURS.items() if k not in ("black", "white")]], dtype=np.uint8)
    rows = [[render(name, *each) for each in shown] for name in names]
    both = [[[each.image for each in row], [palette[each.label] for each in row]] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(line, axis=1) for pair in both for line in pair])).save(path)


def main() -> None:
    printable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=user_path, help="folder that receives car/, horse/ and face/")
    parser.add_argument("--sheet", type=user_path, help="PNG file that receives a sheet of examples")
    parser.add_argument("--scenes", type=user_path, help="picture file that receives a sheet of the figures' scenes")
    args = parser.parse_args()
    if args.root:
        for subject in SUBJECTS:
            write_dataset(args.root / subject, subject)
            print(f"wrote {args.root / subject}")
    if args.sheet:
        write_sheet(args.sheet, [*SUBJECTS], [(STREAM, index) for index in range(10)])
        print(f"wrote {args.sheet}")
    if args.scenes:
        names = [name for name in FIGURE_SCENES if not name.endswith(("_coarse", "_middle"))]
        write_sheet(args.scenes, names, [("support", 0), ("support", 1), *(("test", index) for index in range(6))])
        print(f"wrote {args.scenes}")
