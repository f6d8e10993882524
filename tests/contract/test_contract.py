"""Everything that can be chosen keeps its contract: every method, backbone, data set, protocol and experiment file.

All cases come from what is found in the packages and in conf/. A file or class that is found but not in `COVERED` fails
`test_nothing_is_left_out`: whoever adds one says here what small stand-ins it is tested with.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import slime_bench.methods
from slime_bench.backbones.base import DiffusionModel, VlmFacts
from slime_bench.backbones.diffusion import StableDiffusion
from slime_bench.backbones.gan import Architecture
from slime_bench.backbones.in_context import SegGptFacts
from slime_bench.backbones.seggpt import SegGptBackbone
from slime_bench.backbones.stylegan2 import StyleGan2Backbone
from slime_bench.backbones.upernet import UperNet
from slime_bench.backbones.vlm import VlmBackbone
from slime_bench.config.compose import plan
from slime_bench.config.schema import config_class, implementation_of, load_target
from slime_bench.data.mini_world import render as mini_world
from slime_bench.data.mini_world.scenes import FIGURE_SCENES
from slime_bench.data.scenes import SceneData
from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.description import NoSwitches
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol
from slime_bench.methods.segddpm import classifier
from slime_bench.methods.slime.protocol import SlimeProtocol
from slime_bench.paths import config_dir
from slime_bench.trial import spec
from tests.backbones.test_albef import random_state
from tests.backbones.test_albef import run as convert_albef
from tests.backbones.test_albef import save as save_checkpoint
from tests.backbones.test_llava import save_tiny_llava
from tests.fixtures.adm import SMALL, save_adm
from tests.fixtures.blip_toys import save_blip
from tests.fixtures.gan import save_gan
from tests.fixtures.resnet import save_resnet
from tests.fixtures.seggpt import save_seggpt
from tests.fixtures.twins.coco import write_coco_twin
from tests.fixtures.twins.pascal import write_car_test_twin
from tests.fixtures.twins.voc2012 import write_voc_twin

SIZE = 64
CLASSES = ["background", "wheel", "window"]

COVERED: dict[str, set[str]] = {
    # classes by their full name
    "methods": {
        "slime_bench.methods.slime.method.Slime",
        "slime_bench.methods.feature_knn.method.FeatureKnn",
        "slime_bench.methods.feature_probe.method.FeatureProbe",
        "slime_bench.methods.infoscore.method.InfoScore",
        "slime_bench.methods.infoscore.ranking.InfoScoreRanking",
        "slime_bench.methods.segddpm.method.SegDdpm",
        "slime_bench.methods.peekaboo.method.Peekaboo",
        "slime_bench.methods.regan.method.Regan",
        "slime_bench.methods.seggpt.method.SegGptMethod",
        "slime_bench.methods.supervised.method.Supervised",
        "slime_bench.methods.diffseg.method.DiffSeg",
    },
    # files of conf/<group>, without `.yaml`
    "method": {"slime", "feature_knn", "feature_probe", "infoscore", "infoscore_ranking", "segddpm", "peekaboo"}
    | {"seggpt", "supervised", "diffseg", "regan"},
    "backbone": {"mini_sd", "sd21_base", "sd15", "sd14"}
    | {"mini_blip", "blip_base", "blip_large", "albef", "llava15_7b"}
    | {"ddpm_horse", "ddpm_ffhq", "adm_uncond"}
    | {"seggpt", "mini_seggpt", "mini_upernet", "upernet_resnet50"}
    | {"mini_gan", "stylegan2"},
    "protocol": {"slime_code", "slime_paper", "slime_mini", "infoscore_code", "infoscore_paper", "infoscore_mini"}
    | {"none"},
    "data": {"mini_car", "mini_horse", "mini_face", "pascal_part_car", "pascal_part_horse", "celebamask_hq"}
    | {"pascal_part_car_regan", "slime_release_car", "slime_release_horse", "slime_release_face", "folder"}
    | {"voc2012", "coco_object"}
    | {"mini_car_fresh", "mini_horse_fresh", "mini_face_fresh", "mini_car_3000"}
    | {f"mini_{scene}" for scene in FIGURE_SCENES},
    "refine": {"none", "guided", "crf"},
    "preset": {"mini", "paper", "mini_infoscore", "paper_infoscore"},
    "metric": {"slime", "dataset", "present_or_predicted"},
    "trainer": {"auto", "cpu", "cuda", "mps"},
    "logger": {"none", "csv", "wandb"},
    "launcher": {"sequential", "fail_fast", "joblib", "submitit_local", "submitit_slurm", "ray"},
}
GROUPS = [group for group in COVERED if group != "methods"]
# published numbers, read by the report; words, read by methods; what test_experiments.py looks after
NOT_COMPOSED = {"paper", "prompts", "experiment", "ablation"}


# -- discovery ---------------------------------------------------------------------------------------------------------


def concrete_methods(package: ModuleType) -> dict[str, type[SegmentationMethod]]:
    """Full name -> every concrete `SegmentationMethod` that is defined in a module of `package`."""
    found = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            own = inspect.isclass(value) and value.__module__ == info.name
            if own and issubclass(value, SegmentationMethod) and not inspect.isabstract(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def options(group: str, conf: Path | None = None) -> list[str]:
    """Names of the files of a configuration group."""
    folder = (conf or config_dir()) / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def uncovered(found: Iterable[str], covered: Iterable[str]) -> dict[str, list[str]]:
    """What was found and has no contract, and what has one and is no longer there."""
    here, listed = set(found), set(covered)
    return {"without contract": sorted(here - listed), "no longer there": sorted(listed - here)}


NOTHING: dict[str, list[str]] = {"without contract": [], "no longer there": []}
METHODS = concrete_methods(slime_bench.methods)


@pytest.mark.parametrize("kind", COVERED)
def test_nothing_is_left_out(kind: str) -> None:
    assert uncovered(METHODS if kind == "methods" else options(kind), COVERED[kind]) == NOTHING


def test_no_group_is_left_out() -> None:
    folders = {path.name for path in config_dir().iterdir() if path.is_dir()}
    assert folders - NOT_COMPOSED == set(GROUPS)


def test_every_method_has_a_file_and_every_file_a_method() -> None:
    targets = {
        yaml.safe_load((config_dir() / "method" / f"{name}.yaml").read_text())["_target_"] for name in options("method")
    }
    classes = [implementation_of(load_target(name)) for name in targets]
    assert {f"{each.__module__}.{each.__qualname__}" for each in classes} == set(METHODS)


# -- every file composes -----------------------------------------------------------------------------------------------


def trial(*overrides: str) -> Any:
    """The one validated configuration that the overrides give."""
    (only,) = plan(list(overrides)).trials
    return only


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in GROUPS for n in options(g)])
def test_every_file_composes_and_validates(group: str, name: str) -> None:
    needed = ["data.root=own", "data.classes=[background,leaf]"] if (group, name) == ("data", "folder") else []
    cfg = trial(f"{group}={name}", *needed)
    if group == "preset":
        assert cfg.preset == name.split("_")[0], "tables of all methods stand under the preset's own name"
        return
    chosen = getattr(getattr(cfg, group), "name", name)
    if group not in ("metric", "trainer", "launcher"):
        assert chosen == name, "the name in tables and folders is the file's"


# -- backbones ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_weights(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Backbone file -> random weights of the same layout, one hundredth of the size."""
    from tests.conftest import save_tiny_sd

    root = tmp_path_factory.mktemp("tiny")
    deeper = save_tiny_sd(root / "sd21", layers_per_block=2)
    blip, llava = save_blip(root / "blip"), root / "llava"
    save_tiny_llava(llava)
    return {
        "mini_sd": tiny_sd,
        **dict.fromkeys(("sd21_base", "sd15", "sd14"), deeper),
        **dict.fromkeys(("mini_blip", "blip_base", "blip_large"), blip),
        "albef": convert_albef(root, save_checkpoint(root / "albef.pth", random_state())),
        "llava15_7b": llava,
        **dict.fromkeys(("ddpm_horse", "ddpm_ffhq", "adm_uncond"), save_adm(root / "adm.pt")),
        **dict.fromkeys(("mini_upernet", "upernet_resnet50"), save_resnet(root / "resnet")),
        **dict.fromkeys(("mini_gan", "stylegan2"), save_gan(root / "gan")),
        **dict.fromkeys(("seggpt", "mini_seggpt"), save_seggpt(root / "seggpt")),
    }


