"""One pass of the frozen backbone for several SLiMe trials: their images stand in one batch, each with its own prompt.

The trials share backbone, classes and protocol; seed, support images, embeddings, loss weights and timesteps are each
trial's own. Nothing of one trial enters another's numbers: a pass treats the images of a batch apart, every loss is
taken of a trial's own rows, and Adam works element by element. What differs from a trial by itself is the order in
which a kernel adds up floating-point numbers.

T trials, B images of each, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import Size, resize
from slime_bench.backbones.stable_diffusion import DiffusionAttention
from slime_bench.methods.slime.inference import cross_maps, merge_patches, patch_boxes, patch_scores, to_propagate

if TYPE_CHECKING:
    from slime_bench.methods.slime.method import Slime


@dataclass(frozen=True)
class Step:
    """What one step of one trial takes of its batch.

    Attributes:
        images: float [B,3,H,W], channels in the protocol's order. label: int64 [B,H,W].
        keys: of the random draws, (id, epoch). timesteps: int64 [B].
    """

    images: torch.Tensor
    label: torch.Tensor
    keys: list[tuple[str, int]]
    timesteps: torch.Tensor


@dataclass(frozen=True)
class EmptyPrompt:
    """What the guidance batch's empty-prompt half gives; without gradient, as it holds no trained parameter.

    Attributes:
        attention: of the named layers, where the protocol makes maps of both halves. noise: float [B,4,h,w], where the
            diffusion loss is guided.
    """

    attention: DiffusionAttention | None = None
    noise: torch.Tensor | None = None


def training_terms(methods: Sequence[Slime], batches: Sequence[Mapping[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """The terms of Eq. 8 of one step of each trial; see `Slime.losses`. The step's timesteps stand under `t`.

    Args:
        methods: T trials on one backbone. batches: the batch of each, of any size.

    Returns:
        For each trial its terms, whose gradient reaches its own embeddings alone.
    """
    first, backbone = methods[0], methods[0].backbone
    steps = [method.step_of(batch) for method, batch in zip(methods, batches, strict=True)]
    counts = [len(step.images) for step in steps]
    latents, noise = _noised(methods, steps)
    timesteps = torch.cat([step.timesteps for step in steps])
    noisy, weights = backbone.add_noise(latents, noise, timesteps), [method.config.loss_weights for method in methods]
    found = backbone.attention(
        noisy,
        timesteps,
        prompts(methods, counts),
        with_noise=any(each.beta != 0 for each in weights),
        with_self=any(each.alpha != 0 for each in weights),
        propagate=first.training_cross if first.protocol.halves == "conditional" else None,
    )
    empty = first.empty_half(
        noisy,
        timesteps,
        guides=first.protocol.diffusion_loss == "guided" and any(each.beta != 0 for each in weights),
        with_self=any(each.alpha != 0 for each in weights),
    )
    nothing = [None] * len(counts)
    halves = zip(
        nothing if empty.attention is None else split(empty.attention, counts),
        nothing if empty.noise is None else empty.noise.split(counts),
        strict=True,
    )
    given = zip(methods, steps, split(found, counts), noisy.split(counts), noise.split(counts), halves, strict=True)
    terms = []
    for method, step, own, own_noisy, own_noise, half in given:
        one = method.losses(own, step.label, own_noisy, step.timesteps, own_noise, empty=EmptyPrompt(*half))
        terms.append({**one, "t": step.timesteps.float().mean()})
    return terms


def _noised(methods: Sequence[Slime], steps: Sequence[Step]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of all trials' images in one call of the encoder, and the noise to add: float [T*B,4,h,w] each."""
    if len(methods) == 1:
        return methods[0].latents(steps[0].images, "train", steps[0].keys)
    drawn = [method.draws(step.images, "train", step.keys) for method, step in zip(methods, steps, strict=True)]
    posteriors = [posterior for posterior, _ in drawn if posterior is not None]
    latents = methods[0].backbone.encode(
        torch.cat([step.images for step in steps]), torch.cat(posteriors) if posteriors else None
    )
    return latents, torch.cat([noise for _, noise in drawn])


@torch.no_grad()
def segmented(
    methods: Sequence[Slime], images: Sequence[torch.Tensor], ids: Sequence[Sequence[str]]
) -> list[torch.Tensor]:
    """Score maps of each trial's images; see `SegmentationMethod.scores`.

    The patches of all images go through the backbone together, in calls that fit its memory budget
    (`backbone.memory_gb`).

    Args:
        methods: T trials on one backbone, which cut their images into the same patches.
        images: float [B,3,H,W] of each, all of one (H, W). ids: B names of each.

    Returns:
        float [B,K,H,W] of each.
    """
    config, backbone = methods[0].config, methods[0].backbone
    frame = (int(images[0].shape[-2]), int(images[0].shape[-1]))
    boxes = [(0, frame[0], 0, frame[1])]
    if config.patch_size is not None:
        boxes = patch_boxes(frame, config.patch_size, config.patches_per_side)
    side = backbone.config.image_size
    extent = (boxes[0][1] - boxes[0][0], boxes[0][3] - boxes[0][2])
    patches = [
        torch.stack([each[:, :, y0:y1, x0:x1] for y0, y1, x0, x1 in boxes], dim=1).flatten(0, 1) for each in images
    ]
    keys = [[(name, index) for name in each for index in range(len(boxes))] for each in ids]
    made: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in methods]
    for call in calls([len(each) for each in keys], backbone.images_per_call((side, side))):
        parts = [
            (methods[place], resize(patches[place][start:stop], (side, side)), keys[place][start:stop])
            for place, start, stop in call
        ]
        for (place, _, _), one in zip(call, _patch_scores(parts, extent), strict=True):
            made[place].append(one)
    result = []
    for own, each in zip(images, made, strict=True):
        scores, passed = (torch.cat(tensors) for tensors in zip(*each, strict=True))
        batch = (len(own), len(boxes))
        result.append(merge_patches(scores.unflatten(0, batch), passed.unflatten(0, batch), boxes, frame))
    return result


