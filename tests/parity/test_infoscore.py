"""The second paper against numbers made by its authors' code: shared/golden/infoscore, or the folder that the
environment names.

Variable: SLIME_BENCH_GOLDEN_INFOSCORE. Weights, sizes, prompts, layers and images are whatever the folder holds; every
array of the files that a test names is compared. CRF, transform and one-shot tuning have files of their own. The end of
the run prints array, error, tolerance.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from slime_bench.attention.image_text import match_scores
from slime_bench.methods.infoscore.score import InfoScoreMetric, entropy, pixel_shares
from slime_bench.metrics.iou import IGNORE, IouCounts, intersection_union, reduce_dataset
from tests.fixtures import oracle_infoscore as oracle
from tests.parity.golden_infoscore import Arrays, Golden, chosen_folder, open_golden
from tests.parity.infoscore_pass import SCORE, UNARY, Pass, Steps, golden_blip, run
from tests.parity.table import Checks

# Bars of the README's section 7.
OUTPUT = 5e-5
SCORES, TOKEN_SUM = 1e-4, 4e-4
ITM = 1e-5
MAPS = 4e-5
NEAR_TIE = 1e-4
INFOSCORE = 1e-5  # relative
IOU = 1e-6
# Bars of our own, where it suggests none.
NORM = 1e-5  # relative, of a score tensor's L2 norm
HALF = 2**-12  # rounding of a margin below 1 that was stored as float16
TIED = NEAR_TIE  # a pixel whose best two classes are as close as that may have either label in an IoU of our own labels
APART = 10  # times the bar: how far off a wrong step must be

MODES = Golden(chosen_folder()).modes or ["none"]  # with `none` the fixture `golden` says what is missing

Start = Callable[..., Checks]
Load = Callable[[str], Pass]


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden folder of the second paper."""
    return open_golden(request)


@pytest.fixture(scope="session")
def pass_of(golden: Golden) -> Load:
    """The bench's pass of a mode, made once."""
    backbone, done = golden_blip(golden), {}

    def load(mode: str) -> Pass:
        if mode not in done:
            done[mode] = run(backbone, golden, mode)
        return done[mode]

    return load


def whole(check: Checks, want: Arrays, others: tuple[str, ...] = ()) -> None:
    """That every array of the file was compared, but for those of `others`' tests."""
    left = sorted(set(want) - want.read - set(others))
    check.exactly(f"arrays left out: {', '.join(left) or 'none'}", len(left), 0, "arrays left out")


def ratio(check: Checks, array: str, found: Tensor, expected: np.ndarray) -> None:
    """Largest relative difference of positive numbers."""
    check.absolute(f"{array}, ratio", found / torch.from_numpy(expected), torch.ones(expected.shape), INFOSCORE)


def margin(maps: Tensor) -> Tensor:
    """Best minus second-best class: float [N,C,H,W] -> [N,H,W]."""
    best = maps.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def test_the_folder_is_complete(golden: Golden) -> None:
    """Whatever else it holds: a folder without these would pass by having nothing to compare."""
    assert len(golden.modes) == 2
    for mode in golden.modes:
        assert golden.prompts(mode) and golden.spans(mode)[-1][1] == len(golden.prompts(mode))
        for file in (f"model_{mode}", f"attn_{mode}", f"unary_{mode}_layers", f"top2_{mode}", f"iou_{mode}"):
            assert golden.arrays(file), file
    for file in ("infoscore", "metric", "inputs"):
        assert golden.arrays(file), file
    assert golden.num_layers > len(golden.top) > 1


@pytest.mark.parametrize("mode", MODES)
def test_model(golden: Golden, pass_of: Load, checks: Start, mode: str) -> None:
    want, found = golden.arrays(f"model_{mode}"), pass_of(mode)
    with checks(f"model_{mode}") as check:
        check.exactly("input_ids", found.prompts.ids, want["input_ids"])
        check.exactly("attention_mask", found.prompts.mask.long(), want["attention_mask"])
        check.absolute("image_embeds", found.states, want["image_embeds"], OUTPUT)
        check.absolute("question_embeds", found.text, want["question_embeds"], OUTPUT)
        check.absolute("itm_prob_tokens", found.match, want["itm_prob_tokens"], ITM)
        check.absolute("itm_scores", found.itm, want["itm_scores"], ITM)
        whole(check, want)


