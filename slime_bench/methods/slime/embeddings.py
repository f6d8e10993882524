"""Embeddings as files: the authors' checkpoint folders and this bench's own states, read and written. Pure functions.

The authors' code (`SLiMe-code`, `src/slime.py`) saves every trained token by itself: `embedding_0.pth` to
`embedding_{K-2}.pth`, one tensor [1,1,D] each, number i for class i + 1. Its test run takes the number of classes from
the number of `.pth` files, so a folder with any other such file is refused here.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import secrets
import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slime_bench.errors import ResultError, StorageError
from slime_bench.storage import write_atomic

STATE_NAME = "embeddings"
_FORM = "embedding_0.pth, embedding_1.pth and so on without a gap, one tensor [1,1,D] each, and no other .pth file"
_COPY = "copy the whole checkpoint again, or give the folder of another one"


def read_embeddings(path: str | Path) -> Tensor:
    """Embeddings float32 [K-1,D] of a `state.safetensors` of this bench, or of a folder of the authors' files.

    Raises:
        ResultError: see `read_authors_folder`; a state that is unreadable or holds no embeddings.
    """
    path = Path(path)
    if path.is_dir():
        return read_authors_folder(path)
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            found = file.get_tensor(STATE_NAME) if STATE_NAME in names else None
    except (OSError, SafetensorError) as error:
        names, found = [f"{type(error).__name__}: {error}"], None
    if found is None:
        raise ResultError(
            "the file holds no embeddings", path=path, found=", ".join(names) or "no tensor",
            expected=f"a state.safetensors with a tensor `{STATE_NAME}` [K-1,D], or a folder with embedding_0.pth ...",
            remedy="give the file in the folder of a trial with method=slime, or the folder of a checkpoint",
        )  # fmt: skip
    return checked(found, path)


def read_authors_folder(folder: str | Path) -> Tensor:
    """Embeddings float32 [K-1,D] of a folder of the authors' files, in the order of their numbers.

    The files are read without running anything that they say (`weights_only`).

    Raises:
        ResultError: no such folder or file, a gap in the numbering, another `.pth` file, a file that is cut short or
            holds code or no tensor [1,1,D] of real numbers, files that differ in D, a value that is not finite.
    """
    folder = Path(folder)
    names = {each.name for each in folder.glob("*.pth") if not each.name.startswith(".")}
    paths = [folder / f"embedding_{number}.pth" for number in range(len(names))]
    strangers = sorted(names - {path.name for path in paths})
    if strangers or not names:
        raise ResultError(
            "the folder is no checkpoint of the authors' code", path=folder,
            found=", ".join(strangers[:5]) or "no .pth file", expected=_FORM, remedy=_COPY,
        )  # fmt: skip
    rows = [_read_tensor(path) for path in paths]
    for path, row in zip(paths, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ResultError(
                "the embeddings are of different widths", path=path, found=f"{len(row)} numbers",
                expected=f"{len(rows[0])}, as in {paths[0].name}", remedy="use the files of one checkpoint",
            )  # fmt: skip
    return torch.stack(rows)


def write_authors_folder(folder: str | Path, embeddings: Tensor, *, force: bool = False) -> list[Path]:
    """Write embeddings float [K-1,D] in the authors' form (float32); returns the files, in the order of the classes.

    All files appear at once, or none does. What a folder holds besides embeddings is never touched.

    Args:
        force: replace the embeddings that the folder holds.

    Raises:
        ResultError: no such embeddings, or the folder is in use. StorageError: it cannot be written.
    """
    folder = Path(folder).resolve()
    embeddings = checked(embeddings, folder)
    _check_free(folder, force)
    names = [f"embedding_{index}.pth" for index in range(len(embeddings))]
    new, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{end}") for end in ("tmp", "old"))
    try:
        for name, row in zip(names, embeddings, strict=True):
            content = io.BytesIO()
            torch.save(row[None, None].clone(), content)  # a clone, as a view would bring all of its tensor along
            write_atomic(new / name, content.getvalue())
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    except (OSError, StorageError) as error:
        raise StorageError(
            "the folder cannot be written", path=folder, found=getattr(error, "found", None) or error,
            expected="a folder with the right permissions, on a disk with free space", remedy="choose another folder",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return [folder / name for name in names]


def checked(embeddings: Tensor, path: Path) -> Tensor:
    """`embeddings` as float32 [K-1,D] on the CPU, once it is sure that they are some.

    Raises:
        ResultError: not [K-1,D] with at least one row, not real numbers, or not finite; names `path`.
    """
    shape = list(embeddings.shape)
    if len(shape) != 2 or 0 in shape or not embeddings.is_floating_point():
        raise _no_embedding(path, f"a tensor {shape} of {embeddings.dtype}")
    plain = embeddings.detach().cpu().float()
    wrong = (~plain.isfinite().all(1)).nonzero().flatten().tolist()
    if wrong:
        raise ResultError(
            "the embeddings are not finite", path=path, found=f"NaN or infinity in embedding(s) {wrong[:8]}",
            expected="finite numbers", remedy="the optimisation has diverged; repeat it with a lower learning rate",
        )  # fmt: skip
    return plain


def _no_embedding(path: Path, found: str) -> ResultError:
    return ResultError(
        "this is no embedding", path=path, found=found,
        expected="real numbers: [1,1,D] in a file of the authors' code, [K-1,D] in a state", remedy=_COPY,
    )  # fmt: skip


def _read_tensor(path: Path) -> Tensor:
    """One of the authors' files as float32 [D]; nothing in the file is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles and TorchScript; what they mean is refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words go on to say how to run the code.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ResultError(
            "the file is no plain tensor and was not opened", path=path,
            found=f"a pickle that refers to {named[1]}" if named else "a pickle that torch refuses, or a damaged file",
            expected="a tensor [1,1,D] as torch.save writes it",
            remedy="do not open it by other means unless you trust its source: a pickle can run any program",
        ) from error  # fmt: skip
    except Exception as error:  # torch raises a dozen kinds on files that are cut short or of another kind
        first = str(error).split(". ")[0].splitlines()
        raise _no_embedding(path, ": ".join([type(error).__name__, *first[:1]])) from error
    if not isinstance(content, Tensor):
        raise _no_embedding(path, f"a {type(content).__name__}")
    # One number, repeated, may pretend to be a tensor of any size.
    plain = content.layout == torch.strided and content.device.type == "cpu" and content.is_contiguous()
    if not plain or content.ndim != 3 or content.shape[:2] != (1, 1):
        raise _no_embedding(path, f"{content.dtype} {list(content.shape)}, {content.layout}, on {content.device.type}")
    return checked(content[0], path)[0]


def _check_free(folder: Path, force: bool) -> None:
    """Refuse a file, and a folder that holds anything but, with `force`, embeddings to be replaced."""
    names = [folder.name] if folder.is_file() else []
    if folder.is_dir():
        names = sorted(each.name for each in folder.iterdir())
    strangers = [name for name in names if re.fullmatch(r"embedding_(0|[1-9][0-9]*)\.pth", name) is None]
    if strangers or (names and not force):
        raise ResultError(
            "the folder is in use", path=folder, found=", ".join((strangers or names)[:5]),
            expected="nothing, an empty folder, or with --force one that holds nothing but embeddings",
            remedy="choose another folder" if strangers else "choose another folder, or replace it with --force",
        )  # fmt: skip
