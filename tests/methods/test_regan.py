"""ReGAN: its networks and losses against plain torch, the warp against a picture, an inversion of the generator's own
picture, labels by a person, the whole chain on a data set that the generator has made, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_prep.gan_pictures import main as gan_pictures
from slime_bench.backbones.gan import StyleGan2
from slime_bench.backbones.stylegan2 import StyleGan2Backbone
from slime_bench.config.compose import plan
from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.methods.regan.config import AutoShot, FewShot, Inversion, ReganConfig, ReganDescription
from slime_bench.methods.regan.inversion import distance, invert
from slime_bench.methods.regan.method import SHEET, Regan
from slime_bench.methods.regan.networks import FewShotNetwork, UNet, resized
from slime_bench.methods.regan.training import Pairs, auto_shot_steps, few_shot_steps, soft_cross_entropy, warped
from slime_bench.results.result import TrialResult
from slime_bench.trial import runner as trial
from tests.fixtures.gan import SMOOTH, save_gan

CLASSES = ["background", "bright"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gan(tmp_path_factory.mktemp("regan") / "gan", SMOOTH, loud=0.0)


@pytest.fixture(scope="module")
def backbone(weights: Path) -> StyleGan2Backbone:
    return StyleGan2Backbone(StyleGan2.Config(weights=str(weights)))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- networks and losses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 24, 64])  # below, between and above the maps' sides
def test_the_network_reads_the_stack_of_resized_maps(side: int) -> None:
    torch.manual_seed(0)
    maps = [draw(2, 5, 8, 8), draw(2, 4, 16, 16, seed=1), draw(2, 3, 32, 32, seed=2)]
    network = FewShotNetwork([5, 4, 3], 3, side)
    stack = torch.cat([resized(each, side) for each in maps], 1)
    assert stack.shape == (2, 12, side, side)
    torch.testing.assert_close(network(maps), network.rest(network.first(stack)), rtol=1e-4, atol=1e-5)


def test_resizing_keeps_corners_or_areas() -> None:
    maps = draw(1, 2, 8, 8)
    larger = resized(maps, 32)
    assert torch.allclose(larger[..., ::31, ::31], maps[..., ::7, ::7], atol=1e-6), "aligned corners"
    torch.testing.assert_close(resized(maps, 4), F.avg_pool2d(maps, 2))
    torch.testing.assert_close(resized(maps, 8), maps)


def test_the_u_net_has_the_published_size_and_its_output_layer() -> None:
    """17,267,393 numbers with one class: the widely used PyTorch U-Net with bilinear steps, which the authors took."""
    count = {classes: sum(each.numel() for each in UNet(classes, 64).parameters()) for classes in (1, 6)}
    assert count == {1: 17_267_393, 6: 17_267_393 + 5 * 65}
    assert UNet(6, 2)(torch.rand(2, 3, 32, 48)).shape == (2, 6, 32, 48)


def test_the_soft_loss_is_torchs_where_everything_is_inside() -> None:
    logits, targets = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1).softmax(1)
    inside = torch.ones(2, 4, 5)
    torch.testing.assert_close(soft_cross_entropy(logits, targets, inside), F.cross_entropy(logits, targets))
    inside[0, 2:] = 0
    halves = [F.cross_entropy(logits[:1, :, :2], targets[:1, :, :2]), F.cross_entropy(logits[1:], targets[1:])]
    torch.testing.assert_close(soft_cross_entropy(logits, targets, inside), torch.stack(halves).mean())
    assert soft_cross_entropy(logits, targets, torch.zeros_like(inside)) == 0, "nothing is inside: no NaN"


class TestWarp:
    """Draws of 0.5 are no rotation and no shift; 1/3 is the scale 1; above 0.5 nothing is mirrored."""

    STILL = (0.5, 1 / 3, 0.5, 0.5, 0.9)

    def moved(self, **changes: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        names = ("angle", "scale", "x", "y", "mirror")
        draws = torch.tensor([[changes.get(name, value) for name, value in zip(names, self.STILL, strict=True)]])
        pictures, targets = draw(1, 3, 8, 8), draw(1, 2, 8, 8, seed=1)
        found, labels, inside = warped(pictures, targets, draws)
        return pictures, found, inside, (labels - warped(targets, targets, draws)[0]).abs().max()

    def test_nothing(self) -> None:
        pictures, found, inside, apart = self.moved()
        torch.testing.assert_close(found, pictures, rtol=0, atol=1e-5)
        assert inside.all() and apart == 0

    def test_mirror(self) -> None:
        pictures, found, inside, _ = self.moved(mirror=0.1)
        torch.testing.assert_close(found, pictures.flip(-1), rtol=0, atol=1e-5)
        assert inside.all()

    def test_shift(self) -> None:
        """By a quarter of the side, to the right and up; what comes from outside does not count."""
        pictures, found, inside, apart = self.moved(x=0.75, y=0.25)
        torch.testing.assert_close(found[..., :6, 2:], pictures[..., 2:, :6], rtol=0, atol=1e-5)
        assert inside[..., :6, 2:].all() and not inside[..., 6:, :].any() and not inside[..., :2].any() and apart == 0
        assert not found[..., 6:, :].any()

    def test_scale(self) -> None:
        """By 1/2: the picture is in the middle, its four pixels of 2 x 2 averaged."""
        pictures, found, inside, _ = self.moved(scale=0.0)
        torch.testing.assert_close(found[..., 2:6, 2:6], F.avg_pool2d(pictures, 2), rtol=0, atol=1e-5)
        assert inside.sum() == 16

    def test_rotation(self) -> None:
        """By 10 degrees: a linear picture a x + b y stays one, of turned coordinates."""
        line = torch.linspace(-1, 1, 64) * 63 / 64
        picture = (line[None, :] + 2 * line[:, None])[None, None]
        found, _, inside = warped(picture, picture, torch.tensor([[1.0, 1 / 3, 0.5, 0.5, 0.9]]))
        angle = torch.tensor(10.0).deg2rad()
        x, y = line[None, :], line[:, None]
        turned = (angle.cos() * x + angle.sin() * y) + 2 * (-angle.sin() * x + angle.cos() * y)
        middle = slice(12, 52)
        torch.testing.assert_close(found[0, 0, middle, middle], turned[middle, middle], rtol=0, atol=1e-4)
        assert inside[0, middle, middle].all() and not inside[0, 0, 0]


def test_the_rate_falls_after_every_so_many_passes() -> None:
    network, maps = FewShotNetwork([2], 2, 16), [[draw(1, 2, 8, 8)]] * 2
    labels = torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    labels[0] = 255
    config = FewShot(epochs=8, every=3, decay=0.5, lr=1e-3)
    steps = list(few_shot_steps(network, maps, labels, config))
    rates = [step.rate / 1e-3 for step in steps[::2]]
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25] and len(steps) == 16
    assert steps[0].loss == 0 < steps[1].loss, "255 does not count"
    assert len(list(few_shot_steps(network, maps, labels, FewShot(max_steps=3)))) == 3


def test_auto_shot_learns_what_is_easy_and_the_same_each_time() -> None:
    """Two classes by brightness; the last loss is far below the first, in every part a function of the seed."""
    pictures = torch.randint(0, 2, (24, 1, 4, 4), generator=torch.Generator().manual_seed(0)).repeat_interleave(3, 1)
    pictures = pictures.repeat_interleave(8, 2).repeat_interleave(8, 3) * 200
    bright = (pictures[:, :1] > 100).half()
    pairs = Pairs(pictures.byte(), torch.cat([4 - 8 * bright, 8 * bright - 4], 1))
    ends = []
    for disturb in (1, 2):
        torch.manual_seed(0)
        unet = UNet(2, 4)
        torch.manual_seed(disturb)
        config = AutoShot(pairs=24, epochs=8, batch=5, lr=0.02, validation=0.1)
        losses = [float(step.loss) for step in auto_shot_steps(unet, pairs, config, seed=0)]
        assert len(losses) == 8 * 5, "22 of 24 in steps of 5, 5, 5, 5 and 2"
        assert np.mean(losses[-5:]) < 0.5 * losses[0]
        ends.append(unet.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


# -- the generator's pictures ------------------------------------------------------------------------------------------


def test_an_inversion_comes_close_to_a_picture_of_the_generator(backbone: StyleGan2Backbone) -> None:
    styles = backbone.styles(draw(1, SMOOTH.style_dim, seed=5))
    noises = backbone.noises([torch.Generator().manual_seed(3)])
    wanted = backbone.generate(styles, noises).pictures
    far = distance(backbone.generate(backbone.mean_style[None], noises).pictures, wanted)
    stream = torch.Generator().manual_seed(0)
    found = invert(backbone, wanted, noises, Inversion(starts=20, steps=60, lr=0.05, pull=0.0), stream)
    assert found.shape == (1, SMOOTH.styles, SMOOTH.style_dim) and not found.requires_grad
    assert distance(backbone.generate(found, noises).pictures, wanted) < 0.02 * far
    pulled = invert(backbone, wanted, noises, Inversion(starts=20, steps=60, lr=0.05, pull=1e3), torch.Generator())
    assert (pulled - backbone.mean_style).norm() < 0.2 * (found - backbone.mean_style).norm()


def test_distance_is_a_mean_over_scales() -> None:
    one, other = draw(2, 3, 32, 32), draw(2, 3, 32, 32, seed=1)
    sides = [(F.avg_pool2d(one, n) - F.avg_pool2d(other, n)).square().mean((1, 2, 3)) for n in (1, 2, 4)]
    torch.testing.assert_close(distance(one, other), torch.stack(sides).mean(0))


def bright(picture: np.ndarray) -> np.ndarray:
    """The truth of this file's data: what is brighter than the middle grey, uint8 [H,W]."""
    return (picture.astype(float).mean(2) > 127).astype(np.uint8)


