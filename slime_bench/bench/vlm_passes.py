"""One pass per image for ranks, maps and both prompt lists, against the plain way of a pass for each.

    python -m slime_bench.bench.vlm_passes [overrides] [--out FOLDER]

The plain way ranks the layers in one pass over the images and segments in another, as the authors' scripts do, and
once more for the second list of prompts. The one pass keeps the maps of all layers for the longer list, of which the
other is a part. Rounds of both take turns; what is printed is the median of each, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slime_bench.bench import output
from slime_bench.compose import plan
from slime_bench.errors import SlimeBenchError
from slime_bench.methods.vlm_attention import VlmAttention
from slime_bench.schema import build, parse

PROGRAM = "slime_bench.bench.vlm_passes"
ROUNDS = 3


class Stream:
    """The test images of a data set in memory, as a data module without support images hands them out."""

    shots = 0

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches
        self.images = sum(len(batch["id"]) for batch in batches)

    def test_dataloader(self) -> list[dict[str, Any]]:
        return self.batches


def made(cfg: DictConfig, backbone: Any, classes: Sequence[str], **settings: Any) -> VlmAttention:
    config = parse(cfg.method)
    for name, value in {"rank_on": "test", **settings}.items():
        setattr(config, name, value)
    config.crf.enabled = False  # the same work in both ways
    return VlmAttention(config, build(cfg.protocol), backbone, classes, cfg.seed)


def segment(method: VlmAttention, data: Stream) -> torch.Tensor:
    return torch.cat([method.predict(batch["image"], batch["id"]) for batch in data.batches])


def one_pass(make: Callable[..., VlmAttention], data: Stream) -> tuple[list[torch.Tensor], int]:
    """Predictions with single and multiple prompts, and how many images went through the model."""
    method = make(multi_prompt=True)
    method.prepare(data, "cpu")
    found = [segment(method, data)]
    method._views["chosen"] = method._views["single"]
    return [segment(method, data), *found], method.forwarded


def plain(make: Callable[..., VlmAttention], data: Stream) -> tuple[list[torch.Tensor], int]:
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


def compare(cfg: DictConfig, rounds: int = ROUNDS) -> dict[str, Any]:
    """Passes per image, images per second and their ratio; `differing`: share of pixels whose label differs."""
    data = build(cfg.data, shots=0, seed=cfg.seed)
    data.prepare_data()
    data.setup("test")
    stream, backbone = Stream(list(data.test_dataloader())), build(cfg.backbone)

    def make(**settings: Any) -> VlmAttention:
        return made(cfg, backbone, data.classes, **settings)

    seconds: dict[str, list[float]] = {"one pass": [], "plain": []}
    results = {}
    for _ in range(rounds):
        for name, way in (("one pass", one_pass), ("plain", plain)):
            began = time.perf_counter()
            results[name] = way(make, stream)
            seconds[name].append(time.perf_counter() - began)
    differing = [
        float((a != b).float().mean()) for a, b in zip(results["one pass"][0], results["plain"][0], strict=True)
    ]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "images": stream.images,
        "passes": {name: result[1] / stream.images for name, result in results.items()},
        "images_per_second": {name: stream.images / value for name, value in medians.items()},
        "ratio": medians["plain"] / medians["one pass"],
        "differing": max(differing),
    }


def main(overrides: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if overrides is None else overrides)
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings of the bench, key=value")
    parser.add_argument("--out", type=Path, help="folder for the result as Markdown and JSON")
    arguments = parser.parse_intermixed_args(words)
    chosen = list(arguments.overrides)
    try:
        (cfg,) = plan(["preset=mini_vlm", "shots=0", *chosen]).trials
        found = compare(cfg)
    except SlimeBenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    title = f"{cfg.backbone.name} on {cfg.data.name}, {found['images']} images, {torch.get_num_threads()} threads:"
    lines = [
        f"{name}: {found['passes'][name]:g} passes per image, {found['images_per_second'][name]:.2f} images/s"
        for name in ("one pass", "plain")
    ]
    lines.append(f"ratio {found['ratio']:.2f}; {100 * found['differing']:.4f} % of the pixels have another label")
    print("\n  ".join([title, *lines]))
    if arguments.out is not None:
        text = "\n".join([title, "", *(f"- {line}" for line in lines)])
        content = {"made_with": output.facts("cpu", " ".join([f"python -m {PROGRAM}", *chosen])), **found}
        output.publish(arguments.out, f"vlm_{cfg.backbone.name}", "One pass of a VLM", text, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