@pytest.mark.parametrize("mode", MODES)
def test_scores(golden: Golden, pass_of: Load, checks: Start, mode: str) -> None:
    want, found = golden.arrays(f"attn_{mode}"), pass_of(mode)
    scores, grid = torch.stack(found.scores, 1), golden.grid  # [N,L,P,H,T,M]
    with checks(f"attn_{mode}") as check:
        check.absolute("scores", scores[: len(want["scores"])], want["scores"], SCORES)
        flat = scores.flatten(2).double()
        stats = torch.stack([flat.mean(-1), flat.std(-1, correction=0), flat.amin(-1), flat.amax(-1)], -1)
        check.absolute("scores_checksum: mean, std, min, max", stats, want["scores_checksum"][..., :4], SCORES)
        check.relative("scores_checksum: l2", flat.norm(dim=-1), want["scores_checksum"][..., 4], NORM)
        places = np.linspace(0, flat.shape[-1] - 1, want["score_slice"].shape[-1]).astype(int)
        check.absolute("score_slice", flat[..., places], want["score_slice"], SCORES)
        check.absolute("token_sum", torch.stack(found.token_sums, 1), want["token_sum"], TOKEN_SUM)
        maps = torch.stack(found.maps, 1).unflatten(-1, grid)
        check.absolute("prompt_maps", maps, want["prompt_maps"], MAPS)
        whole(check, want)


@pytest.mark.parametrize("mode", MODES)
def test_class_maps_of_single_layers(golden: Golden, pass_of: Load, checks: Start, mode: str) -> None:
    want, places = golden.arrays(f"unary_{mode}_layers"), golden.meta["slice64_flat_indices_of_CHW"]
    layers = [int(match[1]) for name in want if (match := re.fullmatch(r"unary_layer(\d+)", name))]
    found = [pass_of(mode).unary([layer]) for layer in range(golden.num_layers)]
    with checks(f"unary_{mode}_layers") as check:
        check.exactly("layers", layers, range(golden.num_layers))
        for layer in layers:
            full = want[f"unary_layer{layer}"]  # of the first images
            check.absolute(f"unary_layer{layer}", found[layer][: len(full)], full, MAPS, "unary_layer*")
        flat = torch.stack(found, 1).flatten(2)  # [N,L,C*H*W]
        stats = torch.stack([flat.double().mean(-1), flat.double().std(-1, correction=0), flat.amin(-1), flat.amax(-1)])
        ours = torch.cat([stats.movedim(0, -1), flat[..., places]], -1)
        check.absolute("checksums", ours, want["checksums"], MAPS)
        whole(check, want)


@pytest.mark.parametrize("mode", MODES)
def test_ensemble(golden: Golden, pass_of: Load, checks: Start, mode: str) -> None:
    want, found = golden.arrays(f"top2_{mode}"), pass_of(mode).unary(golden.top)
    with checks(f"top2_{mode}") as check:
        check.absolute("unary", found, want["unary"], MAPS)
        per_pixel = want.tensor("unary").movedim(1, 0).flatten(1)
        labels = found.argmax(1).flatten()
        check.labels("pred_nocrf", labels, want.tensor("pred_nocrf").flatten(), per_pixel, NEAR_TIE)
        check.absolute("margin_nocrf", margin(found), want["margin_nocrf"].astype(np.float32), MAPS + HALF)
        whole(check, want, others=("pred_crf", "margin_crf"))


def test_infoscore(golden: Golden, pass_of: Load, checks: Start) -> None:
    """From the images to the ranking, over the prompts of the single list."""
    want, found = golden.arrays("infoscore"), pass_of("single")
    metric = InfoScoreMetric(found.layers, found.marginals.shape[-1])
    for batch in found.marginals.split(3):
        metric.update(batch)
    ranking, (mean, std) = metric.compute(), metric.moments()
    shares = torch.stack([pixel_shares(maps, golden.grid, golden.size) for maps in found.maps], 1).flatten(2).double()
    with checks("infoscore") as check:
        check.absolute("prompt_maps", torch.stack(found.maps, 1).unflatten(-1, golden.grid), want["prompt_maps"], MAPS)
        stats = torch.stack([shares.mean(-1), shares.std(-1), shares.amin(-1), shares.amax(-1)], -1)
        check.absolute("norm_map_stats", stats, want["norm_map_stats"], MAPS)
        check.absolute("marginal", found.marginals, want["marginal"], MAPS)
        check.absolute("dataset_marginal", mean, want["dataset_marginal"], MAPS)
        check.absolute("welford_mean", mean, want["welford_mean"], MAPS)
        check.absolute("welford_std", std, want["welford_std"], MAPS)
        ratio(check, "image_entropy", entropy(found.marginals.double()), want["image_entropy"])
        for name in ("mean_image_entropy", "dataset_entropy", "cov", "entropy_ratio"):
            ratio(check, name, torch.tensor(getattr(ranking, name)), want[name])
        ratio(check, "infoscore", torch.tensor(ranking.score), want["infoscore"])
        check.exactly("ranking", [found.layers.index(name) for name in ranking.order()], want["ranking"])
        check.exactly("top2_layers", [found.layers.index(name) for name in ranking.top(len(golden.top))], golden.top)
        whole(check, want)


