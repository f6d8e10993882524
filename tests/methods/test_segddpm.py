"""SegDDPM: classifiers in stacked tensors against plain torch modules, hypercolumns against resized maps, the method on
a tiny backbone, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.backbones.ddpm import DdpmFacts
from slime_bench.backbones.features import linear_alphas_cumprod
from slime_bench.config.compose import plan
from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.methods.base import label_maps
from slime_bench.methods.segddpm import classifier
from slime_bench.methods.segddpm.config import SegDdpmConfig, SegDdpmDescription
from slime_bench.methods.segddpm.hypercolumns import Hypercolumns, Key, Shape, bytes_needed
from slime_bench.methods.segddpm.method import SegDdpm, matched, nearest
from slime_bench.seeding import generator
from tests.fixtures.adm import SMALL, save_adm

CLASSES = ["background", "wheel", "window"]
SIDE = 64


def streams(count: int) -> list[torch.Generator]:
    return [generator(0, "test", index) for index in range(count)]


def blobs(count: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rows [N,D] around a centre for each class, most labels at random: a small loss would amplify rounding."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (count,), generator=draw)
    rows = torch.randn(classes, features, generator=draw)[labels] + torch.randn(count, features, generator=draw)
    return rows, torch.where(torch.rand(count, generator=draw) < 0.7, labels.flip(0), labels)


# -- classifiers -------------------------------------------------------------------------------------------------------


def plain_network(sizes: tuple[int, ...]) -> nn.Sequential:
    """The network as a module, with the authors' start, drawn from the global generator."""
    d, one, two, classes = sizes
    found = nn.Sequential(
        nn.Linear(d, one), nn.ReLU(), nn.BatchNorm1d(one),
        nn.Linear(one, two), nn.ReLU(), nn.BatchNorm1d(two), nn.Linear(two, classes),
    )  # fmt: skip
    for layer in found:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.02)
            nn.init.zeros_(layer.bias)
    return found