@pytest.fixture(scope="module")
def world(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the generator's own pictures, and labels of some of them by number."""
    root = tmp_path_factory.mktemp("world")
    gan_pictures(["--weights", str(weights), "--count", "16", "--out", str(root / "all")])
    for number in range(16):
        picture = np.asarray(Image.open(root / "all" / f"{number}.png"))
        split = "labelled" if number < 4 else ("support" if number < 8 else "test")
        for kind, array in (("images", picture), ("labels", bright(picture))):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / split / kind / f"{number}.png")
    return root


@pytest.fixture
def run(world: Path, weights: Path, tmp_path: Path) -> Callable[..., tuple[TrialResult, Path]]:
    """A trial with some settings of its own; its result and its folder."""

    def done(*overrides: str) -> tuple[TrialResult, Path]:
        data = ["data=folder", f"data.root={world}", f"data.classes=[{','.join(CLASSES)}]", "data.image_size=16"]
        small = [
            f"backbone.weights={weights}",
            "method.size=16",
            "method.few_shot.max_steps=150",
            "method.few_shot.lr=0.003",
        ]
        small += [f"method.auto_shot.{each}" for each in ("pairs=64", "epochs=12", "batch=8", "width=8", "lr=0.01")]
        places = [f"output_root={tmp_path}", "trainer=cpu", "trainer.progress=false", "trainer.threads=1", "shots=4"]
        (cfg,) = plan(["method=regan", *data, *small, *places, "data.validation=none", *overrides]).trials
        found = trial.run(trial.spec_of(cfg))
        return found.result, found.folder

    return done


