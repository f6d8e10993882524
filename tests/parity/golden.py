"""A folder of the authors' golden numbers: what is in it, read from its array names, texts and configurations.

The layout is that of shared/golden/slime (its README says how each number was made). Nothing here knows a seed, a
shape, a size, a threshold or a value.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

VARIABLE = "SLIME_BENCH_GOLDEN_SLIME"
DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "golden" / "slime"

Box = tuple[int, int, int, int]

READ: set[tuple[str, str]] = set()
"""(file, array) of what has been read of the chosen folder since it was last emptied."""


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of one .npz with the texts of the .json beside it; `prefix` narrows it to the names that start so."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self._file = np.load(path)
        text = path.with_suffix(".json")
        self._texts = json.loads(text.read_text()) if text.is_file() else {}

    def __getitem__(self, name: str) -> np.ndarray:
        if self.path.parent == chosen_folder():
            READ.add((self.path.name, self.prefix + name))
        return self._file[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name[len(self.prefix) :] for name in self._file.files if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return f"{self.prefix}{name}" in self._file.files

    def at(self, prefix: str) -> Arrays:
        """The part of it whose names start with `prefix`."""
        return Arrays(self.path, self.prefix + prefix)

    def tensor(self, name: str) -> torch.Tensor:
        """The array as a tensor of its own type."""
        return torch.from_numpy(self[name].copy())

    def text(self, name: str) -> str:
        """What the descriptor says of the array; empty where it says nothing."""
        return str(self._texts.get(self.prefix + name, {}).get("meaning", ""))


@dataclass(frozen=True)
class Grid:
    """Test patches: `per_side` x `per_side` squares of `patch` pixels. `name` is the arrays' prefix."""

    name: str
    per_side: int
    patch: int


@dataclass(frozen=True)
class Run:
    """One recorded prediction of a grid: gate `threshold`, side `size` of the output; `name` is the arrays' prefix."""

    name: str
    threshold: float
    size: int


@dataclass(frozen=True)
class InStep:
    """Settings of the prediction that a training step makes for its log."""

    per_side: int
    patch: int
    threshold: float
    timestep: int


class Golden:
    """A golden folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def flavours(self) -> list[str]:
        """Names of the U-Nets: the folders unet_<name>."""
        return sorted(path.name.removeprefix("unet_") for path in self.folder.glob("unet_*") if path.is_dir())

    @cached_property
    def inputs(self) -> Arrays:
        return Arrays(self.folder / "inputs.npz")

    @cached_property
    def image(self) -> torch.Tensor:
        """The image as the authors' model saw it, float32 [1,3,S,S] in [0,1]."""
        return self.inputs.tensor("image_u8")[None].float() / 255

    @property
    def side(self) -> int:
        """S, pixels."""
        return int(self.image.shape[-1])

    def masks(self) -> dict[str, torch.Tensor]:
        """All label maps of inputs.npz, int64 [S',S']."""
        return {name: self.inputs.tensor(name).long() for name in self.inputs if name.startswith("mask")}

    def full_mask(self) -> torch.Tensor:
        """The label map at the image's size, int64 [S,S]."""
        return next(mask for mask in self.masks().values() if mask.shape[-1] == self.side)

    def mask_with(self, counts: np.ndarray) -> torch.Tensor:
        """The label map that has so many pixels of each class, int64 [S',S']."""
        wanted = counts.astype(np.int64).tolist()
        found = [m for m in self.masks().values() if m.flatten().bincount(minlength=len(wanted)).tolist() == wanted]
        if len(found) != 1:
            raise LookupError(f"{len(found)} label maps of inputs.npz have the class counts {wanted}")
        return found[0]

    def arrays(self, name: str) -> Arrays:
        """The arrays of `<name>.npz`."""
        return Arrays(self.folder / f"{name}.npz")

    def cases(self, flavour: str) -> list[str]:
        """Names of the recorded training steps."""
        return [name.removesuffix("_cross_logits") for name in self.arrays(f"{flavour}_train")
                if name.endswith("_cross_logits") and "/" not in name]  # fmt: skip

    def predictions(self, flavour: str) -> list[tuple[str, Grid]]:
        """(file, grid) of all recorded patched predictions."""
        files = [
            path.stem for path in sorted(self.folder.glob(f"{flavour}_infer*.npz")) if "_fullmap_" not in path.stem
        ]
        return [(file, grid) for file in files for grid in grids(self.arrays(file))]

    def layers(self, flavour: str) -> tuple[list[str], list[str]]:
        """Module names of the cross- and of the self-attention layers, from the recorded raw scores; a flavour without
        them has another's, and without any the bench's own choice for SD 2.1-base counts."""
        for each in [flavour, *self.flavours]:
            found = recorded_layers(self.arrays(f"{each}_train"))
            if found[0] and found[1]:
                return found
        from slime_bench.config.compose import plan

        backbone = plan(["backbone=sd21_base"]).trials[0].backbone
        return list(backbone.cross_layers), list(backbone.self_layers)

    def full_maps(self, file: str, grid: Grid) -> dict[tuple[float, int], torch.Tensor]:
        """Complete maps before the argmax that are kept in files of their own: (threshold, size) -> float [K,s,s]."""
        pattern = re.compile(rf"{re.escape(file)}_fullmap_{grid.per_side}x{grid.patch}_thr([0-9.]+)_out(\d+)")
        found = {path: pattern.fullmatch(path.stem) for path in self.folder.glob("*_fullmap_*.npz")}
        return {(float(match[1]), int(match[2])): Arrays(path).tensor("final_attention_map")
                for path, match in found.items() if match}  # fmt: skip


