"""SLiMe's settings, and all that is known of it before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion
from slime_bench.config.parts import located
from slime_bench.config.schema import Natural, NotNegative, Positive
from slime_bench.errors import ConfigError
from slime_bench.methods.description import MethodDescription
from slime_bench.methods.slime.protocol import SlimeProtocol

Box = tuple[int, int, int, int]
"""(y0, y1, x0, x1) in pixels, the ends excluded."""


@dataclass
class LossWeights:
    """Weights of the loss terms in Eq. 8, beside the cross-entropy's 1.

    Args:
        alpha: of the WAS loss. beta: of the diffusion loss. A term of weight 0 is not computed.
    """

    alpha: NotNegative = 1.0
    beta: NotNegative = 0.005


@dataclass
class Start:
    """What the embeddings start from.

    Args:
        kind: `words`: `word` once per class; `class_names`: each class's own name; `random`: normal, with the spread of
            the text encoder's output; `file`: the embeddings at `path`.
        word: empty for the empty prompt. It also stands behind the class tokens in a prompt of the kinds `random` and
            `file`.
        path: for `file`: a state.safetensors of this bench, or a folder of the authors' embedding_<i>.pth.
    """

    kind: Literal["words", "class_names", "random", "file"] = "words"
    word: str = "part"
    path: str | None = field(default=None, metadata=located("start"))


@dataclass
class SlimeConfig:
    """Settings of SLiMe.

    Args:
        name: in tables and folder names.
        epochs: passes over the support set; 0 leaves the embeddings at their start.
        max_steps: ends the optimisation after so many steps, where that is earlier.
        lr: of Adam.
        loss_weights: of the terms of Eq. 8.
        t_opt: smallest and largest timestep in training, both included.
        t_test: timestep at test time.
        start: what the embeddings start from.
        maps: score maps at test time: `was`, or the `cross` maps alone (Table 1).
        train_map_size: side H'' of the maps in training.
        patch_size: side of a test patch in pixels of the image; null for the whole image.
        patches_per_side: test patches along a side; each is resized to the backbone's image size.
    """

    name: str = "slime"
    epochs: Natural = 200
    max_steps: Positive | None = None
    lr: NotNegative = 0.1
    loss_weights: LossWeights = field(default_factory=LossWeights)
    t_opt: Annotated[list[int], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [5, 100])
    t_test: Natural = 100
    start: Start = field(default_factory=Start)
    maps: Literal["was", "cross"] = "was"
    train_map_size: Positive = 64
    patch_size: Positive | None = None
    patches_per_side: Positive = 1


class SlimeDescription(MethodDescription):
    """SLiMe without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.slime.method.Slime"
    Config = SlimeConfig
    Protocol = SlimeProtocol
    Backbone = StableDiffusion
    may_differ = ("lr", "loss_weights", "t_opt", "t_test", "start", "maps")

    @classmethod
    def check(
        cls,
        config: SlimeConfig,
        backbone: BackboneFacts | None,
        classes: Sequence[str],
        image_size: int,
        shots: int = 1,
    ) -> None:
        """See `check_settings`; also the width of embeddings that come from a file."""
        if backbone is None:
            return  # left to the constructor, which has the loaded backbone
        check_settings(config, classes, backbone.num_tokens, backbone.num_timesteps, image_size)
        if config.start.path is not None:
            check_shape(_embeddings(config).shape, (len(classes) - 1, backbone.text_width), config.start.path)

    @classmethod
    def fingerprints(cls, config: SlimeConfig) -> dict[str, str]:
        """`start`: sha256 of the embeddings that come from a file."""
        if config.start.path is None:
            return {}
        return {"start": hashlib.sha256(_embeddings(config).contiguous().numpy().tobytes()).hexdigest()}


def _embeddings(config: SlimeConfig) -> Any:
    """Those that `config.start.path` points to, float32 [K-1,D]."""
    from slime_bench.methods.slime.embeddings import read_embeddings  # with torch, which only such a trial waits for

    return read_embeddings(str(config.start.path))


