"""`slime-bench embeddings`: exchange optimised embeddings with the authors' code.

export   a trial's state.safetensors -> a folder of embedding_<i>.pth
import   such a folder -> a state.safetensors, which `slime-bench segment` takes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_bench.config.schema import TrialConfig
from slime_bench.errors import BackboneError, ConfigError, ResultError
from slime_bench.methods.slime.embeddings import STATE_NAME, read_authors_folder, read_embeddings, write_authors_folder
from slime_bench.paths import user_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `export` or `import`."""
    parser = argparse.ArgumentParser(
        prog="slime-bench embeddings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    exporter = commands.add_parser("export", help="to the authors' form")
    exporter.add_argument("--state", type=user_path, required=True, help="state.safetensors of a finished trial")
    exporter.add_argument("--out", type=user_path, required=True, help="folder that receives embedding_<i>.pth")
    importer = commands.add_parser("import", help="from the authors' form")
    importer.add_argument("--from", type=user_path, required=True, dest="folder", help="folder of embedding_<i>.pth")
    importer.add_argument("--out", type=user_path, required=True, help="the state.safetensors to write")
    importer.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="of the configuration that the embeddings belong to, e.g. preset=paper data=pascal_part_car",
    )  # fmt: skip
    for each in (exporter, importer):
        each.add_argument("--force", action="store_true", help="replace what is there")
    args = parser.parse_args(argv)
    if args.command == "export":
        classes = export_state(args.state, args.out, force=args.force)
    else:
        classes = import_folder(args.folder, args.out, args.overrides, force=args.force)
    # The files do not say which class is whose, so that a wrong order can only be seen by a person.
    rows = [f"  embedding_{index}.pth  {name}" for index, name in enumerate(classes[1:])]
    print("\n".join([str(args.out), *rows]), file=sys.stderr)
    return 0


def export_state(state: Path, out: Path, *, force: bool = False) -> list[str]:
    """Write the embeddings of a state in the authors' form; returns the classes, background first. ResultError: the
    state is unreadable or holds no embeddings, or `out` is in use."""
    from slime_bench.results.state import read_state

    _, facts = read_state(state)
    classes = list(facts["classes"])
    write_authors_folder(out, read_embeddings(state), force=force)
    return classes


def import_folder(folder: Path, out: Path, overrides: Sequence[str], *, force: bool = False) -> list[str]:
    """Write a state of the authors' embeddings and of a configuration; returns the classes, background first.

    Args:
        overrides: the configuration's, as on the command line of a trial.

    Raises:
        ResultError: see `read_authors_folder`; `out` is there already. ConfigError: a configuration that cannot be, of
            another method, or one whose classes or backbone do not fit. StorageError: a full disk.
    """
    from slime_bench.config.compose import plan
    from slime_bench.results.state import write_state

    embeddings = read_authors_folder(folder)
    if out.is_dir() or (out.exists() and not force):
        raise ResultError(
            "the state is there already", path=out, found="a folder" if out.is_dir() else "a file",
            expected="the name of a new file", remedy="choose another name, or replace a file with --force",
        )  # fmt: skip
    (cfg,) = plan(list(overrides)).trials
    classes = list(cfg.build("data", shots=cfg.shots, seed=cfg.seed).classes)
    _check_fit(cfg, classes, tuple(embeddings.shape), folder)
    write_state(out, {STATE_NAME: embeddings}, cfg.plain, classes)
    return classes


def _check_fit(cfg: TrialConfig, classes: Sequence[str], shape: tuple[int, ...], folder: Path) -> None:
    """Refuse embeddings [K-1,D] of another method, class list or backbone, and settings that `segment` would refuse."""
    from slime_bench.methods.slime.config import SlimeDescription

    method = cfg.parts["method"]
    if not issubclass(method, SlimeDescription):
        raise ConfigError(
            "these embeddings are not this method's", path="method", found=cfg.method.name, expected="slime",
            remedy="use method=slime",
        )  # fmt: skip
    if shape[0] != len(classes) - 1:
        raise ConfigError(
            "these embeddings are of another class list", path=folder,
            found=f"{shape[0]} embeddings, so {shape[0] + 1} classes with the background",
            expected=f"{len(classes)} classes: {', '.join(classes)}",
            remedy="choose the data set that they were optimised for, e.g. data=pascal_part_car, or set data.classes",
        )  # fmt: skip
    facts = _backbone_facts(cfg)
    if facts is None:
        return
    if shape[1] != facts.text_width:
        raise ConfigError(
            "these embeddings are of another backbone", path=folder, found=f"a width of {shape[1]}",
            expected=f"{facts.text_width}, the width of the text encoder of {cfg.backbone.name}",
            remedy="choose the backbone that they were optimised with, e.g. backbone=sd21_base (1024) or sd15 (768)",
        )  # fmt: skip
    method.check(cfg.method, facts, classes, cfg.data.image_size)


def _backbone_facts(cfg: TrialConfig) -> Any:
    """What can be known of the backbone without its weights; None where it is not here, which a line then says."""
    from slime_bench.trial.spec import backbone_facts

    try:
        return backbone_facts(cfg)
    except BackboneError as error:
        if str(error.path).startswith("backbone."):  # a setting, which is wrong wherever the weights may be
            raise
        print(f"the width of the embeddings was not checked: {error.summary} ({error.path})", file=sys.stderr)
        return None
