"""SegDDPM's pixel classifiers: M small networks in stacked tensors, their training and their vote. Pure functions.

Each network is Linear, ReLU, BatchNorm, Linear, ReLU, BatchNorm, Linear (Baranchuk et al., ICLR 2022, section 4; the
order of the three is that of the authors' code). As the networks never meet, M of them are one batched product.

Shapes: M networks, D features of a pixel, C classes, P pixels, N labelled pixels of the support.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Networks = dict[str, Tensor]
"""`<l>.weight` [M,out,in] and `<l>.bias` [M,out] of the linear layers l = 0, 1, 2; `<l>.gain`, `<l>.shift`, `<l>.mean`
and `<l>.variance` [M,out] of the batch normalisation after the first two. All float32."""

IGNORE: Final = 255
BATCH: Final = 64
"""Pixels of a batch."""
LEAST_PIXELS: Final = 20
"""A class with fewer pixels in a support image is ignored there."""
LEAST_EPOCHS: Final = 4
"""Epochs before the stopping rule looks at any loss."""
PATIENCE: Final = 50
"""Batches in a row that may fail to lower the best loss."""
MOST_EPOCHS: Final = 100
RATE: Final = 1e-3
_HIDDEN: Final = 2
_RUNNING: Final = (".mean", ".variance")


def widths(features: int, classes: int) -> tuple[int, ...]:
    """D, the two hidden widths and C: 128 and 32, from 30 classes on 256 and 128."""
    return (features, *((128, 32) if classes < 30 else (256, 128)), classes)


def drawn(sizes: Sequence[int], streams: Sequence[torch.Generator]) -> Networks:
    """One network of widths `sizes` for each stream, on the CPU: weights normal(0, 0.02), biases 0.

    The numbers are those that torch.nn.Linear and the authors' start draw from a stream one after the other; Linear's
    own start is overwritten.
    """
    found: Networks = {}
    pairs = list(itertools.pairwise(sizes))
    weights = []
    for stream in streams:
        torch.rand(sum(into * out + out for into, out in pairs), generator=stream)
        weights.append([torch.empty(out, into).normal_(0, 0.02, generator=stream) for into, out in pairs])
    for place, (_, out) in enumerate(pairs):
        shape = (len(streams), out)
        found[f"{place}.weight"] = torch.stack([each[place] for each in weights])
        found[f"{place}.bias"] = torch.zeros(shape)
        if place < _HIDDEN:
            found |= {f"{place}.{name}": torch.ones(shape) for name in ("gain", "variance")}
            found |= {f"{place}.{name}": torch.zeros(shape) for name in ("shift", "mean")}
    return found


def order(count: int, stream: torch.Generator) -> Iterator[Tensor]:
    """A new order of `count` pixels for each epoch, int64 [count], as a shuffling DataLoader draws it."""
    while True:
        torch.empty((), dtype=torch.int64).random_(generator=stream)  # the seed for a loader's worker processes
        seed = torch.empty((), dtype=torch.int64).random_(generator=stream)
        yield torch.randperm(count, generator=torch.Generator().manual_seed(int(seed)))


def logits(networks: Networks, features: Tensor, training: bool = False) -> Tensor:
    """Features float32 [M,D,P], of each network's own pixels -> float32 [M,C,P].

    Args:
        training: normalise by the pixels at hand, and move the running statistics in place.
    """
    return after_first(networks, torch.baddbmm(networks["0.bias"][..., None], networks["0.weight"], features), training)


def after_first(networks: Networks, hidden: Tensor, training: bool = False) -> Tensor:
    """What follows the first linear layer: its outputs float32 [M,h,P] -> logits float32 [M,C,P]."""
    for place in range(_HIDDEN):
        own = {name: networks[f"{place}.{name}"].flatten() for name in ("mean", "variance", "gain", "shift")}
        flat = F.batch_norm(  # channel by channel, of all networks side by side
            torch.relu(hidden).flatten(0, 1)[None],
            own["mean"], own["variance"], own["gain"], own["shift"], training=training,
        )  # fmt: skip
        weight, bias = networks[f"{place + 1}.weight"], networks[f"{place + 1}.bias"]
        hidden = torch.baddbmm(bias[..., None], weight, flat[0].unflatten(0, (len(weight), -1)))
    return hidden


def first_of_maps(networks: Networks, maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """The first linear layer on hypercolumns that are never made: float32 [M,h,P], the P pixels of `grid` row by row.

    Resizing is linear and acts on each channel: W [r(x_1); r(x_2); ...] + b = r(W_1 x_1) + r(W_2 x_2) + ... + b. So
    maps are multiplied on their own grid, all of one grid together, and M h channels are resized for each grid; by two
    matrices, rows and columns, which on a CPU is five times as fast as torch's own way.

    Args:
        maps: of one image, float32 [C_l,h_l,w_l], whose C_l sum to D.
    """
    weight, groups = networks["0.weight"], dict[tuple[int, int], list[tuple[Tensor, Tensor]]]()
    for part, columns in zip(maps, weight.split([len(each) for each in maps], dim=2), strict=True):
        groups.setdefault((int(part.shape[1]), int(part.shape[2])), []).append((part, columns))
    whole = networks["0.bias"][..., None, None]
    for own, members in groups.items():
        parts, columns = torch.cat([each for each, _ in members]), torch.cat([each for _, each in members], dim=2)
        here = (columns.flatten(0, 1) @ parts.flatten(1)).unflatten(1, own).unflatten(0, weight.shape[:2])
        down, across = (_bilinear(*lengths, here) for lengths in zip(own, grid, strict=True))
        whole = whole + down @ (here @ across.T)
    return whole.flatten(2)


def _bilinear(length: int, wanted: int, like: Tensor) -> Tensor:
    """The matrix [wanted,length] of bilinear resizing along one axis, half-pixel centres, of `like`'s type."""
    unit = torch.eye(length, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size=wanted, mode="linear", align_corners=False)[0].T