def counts_of(prediction: Tensor, label: Tensor, classes: int) -> IouCounts:
    """The bench's counts, with labels outside the classes as the authors take them: they count against what is
    predicted there. One more class, dropped afterwards, does that; the bench itself refuses such labels."""
    label = label.long()
    strange = (label != IGNORE) & ((label < 0) | (label >= classes))
    counts = intersection_union(prediction.long(), torch.where(strange, classes, label), classes + 1)
    return IouCounts(*(part[:, :classes] for part in (counts.intersection, counts.union, counts.present)))


def authors_iou(counts: IouCounts) -> Tensor:
    """IoU over the data set, where a class that is absent from labels and predictions counts as 0; float64 [C]."""
    return reduce_dataset(counts).nan_to_num(0.0)


def target_of(label: Tensor, classes: int) -> Tensor:
    """Label pixels of each class, [N,C]: the label's intersection with itself."""
    label = label.long()
    inside = torch.where((label >= 0) & (label < classes), label, IGNORE)
    return intersection_union(inside.where(inside != IGNORE, 0), inside, classes).intersection


@pytest.mark.parametrize("mode", MODES)
def test_iou(golden: Golden, pass_of: Load, checks: Start, mode: str) -> None:
    want, recorded, meta = golden.arrays(f"iou_{mode}"), golden.arrays(f"top2_{mode}"), golden.meta[mode]
    names, labels = golden.classes(mode), golden.labels
    with checks(f"iou_{mode}") as check:
        for kind in ("crf", "nocrf"):
            counts = counts_of(recorded.tensor(f"pred_{kind}"), labels, len(names))
            check.exactly(f"inter_{kind}", counts.intersection, want[f"inter_{kind}"])
            check.exactly(f"union_{kind}", counts.union, want[f"union_{kind}"])
            iou = authors_iou(counts)
            check.absolute(f"iou_{kind}", iou, want[f"iou_{kind}"], IOU)
            check.absolute(f"miou_{kind}", iou.mean(), want[f"miou_{kind}"], IOU)
            check.absolute(f"mean_iou_{kind} of arrays.json", iou.mean(), meta[f"mean_iou_{kind}"], IOU)
            if kind == "crf":
                check.exactly("target_crf", target_of(labels, len(names)), want["target_crf"])
                table = golden.table(f"csv_{mode}")
                check.exactly(f"csv_{mode}.csv, classes", list(table), names)
                check.absolute(f"csv_{mode}.csv, IoU", iou, np.array(list(table.values())), IOU)
        ours = pass_of(mode)
        check_own_labels(check, golden, ours, golden.top, (want["iou_nocrf"], want["miou_nocrf"]), "nocrf")
        for layer, expected in enumerate(zip(want["iou_layers_nocrf"], want["miou_layers_nocrf"], strict=True)):
            check_own_labels(check, golden, ours, [layer], expected, "layers_nocrf")
        check.absolute(
            "mean_iou_single_layers_nocrf of arrays.json",
            want["miou_layers_nocrf"],
            np.array(meta["mean_iou_single_layers_nocrf"]),
            IOU,
        )
        whole(check, want)


def check_own_labels(
    check: Checks,
    golden: Golden,
    found: Pass,
    layers: list[int],
    expected: tuple[np.ndarray, np.ndarray],
    name: str,
) -> None:
    """IoU per class and mean of our own labels. A pixel whose two best classes are within `TIED` may have either label:
    a class may be off by its share of such pixels."""
    unary, (per_class, mean) = found.unary(layers), expected
    classes = len(per_class)
    counts = counts_of(unary.argmax(1), golden.labels, classes)
    doubtful = (margin(unary) < TIED) & (golden.labels != IGNORE)
    tied = unary.topk(2, dim=1).indices.movedim(1, -1)[doubtful].flatten().bincount(minlength=classes)
    bars = IOU + tied / counts.union.sum(0).clamp(min=1)
    iou = authors_iou(counts)
    for k in range(classes):
        check.absolute(
            f"iou_{name}, layers {layers}, class {k}", iou[k], per_class[k], float(bars[k]), f"own iou_{name}"
        )
    check.absolute(f"miou_{name}, layers {layers}", iou.mean(), mean, float(bars.mean()), f"own miou_{name}")


