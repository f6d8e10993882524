"""`python -m data_prep.pretrain.mini_sd` from nothing to a model folder, in seconds: every stage a few steps long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.pretrain import mini_sd as pretrain_mini_sd
from data_prep.pretrain import sd_export as pretrain_export
from data_prep.pretrain import unet as pretrain_unet
from tests.fixtures.pretraining import pretrain


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_unet, "FIRST_FILL", 16)
    monkeypatch.setattr(pretrain_unet, "REFILL", 2)
    monkeypatch.setattr(pretrain_mini_sd, "CHANNELS", (32, 32, 32, 32))
    monkeypatch.setattr(pretrain_mini_sd, "PICTURES", {"vae": 32, "unet64": 4, "unet128": 4})
    monkeypatch.setattr(pretrain_unet, "BATCH", {64: 2, 128: 2})
    measure, generate, measure_vae = pretrain_export.measure, pretrain_export.generate, pretrain_export.measure_vae
    for module in (pretrain_export, pretrain_mini_sd):
        monkeypatch.setattr(module, "measure_vae", lambda vae, device: measure_vae(vae, device, pictures=4))
    monkeypatch.setattr(pretrain_export, "measure", lambda pipeline, device: measure(pipeline, device, pictures=6))
    monkeypatch.setattr(pretrain_export, "generate", lambda pipeline, prompts: generate(pipeline, prompts, steps=1))
    monkeypatch.setattr(pretrain_export, "SAMPLES", 1)


@pytest.mark.release
def test_from_nothing_to_a_model(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from slime_bench.backbones.weights import DIFFUSION, check_hashes

    pretrain(monkeypatch, pretrain_mini_sd, tmp_path)
    model = tmp_path / "model"
    check_hashes(model)
    card = json.loads((model / "card.json").read_text())
    assert set(card["stages"]) == {"vae", "unet64", "unet128"} and card["stages"]["unet128"]["steps"] > 0
    assert (model / "samples.png").stat().st_size > 1000 and "Held out" in (model / "README.md").read_text()
    first = DIFFUSION.fingerprint(model)
    # The budget is spent: the same command trains nothing and writes the same weights.
    pretrain(monkeypatch, pretrain_mini_sd, tmp_path)
    assert DIFFUSION.fingerprint(model) == first


def test_nothing_to_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to export"):
        pretrain(monkeypatch, pretrain_mini_sd, tmp_path, "--export-only")