def check_shape(found: Sequence[int], expected: Sequence[int], path: str) -> None:
    """Refuse embeddings [K-1,D] of another shape.

    Raises:
        ConfigError: names `path`.
    """
    if tuple(found) != tuple(expected):
        raise ConfigError(
            "these embeddings are of another class list or backbone", path=path, found=list(found),
            expected=list(expected), remedy="use the classes and the backbone that they were optimised with",
        )  # fmt: skip


def patch_boxes(size: tuple[int, int], patch: int, per_side: int) -> list[Box]:
    """`per_side` x `per_side` evenly spread square patches of an image of `size` = (H, W), row by row; they may
    overlap. The stride is rounded down, as in the authors' code.

    Raises:
        ConfigError: a patch is larger than the image.
    """
    if patch > min(size):
        raise ConfigError(
            "a test patch is larger than the image", path="method.patch_size", found=patch,
            expected=f"at most {min(size)}", remedy="lower method.patch_size, or raise data.image_size",
        )  # fmt: skip
    rows, columns = ([i * ((length - patch) // max(1, per_side - 1)) for i in range(per_side)] for length in size)
    return [(y, y + patch, x, x + patch) for y in rows for x in columns]


def check_settings(
    config: SlimeConfig, classes: Sequence[str], num_tokens: int, num_timesteps: int, image_size: int | None = None
) -> None:
    """What is bound to go wrong by the numbers alone.

    Args:
        num_tokens, num_timesteps: of the backbone's prompt and of its schedule. image_size: side of the test images in
            pixels, None where it is not there yet.

    Raises:
        ConfigError: more classes than tokens, timesteps outside the schedule, patches that are half described or larger
            than the image, a start from a file without a path or the reverse.
    """
    if len(classes) > num_tokens:
        raise ConfigError(
            "more classes than text tokens", path="data.classes", found=len(classes), expected=f"at most {num_tokens}",
            remedy="merge classes: every class owns one token of the prompt",
        )  # fmt: skip
    low, high = config.t_opt
    if not 0 <= low <= high < num_timesteps:
        raise ConfigError(
            "bad range of training timesteps", path="method.t_opt", found=config.t_opt,
            expected=f"[low, high] with 0 <= low <= high < {num_timesteps}", remedy="e.g. method.t_opt=[5,100]",
        )  # fmt: skip
    if config.t_test >= num_timesteps:
        raise ConfigError(
            "test timestep outside the schedule", path="method.t_test", found=config.t_test,
            expected=f"0 to {num_timesteps - 1}", remedy="e.g. method.t_test=100",
        )  # fmt: skip
    if (config.start.kind == "file") != (config.start.path is not None):
        raise ConfigError(
            "the start of the embeddings is half described", path="method.start.path",
            found=f"kind {config.start.kind}, path {config.start.path}", expected="a path for the kind `file` alone",
            remedy="e.g. method.start.kind=file method.start.path=checkpoints/car",
        )  # fmt: skip
    size, count, summary, expected = config.patch_size, config.patches_per_side, "", ""
    if size is None and count > 1:
        summary, expected = "test patches are half described", "both, or neither"
    elif size is not None and image_size is not None:
        row = [box[2:] for box in patch_boxes((image_size, image_size), size, count)[:count]]
        # The stride is rounded down, so that the last patch may end too early.
        if row[-1][1] < image_size or any(right < left for (_, right), (left, _) in pairwise(row)):
            summary = "the test patches leave gaps in the image"
            expected = f"patches that cover {image_size} pixels along a side"
    if summary:
        raise ConfigError(
            summary, path="method.patch_size", found=f"patch_size={size}, patches_per_side={count}", expected=expected,
            remedy="e.g. method.patch_size=400 method.patches_per_side=2 for images of 512 pixels",
        )  # fmt: skip