def test_metric(golden: Golden, checks: Start) -> None:
    """Made-up predictions: classes that are absent everywhere, labels outside the classes."""
    want = golden.arrays("metric")
    with checks("metric") as check:
        for case in sorted({name.split("_")[0] for name in want}):
            prediction, label = want.tensor(f"{case}_pred"), want.tensor(f"{case}_label")
            classes = len(want[f"{case}_iou"])
            counts = counts_of(prediction, label, classes)
            check.exactly(f"{case}_inter", counts.intersection, want[f"{case}_inter"], "*_inter")
            check.exactly(f"{case}_union", counts.union, want[f"{case}_union"], "*_union")
            check.exactly(f"{case}_target", target_of(label, classes), want[f"{case}_target"], "*_target")
            check.exactly(f"{case}: present", counts.present, want[f"{case}_target"] > 0, "present")
            iou = authors_iou(counts)
            check.absolute(f"{case}_iou", iou, want[f"{case}_iou"], IOU, "*_iou")
            check.absolute(f"{case}_miou", iou.mean(), want[f"{case}_miou"], IOU, "*_miou")
        whole(check, want)


@pytest.mark.parametrize("mode", MODES)
def test_oracle(golden: Golden, checks: Start, mode: str) -> None:
    """The plain numpy way, in float64, on the recorded scores: what the unit tests lean on."""
    scores, model = golden.arrays(f"attn_{mode}"), golden.arrays(f"model_{mode}")
    top, grid, size = golden.arrays(f"top2_{mode}"), golden.grid, golden.size
    with checks("oracle", mode) as check:
        for image, layers in enumerate(scores["scores"]):
            sums = [oracle.token_sum(each, model["attention_mask"]) for each in layers]
            check.absolute(f"token_sum {image}", np.stack(sums), scores["token_sum"][image], TOKEN_SUM, "token_sum")
            match = oracle.matching(model["itm_prob_tokens"][image])
            maps = [oracle.prompt_map(each, match) for each in sums]
            shape = scores["prompt_maps"][image].shape
            check.absolute(
                f"prompt_maps {image}", np.stack(maps).reshape(shape), scores["prompt_maps"][image], MAPS, "prompt_maps"
            )
            chosen = [oracle.class_map(maps[layer], golden.spans(mode)) for layer in golden.top]
            unary = oracle.unary(chosen, grid, size)
            check.absolute(f"unary {image}", unary, top["unary"][image], MAPS, "unary")
            if mode == "single":
                found = np.stack([oracle.marginal(each, grid, size) for each in maps])
                check.absolute(
                    f"marginal {image}", found, golden.arrays("infoscore")["marginal"][image], MAPS, "marginal"
                )
        if mode == "single":
            want = golden.arrays("infoscore")
            found_scores = oracle.infoscore(want["marginal"])
            check.relative("infoscore", found_scores.score, want["infoscore"], INFOSCORE)
            check.exactly("ranking", found_scores.ranking, want["ranking"])
        counts = [
            oracle.pixel_counts(prediction, label, len(golden.classes(mode)))
            for prediction, label in zip(top["pred_crf"], golden.labels.numpy(), strict=True)
        ]
        inter, union, target = (np.stack(part) for part in zip(*counts, strict=True))
        want = golden.arrays(f"iou_{mode}")
        for name, found in (("inter_crf", inter), ("union_crf", union), ("target_crf", target)):
            check.exactly(name, found, want[name])
        check.absolute("iou_crf", oracle.iou(inter, union)[0], want["iou_crf"], IOU)
        check.absolute("miou_crf", oracle.iou(inter, union)[1], want["miou_crf"], IOU)


@pytest.mark.parametrize("name", UNARY)
def test_a_wrong_step_shows_in_the_class_maps(golden: Golden, pass_of: Load, checks: Start, name: str) -> None:
    """That the comparisons can fail: the last table of the README's section 7, on the multi-prompt ensemble."""
    mode = "multi" if "multi" in golden.modes else golden.modes[0]
    want = golden.arrays(f"top2_{mode}")["unary"]
    done = pass_of(mode)
    if name == "ITM max over real tokens only" and torch.equal(
        match_scores(done.match, done.prompts.mask, "tokens"), done.itm
    ):
        pytest.skip("in this folder padding never has the largest match probability")
    assert torch.equal(Steps().unary(done, golden.top), done.unary(golden.top))
    with checks("told apart", "unary") as check:
        error = float((UNARY[name].unary(done, golden.top) - torch.from_numpy(want)).abs().max())
        check.more(name, "max abs", error, APART * MAPS)


@pytest.mark.parametrize("name", SCORE)
def test_a_wrong_step_shows_in_infoscore(golden: Golden, pass_of: Load, checks: Start, name: str) -> None:
    want, done = golden.arrays("infoscore").tensor("infoscore").double(), pass_of("single")
    with checks("told apart", "InfoScore") as check:
        error = float((SCORE[name].score(done) / want - 1).abs().max())
        check.more(name, "max rel", error, APART * INFOSCORE)
