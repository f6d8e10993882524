"""The ranking experiment's report: numbers worked by hand, studies that are checked, and files that say the same."""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from slime_bench.errors import ResultError
from slime_bench.methods.infoscore.layer_study import selections, study
from slime_bench.methods.infoscore.score import Ranking
from slime_bench.metrics.iou import IouCounts
from slime_bench.report import command
from slime_bench.report.collect import planned_configs
from slime_bench.report.command import Asked, run
from slime_bench.report.ranking import STUDY_FILE, RankingReport
from slime_bench.results.result import TrialResult, from_counts
from tests.fixtures.toy_results import CAR, FINGERPRINTS, cells, store

LAYERS = ("layer.0", "layer.1", "layer.2", "layer.3")
ALONE = {"layer.0": 10, "layer.1": 40, "layer.2": 30, "layer.3": 20}
"""mIoU in percent of the layers alone."""
SCORES = (0.5, 4.0, 2.0, 3.0)
"""InfoScore: order 1, 3, 2, 0, ranks 4, 1, 3, 2 where those of mIoU are 4, 1, 2, 3: rho = 1 - 6 * 2 / 60 = 0.8."""


def counts_of(percent: float, images: int = 4, classes: int = len(CAR)) -> IouCounts:
    """Counts whose IoU is `percent` for every class of every image, under every convention."""
    union = torch.full((images, classes), 1000)
    return IouCounts((union * percent / 100).round().long(), union, union > 0)


def together(layers: Sequence[str], alone: Mapping[str, float]) -> float:
    """mIoU that these tests give an ensemble: mean of its layers plus 2 for every further one."""
    return sum(alone[name] for name in layers) / len(layers) + 2 * (len(layers) - 1)


def content_of(
    seed: int = 0, scores: Sequence[float] = SCORES, alone: Mapping[str, float] = ALONE, pairs: int = 3, **changes: Any
) -> dict[str, Any]:
    """What `InfoScoreRanking.extra_files` writes, from the lead's own `study`."""
    layers = tuple(alone)
    zeros = (0.0,) * len(layers)
    ranking = Ranking(layers, zeros, zeros, zeros, zeros, tuple(scores), 5)
    chosen = selections(ranking, pairs, seed)
    counts = {name: counts_of(together(each, alone)) for name, each in chosen.items()}
    marginals = torch.rand(5, len(layers), 3, generator=torch.Generator().manual_seed(seed)) + 0.01
    content = study(counts, chosen, ranking, marginals, False, 10, seed)
    content |= {"rank_on": "train", "used": [name for name in layers if name in ranking.order()[:2]], "classes": CAR}
    content |= {"forwarded_images": 9, "seconds": {"rank": 1.5, "test": 2.5}}
    return json.loads(json.dumps(content | changes))


def config_of(seed: int = 0, **method: Any) -> dict[str, Any]:
    return {
        "preset": "mini",
        "seed": seed,
        "shots": 0,
        "method": {"name": "infoscore_ranking", "prompts": "mini_car", "multi_prompt": False, "layers": None, "top": 2}
        | {"rank_on": "train", "rank_images": 20, "pairs": 3}
        | method,
        "backbone": {"name": "mini_blip"},
        "data": {"name": "mini_car"},
        "protocol": {"name": "infoscore_mini"},
    }


def result_of(config: Mapping[str, Any], percent: float, **prints: str) -> TrialResult:
    """A result of such a configuration, with what the method says of itself."""
    method, names = config["method"], {name: config[name]["name"] for name in ("backbone", "data", "protocol")}
    words = "multi (with related words)" if method.get("multi_prompt") else "single (one word for each class)"
    stated = {"prompts": f"{Path(method['prompts']).name}, {words}"} if "prompts" in method else {}
    own = "ranking" if method["name"] == "infoscore_ranking" else None
    facts = {"label": method["name"], "least_shots": 0, "own_report": own, "table_order": 10, "stated": stated}
    return from_counts(
        counts_of(percent), config=config, fingerprints=FINGERPRINTS | {"prompts": "ef" * 32} | prints,
        method=method["name"], subject="car", shots=config["shots"], seed=config["seed"], preset=config["preset"],
        classes=CAR, facts=facts, **names,
    )  # fmt: skip


