"""The ranking experiment of the second paper: one pass per test image, and from it every layer and ensemble."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from slime_bench.methods.base import label_maps
from slime_bench.methods.infoscore.config import TEST, InfoScoreRankingConfig, InfoScoreRankingDescription
from slime_bench.methods.infoscore.layer_study import Selection, selections, study
from slime_bench.methods.infoscore.maps import layer_classes, probabilities
from slime_bench.methods.infoscore.method import InfoScore
from slime_bench.metrics.iou import IouMetric

STUDY_FILE = "layer_study.json"


class InfoScoreRanking(InfoScoreRankingDescription, InfoScore):
    """Zero-shot, with a record of what every choice of layers would have given. Its own result is that of the `top`
    layers. The study is without refinement, which would smooth over the differences between layers."""

    implementation = None
    config: InfoScoreRankingConfig
    always_ranks = True

    def prepare(self, data: Any, device: str) -> None:
        self._marginals: list[torch.Tensor] = []
        began = time.perf_counter()
        super().prepare(data, device)
        self._seconds = {"rank": time.perf_counter() - began}
        assert self.ranking is not None
        self._chosen: dict[str, Selection] = selections(self.ranking, self.config.pairs, self.seed)
        self._counts = {name: IouMetric(len(self.classes)) for name in self._chosen}
        self._began = time.perf_counter()

    def seen_marginals(self, marginals: torch.Tensor) -> None:
        self._marginals.append(marginals.cpu())

    @torch.no_grad()
    def scores(self, images: torch.Tensor, ids: Any) -> torch.Tensor:
        found = self.readings(images, ids, self.backbone.layers)
        shown = self._views["chosen"]
        maps = shown.layer_maps(found, self.protocol)
        self._classes = dict(zip(maps, layer_classes(maps, shown.spans, self.protocol), strict=True))
        return self.combined(found.only(self.layers), self._frame(images))

    def test_step(self, batch: Mapping[str, Any], index: int) -> None:
        super().test_step(batch, index)
        frame = self._frame(batch["image"])
        grid = self.backbone.grid(frame)
        for name, layers in self._chosen.items():
            found = probabilities([self._classes[layer] for layer in layers], grid, frame, self.protocol)
            self._counts[name].update(label_maps(found).cpu(), batch["label"].cpu())

    def extra_files(self) -> dict[str, bytes]:
        """Those of `InfoScore`, and the study."""
        assert self.ranking is not None
        counts = {name: metric.counts() for name, metric in self._counts.items()}
        self._seconds["test"] = time.perf_counter() - self._began
        on_test = self.config.rank_on == TEST
        result = study(
            counts, self._chosen, self.ranking, torch.cat(self._marginals), on_test, self.config.resamples, self.seed
        )
        result |= {
            "seed": self.seed,
            "rank_on": self.config.rank_on,
            "used": list(self.layers),
            "classes": list(self.classes),
            "forwarded_images": self.forwarded,
            "seconds": {name: round(value, 2) for name, value in self._seconds.items()},
        }
        return super().extra_files() | {STUDY_FILE: (json.dumps(_plain(result), indent=1) + "\n").encode()}


def _plain(value: Any) -> Any:
    """NaN, an mIoU that is not defined, as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