def recorded_layers(train: Arrays) -> tuple[list[str], list[str]]:
    """Module names of the layers whose raw scores are recorded: (attn2, attn1), in the order of the first case."""
    names = [module_name(match[1]) for name in train if (match := re.fullmatch(r"\w+_raw/(.+)/shape", name))]
    names = list(dict.fromkeys(names))
    return [n for n in names if n.endswith(".attn2")], [n for n in names if n.endswith(".attn1")]


def module_name(name: str) -> str:
    """`up_blocks[1].attentions[0]...` -> `up_blocks.1.attentions.0...`."""
    return re.sub(r"\[(\d+)\]", r".\1", name)


def grids(arrays: Arrays) -> list[Grid]:
    """The patch grids of a file of predictions."""
    found = [re.fullmatch(r"(grid(\d+)x(\d+)/)vae_eps", name) for name in arrays]
    return [Grid(match[1], int(match[2]), int(match[3])) for match in found if match]


def runs(arrays: Arrays, grid: Grid) -> list[Run]:
    """The predictions of a grid."""
    found = [re.fullmatch(rf"({re.escape(grid.name)}thr([0-9.]+)/out(\d+)/)final_mask", name) for name in arrays]
    return [Run(match[1], float(match[2]), int(match[3])) for match in found if match]


def in_step(text: str, default: InStep) -> InStep:
    """Settings of the in-step prediction, as far as a descriptor's text names them."""
    per_side = re.search(r"num_patch\w*_per_side=(\d+)", text)
    patch, gate = re.search(r"patch (\d+)", text), re.search(r"threshold (0?\.\d+|[01])", text)
    timestep = re.search(r"\bt=(\d+)", text)
    return InStep(
        int(per_side[1]) if per_side else default.per_side,
        int(patch[1]) if patch else default.patch,
        float(gate[1]) if gate else default.threshold,
        int(timestep[1]) if timestep else default.timestep,
    )


def stride(name: str, text: str) -> tuple[slice, slice]:
    """Where the strided map `name` was sampled, from its text `sampled [:, a::n, b::n]`."""
    match = re.search(r"\[:, (\d*)::(\d+), (\d*)::(\d+)\]", text)
    if match is None:
        raise LookupError(f"the descriptor of {name} does not say where the map was sampled: {text!r}")
    return slice(int(match[1] or 0), None, int(match[2])), slice(int(match[3] or 0), None, int(match[4]))


def pixels(text: str) -> list[tuple[int, int]]:
    """The pixels `(y,x)` that a text names."""
    return [(int(y), int(x)) for y, x in re.findall(r"\((\d+),\s*(\d+)\)", text)]


def shrink(boxes: list[Box], factor: int) -> list[Box]:
    """Boxes in a frame that is `factor` times smaller; the authors floor every edge."""
    return [(y0 // factor, y1 // factor, x0 // factor, x1 // factor) for y0, y1, x0, x1 in boxes]


def recorded(folder: Path) -> set[tuple[str, str]]:
    """(file, array) of everything in a folder."""
    return {(path.name, name) for path in folder.glob("*.npz") for name in np.load(path).files}


def chosen_folder() -> Path:
    """The folder that the environment names, or the one beside the checkout."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)
