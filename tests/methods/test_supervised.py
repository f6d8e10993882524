"""The supervised network: its loss against torch's, a data set that it learns in seconds, a training that is resumed,
starts by seed or by an encoder's weights, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from slime_bench.backbones.upernet import UperNet
from slime_bench.backbones.upernet_network import UperNetStart
from slime_bench.config.compose import plan
from slime_bench.errors import BackboneError, ConfigError
from slime_bench.methods.supervised.config import SupervisedConfig
from slime_bench.methods.supervised.method import Supervised
from slime_bench.results.result import TrialResult
from slime_bench.trial import resume
from slime_bench.trial import runner as trial
from tests.fixtures.resnet import save_resnet

CLASSES = ["background", "red", "blue"]
SIDE = 64


AS_THEY_ARE = [f"data.augment.{kind}_p=0" for kind in ("flip", "blur", "rotation")] + ["data.augment.crop_ratio=[1,1]"]


def start(**settings: Any) -> UperNetStart:
    return UperNetStart(UperNet.Config(**{"image_size": SIDE, "head_width": 16, **settings}))


def method(seed: int = 0, classes: list[str] = CLASSES, **settings: Any) -> Supervised:
    return Supervised(SupervisedConfig(steps=11), None, start(**settings), classes, seed)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet(tmp_path_factory.mktemp("resnet"))


# -- loss and start ----------------------------------------------------------------------------------------------------


def test_the_loss_is_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 9, 7, generator=draw, requires_grad=True)
    label = torch.randint(0, 3, (2, 9, 7), generator=draw)
    label[0, :4] = 255
    loss = method().loss(logits, label)
    expected = F.cross_entropy(logits, label, ignore_index=255)
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted)
    assert method().loss(logits, torch.full_like(label, 255)) == 0, "nothing is annotated: no step, and no NaN"


def test_the_start_is_the_seeds() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (method(seed).learned_state() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state()), "the global stream is as it was"
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_pretrained_encoder_is_the_start_and_stays_as_it_is(encoder: Path) -> None:
    from safetensors.torch import load_file

    backbone = start(weights=str(encoder), pretrained=True)
    stored = load_file(encoder / "model.safetensors")
    networks = [backbone.network(3, seed) for seed in (0, 1)]
    for name, value in networks[0].network.backbone.state_dict().items():
        assert torch.equal(value, stored[f"resnet.{name}"])
    heads = [network.network.decode_head.state_dict() for network in networks]
    assert any(not torch.equal(value, heads[1][name]) for name, value in heads[0].items()), "the head is the seed's"
    with torch.no_grad():
        for value in networks[0].parameters():
            value.zero_()
    again = backbone.network(3, 0).network.backbone.state_dict()
    assert all(torch.equal(value, stored[f"resnet.{name}"]) for name, value in again.items())
    untrained = start(weights=str(encoder), pretrained=False).network(3, 0).network.backbone.state_dict()
    assert any(not torch.equal(value, stored[f"resnet.{name}"]) for name, value in untrained.items())


def test_the_fingerprint_is_that_of_what_is_used(encoder: Path, tmp_path: Path) -> None:
    def found(folder: Path, pretrained: bool) -> str:
        return UperNet.content_hash_of(UperNet.Config(weights=str(folder), pretrained=pretrained))

    other = tmp_path / "other"
    other.mkdir()
    for path in encoder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "model.safetensors").write_bytes(b"others")
    assert found(encoder, False) == found(other, False) and found(encoder, True) != found(other, True)


def test_images_of_another_size_are_resized(encoder: Path) -> None:
    network = start().network(3, 0).eval()
    with torch.no_grad():
        large = torch.rand(1, 3, 96, 128)
        small = F.interpolate(large, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        expected = F.interpolate(network(small), size=(96, 128), mode="bilinear")
        torch.testing.assert_close(network(large), expected)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a blue square on grey, on the grid of the network's first stage: what any network learns."""
    root = tmp_path_factory.mktemp("shapes")
    colours = np.array([[120, 120, 120], [220, 40, 40], [40, 40, 220]])
    draw = np.random.default_rng(0)
    for split, count in {"support": 12, "val": 2, "test": 6}.items():
        for index in range(count):
            label = np.zeros((SIDE, SIDE), np.int64)
            for value, left in ((1, 0), (2, 32)):
                y, x = (4 * draw.integers(0, 3, 2)).tolist()
                label[y : y + 48, left + x : left + x + 24] = value
            picture = (colours[label] + draw.normal(0, 10, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
            for kind, array in (("images", picture), ("labels", label.astype(np.uint8))):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / split / kind / f"{split}{index}.png")
    return root


@pytest.fixture
def run(shapes: Path, encoder: Path, tmp_path: Path) -> Callable[..., tuple[TrialResult, Path]]:
    """A trial with some settings of its own; its result and its folder."""

    def done(*overrides: str, outputs: str = "out") -> tuple[TrialResult, Path]:
        small = ["data=folder", f"data.root={shapes}", f"data.classes=[{','.join(CLASSES)}]", f"data.image_size={SIDE}"]
        small += [f"backbone.weights={encoder}", f"backbone.image_size={SIDE}", "shots=12", "data.passes_per_epoch=3"]
        places = [f"output_root={tmp_path / outputs}", "trainer=cpu", "trainer.progress=false", "trainer.threads=1"]
        (cfg,) = plan(["method=supervised", *small, *places, *overrides]).trials
        found = trial.run(trial.spec_of(cfg))
        return found.result, found.folder

    return done


def test_it_learns_what_is_easy(run: Callable[..., tuple[TrialResult, Path]]) -> None:
    result, _ = run("method.steps=60", "method.batch=4", "method.lr=0.02", *AS_THEY_ARE)
    assert result.average is not None and result.average > 0.95
    assert result.facts["label"] == "supervised UPerNet" and result.facts["whole_set"]
    assert result.facts["stated"]["training"] == "60 steps of 4 images"
    assert not result.validation, "the last state counts"


def test_a_killed_training_ends_as_an_undisturbed_one(
    run: Callable[..., tuple[TrialResult, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("method.steps=13", "method.batch=5", "trainer.checkpoint_every=1")
    monkeypatch.setattr(resume, "SHARE", math.inf)
    whole, calm = run(*settings, outputs="calm")
    step, left = Supervised.training_step, 7

    class Killed(BaseException):
        """Stands in for the end of the process."""

    def dies(self: Supervised, batch: Any, index: int) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "training_step", dies)
        with pytest.raises(Killed):
            run(*settings, outputs="stormy")
    seen: list[int] = []

    def counted(self: Supervised, batch: Any, index: int) -> torch.Tensor:
        seen.append(len(batch["id"]))
        return step(self, batch, index)

    monkeypatch.setattr(Supervised, "training_step", counted)
    resumed, stormy = run(*settings, outputs="stormy")
    assert seen == [5, 5, 2, 5, 5, 2, 5], "the steps that are left of passes of 5, 5 and 2 images"
    assert resumed.conventions == whole.conventions
    for name in ("state.safetensors", "curves.parquet"):
        if (calm / name).exists():
            assert (calm / name).read_bytes() == (stormy / name).read_bytes()


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_a_state_of_other_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="another method, backbone or class list"):
        method().load_learned_state(method(classes=[*CLASSES, "star"]).learned_state())


def test_an_encoder_that_cannot_be_used_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such backbone"):
        UperNet.describe(UperNet.Config(weights="nowhere"))
    with pytest.raises(BackboneError, match="missing"):  # the bundled architecture has no weights
        UperNet.describe(UperNet.Config(weights="mini_resnet", pretrained=True))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackboneError, match="another kind") as caught:
        UperNet.describe(UperNet.Config(weights=str(tmp_path)))
    assert "microsoft/resnet-50" in str(caught.value.remedy)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_bytes((encoder / "config.json").read_bytes())
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        start(weights=str(torn), pretrained=True)


def test_the_paper_preset_starts_from_imagenet() -> None:
    (cfg,) = plan(["preset=paper", "method=supervised"]).trials
    assert (cfg.backbone.name, cfg.backbone.weights) == ("upernet_resnet50", "microsoft/resnet-50")
    assert cfg.backbone.pretrained and cfg.protocol.name == "none"
