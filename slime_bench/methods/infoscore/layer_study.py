"""How good a guide InfoScore is: mIoU of every layer alone, of ensembles, and the rank correlation. Pure functions.

Selections of layers are compared on the same images; Figures 3 and 5 of the paper plot these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from slime_bench.methods.infoscore.score import Ranking, entropy, scores
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.iou import IouCounts, mean_iou, reduction
from slime_bench.metrics.ratio import ratio_terms
from slime_bench.seeding import numpy_generator

Selection = tuple[str, ...]
PERCENT = 95
"""Of the bootstrap distribution, inside the interval."""


def selections(ranking: Ranking, pairs: int, seed: int) -> dict[str, Selection]:
    """Named sets of layers: every layer alone (by its name), `top-1` to `top-L` of the ranking, `last`, `middle`,
    `all`, and up to `pairs` other pairs, `pair-0` and on, drawn with the seed.

    A pair differs from the two best layers; there are at most L(L-1)/2 - 1 of them.
    """
    layers, order = ranking.layers, ranking.order()
    found: dict[str, Selection] = {name: (name,) for name in layers}
    found |= {f"top-{count}": order[:count] for count in range(1, len(layers) + 1)}
    found |= {"last": layers[-1:], "middle": (layers[len(layers) // 2],), "all": layers}
    others = [pair for pair in combinations(layers, 2) if set(pair) != set(order[:2])]
    drawn = numpy_generator(seed, "layer pairs").permutation(len(others))[:pairs]
    return found | {f"pair-{place}": others[index] for place, index in enumerate(sorted(drawn))}


def study(
    counts: Mapping[str, IouCounts], chosen: Mapping[str, Selection], ranking: Ranking, marginals: torch.Tensor,
    same_images: bool, resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """All numbers of the study, under every convention of the metric; mIoU in percent.

    Args:
        counts: of the test images, by the selection's name. chosen: the selections. ranking: over the rank images.
        marginals: of the rank images, float [N,L,C]. same_images: whether these are the test images, in their order.
        resamples: of the bootstrap over images. seed: of it.

    Returns:
        JSON: `layers`, `info_score`, `info_rank` (1 = best), `conventions`: name -> `single`, `single_rank`, `rho` and
        its `interval` (null where a rank is undefined), `selections`: name -> {`layers`, `miou`}.
    """
    images = next(iter(counts.values())).num_images
    rng = numpy_generator(seed, "layer bootstrap")
    tested = draws(rng, images, resamples)
    ranked = tested if same_images else draws(rng, len(marginals), resamples)
    scores_of = resampled_scores(marginals, ranked).tolist()
    conventions = {}
    for convention in CONVENTION_RULES:
        values = {name: percent(each, convention) for name, each in counts.items()}
        single = [values[name] for name in ranking.layers]
        mious = torch.stack([resampled_miou(counts[name], tested, convention) for name in ranking.layers], dim=1)
        rhos = [correlation(*pair) for pair in zip(scores_of, mious.tolist(), strict=True)]
        defined = [rho for rho in rhos if rho is not None]
        conventions[convention] = {
            "single": single,
            "single_rank": ranks(single),
            "rho": correlation(ranking.score, single),
            "interval": _interval(defined) if defined else None,
            "factors": {name: correlation(getattr(ranking, name), single) for name in ("entropy_ratio", "cov")},
            "above_pairs": _above_pairs(counts, values, tested, convention),
            "selections": {name: {"layers": list(layers), "miou": values[name]} for name, layers in chosen.items()},
        }
    return {
        "layers": list(ranking.layers),
        "info_score": list(ranking.score),
        "info_rank": ranks(ranking.score),
        "order": list(ranking.order()),
        "rank_images": ranking.images,
        "test_images": images,
        "bootstrap": {
            "resamples": resamples,
            "percent": PERCENT,
            "over": "the images, ranked and tested alike" if same_images else "rank images and test images, each",
        },
        "conventions": conventions,
    }


def _above_pairs(
    counts: Mapping[str, IouCounts], values: Mapping[str, float], tested: torch.Tensor, convention: str
) -> dict[str, Any] | None:
    pairs = [name for name in counts if name.startswith("pair-")]
    if not pairs:
        return None
    drawn = {name: resampled_miou(counts[name], tested, convention) for name in ("top-2", *pairs)}
    differences = drawn["top-2"] - torch.stack([drawn[name] for name in pairs]).mean(0)
    return {
        "difference": values["top-2"] - sum(values[name] for name in pairs) / len(pairs),
        "interval": _interval(differences.tolist()) if len(differences) else None,
    }


def _interval(values: Sequence[float]) -> list[float]:
    tail = (100 - PERCENT) / 2
    return [float(np.percentile(values, edge)) for edge in (tail, 100 - tail)]


def percent(counts: IouCounts, convention: str) -> float:
    """mIoU over the classes with background, in percent."""
    return 100 * mean_iou(reduction(convention)(counts))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the largest value; equal values share the mean of their ranks."""
    return [float(each) for each in rankdata([-value for value in values])]


def correlation(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """Spearman's rho; None for fewer than two layers, or where one side is constant."""
    if len(set(scores)) < 2 or len(set(values)) < 2 or not all(map(math.isfinite, values)):
        return None
    return float(spearmanr(scores, values).statistic)


def draws(rng: np.random.Generator, images: int, resamples: int) -> torch.Tensor:
    """How often each image is in each resample, float64 [R,N]; rows sum to N."""
    rows = rng.integers(images, size=(resamples, images))
    counts = [np.bincount(row, minlength=images) for row in rows]
    return torch.from_numpy(np.array(counts, dtype=np.float64).reshape(resamples, images))


def resampled_scores(marginals: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """InfoScore of every resample: marginals float [N,L,C], drawn float64 [R,N] -> float64 [R,L]."""
    values = marginals.double()
    sums = [torch.einsum("rn,n...->r...", drawn, each) for each in (entropy(values), values, values.square())]
    return scores(torch.tensor(float(len(values)), dtype=torch.float64), *sums)[-1]


def resampled_miou(counts: IouCounts, drawn: torch.Tensor, convention: str) -> torch.Tensor:
    """As `percent` of every resample, up to rounding: drawn float64 [R,N] -> float64 [R].

    Thousands of resamples cannot wait for the exact sums of the table's reductions.
    """
    terms = ratio_terms(counts.intersection.numpy(), counts.union.numpy(), counts.present.numpy(), convention)
    numerator, denominator = map(torch.from_numpy, terms)
    return 100 * ((drawn @ numerator) / (drawn @ denominator)).nanmean(dim=1)
