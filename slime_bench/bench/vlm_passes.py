"""One pass per image for ranks, maps and both prompt lists, against the plain way of a pass for each.

    python -m slime_bench.bench.vlm_passes [overrides] [--out FOLDER]

The plain way ranks the layers in one pass over the images and segments in another, as the authors' scripts do, and
once more for the second list of prompts. The one pass keeps the maps of all layers for the longer list, of which the
other is a part. Rounds of both take turns; what is printed is the median of each, and their ratio.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from slime_bench.bench.command import make_main, publish
from slime_bench.bench.timing import interleave, ratio, spread
from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig
from slime_bench.methods.infoscore.method import InfoScore

ROUNDS = 3


def segment(method: InfoScore, data: Any) -> torch.Tensor:
    return torch.cat([method.predict(batch["image"], batch["id"]) for batch in data.test_dataloader()])


def one_pass(make: Callable[..., InfoScore], data: Any) -> tuple[list[torch.Tensor], int]:
    """Predictions with single and multiple prompts, and how many images went through the model."""
    method = make(multi_prompt=True)
    method.prepare(data, "cpu")
    found = [segment(method, data)]
    method._views["chosen"] = method._views["single"]
    return [segment(method, data), *found], method.forwarded


def plain(make: Callable[..., InfoScore], data: Any) -> tuple[list[torch.Tensor], int]:
    """The same with a pass for ranking and one for each list of prompts."""
    ranked = make(keep_gb=0.0)
    ranked.prepare(data, "cpu")
    found, forwarded = [], ranked.forwarded
    for multi in (False, True):
        method = make(layers=list(ranked.layers), multi_prompt=multi)
        method.prepare(data, "cpu")
        found.append(segment(method, data))
        forwarded += method.forwarded
    return found, forwarded


def compare(cfg: TrialConfig) -> dict[str, Any]:
    """Passes per image, images per second and their ratio; `differing`: share of pixels whose label differs."""
    data = cfg.build("data", shots=0, seed=cfg.seed)
    data.prepare_data()
    batches, backbone = list(data.datamodule().test_dataloader()), cfg.build("backbone")
    # The test images in memory, as a data module without support images hands them out.
    stream = SimpleNamespace(shots=0, test_dataloader=lambda: batches)
    images = sum(len(batch["id"]) for batch in batches)

    def make(**settings: Any) -> InfoScore:
        config = replace(cfg.method, rank_on="test", **settings)
        return InfoScore(config, cfg.build("protocol"), backbone, data.classes, cfg.seed)

    ways, results = {"one pass": one_pass, "plain": plain}, dict[str, tuple[list[torch.Tensor], int]]()

    def call(name: str) -> Callable[[int], None]:  # every round is of the same images
        return lambda _: results.update({name: ways[name](make, stream)})

    seconds = interleave({name: call(name) for name in ways}, ROUNDS, warmup=0)
    pairs = zip(results["one pass"][0], results["plain"][0], strict=True)
    differing = [float((a != b).float().mean()) for a, b in pairs]
    return {
        "images": images,
        "passes": {name: results[name][1] / images for name in ways},
        "images_per_second": {name: images / spread(seconds[name]).median for name in ways},
        "ratio": ratio(seconds["plain"], seconds["one pass"]).median,
        "differing": max(differing),
    }


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="settings of the bench, key=value")


def _measure(arguments: argparse.Namespace, command: str) -> str:
    (cfg,) = plan(["preset=mini_infoscore", "shots=0", *arguments.overrides]).trials
    found = compare(cfg)
    lines = [f"{cfg.backbone.name} on {cfg.data.name}, {found['images']} images:", ""]
    for name, passes in found["passes"].items():
        lines.append(f"- {name}: {passes:g} passes per image, {found['images_per_second'][name]:.2f} images/s")
    lines.append(f"- ratio {found['ratio']:.2f}; {100 * found['differing']:.4f} % of the pixels have another label")
    text = "\n".join(lines)
    return publish(arguments.out, f"vlm_{cfg.backbone.name}", "One pass of a VLM", text, "cpu", command, found)


main = make_main("slime_bench.bench.vlm_passes", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))