def test_the_chain_with_labels_by_a_person(run: Callable[..., tuple[TrialResult, Path]], world: Path) -> None:
    result, folder = run("method.labels=folder", f"method.labelled={world / 'labelled' / 'labels'}")
    assert result.average is not None and result.average > 0.55, "background alone: 0.4"
    assert result.facts["label"] == "ReGAN" and result.facts["stated"]["labels"] == "of generated pictures"
    assert not (folder / SHEET).exists()


def test_the_chain_with_inverted_support_images(run: Callable[..., tuple[TrialResult, Path]]) -> None:
    result, folder = run(*[f"method.inversion.{each}" for each in ("space=w", "starts=20", "steps=60", "pull=0")])
    assert result.average is not None and result.average > 0.55, "background alone: 0.4"
    assert result.facts["stated"]["labels"] == "the support's, by inversion"
    assert Image.open(folder / SHEET).size == (64, 32), "four pictures above what was painted like them"


# -- what it refuses ---------------------------------------------------------------------------------------------------


def check(config: ReganConfig, shots: int = 1) -> None:
    ReganDescription.check(config, None, CLASSES, 32, shots)


def test_pairs_that_do_not_fit_the_memory_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="do not fit the memory") as caught:
        check(ReganConfig(memory_gb=9.0))
    assert "9.18 GB for 5000 pictures" in str(caught.value.expected)  # 5000 512^2 (3 + 2 * 2)
    check(ReganConfig(memory_gb=9.2))