#: backbone file -> settings without which the stand-in is of another architecture
_ADM = [f"backbone.{key}={value}" for key, value in SMALL.items()]
SMALL_BACKBONES = {"ddpm_horse": _ADM, "ddpm_ffhq": _ADM, "adm_uncond": _ADM}


@pytest.mark.parametrize("name", options("backbone"))
def test_backbone(name: str, tiny_weights: Mapping[str, Path]) -> None:
    small = [f"backbone.image_size={SIZE}", *SMALL_BACKBONES.get(name, [])]
    cfg = trial(f"backbone={name}", f"backbone.weights={tiny_weights[name]}", *small)
    node, target = cfg.backbone, cfg.parts["backbone"]
    assert {"name", "weights", "image_size"} <= {field.name for field in dataclasses.fields(config_class(target))}
    fingerprint = target.content_hash_of(node)
    assert len(fingerprint) == 64 and fingerprint == target.content_hash_of(node)
    backbone = cfg.build("backbone")
    assert not any(value.requires_grad for value in backbone.parameters())
    if isinstance(backbone, VlmBackbone):
        check_vlm(backbone, target.describe(node))
        return
    if isinstance(backbone, UperNet):
        check_trainable(backbone, target.describe(node))
        return
    if isinstance(backbone, SegGptBackbone):
        check_painter(backbone, target.describe(node))
        return
    if isinstance(backbone, StyleGan2Backbone):
        check_generator(backbone, target.describe(node))
        return
    check_features(backbone, node, target.describe(node))
    if isinstance(backbone, StableDiffusion):
        check_diffusion(backbone, node)