def plain_training(network: nn.Sequential, rows: Tensor, labels: Tensor) -> list[float]:
    """The authors' loop with torch's own loader; it draws from the global generator."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(rows, labels), batch_size=64, shuffle=True, drop_last=True
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses, best, failures = list[float](), float("inf"), 0
    for epoch in range(100):
        for x, y in loader:
            optimiser.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if epoch > 3:
                best, failures = (loss.item(), 0) if loss.item() < best else (best, failures + 1)
                if failures > 50:
                    return losses
    return losses


def test_in_turn_is_the_plain_loop_on_one_stream() -> None:
    """Starts, orders, losses and stops of two networks, one after the other, are those of modules and a loader."""
    rows, labels = blobs(400, 12, 5)
    sizes, stream = classifier.widths(12, 5), torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for _ in range(2):
            network = plain_network(sizes)
            start = classifier.drawn(sizes, [stream])
            assert torch.equal(start["1.weight"][0], network[3].weight)
            expected = plain_training(network, rows, labels)
            fitted = classifier.fit(start, lambda index: rows[index], labels, [classifier.order(len(rows), stream)])
            assert len(fitted.losses[0]) == len(expected)
            torch.testing.assert_close(torch.tensor(fitted.losses[0]), torch.tensor(expected), rtol=0, atol=1e-4)
            found = classifier.logits(fitted.networks, rows.T[None])[0].T
            torch.testing.assert_close(found, network.eval()(rows), rtol=0, atol=1e-3)


def test_networks_side_by_side_are_the_same_as_alone() -> None:
    """They stop at different batches; none feels it when another leaves."""
    rows, labels = blobs(400, 12, 5)
    sizes = classifier.widths(12, 5)

    def fitted(chosen: list[torch.Generator]) -> classifier.Fitted:
        orders = [classifier.order(len(rows), stream) for stream in chosen]
        start = classifier.drawn(sizes, chosen)
        return classifier.fit(start, lambda index: rows[index], labels, orders)

    whole, alone = fitted(streams(4)), [fitted([stream]) for stream in streams(4)]
    stops = [len(each) for each in whole.losses]
    assert stops == [len(each.losses[0]) for each in alone] and len(set(stops)) > 1
    apart = []
    for place, each in enumerate(alone):
        apart.append(float((torch.tensor(whole.losses[place]) - torch.tensor(each.losses[0])).abs().max()))
        if apart[-1] < 1e-5:
            own = {name: value[place : place + 1] for name, value in whole.networks.items()}
            one, other = (classifier.logits(networks, rows.T[None]) for networks in (own, each.networks))
            torch.testing.assert_close(one, other, rtol=0, atol=1e-2)
    # Rounding that moves a unit across zero is seen later on: of one of four networks here.
    assert sorted(apart)[2] < 1e-5 and max(apart) < 0.1
    assert not any(value.requires_grad for value in whole.networks.values())


def test_training_ends_after_a_hundred_epochs_at_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "PATIENCE", 10**9)
    rows, labels = blobs(150, 6, 3)
    fitted = classifier.fit(
        classifier.drawn((6, 4, 4, 3), streams(2)), lambda i: rows[i], labels,
        [classifier.order(len(rows), stream) for stream in streams(2)],
    )  # fmt: skip
    assert [len(each) for each in fitted.losses] == [200, 200], "two whole batches an epoch, the rest is left out"


def test_widths() -> None:
    assert classifier.widths(8448, 29) == (8448, 128, 32, 29) and classifier.widths(8448, 30) == (8448, 256, 128, 30)


def test_votes_of_a_tie_go_to_the_smallest_label() -> None:
    labels = torch.tensor([[2, 1, 0], [1, 1, 2], [2, 2, 2], [1, 0, 0]])  # [M,P]
    shares = classifier.votes(F.one_hot(labels, 3).transpose(1, 2).float())
    assert shares.argmax(0).tolist() == [1, 1, 0]
    assert torch.equal(shares.argmax(0), labels.mode(0).values)
    assert torch.equal(shares, torch.tensor([[0, 0.25, 0.5], [0.5, 0.5, 0], [0.5, 0.25, 0.5]]))


def test_rare_classes_of_an_image_are_ignored_there() -> None:
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[0].view(-1)[:19], labels[1].view(-1)[:20], labels[1].view(-1)[-5:] = 1, 1, 255
    kept = classifier.training_labels(labels, 3)
    assert int((kept[0] == 255).sum()) == 19 and int((kept[0] == 1).sum()) == 0
    assert int((kept[1] == 255).sum()) == 5 and int((kept[1] == 1).sum()) == 20
    assert int((labels == 1).sum()) == 39, "the given ones are as they were"


# -- hypercolumns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(16, 16), (8, 8), (24, 20), (3, 3)])
def test_gathered_pixels_and_first_layer_are_those_of_resized_maps(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)  # of some thousand draws one has a logit so near 0 that the bar is below its terms' rounding
    sizes: dict[str, Shape] = {"a": (5, 4, 4), "b": (3, 8, 8)}
    shapes: dict[Key, Shape] = {(t, name): sizes[name] for t in (50, 150) for name in sizes}
    maps = {key: torch.randn(2, *shape) for key, shape in shapes.items()}
    columns = Hypercolumns(shapes, 2, grid, torch.device("cpu"))
    for place in (1, 0):
        for key, value in maps.items():
            columns.put(place, key, value[place : place + 1])
    resized = [F.interpolate(each, size=grid, mode="bilinear", align_corners=False) for each in maps.values()]
    rows = torch.cat(resized, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = torch.randperm(len(rows))[:50]
    assert columns.width == 16 and bytes_needed(shapes, 2) == 4 * 2 * (2 * 80 + 2 * 192)
    torch.testing.assert_close(columns(pixels), rows[pixels], rtol=0, atol=1e-5)
    networks = classifier.drawn(classifier.widths(16, 3), streams(3))
    networks = {name: value + torch.rand(value.shape) for name, value in networks.items()}
    cells = grid[0] * grid[1]
    own = classifier.logits(networks, rows[cells:].T.expand(3, -1, -1))
    first = classifier.first_of_maps(networks, [each[1] for each in maps.values()], grid)
    torch.testing.assert_close(classifier.after_first(networks, first), own, rtol=1e-5, atol=1e-5)


def test_nearest_takes_the_pixel_that_opencv_takes() -> None:
    cv2 = pytest.importorskip("cv2")
    labels = torch.randint(0, 9, (1, 1, 80, 80))
    for side in (64, 40, 160, 37):
        expected = cv2.resize(labels[0, 0].numpy().astype("uint8"), (side, side), interpolation=cv2.INTER_NEAREST)
        assert torch.equal(nearest(labels, (side, side))[0, 0], torch.from_numpy(expected).long())


# -- the method --------------------------------------------------------------------------------------------------------


class Data:
    """A data module's support images: discs of two classes."""

    def __init__(self, count: int = 2, label: int | None = None) -> None:
        draw = torch.Generator().manual_seed(3)
        self.batch = {"image": torch.rand(count, 3, SIDE, SIDE, generator=draw), "id": [f"s{n}" for n in range(count)]}
        labels = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
        labels[:, 8:32, 8:40], labels[:, 40:56, 20:60], labels[:, :4] = 1, 2, 255
        self.batch["label"] = labels if label is None else torch.full_like(labels, label)
        self.batch["image"][:, 0] += 0.5 * (labels == 1)
        self.batch["image"] = self.batch["image"].clamp(0, 1)

    def support_dataloader(self) -> list[dict[str, Any]]:
        return [
            {name: value[place : place + 1] for name, value in self.batch.items()} for place in range(len(self.ids))
        ]

    @property
    def ids(self) -> list[str]:
        return list(self.batch["id"])