def keep(root: Path, result: TrialResult, content: Any) -> Path:
    """A finished trial with its study; text is written as it is, None is no file."""
    (folder,) = store(root, result)
    if content is not None:
        (folder / STUDY_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def trial(root: Path, seed: int = 0, method: Mapping[str, Any] | None = None, **options: Any) -> Path:
    content = content_of(seed, **options)
    return keep(root, result_of(config_of(seed, **method or {}), 32), content)


def report(root: Path, *overrides: str, **options: Any) -> tuple[list[RankingReport], str]:
    """The reports, and what is printed, in which captions are folded anywhere: white space as one space."""
    out = io.StringIO()
    console = Console(file=out, width=300)
    asked = {name: options.pop(name) for name in ("folder", "convention") if name in options}
    made = command.run_ranking(Asked(console, lambda *_: [], root, **asked), overrides, **options)
    return made, " ".join(out.getvalue().split())


def page_of(root: Path, kind: str = "md") -> str:
    return (root / "reports" / "car" / f"mini_car-ranking.{kind}").read_text()


# ------------------------------------------------------------------------------------------------ reading


# ------------------------------------------------------------------------------------------------ numbers


def test_numbers_worked_by_hand(tmp_path: Path) -> None:
    trial(tmp_path, 0)
    trial(tmp_path, 1, scores=(0.5, 3.0, 4.0, 2.0), alone={**ALONE, "layer.0": 12})
    (made,), out = report(tmp_path)
    page = page_of(tmp_path)
    first, *_ = page.split("## car: mIoU in percent of ensembles")
    # InfoScore: means 0.5, 3.5, 3, 2.5. mIoU: 10 and 12 for layer.0, the others twice the same.
    assert cells(first, "**layer.0**") == ["layer.0", "0.5±0", "4", "11.0±1.4", "4", "0"]
    assert cells(first, "**layer.1**") == ["layer.1", "3.5±0.71", "1", "40.0±0.0", "1", "0"]
    assert cells(first, "**layer.2**") == ["layer.2", "3±1.4", "2", "30.0±0.0", "2", "0"]
    assert cells(first, "**layer.3**") == ["layer.3", "2.5±0.71", "3", "20.0±0.0", "3", "0"]
    # Order 1, 3, 2, 0 in seed 0 and 2, 1, 3, 0 in seed 1; an ensemble has the mean of its layers and 2 for each more.
    assert cells(page, "**top-1**") == ["top-1", "35.0±7.1", "not the same for every seed"]
    assert cells(page, "**top-2**") == ["top-2", "34.5±3.5", "not the same for every seed"]
    assert cells(page, "**top-3**") == ["top-3", "34.0±0.0", "layer.1, layer.2, layer.3"]
    assert cells(page, "**all**") == ["all", "31.2±0.4", ", ".join(LAYERS)]
    assert cells(page, "**last**")[1:] == ["20.0±0.0", "layer.3"] and cells(page, "**middle**")[1:] == [
        "30.0±0.0",
        "layer.2",
    ]
    # Ranks 4 1 3 2 against 4 1 2 3: two differences of 1, rho = 1 - 6 * 2 / 60; in seed 1 4 2 1 3 against 4 1 2 3.
    zero, one, both = (cells(page, f"**{name}**") for name in ("0", "1", "all seeds"))
    assert [zero[1], one[1], both[1]] == ["0.80", "0.80", "0.80±0.00"]
    assert zero[3:8] == ["layer.1", "layer.1", "yes", "no", "32.0"]
    assert one[3:8] == ["layer.2", "layer.1", "no", "yes", "37.0"]
    assert both[5:8] == ["1 of 2", "1 of 2", "34.5±3.5"]
    assert re.fullmatch(r"-?\d\.\d\d to -?\d\.\d\d", zero[2])
    assert "seed 2" in page and "MISSING TRIALS (of seeds 0, 1, 2): seed 2" in page
    assert "0.80±0.00" in out and "35.0±7.1" in out
    assert made.groups[0].missing == [2]


def test_random_pairs_and_the_convention(tmp_path: Path) -> None:
    """All five other pairs: of 10, 40, 30, 20 those without (1, 3)."""
    for seed in (0, 1, 2):
        content = content_of(seed, pairs=5)
        for each in content["conventions"]["dataset"]["selections"].values():
            each["miou"] /= 2
        keep(tmp_path, result_of(config_of(seed, pairs=5), 32), content)
    (made,), _ = report(tmp_path)
    values = [27.0, 22.0, 17.0, 37.0, 27.0]  # 01 02 03 12 23, each mean + 2
    mean = sum(values) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    pairs = made.groups[0].pairs
    assert [one.pairs for one in made.groups[0].seeds] == [5, 5, 5]
    assert (pairs["mean"].mean, pairs["mean"].std) == (pytest.approx(mean), pytest.approx(0))
    assert pairs["deviation"].mean == pytest.approx(deviation) and pairs["best"].mean == pytest.approx(37)
    page = page_of(tmp_path)
    assert cells(page, "**random pairs, mean")[1:] == ["26.0±0.0", "5 pairs a seed"]
    assert cells(page, "**random pairs, best")[1] == "37.0±0.0"
    assert cells(page, "**random pairs, deviation")[1] == "7.4±0.0"
    # top-2 (layers 1 and 3) has 32: one of five pairs is above it.
    assert cells(page, "**0")[8] == "1 of 5" and cells(page, "**all seeds")[8] == "3 of 15"
    # Every image is like every other here, so no resample differs.
    assert cells(page, "**0")[9] == "+6.0 [+6.0, +6.0]" and cells(page, "**all seeds")[9] == "6.0±0.0"
    assert "missing trials: none (of seeds 0, 1, 2)" in page
    assert "mIoU of a layer is the same for every seed" in page and "the images ranked on" in page
    (made,), out = report(tmp_path, convention="dataset")
    assert "convention dataset" in out and made.groups[0].layers[1].miou.mean == pytest.approx(20)


def test_layers_that_the_authors_name(tmp_path: Path) -> None:
    alone = dict(ALONE)
    for seed, scores in enumerate([(4.0, 0.5, 1.0, 3.0), (3.0, 1.0, 0.5, 4.0), (4.0, 3.0, 1.0, 2.0)]):
        config = config_of(seed) | {"backbone": {"name": "blip_large"}, "data": {"name": "voc2012"}}
        keep(tmp_path, result_of(config, 32), content_of(seed, scores, alone))
    _, out = report(tmp_path)
    assert "published: layer.0 and layer.3 first" in out
    assert "the same here in seed 0, 1; layer.0 and layer.1 in seed 2" in out
    trial(tmp_path / "mini")
    assert "published:" not in report(tmp_path / "mini")[1]


@pytest.mark.parametrize("number", [1, 2])
def test_few_layers_and_no_pairs(number: int, tmp_path: Path) -> None:
    alone = {name: ALONE[name] for name in LAYERS[:number]}
    content = content_of(0, SCORES[:number], alone, pairs=0)
    keep(tmp_path, result_of(config_of(0, pairs=0, top=number), 32), content)
    (made,), _ = report(tmp_path)
    (seed,) = made.groups[0].seeds
    assert made.groups[0].pairs == {} and seed.top2_are_best is None
    expected = (None, None, None) if number == 1 else (pytest.approx(1), True, pytest.approx(27))
    assert (seed.rho, seed.top1_is_best, seed.top2) == expected
    page = page_of(tmp_path)
    assert "random pairs" not in page and cells(page, "**0")[1] == ("-" if number == 1 else "1.00")


@hypothesis_settings(max_examples=8, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_the_layers_is_nothing_to_the_numbers(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    """A model whose layers ran in another order: the same lines in that order, the same rho."""
    root = tmp_path_factory.mktemp("layers")
    names = [LAYERS[place] for place in order]
    trial(root, 0, scores=[SCORES[place] for place in order], alone={name: ALONE[name] for name in names})
    (made,), _ = report(root)
    (group,) = made.groups
    assert [layer.name for layer in group.layers] == names
    expected = dict(zip(LAYERS, zip(SCORES, (4, 1, 3, 2), (4, 1, 2, 3), strict=True), strict=True))
    for layer in group.layers:
        assert (layer.info_score.mean, layer.info_rank, layer.miou_rank) == expected[layer.name]
    assert group.rho.mean == pytest.approx(0.8)
    assert {one.name: one.miou.mean for one in group.ensembles}["top-2"] == pytest.approx(32)


def test_markdown_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    for seed in (0, 1):
        trial(tmp_path, seed, alone={name: value + seed for name, value in ALONE.items()})
    report(tmp_path)
    page, facts = page_of(tmp_path), json.loads(page_of(tmp_path, "json"))
    lines = list(csv.DictReader(page_of(tmp_path, "csv").splitlines()))
    (group,) = facts["groups"]
    of = {part: [line for line in lines if line["part"] == part] for part in ("layer", "ensemble", "seed", "all seeds")}
    assert [len(of[part]) for part in of] == [4, 4 + 3 + 3, 2, 1] and len(lines) == 17
    assert (float(of["all seeds"][0]["rho"]), of["all seeds"][0]["pairs"]) == (group["rho"]["mean"], "6")
    for line, layer in zip(of["layer"], group["layers"], strict=True):
        assert line["name"] == layer["name"] and float(line["miou_mean"]) == layer["miou"]["mean"]
        assert float(line["info_score_mean"]) == layer["info_score"]["mean"]
        assert float(line["rank_difference"]) == layer["info_rank"] - layer["miou_rank"] == layer["rank_difference"]
        shown = cells(page.split("of ensembles")[0], f"**{layer['name']}**")
        assert shown[3] == f"{layer['miou']['mean']:.1f}±{layer['miou']['std']:.1f}"
        assert float(shown[2]) == layer["info_rank"] and float(shown[4]) == layer["miou_rank"]
    for line, one in zip(of["ensemble"], group["ensembles"], strict=False):
        assert line["name"] == one["name"] and float(line["miou_mean"]) == one["miou"]["mean"]
        assert cells(page, f"**{one['name']}**")[1].startswith(f"{one['miou']['mean']:.1f}±")
    for line, kind in zip(of["ensemble"][-3:], ("mean", "best", "deviation"), strict=True):
        assert line["name"] == f"random pairs, {kind}" and float(line["miou_mean"]) == group["pairs"][kind]["mean"]
    for line, one in zip(of["seed"], group["seeds"], strict=True):
        assert (
            float(line["rho"]) == one["rho"] == pytest.approx(0.8) and float(line["interval_low"]) == one["interval"][0]
        )
        assert line["top1_is_best"] == str(one["top1_is_best"]) and int(line["forwarded_images"]) == 9
    for line in lines:
        assert (line["data"], line["convention"], line["unit"], line["crf"]) == ("mini_car", "slime", "percent", "off")
        assert (line["seeds"], line["missing_seeds"], line["series"]) == ("0 1", "2", group["series"])
    assert group["seeds"][0]["seconds"] == {"rank": 1.5, "test": 2.5} and group["top2_are_best"] == {"yes": 0, "of": 2}
    assert group["provenance"]["devices"] == ["a CPU"] and group["rho"]["mean"] == pytest.approx(0.8)


# ------------------------------------------------------------------------------------------------ captions


def test_the_caption_says_what_has_to_be_known(tmp_path: Path) -> None:
    trial(tmp_path, 0, method={"multi_prompt": True, "prompts": "words.yaml"})
    _, out = report(tmp_path)
    for words in (
        "preset mini; data mini_car; backbone mini_blip; protocol infoscore_mini; infoscore_ranking, 0-shot",
        "convention slime",
        "average over the classes with background",
        "seeds 0; layers ranked with single prompts on 5 unlabelled images of the training side; tested on 4 images",
        "study without CRF; prompts: words.yaml, multi (with related words)",
        "images forwarded through the model: 9, 2.25 for each test image, ranking included",
        "bootstrap of 10 resamples over rank images and test images, each",
        "95 % interval",
        "commit 012345678",
    ):
        assert words in out, words


# ------------------------------------------------------------------------------------------------ which trials


def test_what_is_spoilt_is_listed_and_never_averaged(tmp_path: Path) -> None:
    trial(tmp_path, 0)
    folder = trial(tmp_path, 1, alone=dict.fromkeys(LAYERS, 90) | {"layer.1": 91})
    broken = json.loads((folder / STUDY_FILE).read_text())
    del broken["conventions"]
    (folder / STUDY_FILE).write_text(json.dumps(broken))
    keep(tmp_path, result_of(config_of(2), 32), None)
    stray = tmp_path / "runs" / "mini_car" / "infoscore_ranking" / "0-shot" / f"seed5-{'0' * 16}"
    stray.mkdir(parents=True)  # a study without a valid result beside it is nothing
    (stray / STUDY_FILE).write_text(json.dumps(content_of(5)))
    (made,), out = report(tmp_path)
    assert [one.seed for one in made.groups[0].seeds] == [0] and made.groups[0].missing == [1, 2]
    assert made.groups[0].layers[1].miou.mean == pytest.approx(40)
    assert "NOT USED: seed 1: This is no valid study of layers: fields are missing. (conventions)" in out
    assert "NOT USED: seed 2: This is no valid study of layers: there is no such file" in out
    facts = json.loads(page_of(tmp_path, "json"))
    assert [one["seed"] for one in facts["not_used"]] == [1, 2]
    assert facts["not_used"][0]["path"].startswith("runs/mini_car/infoscore_ranking/0-shot/seed1-")


def test_other_settings_have_their_own_tables_and_figures(tmp_path: Path) -> None:
    for seed in (0, 1):
        trial(tmp_path, seed)
        trial(tmp_path, seed, method={"multi_prompt": True}, alone={name: value / 2 for name, value in ALONE.items()})
    (made,), out = report(tmp_path)
    assert [len(group.seeds) for group in made.groups] == [2, 2]
    assert sorted(group.layers[1].miou.mean or 0 for group in made.groups) == pytest.approx([20, 40])
    # Beside the default of conf/, in which there are 10 pairs.
    assert sorted(group.variant for group in made.groups) == ["multi_prompt=true, pairs=3", "pairs=3"]
    assert "multi_prompt=true" in out
    pictures = [path.name for path in (tmp_path / "reports" / "car").glob("*.png")]
    assert len(pictures) == 4 and all(f"]({name})" in page_of(tmp_path) for name in pictures)


def test_nothing_to_report(tmp_path: Path) -> None:
    for content, why in ((None, "there is no such file"), ("{", "not valid JSON"), ("{}", "fields are missing")):
        keep(tmp_path, result_of(config_of(), 32), content)
        with pytest.raises(ResultError, match="no study of layers to report") as caught:
            report(tmp_path)
        assert "1 finished trial(s)" in str(caught.value.found) and why in str(caught.value.found)
        assert "experiment=infoscore_ranking" in str(caught.value.remedy)
    with pytest.raises(ResultError, match="for subject face"):
        report(tmp_path, subject="face")


# ------------------------------------------------------------------------------------------------ the sweep's overrides

SWEEP = ("experiment=infoscore_ranking", "data=mini_car")


@functools.cache
def planned(*overrides: str) -> list[dict[str, Any]]:
    return planned_configs(overrides, None)


@pytest.fixture
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing takes a moment."""
    made = "slime_bench.report.ranking.planned_configs"
    monkeypatch.setattr(made, lambda overrides, _: copy.deepcopy(planned(*overrides)))


def fill(root: Path, trials: Sequence[Mapping[str, Any]], **prints: str) -> list[Path]:
    folders = []
    for config in trials:
        decided = config["decided"]
        config = {**decided, "trainer": {**decided["trainer"], "device": "cpu"}}
        config["data"] = config["data"] | {"subject": "car"}
        folders.append(keep(root, result_of(config, 32, **prints), content_of(config["seed"])))
    return folders


@pytest.mark.usefixtures("composed_once")
def test_overrides_choose_the_trials_of_a_sweep(tmp_path: Path) -> None:
    trials = planned(*SWEEP)
    assert [(one["seed"], one["shots"], one["method"]["name"]) for one in trials] == [
        (seed, 0, "infoscore_ranking") for seed in (0, 1, 2)
    ]
    fill(tmp_path, trials[:2])
    other = copy.deepcopy(trials[2])
    other["decided"]["method"] |= {"top": 2, "multi_prompt": True}
    fill(tmp_path, [other])
    fill(tmp_path, trials[:1], backbone="99" * 32)
    (made,), out = report(tmp_path, *SWEEP)
    (group,) = made.groups
    assert ([one.seed for one in group.seeds], group.missing, group.left_out) == ([0, 1], [2], 1)
    assert (
        "MISSING TRIALS (of seeds 0, 1, 2): seed 2; to run them: slime-bench --multirun experiment=infoscore_ranking"
        in out
    )
    assert "1 result(s) of these trials on another device, with other weights, data or prompts, are left out" in out
    every, _ = report(tmp_path)
    assert [len(one.groups) for one in every] == [3]


@pytest.mark.usefixtures("composed_once")
def test_data_of_the_sweep_without_a_trial_are_said(tmp_path: Path) -> None:
    sweep = ("experiment=infoscore_ranking", "data=mini_car,mini_horse")
    fill(tmp_path, [one for one in planned(*sweep) if one["data"]["name"] == "mini_car"])
    (made,), out = report(tmp_path, *sweep)
    assert made.groups[0].missing == [] and len(made.absent) == 1
    assert "no finished trial: data mini_horse, backbone mini_blip" in out and "What is not here" in page_of(tmp_path)


# ------------------------------------------------------------------------------------------------ files


def test_figures_show_the_numbers(tmp_path: Path) -> None:
    """They open, and another mIoU is another picture."""
    sizes = {}
    for name, alone in (("a", ALONE), ("b", ALONE | {"layer.2": 35})):
        trial(tmp_path / name, 0, alone=alone)
        report(tmp_path / name)
        for path in (tmp_path / name / "reports" / "car").glob("*.png"):
            with Image.open(path) as image:
                assert image.format == "PNG" and image.size == (840, 504)
            sizes[name, path.name.rpartition("-")[2]] = path.read_bytes()
    assert sorted(sizes) == [(name, kind) for name in "ab" for kind in ("ensembles.png", "layers.png")]
    assert len(set(sizes.values())) == 4


def test_the_ranking_experiment_is_not_in_the_main_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial(tmp_path, 0)
    folder = trial(tmp_path, 1)
    with pytest.raises(ResultError, match="infoscore_ranking is for --ranking"):
        command.main(["--outputs", str(tmp_path), "--subject", "car"], lambda *_: [])
    config = config_of() | {"shots": 1, "method": {"name": "slime"}, "protocol": {"name": "slime_mini"}}
    keep(tmp_path, result_of(config, 50), None)
    (folder / "result.json").unlink()
    (folder / "error.json").write_text(json.dumps({"summary": "too hot"}))
    (made,) = run(Asked(Console(file=io.StringIO()), lambda *_: [], tmp_path), "car")
    assert [row.method for row in made.rows] == ["slime"] and made.failed == []
    assert "infoscore" not in (tmp_path / "reports" / "car" / "table.md").read_text().replace("\\", "")