def check_trainable(backbone: Any, facts: Any) -> None:
    """What makes networks has none itself; each is new, and starts by its seed."""
    assert facts.image_size == SIZE and not list(backbone.parameters())
    one, other = backbone.network(3, seed=0), backbone.network(3, seed=0)
    assert all(value.requires_grad for value in one.parameters())
    assert not {id(value) for value in one.parameters()} & {id(value) for value in other.parameters()}
    images = torch.rand(2, 3, SIZE, SIZE + 16)
    found = one(images)
    assert found.shape == (2, 3, SIZE, SIZE + 16) and found.dtype == torch.float32 and found.isfinite().all()
    assert torch.equal(found, other(images))


def check_features(backbone: Any, node: Any, facts: Any) -> None:
    """What every diffusion model has to give; its hypercolumns are named in its file."""
    layers, hooks = node.layer_groups["hypercolumn"], hooks_of(backbone)
    assert isinstance(backbone, DiffusionModel) and len(backbone.alphas_cumprod) == facts.num_timesteps
    draws = torch.randn(2, *backbone.latent_shape((SIZE, SIZE)))
    found = backbone.features(torch.rand(2, 3, SIZE, SIZE), torch.tensor([50, 250]), draws, layers)
    assert list(found) == layers and all(value.dtype == torch.float32 for value in found.values())
    shapes = backbone.feature_shapes((SIZE, SIZE), layers)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: (2, *shape) for name, shape in shapes.items()
    }
    assert hooks_of(backbone) == hooks, "hooks are removed"


def check_diffusion(backbone: Any, node: Any) -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    latents = backbone.encode(images, None)
    assert tuple(latents.shape[1:]) == backbone.latent_shape((SIZE, SIZE)) and latents.isfinite().all()
    text = backbone.embed("a car")
    assert text.shape[:2] == (1, backbone.num_tokens)
    found = backbone.attention(latents, torch.tensor([5, 100]), text, with_noise=False)
    assert len(found.cross) == len(node.cross_layers) > 0 and len(found.self_) == len(node.self_layers) > 0
    for layer, (height, width) in zip(
        [*found.cross, *found.self_], [*found.cross_grids, *found.self_grids], strict=True
    ):
        assert layer.query.shape[0] == 2 and layer.query.shape[2] == height * width
    assert {layer.key.shape[2] for layer in found.cross} == {backbone.num_tokens}
    assert len(set(found.self_grids)) == 1, "WAS needs self-attention layers of one grid"


