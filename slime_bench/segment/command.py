"""`slime-bench segment`: annotate one image, get the same parts in a folder of others.

learn    --image car.jpg --mask car.png --images photos --out masks
reuse    --embeddings car.safetensors --images photos --out masks
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from slime_bench.errors import ConfigError
from slime_bench.paths import user_path
from slime_bench.trial.device import DEVICES

_EPILOG = """\
masks      class indices: an 8-bit PNG (grey or palette) or a .npy array, in the image's size; 0 = background,
           255 = ignore. Or a PNG of colours, each of which --classes names (black = background)
classes    names in the order of the indices, with or without `background`; or a YAML file: a list of names,
           `name: index` lines, or `name: "#rrggbb"` lines for colours
results    labels/<name>.png      class of each pixel, 8 bits, in the image's own size; viewers show the colours
           overlays/<name>.jpg    the image with its classes and their part of the area
           scores/<name>.npz      its score maps, with --save-scores
           areas.csv  grid.png  classes.yaml  embeddings.safetensors  run.json
overrides  of the configuration, as for a trial: preset=paper, method.max_steps=100, data.fit=pad, ...

When an interrupted command is repeated, embeddings that were learnt and images that were segmented are kept.
exit code  0 all images segmented; 2 a mistake, or images that could not be read; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Learn or reuse embeddings, segment, and say what became of it; returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    # `--images photos method.lr=0.1`: the option takes all that follows it.
    misplaced = [each for each in args.images if "=" in str(each) and not each.exists()]
    args.images = [each for each in args.images if each not in misplaced]
    args.overrides = [*args.overrides, *map(str, misplaced)]
    _check(args)
    from slime_bench.segment.run import run

    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench segment", description=__doc__, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--images",
        type=user_path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folder of images (not of folders in it), or image files: png jpg webp bmp tif gif avif jp2 ppm",
    )
    add("--out", type=user_path, required=True, metavar="FOLDER", help="receives the results")
    add("--image", type=user_path, action="append", default=[], metavar="FILE", help="annotated image; may be repeated")
    add("--mask", type=user_path, action="append", default=[], metavar="FILE", help="its mask; once for each --image")
    add(
        "--support", type=user_path, metavar="FOLDER", help="annotated images in a folder: images/ and labels/, or flat"
    )
    add("--classes", metavar="YAML|NAMES", help="what the values of the mask mean; default: class_<index>")
    add(
        "--embeddings", "--state", type=user_path, metavar="FILE",
        help="learning: also save the embeddings here; otherwise: use these (a trial's state.safetensors will do)",
    )  # fmt: skip
    add("--device", default="auto", choices=DEVICES, help="default: the GPU where there is one")
    add("--seed", type=int, help="of the random draws; default 0")
    add("--preset", choices=["mini", "paper"], help="mini (default): small and bundled; paper: Stable Diffusion 2.1")
    add("--weights", help="backbone folder, where it is not the one that the preset or the embeddings name")
    add("--save-scores", action="store_true", help="also write the score maps of each image, for other thresholds")
    add("--yes", action="store_true", help="take masks as they are where the command would ask about them")
    add("--force", action="store_true", help="replace embeddings and results that are there")
    add("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything heavy is imported."""
    example = "slime-bench segment --image car.jpg --mask car.png --images photos --out masks"
    if args.image or args.mask or args.support:
        return
    if args.embeddings is None:
        raise ConfigError(
            "there is nothing to segment by", path="--image, --mask", found="neither annotated images nor embeddings",
            expected="--image and --mask, or --support, or --embeddings", remedy=f"e.g. {example}",
        )  # fmt: skip
    given = [f"--{name}" for name in ("classes", "seed", "preset") if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            "the embeddings decide this", path=", ".join(given), found=f"{', '.join(given)} beside --embeddings alone",
            expected="embeddings that are reused as they are", remedy=f"leave it out, or learn anew: {example}",
        )  # fmt: skip