def test_labelled_pictures_are_checked(tmp_path: Path, world: Path, backbone: StyleGan2Backbone) -> None:
    there = str(world / "labelled" / "labels")
    for labels, folder in (("inverted", there), ("folder", None)):
        with pytest.raises(ConfigError, match="named where they are used"):
            check(ReganConfig(labels=labels, labelled=folder))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no label maps") as caught:
        check(ReganConfig(labels="folder", labelled=str(tmp_path / "nowhere")))
    assert caught.value.found == "no such folder"
    with pytest.raises(ConfigError, match="the shots of the trial") as wrong:
        check(ReganConfig(labels="folder", labelled=there), shots=1)
    assert wrong.value.remedy == "shots=4"
    check(ReganConfig(labels="folder", labelled=there), shots=4)
    first = ReganDescription.fingerprints(ReganConfig(labels="folder", labelled=there))
    own = tmp_path / "own"
    own.mkdir()
    for number, array in enumerate([np.zeros((32, 32), np.uint8), np.full((32, 32), 2, np.uint8)]):
        Image.fromarray(array).save(own / f"{number}.png")
    config = ReganConfig(labels="folder", labelled=str(own), size=32)
    assert ReganDescription.fingerprints(config)["labelled"] != first["labelled"]
    method: Any = Regan(config, None, backbone, CLASSES, seed=0)
    with pytest.raises(DataError, match="no label map of a generated picture") as caught:
        method.fit(None)
    assert str(caught.value.path).endswith("1.png") and caught.value.found == "labels [2]"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(own / "1.png")
    with pytest.raises(DataError, match="no label map of a generated picture"):
        method.fit(None)
    (own / "first.png").write_bytes(b"")
    with pytest.raises(DataError, match="no label maps") as caught:
        check(config, shots=2)
    assert caught.value.found == "first.png"


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 16"):
        plan(["method=regan", "method.size=100"])


def test_a_state_of_another_u_net_is_refused(backbone: StyleGan2Backbone) -> None:
    wide, narrow = (
        Regan(ReganConfig(auto_shot=AutoShot(width=width)), None, backbone, CLASSES, seed=0) for width in (8, 4)
    )
    state = {"present": torch.ones(2, dtype=torch.bool), **wide._unet_state()}
    with pytest.raises(ConfigError, match="another method, backbone or class list"):
        narrow.load_learned_state(state)
    wide.load_learned_state(state)


def test_the_paper_preset_names_a_folder_of_its_subject() -> None:
    (cfg,) = plan(["preset=paper", "method=regan", "data=pascal_part_horse"]).trials
    assert (cfg.backbone.name, cfg.backbone.weights) == ("stylegan2", "stylegan2_horse")
    assert cfg.method == ReganConfig(), "the defaults are the preset's"
    with pytest.raises(BackboneError, match="no such backbone") as caught:
        StyleGan2.describe(cfg.backbone)
    assert "data_prep.convert_stylegan2" in str(caught.value.remedy)
