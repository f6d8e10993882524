"""The bundled mini Stable Diffusion: loads as any other, is what its card says, and its attention means something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.backbones.weights import ASSETS, check_hashes
from tests.e2e.conftest import command

MINI = ASSETS / "mini_sd"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return dict(json.loads((MINI / "card.json").read_text()))


def test_files_are_those_that_were_measured(card: dict[str, Any]) -> None:
    check_hashes(MINI)
    listed = set(json.loads((MINI / "sha256.json").read_text()))
    present = {p.relative_to(MINI).as_posix() for p in MINI.rglob("*") if p.suffix in {".json", ".txt", ".safetensors"}}
    assert present - listed == {"card.json", "sha256.json"}
    assert sum(p.stat().st_size for p in MINI.rglob("*.safetensors")) < 15_000_000


def test_it_is_a_stable_diffusion_pipeline() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MINI, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a red car with red body , black wheels , on grass"
    image = pipeline(prompt, height=128, width=128, num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 128, 128) and bool(image.isfinite().all())
    kinds = [type(block).__name__ for block in (*pipeline.unet.down_blocks, *pipeline.unet.up_blocks)]
    assert kinds == [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D", "UpBlock2D", *["CrossAttnUpBlock2D"] * 3]


def test_the_card_shows_that_text_matters(card: dict[str, Any]) -> None:
    """Measured on held-out pictures by the training command: the right caption helps."""
    measured = card["measured"]
    for t in (300, 500, 700, 900):
        assert measured[f"loss_t{t}_right"] < measured[f"loss_t{t}_shuffled"], t
    assert 0.8 < measured["latent_std"] < 1.2 and abs(measured["latent_mean"]) < 0.1


def test_the_world_is_the_one_it_was_trained_on(card: dict[str, Any]) -> None:
    from slime_bench.data.mini_world.render import WORLD_VERSION

    assert card["world_version"] == WORLD_VERSION


@pytest.mark.release
def test_optimised_embeddings_find_the_parts(tmp_path: Path) -> None:
    """A short 1-shot trial, far above embeddings that were left where they start."""

    def average(name: str, *overrides: str) -> float:
        places = [f"data_root={tmp_path / 'data'}", f"output_root={tmp_path / name}"]
        common = ["shots=1", "seed=0", "trainer=cpu", "trainer.progress=false", "method.loss_weights.beta=0"]
        common += ["data.test_limit=20"]
        done = command("experiment=mini_car", *places, *common, *overrides)
        assert done.code == 0, done.err
        (path,) = (tmp_path / name / "runs").rglob("result.json")
        return 100 * float(json.loads(path.read_text())["average"])

    start = average("start", "method.epochs=0")
    was, cross = (average(maps, "method.epochs=60", f"method.maps={maps}") for maps in ("was", "cross"))
    assert was > start + 15
    assert was > cross