def check_vlm(backbone: VlmBackbone, facts: VlmFacts) -> None:
    assert backbone.layers == facts.layers and len(set(facts.layers)) == len(facts.layers) > 0
    prompts = backbone.tokenize(["Image of wheel.", "Image of window."])
    assert prompts.ids.shape == prompts.mask.shape == prompts.special.shape and prompts.mask.any(1).all()
    states = backbone.encode_images(torch.rand(2, 3, SIZE, SIZE))
    backbone.read(states, prompts, lambda scores: None)  # whatever the library hooks in at its first call
    hooks = hooks_of(backbone)
    height, width = backbone.grid((SIZE, SIZE))
    keys = backbone.num_prefix_keys + height * width
    shapes: list[tuple[int, ...]] = []
    found = backbone.read(states, prompts, lambda scores: shapes.append(tuple(scores.shape)) or scores.mean())
    assert list(found.maps) == list(facts.layers) and len(shapes) == len(facts.layers)
    for images, texts, heads, tokens, places in shapes:
        assert (images, texts, tokens, places) == (2, 2, prompts.ids.shape[1], keys) and heads > 0
    assert found.match.shape[:2] == (2, 2) and found.match.min() >= 0 and found.match.max() <= 1
    for wrong in ([], ["layer.99"], [facts.layers[0]] * 2):
        with pytest.raises(BackboneError):
            backbone.read(states, prompts, lambda scores: scores, wrong)
    tuned = backbone.tuned(facts.layers[:1])
    named = dict(backbone.named_parameters())
    assert tuned and all(named[name] is value and not value.requires_grad for name, value in tuned.items())
    assert hooks_of(backbone) == hooks, "hooks are removed"


def check_painter(backbone: SegGptBackbone, facts: SegGptFacts) -> None:
    hooks, side = hooks_of(backbone), facts.side
    pictures = backbone.pictures(torch.rand(3, 3, SIZE, SIZE))
    masks = backbone.painted(backbone.labels(batch()["label"]), torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]]))
    for count in (1, 2):
        prompts = (each[None, :count].expand(3, -1, -1, -1, -1) for each in (pictures, masks))
        found = backbone.paint(pictures, *prompts)
        assert found.shape == (3, 3, side, side) and found.min() >= 0 and found.max() <= 255
    assert hooks_of(backbone) == hooks, "hooks are removed"