@pytest.fixture(scope="module")
def tiny_adm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adm(tmp_path_factory.mktemp("adm") / "small.pt")


@pytest.fixture
def make(tiny_sd: Path, tiny_adm: Path) -> Callable[..., SegDdpm]:
    """make(backbone, overrides) -> the method, untrained."""

    def made(backbone: str = "mini_sd", *overrides: str, seed: int = 0) -> SegDdpm:
        small = {"mini_sd": [f"backbone.weights={tiny_sd}", f"backbone.image_size={SIDE}"]}.get(
            backbone, [f"backbone.weights={tiny_adm}", *(f"backbone.{key}={value}" for key, value in SMALL.items())]
        )
        sizes = ["method.size=16", "method.networks=3"]
        cfg = plan(["method=segddpm", f"backbone={backbone}", *small, *sizes, *overrides]).trials[0]
        return cfg.build("method", protocol=None, backbone=cfg.build("backbone"), classes=CLASSES, seed=seed)

    return made


@pytest.mark.parametrize("backbone", ["mini_sd", "adm_uncond"])
def test_it_learns_what_it_is_shown_and_images_are_by_themselves(make: Callable[..., SegDdpm], backbone: str) -> None:
    method, data = make(backbone), Data()
    method.prepare(data, "cpu")
    images = data.batch["image"]
    whole = method.scores(images, data.ids)
    assert whole.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(whole.sum(1), torch.ones(2, SIDE, SIDE))
    assert set((whole * 3).round().unique().tolist()) <= {0, 1, 2, 3}
    blocks = whole.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert torch.equal(blocks.amax(-1), blocks.amin(-1)), "predicted on the coarser grid"
    truth, valid = data.batch["label"], data.batch["label"] != 255
    assert float((label_maps(whole) == truth)[valid].float().mean()) > 0.8
    single = torch.cat([method.scores(images[place : place + 1], [name]) for place, name in enumerate(data.ids)])
    assert float((single != whole).float().mean()) < 0.005


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which nothing has to be learned."""
    monkeypatch.setattr(classifier, "MOST_EPOCHS", 1)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("training", ["joint", "in_turn"])
def test_a_state_is_enough(make: Callable[..., SegDdpm], training: str) -> None:
    data, switch = Data(), f"method.training={training}"
    method = make("mini_sd", switch)
    assert method.learned_state() == {}
    method.prepare(data, "cpu")
    other = make("mini_sd", switch, seed=9)
    other.load_learned_state(method.learned_state())
    assert torch.equal(other.scores(data.batch["image"], data.ids), method.scores(data.batch["image"], data.ids))
    weights = method.learned_state()["0.weight"]
    assert weights.shape[0] == 3 and not torch.equal(weights[0], weights[1])


@pytest.mark.usefixtures("short")
def test_a_state_of_something_else_is_refused(make: Callable[..., SegDdpm]) -> None:
    method = make()
    method.prepare(Data(), "cpu")
    state = method.learned_state()
    fewer = {name: value for name, value in state.items() if name != "noise"}
    classes = {**state, "2.weight": torch.zeros(3, 4, 32)}
    other = make()
    for wrong in ({"embeddings": torch.zeros(1)}, {}, fewer, classes):
        with pytest.raises(ConfigError, match="another method") as caught:
            other.load_learned_state(wrong)
        assert caught.value.remedy
    with pytest.raises(ConfigError, match="another size"):
        method.scores(torch.rand(1, 3, 96, 96), ["a"])


@pytest.mark.parametrize("label", [0, 255])
def test_a_support_without_parts_is_refused(make: Callable[..., SegDdpm], label: int) -> None:
    with pytest.raises(DataError, match="the support images") as caught:
        make().prepare(Data(label=label), "cpu")
    assert "wheel" in str(caught.value.expected) and "s0" in str(caught.value.path)


def test_memory_is_said_before_the_pass(make: Callable[..., SegDdpm], monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("mini_sd", "method.memory_gb=0.0001")
    monkeypatch.setattr(method.backbone, "features", lambda *_: pytest.fail("a pass was made"))
    with pytest.raises(ConfigError, match="do not fit") as caught:
        method.prepare(Data(), "cpu")
    shapes = method.backbone.feature_shapes((SIDE, SIDE), method.layers)
    needed = 3 * 2 * 4 * sum(c * h * w for c, h, w in shapes.values()) / 1e9
    assert f"{needed:.2f} GB for 2 images" in str(caught.value.expected)
    assert "method.memory_gb=" in str(caught.value.remedy) and caught.value.path == "method.memory_gb"


def test_matched_timesteps() -> None:
    """Those of Stable Diffusion's scaled-linear schedule (docs/protocol: arithmetic), and its own of the linear one."""
    scaled = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    assert matched([50, 150, 250], scaled) == [32, 179, 341]
    assert matched([0, 50, 150, 999], linear_alphas_cumprod().float()) == [0, 50, 150, 999]
    levels = [linear_alphas_cumprod()[t].item() for t in (50, 150, 250)]
    assert levels == pytest.approx([0.970, 0.786, 0.521], abs=1e-3)


