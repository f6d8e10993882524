"""`slime-bench segment`: use optimised embeddings on any folder of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_bench.errors import ResultError


def main(argv: Sequence[str] | None = None) -> int:
    """Segment every image of a folder: `<id>.png` (8-bit label map, the image's own size) and `colour/<id>.png`."""
    parser = argparse.ArgumentParser(prog="slime-bench segment", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state.safetensors of a finished trial")
    parser.add_argument("--images", type=Path, required=True, help="folder of .png or .jpg images")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the label maps")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--weights", help="backbone folder, where it is not the one that the state names")
    args = parser.parse_args(argv)
    names = segment_folder(args.state, args.images, args.out, args.device, args.weights)
    print(f"{len(names)} label maps in {args.out}", file=sys.stderr)
    return 0


def segment_folder(state: Path, images: Path, out: Path, device: str = "auto", weights: str | None = None) -> list[str]:
    """Label maps of all images of `images`, written into `out`; returns their names.

    Raises:
        ResultError: the state is unreadable or not one of this bench. DataError: no images, or an unreadable one.
        BackboneError: the backbone is not there. StorageError: `out` cannot be written.
    """
    import torch

    from slime_bench.data.datamodule import SegmentationDataModule
    from slime_bench.device import pick_device
    from slime_bench.schema import build, parse

    tensors, facts = read_state(state)
    if weights is not None:
        facts["backbone"]["weights"] = weights
    picked = pick_device(device)
    nodes = _nodes(facts)
    # The loader resizes as in the trial; which subclass of data module made the trial does not matter for bare images.
    data = SegmentationDataModule(parse(nodes["data"]), shots=1, seed=facts["seed"])
    loader = data.image_dataloader(images)
    method = build(
        nodes["method"],
        protocol=build(nodes["protocol"]),
        backbone=build(nodes["backbone"]),
        classes=facts["classes"],
        seed=facts["seed"],
    )
    method.load_learned_state(tensors)
    method.to(picked).eval()
    names: list[str] = []
    with torch.inference_mode():
        for batch in loader:
            scores = method.scores(batch["image"].to(picked), batch["id"]).cpu()
            for one, name, size in zip(scores, batch["id"], batch["size"], strict=True):
                _write(out, name, one, tuple(size.tolist()), data.config.fit)
                names.append(name)
    return names


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and metadata of a `state.safetensors`.

    Raises:
        ResultError: missing, corrupt, or without the bench's metadata.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        facts = {
            name: json.loads(metadata[name]) for name in ("classes", "method", "protocol", "backbone", "data", "seed")
        }
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ResultError(
            "this is not a readable state of a trial", path=path, found=f"{type(error).__name__}: {error}",
            expected="the state.safetensors of a finished trial",
            remedy="give the file in the trial's folder under outputs/runs",
        ) from error  # fmt: skip
    start = facts["method"].get("start")
    if isinstance(start, dict) and start.get("kind") == "file":
        start.update(kind="words", path=None)  # the same prompt; the embeddings are in the state
    return tensors, facts


def _nodes(facts: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create({name: facts[name] for name in ("method", "protocol", "backbone", "data")})


def _write(out: Path, name: str, scores: Any, size: tuple[int, int], fit: str) -> None:
    """Scores float [K,S,S] -> label map PNG at the file's `size`, and a picture of it in the palette's colours."""
    import io

    from PIL import Image

    from slime_bench.data.fit import unfit
    from slime_bench.data.labels import colourise
    from slime_bench.storage import write_atomic

    label = unfit(scores.float(), size, fit).argmax(0)
    pictures = {out / f"{name}.png": label.byte(), out / "colour" / f"{name}.png": colourise(label, len(scores))}
    for path, array in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(array.numpy()).save(buffer, "PNG")
        write_atomic(path, buffer.getvalue())