def votes(found: Tensor) -> Tensor:
    """Share of the networks for each class: logits float [M,C,P] -> float32 [C,P]. Its argmax, the first of equal ones,
    is the majority, on a tie the smallest label."""
    labels = found.max(dim=1).indices
    return torch.stack([(labels == each).float().mean(0) for each in range(found.shape[1])])


def training_labels(labels: Tensor, classes: int) -> Tensor:
    """Label maps int64 [k,S,S] in which a class of an image is ignored where it has 1 to 19 pixels."""
    kept = labels.clone()
    for image in kept:
        counts = image[image != IGNORE].bincount(minlength=classes)
        for rare in ((counts > 0) & (counts < LEAST_PIXELS)).nonzero().flatten():
            image[image == rare] = IGNORE
    return kept


class Fitted(NamedTuple):
    """Trained networks, and the loss of every batch of each, which ends with the batch that it stopped at."""

    networks: Networks
    losses: list[list[float]]


def fit(
    start: Networks, features: Callable[[Tensor], Tensor], labels: Tensor, orders: Sequence[Iterator[Tensor]]
) -> Fitted:
    """Train M networks side by side, each on its own order of the pixels and until its own stop.

    Cross-entropy on batches of 64 pixels, the last incomplete one left out; Adam. From the fifth epoch on the loss of a
    batch either is below the best one seen since, or a failure; a network stops at the 51st failure in a row, or after
    100 epochs.

    Args:
        start: untrained; unchanged. features: rows int64 [R] -> float32 [R,D]. labels: int64 [N], N >= 64.
        orders: the order of the rows in each epoch, int64 [N], for each network.
    """
    count, device = len(labels) // BATCH * BATCH, labels.device
    active = list(range(len(orders)))
    networks = {name: value.to(device, copy=True).requires_grad_(_learned(name)) for name, value in start.items()}
    optimiser = _adam(networks)
    losses: list[list[float]] = [[] for _ in orders]
    best, failures = [math.inf] * len(orders), [0] * len(orders)
    done: dict[int, Networks] = {}

    def leave(stopped: Sequence[int]) -> None:
        for index in stopped:
            done[index] = _kept(networks, [active.index(index)])

    for epoch in range(MOST_EPOCHS):
        rows = torch.stack([next(orders[index])[:count] for index in active]).to(device)
        for begin in range(0, count, BATCH):
            batch = rows[:, begin : begin + BATCH]
            x = features(batch.flatten()).unflatten(0, batch.shape).transpose(1, 2)  # [M,D,64]
            optimiser.zero_grad()
            loss = F.cross_entropy(logits(networks, x, training=True), labels[batch], reduction="none").mean(1)
            loss.sum().backward()
            optimiser.step()
            for index, value in zip(active, loss.tolist(), strict=True):
                losses[index].append(value)
                if epoch >= LEAST_EPOCHS:
                    better = value < best[index]
                    best[index], failures[index] = (value, 0) if better else (best[index], failures[index] + 1)
            stopped = [index for index in active if failures[index] > PATIENCE]
            if stopped:
                leave(stopped)
                places = [place for place, index in enumerate(active) if index not in stopped]
                active = [active[place] for place in places]
                if not active:
                    break
                rows = rows[places]
                networks, optimiser = _narrowed(networks, optimiser, places)
        if not active:
            break
    leave(active)
    return Fitted(together([done[index] for index in range(len(orders))]), losses)


def together(parts: Sequence[Networks]) -> Networks:
    """Several stacks as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _learned(name: str) -> bool:
    return not name.endswith(_RUNNING)


def _kept(networks: Networks, places: Sequence[int]) -> Networks:
    return {name: value.detach()[list(places)] for name, value in networks.items()}


def _adam(networks: Networks) -> torch.optim.Adam:
    return torch.optim.Adam([value for name, value in networks.items() if _learned(name)], lr=RATE, fused=True)


def _narrowed(
    networks: Networks, optimiser: torch.optim.Adam, places: Sequence[int]
) -> tuple[Networks, torch.optim.Adam]:
    """Some of the networks, with their part of the optimiser's state."""
    fewer = {name: value.requires_grad_(_learned(name)) for name, value in _kept(networks, places).items()}
    fresh = _adam(fewer)
    for name, value in fewer.items():
        if _learned(name):
            state = optimiser.state[networks[name]]
            fresh.state[value] = {key: each[list(places)] if each.ndim else each for key, each in state.items()}
    return fewer, fresh
