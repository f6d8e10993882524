"""Fixtures for all tests: the shared folder, composed configurations, a quiet and reproducible process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# Before torch or wandb are imported by any test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("MPLBACKEND", "Agg")

# How long an example takes says how busy the machine is.
settings.register_profile("bench", deadline=None)
settings.load_profile("bench")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The parity suite's table; under xdist the process that prints does not load the folder's own conftest.py."""
    from tests.parity.table import pytest_terminal_summary as table

    table(terminalreporter, config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: the last one of a run would leave the other workers idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("release")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Test workers run side by side, and sums have one order only with one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def threads_are_given_back(single_thread: None) -> Iterator[None]:
    import torch

    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, "the test left torch another number of threads"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's own environment says must not change a test."""
    for name in ("HYDRA_FULL_ERROR", "SLIME_BENCH_DATA", "SLIME_BENCH_OUTPUTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root folder."""
    return REPOSITORY


def _skip(reason: str) -> NoReturn:
    """Something that CI has is not there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and real sample files beside the checkout; skips without it, but fails in CI."""
    if SHARED.is_dir():
        return SHARED
    reason = f"no folder {SHARED.name}/ beside the checkout: golden numbers and real sample files are not there"
    _skip(reason)


@pytest.fixture(scope="session")
def real() -> Path:
    """A few real files, `pascal_part/` and `celebamask_hq/`: the folder of SLIME_BENCH_REAL, else ../shared/real."""
    folder = Path(os.environ.get("SLIME_BENCH_REAL") or SHARED / "real")
    if folder.is_dir():
        return folder
    reason = f"no real sample files: {folder} is not there (SLIME_BENCH_REAL names another folder)"
    _skip(reason)


@pytest.fixture(scope="session")
def slurm_conf() -> Iterator[Path]:
    """The slurm.conf of a cluster of this machine alone; skips where SLURM is not installed, but fails in CI."""
    from tests.fixtures.slurm import PACKAGES, cluster, missing

    if lacks := missing():
        reason = f"no SLURM on this machine ({', '.join(lacks)}); Debian: apt install {PACKAGES}"
        _skip(reason)
    with cluster() as conf:
        yield conf


@pytest.fixture
def slurm(slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`sbatch` and its like are those of the tests' own cluster, which has no accounting; the folder of its logs."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    return slurm_conf.parent


@pytest.fixture(scope="session")
def ray_variables() -> Iterator[dict[str, str]]:
    """How to find a Ray cluster of this machine alone; skips where Ray is not installed, but fails in CI."""
    from importlib.util import find_spec

    from tests.fixtures.ray import cluster

    if find_spec("ray") is None:
        reason = "Ray is not installed: pip install --constraint constraints.txt ray"
        _skip(reason)
    with cluster() as variables:
        yield variables


@pytest.fixture
def ray(ray_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray cluster runs, and is the one that `launcher.options.address=auto` means."""
    for name, value in ray_variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def compose_config() -> Iterator[Callable[..., object]]:
    """`compose_config("shots=10", ...)` -> the composed (not yet validated) configuration of the bench."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    import slime_bench.config.compose as bench  # registers the resolver that config.yaml uses
    from slime_bench.paths import config_dir

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base=bench.VERSION_BASE):
        yield lambda *overrides: compose(bench.CONFIG_NAME, list(overrides))
    GlobalHydra.instance().clear()


def save_tiny_sd(folder: Path, layers_per_block: int = 1) -> Path:
    """A Stable Diffusion folder with random weights: 4 pixels per latent cell, two heads, made for 64-pixel images."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from data_prep.pretrain.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, build_vae
    from slime_bench.data.mini_world.render import vocabulary

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(vocabulary())
        unet = build_unet((64, 64, 64, 64), text_width=32)
        if layers_per_block != 1:
            unet = UNet2DConditionModel.from_config({**unet.config, "layers_per_block": layers_per_block})
        StableDiffusionPipeline(
            vae=build_vae((8, 8, 8)),
            text_encoder=build_text_encoder(tokenizer, width=32, layers=1),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Stable Diffusion with random weights; not to be changed, copy it first."""
    return save_tiny_sd(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="session")
def tiny_backbone(tiny_sd: Path) -> Any:
    """The tiny Stable Diffusion as a backbone with the layers of mini_sd; frozen, shared by the tests."""
    from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone

    return StableDiffusionBackbone(
        StableDiffusionBackbone.Config(
            name="tiny",
            weights=str(tiny_sd),
            image_size=64,
            cross_layers=[f"up_blocks.{block}.attentions.{index}" for block in (1, 2) for index in (0, 1)],
            self_layers=["up_blocks.3.attentions.0", "up_blocks.3.attentions.1"],
        )
    )


@pytest.fixture(scope="session")
def slime_code(repository: Path) -> Any:
    """The protocol of conf/protocol/slime_code.yaml."""
    import yaml

    from slime_bench.methods.slime.protocol import SlimeProtocol

    values = yaml.safe_load((repository / "conf" / "protocol" / "slime_code.yaml").read_text())
    values.pop("_target_")
    return SlimeProtocol(**values)


TOY = '''
"""A second researcher's own method, backbone, data set and protocol, in one file outside the bench."""
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field


@dataclass
class Schedule:
    epochs: Annotated[int, Field(ge=1)] = 3
    warmup: float = 0.0


@dataclass
class ToyConfig:
    name: str
    epochs: Annotated[int, Field(ge=1)]
    lr: float = 0.1
    t_opt: Annotated[list[int], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [5, 100])
    maps: Literal["was", "cross"] = "was"
    mode: Literal["fast", "exact"] = "fast"
    unlisted: int = 7
    limit: int | None = None
    schedule: Schedule = field(default_factory=Schedule)
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < self.epochs:
            raise ValueError("limit is below epochs")


class ToyMethod:
    Config = ToyConfig

    def __init__(self, config: ToyConfig, **arguments: object) -> None:
        self.config, self.arguments = config, arguments


@dataclass
class Named:
    name: str
    root: str = ""
    classes: list[str] = field(default_factory=list)


class NoSchema:
    pass


@dataclass
class Nameless:
    lr: float = 0.1
'''


@pytest.fixture
def toy_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder with the bench's own root and small groups, and toy groups for everything with a
    `_target_`; it stands in for the bench's own folder, and the working folder is a temporary one."""
    import shutil
    import sys

    from slime_bench.paths import config_dir

    conf = tmp_path / "conf"
    for group in ("metric", "trainer", "logger", "launcher", "refine"):
        shutil.copytree(config_dir() / group, conf / group)
    shutil.copy(config_dir() / "config.yaml", conf / "config.yaml")
    module = tmp_path / "site" / "toy_bench_targets.py"
    files = {
        "method/slime.yaml": "_target_: toy_bench_targets.ToyMethod\nname: slime\nepochs: 3\nlr: 0.1\nmaps: was\n"
        "t_opt: [5, 100]\nlimit: null\nschedule: {epochs: 2}\n",
        "method/other.yaml": "_target_: toy_bench_targets.ToyMethod\nname: other\nepochs: 5\n",
        "backbone/mini_sd.yaml": "_target_: toy_bench_targets.Named\nname: mini_sd\n",
        "backbone/sd21.yaml": "_target_: toy_bench_targets.Named\nname: sd21\n",
        "data/mini_car.yaml": "_target_: toy_bench_targets.Named\nname: mini_car\nroot: ${data_root}/mini/car\n",
        "data/mini_face.yaml": "_target_: toy_bench_targets.Named\nname: mini_face\n",
        "data/broken.yaml": "name: [mini\n",
        "protocol/slime_code.yaml": "_target_: toy_bench_targets.Named\nname: slime_code\n",
        "preset/mini.yaml": "# @package _global_\npreset: mini\nmethod:\n  epochs: 4\n",
        "preset/paper.yaml": "# @package _global_\ndefaults:\n  - override /backbone: sd21\npreset: paper\n",
        "ablation/cross.yaml": "# @package _global_\nmethod:\n  maps: cross\n",
        "experiment/mini_car.yaml": "# @package _global_\ndefaults:\n  - override /preset: mini\n"
        "  - override /data: mini_car\nhydra:\n  sweeper:\n    params:\n      shots: '1,10'\n      seed: '0,1,2'\n",
        "experiment/paper_face.yaml": "# @package _global_\ndefaults:\n  - override /preset: paper\n"
        "  - override /data: mini_face\n",
    }
    for name, text in files.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(text)
    module.parent.mkdir()
    module.write_text(TOY)
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.delitem(sys.modules, "toy_bench_targets", raising=False)
    monkeypatch.setattr("slime_bench.config.compose.config_dir", lambda: conf)
    monkeypatch.setattr("slime_bench.paths.config_dir", lambda: conf)
    monkeypatch.chdir(tmp_path)
    return conf