def _patch_scores(
    parts: Sequence[tuple[Slime, torch.Tensor, Sequence[tuple[str, int]]]], extent: Size
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each part (its trial, patches float [P,3,S,S], their keys): score maps float [P,K,*extent], and which classes
    passed, bool [P,K]."""
    methods = [method for method, _, _ in parts]
    first, counts = methods[0], [len(patches) for _, patches, _ in parts]
    drawn = [method.query_latents(patches, keys) for method, patches, keys in parts]
    latents, noise = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
    each = [torch.full((count,), method.config.t_test) for method, count in zip(methods, counts, strict=True)]
    timesteps = torch.cat(each).to(latents.device)
    noisy = first.backbone.add_noise(latents, noise, timesteps)
    made: list[torch.Tensor] = []

    def propagated(layers: Sequence[LayerAttention], grids: Sequence[Size], size: Size) -> torch.Tensor:
        made.append(cross_maps(layers, grids, len(first.classes), size, first.protocol))
        return to_propagate(made[0], first.protocol)

    # The maps of both halves are there only when both passes are over.
    on_the_way = first.protocol.halves == "conditional" and any(method.config.maps == "was" for method in methods)
    found = first.backbone.attention(
        noisy, timesteps, prompts(methods, counts), with_noise=False, propagate=propagated if on_the_way else None
    )
    found = joined(found, first.empty_half(noisy, timesteps, guides=False).attention)
    if not made:
        propagated(found.cross, found.cross_grids, found.self_grids[0])
    cross = made[0]
    scores = []
    for method, own, own_cross in zip(methods, split(found, counts), cross.split(counts), strict=True):
        use_was = method.config.maps == "was"
        one = patch_scores(own_cross, own.self_, method.protocol, use_was, extent, spread=own.propagated)
        scores.append(one)
    return scores


def prompts(methods: Sequence[Slime], counts: Sequence[int]) -> torch.Tensor:
    """The prompt of every row, float [sum(counts),T,D]; of a single trial the one of all its rows, [1,T,D]."""
    if len(methods) == 1:
        return methods[0].text()
    return torch.cat([method.text().expand(count, -1, -1) for method, count in zip(methods, counts, strict=True)])


def split(found: DiffusionAttention, counts: list[int]) -> list[DiffusionAttention]:
    """The attention of a batch's images in parts of these sizes, which stand one after another.

    By torch's `split` and not by slices: its backward pass joins the parts' gradients once, where every slice would add
    a tensor of the whole batch's size, all zeros but for the part.
    """
    if len(counts) == 1:
        return [found]

    def tensors(whole: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        return [None] * len(counts) if whole is None else whole.split(counts)

    def layers(every: Sequence[LayerAttention]) -> list[list[LayerAttention]]:
        divided = [(each.query.split(counts), each.key.split(counts), each.scale) for each in every]
        return [
            [LayerAttention(query[part], key[part], scale) for query, key, scale in divided]
            for part in range(len(counts))
        ]

    pieces = zip(layers(found.cross), layers(found.self_), tensors(found.noise), tensors(found.propagated), strict=True)
    return [
        DiffusionAttention(cross, found.cross_grids, self_, found.self_grids, noise, spread)
        for cross, self_, noise, spread in pieces
    ]


def joined(one: DiffusionAttention, other: DiffusionAttention | None) -> DiffusionAttention:
    """Both halves' layers side by side: the mean over layers is then the mean over halves and layers."""
    if other is None:
        return one
    return DiffusionAttention(
        one.cross + other.cross,
        one.cross_grids + other.cross_grids,
        one.self_ + other.self_,
        one.self_grids + other.self_grids,
        one.noise,
    )


def calls(counts: Sequence[int], per_call: int) -> Iterator[list[tuple[int, int, int]]]:
    """The rows of T trials in calls of at most `per_call`: lists of (trial, start, stop), in order."""
    call: list[tuple[int, int, int]] = []
    free = per_call
    for place, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(count, start + free)
            call.append((place, start, stop))
            free -= stop - start
            start = stop
            if free == 0:
                yield call
                call, free = [], per_call
    if call:
        yield call
