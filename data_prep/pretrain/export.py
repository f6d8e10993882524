"""What the export of both small models shares: figures of the training, hashes, a folder that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.pretrain.trainloop import read_checkpoint
from slime_bench.data.mini_world.render import WORLD_VERSION


def export_model(
    out: Path,
    work: Path,
    stages: Sequence[str],
    device: torch.device,
    write: Callable[[Path], dict[str, Any]],
    page: str,
) -> None:
    """Write a model folder with its card, the card's page and the hashes of what is loaded; replaces `out` at the end.

    Args:
        stages: of the training, in `work`.
        write: writes the model to a folder and returns what was measured of what was written: `parameters`, `measured`.
        page: Markdown that says what the model is; the card follows it.
    """
    building = out.with_name(f".{out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    facts = write(building)
    cuda = device.type == "cuda"
    card = {
        "world_version": WORLD_VERSION,
        "parameters": facts["parameters"],
        "stages": {stage: stage_facts(work, stage) for stage in stages},
        "measured": facts["measured"],
        "hardware": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores, {platform.machine()}",
        "bytes": sum(path.stat().st_size for path in building.rglob("*") if path.is_file()),
    }
    loaded = [path for path in building.rglob("*") if path.suffix in {".json", ".txt", ".safetensors"}]
    hashes = {p.relative_to(building).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(loaded)}
    text = json.dumps(card, indent=1) + "\n"
    (building / "card.json").write_text(text)
    (building / "README.md").write_text(f"{page}\nHeld out, measured on these files:\n\n```json\n{text}```\n")
    (building / "sha256.json").write_text(json.dumps(hashes, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)


def parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def stage_facts(work: Path, stage: str) -> dict[str, Any]:
    """Steps, images and seconds of a stage, and the means of its losses at the end."""
    state = read_checkpoint(work, stage)
    means = {name: round(value, 4) for name, value in state["means"].items()}
    return {"steps": state["step"], "images": state["images"], "seconds": round(state["spent"]), **means}
