"""The second paper's maps, InfoScore and IoU written out plainly in numpy, float64. An oracle for the tensor code.

Written from the README of shared/golden/infoscore (sections 2, 3 and 6) alone: one image at a time, sums as loops where
that makes the formula easier to see. It shares no line with `slime_bench` and uses no torch.

Shapes: P prompts, H heads, T tokens, M keys of which the first is the image's [CLS], h x w patches, C classes,
L layers, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Size = tuple[int, int]
Span = tuple[int, int]


def token_sum(scores: Array, mask: Array, first_patch: int = 1) -> Array:
    """Section 2, steps 1-2: a[p,k] = sum over unmasked t of max over heads of s[p,h,t,k]; [P,H,T,M] -> [P,M-1]."""
    prompts, _, tokens, _ = scores.shape
    strongest = np.asarray(scores, np.float64).max(axis=1)[:, :, first_patch:]
    sums = np.zeros((prompts, strongest.shape[-1]))
    for p in range(prompts):
        for t in range(tokens):
            if mask[p, t]:
                sums[p] += strongest[p, t]
    return sums


def matching(probabilities: Array) -> Array:
    """Step 3: r[p] = max over all T positions, padding included; [P,T] -> [P]."""
    return np.asarray(probabilities, np.float64).max(axis=1)


def prompt_map(sums: Array, match: Array) -> Array:
    """Step 4: w[p,k] = r[p] softmax over prompts of a[.,k]; [P,N] -> [P,N]."""
    weights = np.exp(sums - sums.max(axis=0, keepdims=True))
    return match[:, None] * weights / weights.sum(axis=0, keepdims=True)


def class_map(maps: Array, spans: Sequence[Span]) -> Array:
    """Step 5: class 0 is the sum over its span, others the maximum; [P,N] -> [C,N]."""
    return np.stack([maps[a:b].sum(axis=0) if k == 0 else maps[a:b].max(axis=0) for k, (a, b) in enumerate(spans)])


def bilinear(old: int, new: int) -> Array:
    """Weights [new, old] with align_corners: the first and last samples of both rows lie on each other."""
    weights = np.zeros((new, old))
    for index in range(new):
        at = index * (old - 1) / (new - 1) if new > 1 else 0.0
        low = min(int(at), old - 1)
        high = min(low + 1, old - 1)
        weights[index, low] += 1 - (at - low)
        weights[index, high] += at - low
    return weights


def enlarge(maps: Array, grid: Size, size: Size) -> Array:
    """Bilinear with align_corners: [C,h*w] -> [C,H,W]."""
    rows, columns = bilinear(grid[0], size[0]), bilinear(grid[1], size[1])
    return np.stack([rows @ each.reshape(grid) @ columns.T for each in maps])


def unary(layers: Sequence[Array], grid: Size, size: Size) -> Array:
    """Step 6: mean of the enlarged class maps of the layers, divided once by the sum over classes (at least 1e-12)."""
    mean = np.mean([enlarge(each, grid, size) for each in layers], axis=0)
    return mean / np.maximum(mean.sum(axis=0), 1e-12)


def shares(maps: Array, grid: Size, size: Size) -> Array:
    """Section 3: enlarged prompt maps over their sum (at least 1e-6), each value at least 1e-6; [P,h*w] -> [P,H,W]."""
    large = enlarge(maps, grid, size)
    return np.maximum(large / np.maximum(large.sum(axis=0), 1e-6), 1e-6)


def marginal(maps: Array, grid: Size, size: Size) -> Array:
    """Mean of `shares` over all pixels; [P]."""
    return shares(maps, grid, size).mean(axis=(1, 2))


def entropy(distribution: Array) -> float:
    """Natural logarithm of at least 1e-6; [P] -> a number."""
    return float(-sum(p * np.log(max(p, 1e-6)) for p in distribution))


@dataclass(frozen=True)
class Scores:
    """Per layer, [L]; the moments are [L,P]; `ranking` holds the layers' places, best first."""

    image_entropy: Array  # [N,L]
    mean_image_entropy: Array
    mean: Array
    std: Array
    dataset_entropy: Array
    cov: Array
    ratio: Array
    score: Array
    ranking: list[int]


def infoscore(marginals: Array) -> Scores:
    """Section 3 on marginals [N,L,P]; two passes over the images, population standard deviation, sum over prompts."""
    marginals = np.asarray(marginals, np.float64)
    images, layers, _ = marginals.shape
    entropies = np.array([[entropy(marginals[n, layer]) for layer in range(layers)] for n in range(images)])
    mean = marginals.sum(axis=0) / images
    std = np.sqrt(((marginals - mean) ** 2).sum(axis=0) / images)
    of_all = np.array([entropy(each) for each in mean])
    cov = (std / mean).sum(axis=1)
    ratio = of_all / entropies.mean(axis=0)
    score = ratio * cov
    ranking = sorted(range(layers), key=lambda layer: (-score[layer], layer))
    return Scores(entropies, entropies.mean(axis=0), mean, std, of_all, cov, ratio, score, ranking)


def pixel_counts(prediction: NDArray, label: NDArray, classes: int, ignore: int = 255) -> tuple[Array, Array, Array]:
    """Section 6, one image: intersection, union and label pixels of each class, [C] each.

    A label outside 0..C-1 other than `ignore` stays valid: it is in the union of the predicted class alone.
    """
    valid = label != ignore
    prediction, label = prediction[valid], label[valid]
    counts = np.zeros((3, classes))
    for k in range(classes):
        both = (prediction == k) & (label == k)
        counts[0, k] = both.sum()
        counts[1, k] = (prediction == k).sum() + (label == k).sum() - both.sum()
        counts[2, k] = (label == k).sum()
    return counts[0], counts[1], counts[2]


def iou(intersections: Array, unions: Array) -> tuple[NDArray[np.float32], float]:
    """Section 6, per class over the set and the mean over all classes: counts [N,C] are added in float32, a class that
    is absent from labels and predictions is 0."""
    total = np.zeros((2, intersections.shape[1]), np.float32)
    for both, either in zip(intersections, unions, strict=True):
        total += np.stack([both, either]).astype(np.float32)
    per_class = total[0] / (total[1] + np.float32(1e-16))
    return per_class, float(per_class.astype(np.float64).mean())