def check_generator(backbone: StyleGan2Backbone, sizes: Architecture) -> None:
    side = sizes.size
    streams = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    styles = backbone.styles(torch.randn(2, sizes.style_dim))
    found = backbone.generate(styles, backbone.noises(streams))
    assert found.pictures.shape == (2, 3, side, side) and found.pictures.isfinite().all()
    expected = [(2, sizes.channels[each], each, each) for each in sizes.sides[1:] for _ in range(2)]
    assert [tuple(each.shape) for each in found.maps] == expected
    one, same, other = (backbone.numbered(number).pictures for number in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def hooks_of(backbone: torch.nn.Module) -> int:
    """Hooks of all modules; the library keeps some of its own."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules())


# -- methods and protocols ---------------------------------------------------------------------------------------------

#: method file -> (backbone file for the stand-in weights, settings that make it small)
_VLM = ["protocol=infoscore_code", "method.layers=[layer.0,layer.1]", "method.prompts=mini_car"]
_REGAN = ["method.size=32", "method.inversion.starts=2", "method.inversion.steps=2", "method.few_shot.max_steps=2"]
_REGAN += [
    "method.auto_shot.pairs=4",
    "method.auto_shot.epochs=1",
    "method.auto_shot.batch=2",
    "method.auto_shot.width=4",
]
ONE_LAYER = "method.layers=[up_blocks.3.attentions.0]"
SMALL_METHODS: dict[str, tuple[str, list[str]]] = {
    "slime": ("mini_sd", ["method.train_map_size=16"]),
    "feature_knn": ("mini_sd", []),
    "feature_probe": ("mini_sd", ["method.draws=1", "method.test_draws=1", "shots=2"]),
    "infoscore": ("mini_blip", _VLM),
    "infoscore_ranking": ("mini_blip", [*_VLM, "method.resamples=3", "shots=0"]),
    "supervised": ("mini_upernet", ["method.steps=4"]),
    "regan": ("mini_gan", _REGAN),
    "seggpt": ("mini_seggpt", []),
    "segddpm": ("mini_sd", ["method.networks=2", "method.size=16", "method.timesteps=[50]", ONE_LAYER]),
    "peekaboo": ("mini_sd", ["method.size=16", "method.steps=2", "shots=0"]),
    "diffseg": ("mini_sd", ["method.grid=4", "method.thresholds=[0.01,0.01]"]),
}


class StandInData:
    """What `prepare` may ask of a data module, with the test images as unlabelled ones."""

    def __init__(self, shots: int) -> None:
        self.shots = shots

    def unlabelled_dataloader(self, limit: int | None) -> list[dict[str, Any]]:
        return [batch()]

    def test_dataloader(self) -> list[dict[str, Any]]:
        return [batch()]

    def support_dataloader(self) -> list[dict[str, Any]]:
        return [batch()]


def batch() -> dict[str, Any]:
    label = torch.zeros(2, SIZE, SIZE, dtype=torch.long)
    label[:, 8:32, 8:40], label[:, 40:56, 20:60], label[:, :4] = 1, 2, 255
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return {"image": images, "label": label, "id": ["a", "b"], "epoch": torch.zeros(2, dtype=torch.long)}


@pytest.fixture
def make(tiny_weights: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., SegmentationMethod]:
    """make(method file, overrides) -> the method on its stand-in backbone, ready for a step without a trainer."""
    monkeypatch.setattr(classifier, "MOST_EPOCHS", 1)  # of SegDDPM's fit

    def made(name: str, *overrides: str, seed: int = 0, device: str = "cpu") -> SegmentationMethod:
        backbone, small = SMALL_METHODS[name]
        weights = [f"backbone={backbone}", f"backbone.weights={tiny_weights[backbone]}", f"backbone.image_size={SIZE}"]
        cfg = trial(f"method={name}", *weights, *small, *overrides)
        parts = {name: cfg.build(name) for name in ("protocol", "backbone")}
        method_class = cfg.parts["method"]
        method_class.check(cfg.method, spec.backbone_facts(cfg), CLASSES, SIZE, cfg.shots)
        assert cfg.shots >= method_class.least_shots
        method = cfg.build("method", **parts, classes=CLASSES, seed=seed)
        method.prepare(StandInData(cfg.shots), device)
        for function in ("log", "log_dict"):
            monkeypatch.setattr(method, function, lambda *_, **__: None, raising=False)
        return method

    return made


def fit_one_step(method: SegmentationMethod) -> None:
    configured: Any = method.configure_optimizers()
    optimiser = configured["optimizer"] if isinstance(configured, dict) else configured
    loss: Any = method.training_step(batch(), 0)
    assert loss.ndim == 0 and loss.isfinite()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def check_scores(method: SegmentationMethod) -> torch.Tensor:
    found = method.scores(batch()["image"], batch()["id"])
    assert found.shape == (2, len(CLASSES), SIZE, SIZE) and found.dtype == torch.float32 and found.isfinite().all()
    assert not found.requires_grad
    predicted = method.predict(batch()["image"], batch()["id"])
    assert predicted.dtype == torch.long and predicted.min() >= 0 and predicted.max() < len(CLASSES)
    return found


@pytest.mark.parametrize("name", options("method"))
def test_method(name: str, make: Callable[..., SegmentationMethod]) -> None:
    torch.manual_seed(1)
    method = make(name)
    assert type(method) in METHODS.values() and method.classes == tuple(CLASSES)
    start = {key: value.clone() for key, value in method.learned_state().items()}
    if method.epochs > 0:
        fit_one_step(method)
        assert any(not torch.equal(value, start[key]) for key, value in method.learned_state().items())
    state = method.learned_state()
    assert all(isinstance(value, torch.Tensor) and not value.requires_grad for value in state.values())
    scores = check_scores(method)

    torch.manual_seed(2)
    again = make(name)
    if again.epochs > 0:
        fit_one_step(again)
    found = again.learned_state()
    assert found.keys() == state.keys(), "a function of its seed, whatever the global generator does"
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    again.load_learned_state(start)
    again.load_learned_state(state)
    torch.testing.assert_close(again.scores(batch()["image"], batch()["id"]), scores, rtol=0, atol=0)
    assert all(torch.equal(value, state[key]) for key, value in again.learned_state().items())

    method.test_step(batch(), 0)
    assert all(isinstance(content, bytes) and content for content in method.extra_files().values())
    method.restore()
    assert not any(value.requires_grad for value in method.backbone.parameters()), "a backbone is left frozen"


@pytest.mark.parametrize("name", options("protocol"))
def test_protocol(name: str, make: Callable[..., SegmentationMethod]) -> None:
    method = make({"none": "feature_knn"}.get(name, name.split("_")[0]), f"protocol={name}")
    if method.epochs > 0:
        fit_one_step(method)
    check_scores(method)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("slime", "mini_blip"),
        ("infoscore", "mini_sd"),
        ("feature_probe", "mini_blip"),
        ("feature_knn", "mini_blip"),
        ("seggpt", "mini_sd"),
        ("regan", "mini_sd"),
    ],
)
def test_parts_of_different_papers_do_not_go_together(method: str, backbone: str) -> None:
    for overrides in (
        [f"backbone={backbone}"],
        ["protocol=infoscore_code" if method == "slime" else "protocol=slime_code"],
    ):
        cfg = trial(f"method={method}", *overrides)
        with pytest.raises(ConfigError, match="cannot use this") as caught:
            spec.check_parts(cfg)
        assert "leave `" in str(caught.value.remedy)


def raw_protocol(name: str) -> dict[str, Any]:
    values = yaml.safe_load((config_dir() / "protocol" / f"{name}.yaml").read_text())
    return {key: value for key, value in values.items() if key not in ("_target_", "name")}


KINDS: dict[str, type] = {"slime": SlimeProtocol, "infoscore": InfoScoreProtocol, "none": NoSwitches}
BUNDLES = {
    "slime": ("slime_paper", "slime_code", "slime_mini"),
    "infoscore": ("infoscore_paper", "infoscore_code", "infoscore_mini"),
}


def switches(kind: str) -> set[str]:
    return {field.name for field in dataclasses.fields(KINDS[kind])} - {"name"}


@pytest.mark.parametrize("name", options("protocol"))
def test_every_bundle_sets_every_switch(name: str) -> None:
    kind = name.split("_")[0]
    assert set(raw_protocol(name)) == switches(kind)
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(KINDS[kind])), "none has a default"


@pytest.mark.parametrize("kind", BUNDLES)
def test_every_switch_stands_in_the_documentation(kind: str, repository: Path) -> None:
    first, second = (repository / "docs" / "switches.md").read_text().split("\n# ")[:2]
    page = first if kind == "slime" else second
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `") and line.count("|") == 6
    ]
    assert {row[0].strip("`") for row in rows} == switches(kind) and len(rows) == len(switches(kind))
    bundles = [raw_protocol(name) for name in BUNDLES[kind]]
    for switch, *cells, changes in rows:
        key = switch.strip("`")
        for cell, bundle in zip(cells, bundles, strict=True):
            silent = cell == "–"  # the paper says nothing: its bundle follows the code
            stated = bundles[1][key] if silent else yaml.safe_load(cell.split("`")[1])
            assert bundle[key] == stated, (key, cell)
        assert len(changes) > 40, f"{key}: what does it change?"
    silent_switches = {row[0].strip("`") for row in rows if row[1] == "–"}
    comments = (config_dir() / "protocol" / f"{BUNDLES[kind][0]}.yaml").read_text().splitlines()
    said = {line.split(":")[0] for line in comments if f"silent: as {kind}_code" in line}
    assert said == silent_switches, "the file says where the paper is silent"


# -- refinements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", options("method"))
def test_refinement(method: str, make: Callable[..., SegmentationMethod]) -> None:
    """Every refinement, as its file sets it, on the score maps of every method."""
    made, images, ids = make(method), batch()["image"], batch()["id"]
    plain = check_scores(made)
    for name in options("refine"):
        cfg = trial(f"refine={name}")
        spec.check_parts(cfg)
        made.refine = cfg.refine
        found = made.refined_scores(images, ids)
        assert found.shape == plain.shape and found.dtype == torch.float32 and found.isfinite().all()
        assert torch.equal(found, plain) == (name == "none"), "it does something"
        assert torch.equal(found, cfg.build("refine")(plain, images))
        assert torch.equal(made.predict(images, ids), found.argmax(1))
        absent = cfg.refine(torch.cat([plain, plain.new_full((2, 1, SIZE, SIZE), -1e3)], dim=1), images)
        assert int(absent.argmax(1).max()) < len(CLASSES), "a class far below the others stays unpredicted"
        sized = cfg.replace(data={"image_size": SIZE})
        assert cfg.refine.stated(SIZE) == spec.table_facts(sized)["stated"]["refinement"]


# -- data --------------------------------------------------------------------------------------------------------------


def write_pictures(subject: str, split: str, count: int, images: Path, labels: Path, kind: str = "png") -> None:
    for index in range(count):
        picture = mini_world.render(subject, split, index)
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.image[::2, ::2].copy()).save(images / f"{split}-{index}.png")
        if kind == "npy":
            np.save(labels / f"{split}-{index}.npy", picture.label[::2, ::2].copy())
        else:
            Image.fromarray(picture.label[::2, ::2].copy()).save(labels / f"{split}-{index}.png")


SAMPLES = {"support": 4, "val": 2, "test": 3}


def usual_folders(root: Path, subject: str) -> None:
    for split, count in SAMPLES.items():
        write_pictures(subject, split, count, root / split / "images", root / split / "labels")


def release_folders(root: Path, subject: str) -> None:
    for folder, split, count in (("train_2", "support", 2), ("val", "val", 2), ("test", "test", 3)):
        write_pictures(subject, split, count, root / folder, root / folder, "npy")


def regan_folders(root: Path, subject: str) -> None:
    usual_folders(root, subject)
    write_car_test_twin(root.parent, 3)


#: data file -> (place below data_root, subject, what writes a small one in its own layout)
STAND_INS: dict[str, tuple[str, str, Callable[[Path, str], None]]] = {
    "pascal_part_car": ("pascal_part/car", "car", usual_folders),
    "pascal_part_horse": ("pascal_part/horse", "horse", usual_folders),
    "celebamask_hq": ("celebamask_hq", "face", usual_folders),
    "pascal_part_car_regan": ("pascal_part/car", "car", regan_folders),
    "slime_release_car": ("slime_release/car", "car", release_folders),
    "slime_release_horse": ("slime_release/horse", "horse", release_folders),
    "slime_release_face": ("slime_release/celeba", "face", release_folders),
    "folder": ("own", "car", usual_folders),
    "voc2012": ("voc2012", "voc2012", lambda root, _: write_voc_twin(root) and None),
    "coco_object": ("coco", "coco_object", lambda root, _: write_coco_twin(root, coco_classes()) and None),
}


def coco_classes() -> list[str]:
    return list(yaml.safe_load((config_dir() / "data" / "coco_object.yaml").read_text())["classes"])


@pytest.mark.parametrize("name", options("data"))
def test_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_world, "SPLIT_SIZES", SAMPLES)
    own = [f"data.root={tmp_path}/own", "data.classes=[background,body,light,plate,wheel,window]"]
    small = ["shots=2", "data.batch_size=2", "data.val_size=2", "data.validation=val"]
    own = {"folder": own, "mini_car_3000": ["data.pool=4"]}.get(name, [])
    cfg = trial(f"data={name}", f"data_root={tmp_path}", *small, *own)
    data = cfg.build("data", shots=cfg.shots, seed=cfg.seed)
    if name in STAND_INS:
        with pytest.raises(DataError) as caught:
            data.prepare_data()
        assert str(tmp_path) in str(caught.value.path) and "data_root" in str(caught.value.remedy)
        place, subject, write = STAND_INS[name]
        assert Path(cfg.data.root) == tmp_path / place and cfg.data.subject in (subject, "any")
        write(tmp_path / place, subject)
        data = cfg.build("data", shots=cfg.shots, seed=cfg.seed)
    data.prepare_data()
    batches = data.datamodule()
    batches.setup()
    per_shot = len(data.classes) - 1 if isinstance(data, SceneData) else 1
    assert len(data.fingerprint()) == 64 and len(data.support_ids) == 2 * per_shot
    (validation,), test = list(batches.val_dataloader()), list(batches.test_dataloader())
    train = list(batches.train_dataloader())
    assert len(train) == len(data.support_ids) * cfg.data.passes_per_epoch and [len(one["id"]) for one in test] == [
        2,
        1,
    ]
    for one, size in ((train[0], 1), (validation, 2), (test[0], 2)):
        side = cfg.data.image_size
        assert one["image"].shape == (size, 3, side, side) and one["image"].dtype == torch.float32
        assert one["image"].min() >= 0 and one["image"].max() <= 1
        assert one["label"].shape == (size, side, side) and one["label"].dtype == torch.long
        assert set(one["label"].unique().tolist()) <= {*range(len(cfg.data.classes)), 255}
        assert len(one["id"]) == size and one["epoch"].shape == (size,) and one["epoch"].dtype == torch.long
    assert {id_ for one in train for id_ in one["id"]} == set(data.support_ids)
