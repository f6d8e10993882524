"""The second paper from pictures to numbers, on a cut of the golden folder that comes with the repository: InfoScore of
every layer, and IoU of the two best with and without CRF, for both lists of prompts.

The numbers were made by the authors' code (see data/README.md); the way to them is the bench's own method.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.backbones.blip import BlipBackbone
from slime_bench.config.read import read
from slime_bench.data.config import OPENCV_FLOAT, PAD_FLOOR8
from slime_bench.data.reading import Sample
from slime_bench.data.transforms import fit_sample
from slime_bench.methods.infoscore.config import InfoScoreConfig
from slime_bench.methods.infoscore.method import InfoScore
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol
from slime_bench.metrics.iou import IGNORE, intersection_union, reduce_dataset
from slime_bench.paths import config_dir
from slime_bench.refine.config import Crf, NoRefinement
from tests.parity.table import Checks

SMALL = Path(__file__).parent / "data" / "infoscore_small"
INFOSCORE = 1e-5  # relative
IOU = 1e-6
NEAR_TIE = 1e-4  # README's section 7: a pixel whose best two classes are as close as that may have either label


class Data:
    """The pictures as the authors' transform makes them."""

    shots = 0

    def __init__(self, expected: dict[str, Any]) -> None:
        samples = []
        for name in expected["images"]:
            image = np.array(Image.open(SMALL / name).convert("RGB"))
            label = np.array(Image.open(SMALL / name.replace("images", "labels"))).astype(np.int64)
            samples.append(fit_sample(Sample(name, image, label), expected["size"], OPENCV_FLOAT, PAD_FLOOR8))
        self.images = torch.stack([each.image / 255 for each in samples])
        self.labels = torch.stack([each.label for each in samples])
        self.ids = list(expected["images"])

    def test_dataloader(self) -> list[dict[str, Any]]:
        return [{"image": self.images, "label": self.labels, "id": self.ids}]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(json.loads((SMALL / "expected.json").read_text()))


@pytest.fixture(scope="module")
def data(expected: dict[str, Any]) -> Data:
    return Data(expected)


def method(expected: dict[str, Any], data: Data, **settings: Any) -> InfoScore:
    """As `protocol=infoscore_code method.rank_on=test` makes it."""
    import yaml

    switches = yaml.safe_load((config_dir() / "protocol" / "infoscore_code.yaml").read_text())
    switches.pop("_target_")
    backbone = BlipBackbone(BlipBackbone.Config(weights=str(SMALL / "model"), image_size=expected["size"]))
    config = InfoScoreConfig(prompts=str(SMALL / "prompts.yaml"), rank_on="test", **settings)
    made = InfoScore(config, read(InfoScoreProtocol, switches), backbone, expected["classes"], seed=0)
    made.prepare(data, "cpu")
    return made


def test_infoscore(expected: dict[str, Any], data: Data, record_property: Callable[[str, object], None]) -> None:
    ranking = method(expected, data).ranking
    assert ranking is not None
    want = expected["infoscore"]
    with Checks(record_property, "infoscore_small") as check:
        for name, values in zip(
            ("mean_image_entropy", "dataset_entropy", "entropy_ratio", "cov", "infoscore"), ranking[1:6], strict=True
        ):
            check.absolute(name, np.array(values) / np.array(want[name]), np.ones(len(values)), INFOSCORE)
        check.exactly("ranking", [int(name.split(".")[1]) for name in ranking.order()], want["ranking"])


@pytest.mark.parametrize("crf", [True, False])
@pytest.mark.parametrize("mode", ["single", "multi"])
def test_iou(
    mode: str, crf: bool, expected: dict[str, Any], data: Data, record_property: Callable[[str, object], None]
) -> None:
    made = method(expected, data, multi_prompt=mode == "multi", layers=expected["layers"])
    made.refine = Crf() if crf else NoRefinement()
    classes = len(expected["classes"])
    counts = intersection_union(made.predict(data.images, data.ids), data.labels, classes)
    want = expected["iou"][mode]["crf" if crf else "nocrf"]
    best = made.refined_scores(data.images, data.ids).topk(2, dim=1)
    doubtful = (best.values[:, 0] - best.values[:, 1] < NEAR_TIE) & (data.labels != IGNORE)
    tied = best.indices.movedim(1, -1)[doubtful].flatten().bincount(minlength=classes)
    assert doubtful.float().mean() < 1e-3, "ties are few"
    bars = IOU + tied / counts.union.sum(0).clamp(min=1)
    found = reduce_dataset(counts).nan_to_num(0)
    with Checks(record_property, "infoscore_small", mode) as check:
        for k, value in enumerate(want):
            check.absolute(f"IoU of class {k}", found[k], value, float(bars[k]), "IoU, CRF" if crf else "IoU")
