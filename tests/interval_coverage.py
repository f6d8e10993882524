"""How often the intervals hold the true value, on simulated test sets: the table of docs/statistics.md.

    python -m tests.interval_coverage

A world of per-image IoUs with six classes: most are well found (Beta distributions around 0.4 to 0.9), two are missed
altogether in a quarter of their images, two are in a third of the images only, and the classes of an image are easy or
hard together. Three "seeds" see the same images and differ a little. The true value is that of 200 000 images.
"""

from __future__ import annotations

import argparse
import functools

import numpy as np

from slime_bench.metrics.ratio import ratio_terms
from slime_bench.report.statistics import bounds, image_weights, nan_mean, resampled

MEANS = np.array([0.9, 0.75, 0.6, 0.4, 0.5, 0.45])
MISSED = np.array([0, 0, 0, 0, 0.25, 0.25])
PRESENT = np.array([1, 1, 1, 1, 0.33, 0.33])
SEEDS = 3
PIXELS = 4096


def world(images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection, union [S,N,K] and presence [N,K] of `images` images."""
    shape = (images, len(MEANS))
    hardness = rng.normal(0, 0.6, (images, 1))  # shared by the classes of an image
    centre = 1 / (1 + np.exp(-(np.log(MEANS / (1 - MEANS)) + hardness)))
    found = rng.beta(8 * centre, 8 * (1 - centre)) * (rng.random(shape) >= MISSED)
    iou = np.clip(found + rng.normal(0, 0.03, (SEEDS, *shape)) * (found > 0), 0, 1)
    present = rng.random(shape) < PRESENT
    # The class's share of the image varies from image to image, as `dataset` weighs by pixels.
    union = np.where(present, rng.integers(PIXELS // 20, PIXELS // 4, shape), 0)
    intersection = np.round(iou * union).astype(np.int64)
    return intersection, np.broadcast_to(union, intersection.shape), present


def averages(counts: tuple[np.ndarray, np.ndarray, np.ndarray], weights: np.ndarray, convention: str) -> np.ndarray:
    """Mean over the seeds of the average IoU in percent, for every row of `weights` [R,N]."""
    intersection, union, present = counts
    terms = [ratio_terms(intersection[seed], union[seed], present, convention) for seed in range(SEEDS)]
    return nan_mean(np.array([resampled(*each, weights)[:, -1] for each in terms]), axis=0)


@functools.cache
def true_average(convention: str) -> float:
    """Of a test set so large that it is the world itself."""
    (truth,) = averages(world(200_000, np.random.default_rng(12345)), np.ones((1, 200_000)), convention)
    return float(truth)


def coverage(images: int, repetitions: int, resamples: int, convention: str, seed: int = 0) -> tuple[float, float]:
    """Share of the repetitions whose interval holds the true average, and the intervals' mean length."""
    rng = np.random.default_rng([seed, images])
    truth = true_average(convention)
    weights = image_weights(images, resamples, seed)
    held, lengths = [], []
    for _ in range(repetitions):
        found = bounds(averages(world(images, rng), weights, convention))
        assert found is not None
        held.append(found.low <= truth <= found.high)
        lengths.append(found.high - found.low)
    return float(np.mean(held)), float(np.mean(lengths))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    print("| test images | " + " | ".join(("slime", "dataset")) + " |")
    for images in (5, 10, 15, 20, 30, 50, 100, 200):
        cells = []
        for convention in ("slime", "dataset"):
            share, length = coverage(images, options.repetitions, options.resamples, convention)
            cells.append(f"{100 * share:.1f} % (length {length:.1f})")
        print(f"| {images} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
