"""Peak memory of one inference with WAS: every N x N map of both guidance halves stored, against the bench's own way.

`python -m tests.parity.peak_memory --architecture sd21_base --dtype bf16` builds the true architecture with random
weights (nothing is downloaded), segments one picture each way in a process of its own, and prints both peaks. On a CUDA
device the figures are torch's allocations, on the CPU the process's resident set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests import oracle_slime as oracle

CLASSES = ("background", "body", "light", "plate", "wheel", "window")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30


def build_method(architecture: str, weights: str | None, dtype: str, side: int, device: str) -> Any:
    """SLiMe with the protocol slime_code on a backbone of the bench at `side` pixels, six classes, no gate."""
    from slime_bench.compose import plan
    from slime_bench.methods.slime import Slime, SlimeConfig
    from slime_bench.schema import build

    settings = [f"backbone={architecture}", f"backbone.image_size={side}"]
    settings += [f"trainer.precision={dtype}", "protocol=slime_code"]
    settings += [f"backbone.weights={weights}"] if weights else []
    cfg = plan(settings).trials[0]
    # With random weights hardly a class passes the gate, and a class that does not pass costs nothing to merge.
    protocol = replace(build(cfg.protocol), token_gate=0.0)
    return Slime(SlimeConfig(), protocol, build(cfg.backbone), CLASSES, seed=0).to(device)


@torch.no_grad()
def ours(method: Any, image: torch.Tensor) -> torch.Tensor:
    """The bench's own label map int64 [S,S] of an image float [1,3,S,S]."""
    return method.predict(image, ["picture"])[0]


@torch.no_grad()
def materialising(method: Any, image: torch.Tensor) -> torch.Tensor:
    """The label map by the oracle, from the same latents and noise; all layers' scores of both halves are kept."""
    backbone, side = method.backbone, int(image.shape[-1])
    image = image.flip(1) if method.protocol.channel_order == "bgr" else image
    latents, noise = method._latents(image, "test", [("picture", 0)])
    timesteps = torch.full((1,), method.config.t_test, device=image.device)
    noisy = backbone.add_noise(latents, noise, timesteps)
    dtype = backbone.unet.dtype
    stored = oracle.both_halves(
        backbone.unet, backbone.cross_names, backbone.self_names, noisy.to(dtype), timesteps,
        method.empty.to(dtype), method.text().to(dtype),
    )  # fmt: skip
    cross = [oracle.Stored(layer.scores.float(), layer.grid) for layer in stored.cross]
    maps = oracle.cross_maps(cross, len(method.classes), stored.self_[0].grid, softmax=True)
    matrix = oracle.self_attention(stored.self_).float()
    return oracle.predict(maps, matrix, [(0, side, 0, side)], side, side, method.protocol.token_gate).argmax(0)


WAYS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {"materialising": materialising, "ours": ours}


def measure(way: str, architecture: str, weights: str | None, dtype: str, side: int, device: str) -> dict[str, Any]:
    """Memory in bytes after loading and at its peak during one inference, and what it took.

    Returns:
        way, loaded, peak, seconds, labels (the label map's pixels, row by row).
    """
    method = build_method(architecture, weights, dtype, side, device)
    image = torch.rand(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image, (side, side), mode="bilinear").to(device)
    for parameter in method.parameters():  # read from the mapped file now, or they would count as the inference's
        parameter.data = parameter.data.clone()
    loaded = _restart_peak(device)
    clock = time.monotonic()
    labels = WAYS[way](method, image).cpu()
    seconds = time.monotonic() - clock
    return {
        "way": way,
        "loaded": loaded,
        "peak": _peak(device),
        "seconds": seconds,
        "labels": labels.flatten().tolist(),
    }


def _restart_peak(device: str) -> int:
    """What is held now; the peak counts from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def compare(architecture: str, weights: str | None, dtype: str, side: int, device: str) -> list[dict[str, Any]]:
    """`measure` of both ways, each in a process of its own."""
    results = []
    for way in WAYS:
        command = [sys.executable, "-m", "tests.parity.peak_memory", "--architecture", architecture, "--dtype", dtype]
        command += ["--side", str(side), "--device", device, "--way", way]
        command += ["--weights", weights] if weights else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return results


def describe(results: list[dict[str, Any]]) -> str:
    """A table of `compare`, with the labels on which both agree."""
    lines = [f"{'way':<14} {'after load':>11} {'peak':>11} {'inference':>11} {'seconds':>8}"]
    for each in results:
        added = each["peak"] - each["loaded"]
        sizes = (f"{value / GIB:>7.2f} GiB" for value in (each["loaded"], each["peak"], added))
        lines.append(f"{each['way']:<14} {' '.join(sizes)} {each['seconds']:>8.1f}")
    one, other = (torch.tensor(each["labels"]) for each in results)
    share = float((one == other).float().mean())
    return "\n".join([*lines, f"equal labels: {100 * share:.2f} % of {len(one)} pixels"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sd21_base", help="a backbone of conf/backbone")
    parser.add_argument("--dtype", default="bf16", choices=tuple(DTYPES))
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--weights", help="folder; without it random weights of the true architecture are written")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = (arguments.architecture, arguments.weights, arguments.dtype, arguments.side, arguments.device)
    if arguments.way:
        torch.set_num_threads(1)
        print(json.dumps(measure(arguments.way, *settings)))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = arguments.weights
        if weights is None:
            from tests.full_size import build_full_size

            weights = str(build_full_size(arguments.architecture, Path(folder) / "sd", DTYPES[arguments.dtype]))
        print(f"{arguments.architecture}, {arguments.dtype}, {arguments.side} px, {arguments.device}")
        print(describe(compare(arguments.architecture, weights, arguments.dtype, arguments.side, arguments.device)))


if __name__ == "__main__":
    main()
