"""`slime-bench figure`: SLiMe's figures on the mini world, with a picture and a number; or a grid of your own images.

bench        slime-bench figure 5        of the finished trials of experiment=figure5; make figure-5 runs them
own images   slime-bench figure --support car.jpg --mask car.png --queries photos --methods slime,feature_probe
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from slime_bench.config.read import nearest
from slime_bench.errors import ConfigError
from slime_bench.paths import config_dir, user_path
from slime_bench.trial.device import DEVICES

_EPILOG = """\
results    grid.png and grid.pdf; of a figure of the bench also its tables, and share.* or size.* where it has such
           numbers (default: <outputs>/reports/figure<N>; the folder `figure` for your own images)
masks      as slime-bench segment takes them; --classes names their values
overrides  of the configuration, e.g. seed=0 for a part of the trials, preset=paper for your own images
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what is asked for; returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    if args.figure is not None and "=" in args.figure:
        args.overrides, args.figure = [args.figure, *args.overrides], None
    if args.queries is not None:  # the option takes all that follows it
        misplaced = [each for each in args.queries if "=" in str(each) and not each.exists()]
        args.queries = [each for each in args.queries if each not in misplaced]
        args.overrides = [*args.overrides, *map(str, misplaced)]
    own = [name for name in ("support", "mask", "queries", "methods", "classes") if getattr(args, name) is not None]
    if args.figure is None:
        _check_own(args)
        from slime_bench.figures.own import run_own

        return run_own(args)
    if own:
        raise ConfigError(
            "these do not go together", path=f"--{own[0]}", found=f"figure {args.figure} beside --{own[0]}",
            expected="a figure of the bench, or a grid of your own images", remedy="leave out one of the two",
        )  # fmt: skip
    number = known_figure(args.figure)
    from slime_bench.figures.bench import run_figure

    return run_figure(number, args.overrides, args.outputs, args.out)


def figures() -> list[int]:
    """Numbers of the figures that are experiments: files of conf/experiment."""
    names = [path.stem.removeprefix("figure") for path in (config_dir() / "experiment").glob("figure*.yaml")]
    return sorted(int(name) for name in names if name.isdecimal())


def known_figure(text: str) -> int:
    """The number of a figure.

    Raises:
        ConfigError: there is no such experiment.
    """
    known = [str(number) for number in figures()]
    name = text.lower().removeprefix("figure").strip("-_ ")
    if name not in known:
        close = nearest(name, known, count=1)
        raise ConfigError(
            "there is no such figure", path="figure", found=text, expected=f"one of {', '.join(known)}",
            remedy=f"e.g. slime-bench figure {close[0] if close else known[0]}; or --support, --mask and --queries for "
            "your own images",
        )  # fmt: skip
    return int(name)


def _check_own(args: argparse.Namespace) -> None:
    missing = [name for name in ("support", "mask", "queries") if not getattr(args, name)]
    if missing:
        raise ConfigError(
            "there is nothing to draw", path=", ".join(f"--{name}" for name in missing), found="nothing",
            expected="the number of a figure, or --support, --mask and --queries",
            remedy="e.g. slime-bench figure 5, or slime-bench figure --support car.jpg --mask car.png --queries photos "
            "--methods slime,feature_probe",
        )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench figure", description=__doc__, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("figure", nargs="?", help=f"number of a figure: {', '.join(map(str, figures()))}")
    add("--outputs", type=user_path, help="folder with runs/, where it is not the configuration's")
    add("--out", type=user_path, help="folder for the files")
    own = parser.add_argument_group("your own images")
    add = own.add_argument
    add("--support", type=user_path, metavar="FILE", help="the annotated image")
    add("--mask", type=user_path, metavar="FILE", help="its mask")
    add("--queries", type=user_path, nargs="+", metavar="PATH", help="folder of images, or image files")
    add("--methods", metavar="NAMES", help="with commas; default slime,feature_probe")
    add("--classes", metavar="YAML|NAMES", help="what the values of the mask mean; default: class_<index>")
    add("--device", default="auto", choices=DEVICES, help="default: the GPU where there is one")
    add("--preset", choices=["mini", "paper"], help="mini (default): small and bundled; paper: Stable Diffusion 2.1")
    add("--seed", type=int, help="of the random draws; default 0")
    add("--yes", action="store_true", help="take the mask as it is where the command would ask about it")
    add("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    return parser