def test_matched_is_a_switch(make: Callable[..., SegDdpm]) -> None:
    assert make().timesteps == [50, 150, 250]
    method = make("mini_sd", "method.noise_level=matched")
    assert method.timesteps == matched([50, 150, 250], method.backbone.alphas_cumprod) != [50, 150, 250]
    assert make("adm_uncond", "method.noise_level=matched").timesteps == [50, 150, 250]
    with pytest.raises(ConfigError, match="two timesteps are one"):
        make("mini_sd", "method.noise_level=matched", "method.timesteps=[0,1,2,3,4,5]")
    assert SegDdpmDescription.stated(SegDdpmConfig(noise_level="matched")) == {
        "noise level": "matched to the linear schedule"
    }


def test_what_is_refused_before_any_weights() -> None:
    def refused(**settings: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            SegDdpmDescription.check(SegDdpmConfig(**settings), DdpmFacts(), CLASSES, SIDE)
        return caught.value

    assert refused(timesteps=[50, 1000]).path == "method.timesteps"
    assert refused(layers=["a", "b", "a"]).path == "method.layers"
    assert refused(timesteps=[50, 50]).path == "method.timesteps"
    SegDdpmDescription.check(SegDdpmConfig(layers=["a"]), DdpmFacts(), CLASSES, SIDE)


def test_a_layer_that_is_not_there(make: Callable[..., SegDdpm]) -> None:
    with pytest.raises(BackboneError) as caught:
        make("mini_sd", "method.layers=[up_blocks.1.upsamplers.7]")
    assert caught.value.path == "method.layers" and "upsamplers.7" in str(caught.value.found)


def test_orders_are_permutations_and_streams_are_apart() -> None:
    first, second = (list(itertools.islice(classifier.order(100, stream), 3)) for stream in streams(2))
    assert all(sorted(each.tolist()) == list(range(100)) for each in first)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], second[0])
