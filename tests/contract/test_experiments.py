"""Every experiment of both papers is a file, and every file is composed with each preset that it fits, down to its
trials' signatures on data and weights that are there.

One file of each kind is also run. The trials are real ones (data on disk, frozen backbone, fit, test, result files), on
random weights of the same layout and a handful of pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from slime_bench import cli
from slime_bench.config.compose import plan
from slime_bench.data.mini_world import render as mini_world
from slime_bench.errors import ConfigError
from slime_bench.methods.segddpm import classifier
from slime_bench.paths import config_dir
from slime_bench.report.published import load_published
from slime_bench.results.identity import canonical_json, deciding, flatten
from slime_bench.results.result import read_result
from slime_bench.trial import runner as trial
from slime_bench.trial.spec import TrialSpec, check
from tests.conftest import save_tiny_sd
from tests.contract.test_contract import SAMPLES, STAND_INS, options, uncovered
from tests.fixtures.blip_toys import save_blip
from tests.fixtures.resnet import save_resnet

SIDE = 64
SEEDS = {"seed": "0,1,2"}
VLM = {"shots": "0,1,10", **SEEDS}
SLIME = {"shots": "1,10", **SEEDS}
FIGURE = {"method": "slime,feature_probe,feature_knn,segddpm,infoscore", "shots": "1", **SEEDS}
RUNS = {"shots": "0,1", "seed": "0,1,2,3,4"}  # the second paper's own number

#: preset -> (backbone, protocol, method) that it brings
PRESETS = {
    "mini": ("mini_sd", "slime_mini", "slime"),
    "paper": ("sd21_base", "slime_code", "slime"),
    "mini_infoscore": ("mini_blip", "infoscore_mini", "infoscore"),
    "paper_infoscore": ("blip_large", "infoscore_code", "infoscore"),
}
SUBJECTS = {
    "car": ("mini_car", "pascal_part_car"),
    "horse": ("mini_horse", "pascal_part_horse"),
    "face": ("mini_face", "celebamask_hq"),
}


@dataclass(frozen=True)
class Expected:
    """What an experiment file has to ask for.

    Attributes:
        params: of its sweep, exactly.
        data: preset that it fits -> data set that it then has; the first is its own default.
        method, backbone, protocol: where they are not the preset's. metric: the convention.
        same_as: preset -> another experiment with the same trials.
    """

    params: dict[str, str]
    data: dict[str, str]
    method: str | None = None
    backbone: str | None = None
    protocol: str | None = None
    metric: str = "slime"
    same_as: dict[str, str] = field(default_factory=dict)


def table(subject: str) -> Expected:
    both = dict(zip(("mini", "paper"), SUBJECTS[subject], strict=True))
    return Expected(SLIME, both, same_as={preset: f"{preset}_{subject}" for preset in both})


def figure(*scenes: str, **changes: str) -> Expected:
    """A figure of SLiMe on scenes of the mini world; the first is the file's own."""
    several = {"data": ",".join(f"mini_{scene}" for scene in scenes)} if len(scenes) > 1 else {}
    return Expected({**several, **FIGURE, **changes}, {"mini": f"mini_{scenes[0]}"})


LEVELS = ("coarse", "middle", "fine")
EXPERIMENTS: dict[str, Expected] = {
    "table1": Expected(
        {"shots": "10", **SEEDS, "method.maps": "was,cross"}, {"mini": "mini_car", "paper": "pascal_part_car"}
    ),
    "table2": table("car"),
    "table3": table("horse"),
    "table4": table("face"),
    **{f"mini_{subject}": Expected(SLIME, {"mini": names[0]}) for subject, names in SUBJECTS.items()},
    **{f"paper_{subject}": Expected(SLIME, {"paper": names[1]}) for subject, names in SUBJECTS.items()},
    **{f"mini_{subject}_infoscore": Expected(VLM, {"mini_infoscore": names[0]}) for subject, names in SUBJECTS.items()},
    **{
        f"paper_{subject}_infoscore": Expected(VLM, {"paper_infoscore": names[1]})
        for subject, names in SUBJECTS.items()
    },
    "infoscore_ranking": Expected(
        {"shots": "0", **SEEDS},
        {"mini_infoscore": "mini_car", "paper_infoscore": "voc2012"},
        method="infoscore_ranking",
    ),
    "refine": Expected(
        {"method": "slime,feature_probe,segddpm,infoscore", "refine": "none,guided,crf", **SLIME},
        {"mini": "mini_car", "mini_infoscore": "mini_car"},
    ),
    "supervised_curve": Expected(
        {"shots": "10,30,300,3000", "seed": "0"},
        {"mini": "mini_car_3000"},
        method="supervised",
        backbone="mini_upernet",
        protocol="none",
    ),
    "figure1": figure(*(f"granularity_car_{level}" for level in LEVELS)),
    "figure2": Expected({"shots": "1", **SEEDS, "method.maps": "was,cross"}, {"mini": "mini_car"}),
    "figure5": figure(
        "camouflage_50",
        "camouflage_75",
        "camouflage_90",
        method="slime,feature_probe,feature_knn,segddpm,seggpt,infoscore",  # the paper's figure has SegGPT
    ),
    "figure8": figure(*(f"granularity_horse_{level}" for level in LEVELS)),
    "figure9": figure("other_animals"),
    "figure10": figure("two_subjects"),
    "figure11": figure("occluded_support"),
    "figure12": figure("occluded_query"),
    "figure13": figure("tiny", method="slime,feature_probe,feature_knn,infoscore"),
    "paper_voc2012_infoscore": Expected(RUNS, {"paper_infoscore": "voc2012"}, metric="dataset"),
    "paper_coco_object_infoscore": Expected(RUNS, {"paper_infoscore": "coco_object"}, metric="dataset"),
}
SMOKE = "debug/smoke"
PAIRS = [(name, preset) for name, expected in EXPERIMENTS.items() for preset in expected.data]


def kind(name: str, preset: str) -> tuple[str, ...]:
    """What decides the code that an experiment's trials run through: the preset, what differs from it, and the class
    of the data set."""
    expected = EXPERIMENTS[name]
    data = yaml.safe_load((config_dir() / "data" / f"{expected.data[preset]}.yaml").read_text())
    swept = [key for key in expected.params if key not in ("shots", "seed", "data")]
    return (preset, expected.method or "", expected.metric, str(data.get("_target_")), *swept)


#: the first pair of each kind
RUN = {kind(*pair): pair for pair in reversed(PAIRS)}.values()


def content(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text()))


def comment(group: str, name: str) -> str:
    lines = (config_dir() / group / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


# -- nothing is left out -----------------------------------------------------------------------------------------------


def test_every_file_is_expected_here() -> None:
    assert uncovered(options("experiment"), {*EXPERIMENTS, SMOKE}) == {"without contract": [], "no longer there": []}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_published_table_has_its_file(subject: str) -> None:
    """Tables 1 to 4 an experiment, all ablations a file of conf/ablation, each saying which table it is."""
    published = load_published(subject)
    assert published is not None
    tables = {int(found[1]) for row in published.rows if (found := re.fullmatch(r"Table (\d+)", row.source))}
    (number,) = tables
    assert EXPERIMENTS[f"table{number}"].data == dict(zip(("mini", "paper"), SUBJECTS[subject], strict=True))
    assert f"Table {number}" in comment("experiment", f"table{number}")
    for each in published.ablations:
        assert each.name in options("ablation") and f"{each.source}:" in comment("ablation", each.name)
    if subject == "car":
        assert {each.source for each in published.ablations} == {f"Table {number}" for number in (1, 5, 6, 7, 8, 9, 10)}
        assert "Table 1" in comment("experiment", "table1")


def test_no_published_number_is_left_out(shared: Path) -> None:
    """Every number with a decimal that the protocol's lists of published ones have stands in conf/paper."""

    def numbers(node: Any) -> set[float]:
        if isinstance(node, dict | list):
            return {number for each in (node.values() if isinstance(node, dict) else node) for number in numbers(each)}
        return {float(node)} if isinstance(node, int | float) else set()

    page = (shared / "protocol.md").read_text()
    listed = page.split("### 1.4 Published numbers", 1)[1].split("The paper states no run time", 1)[0]
    listed += page.split("### 1.5 Ablation tables in full", 1)[1].split("\n", 1)[1].split("Oddities", 1)[0]
    printed = {float(number) for number in re.findall(r"\d*\.\d+", listed)}
    files = [yaml.safe_load((config_dir() / "paper" / f"{subject}.yaml").read_text()) for subject in SUBJECTS]
    assert len(printed) > 150 and printed <= numbers(files)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_sweep_is_the_papers(name: str) -> None:
    assert content(name)["hydra"]["sweeper"]["params"] == EXPERIMENTS[name].params


@pytest.mark.parametrize(("preset", "patches"), [("mini", (None, 1)), ("paper", (400, 2))])
def test_the_faces_patches_belong_to_the_paper(
    preset: str, patches: tuple[int | None, int], compose_config: Callable[..., Any]
) -> None:
    for name in ("table4", f"{preset}_face"):
        cfg = compose_config(f"experiment={name}", f"preset={preset}")
        assert (cfg.method.patch_size, cfg.method.patches_per_side) == patches


def test_the_ranking_is_without_the_crf(compose_config: Callable[..., Any]) -> None:
    for preset in EXPERIMENTS["infoscore_ranking"].data:
        assert compose_config("experiment=infoscore_ranking", f"preset={preset}").refine.name == "none"


def test_slimes_tables_are_slimes() -> None:
    with pytest.raises(ConfigError, match="is one of the method slime") as caught:
        plan(["experiment=table4", "preset=mini_infoscore"])
    assert "experiment=mini_car" in str(caught.value.remedy) and "--multirun method." in str(caught.value.remedy)


def test_a_preset_of_ones_own_has_to_name_its_data(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    own = (
        (config_dir() / "preset" / "mini.yaml").read_text().replace("override /data: mini_car", "override /logger: csv")
    )
    (tmp_path / "preset" / "own.yaml").write_text(own)
    chosen = ["experiment=table3", "preset=own"]
    with pytest.raises(ConfigError, match="You must specify 'data'"):
        plan(chosen, extra_dir=str(tmp_path))
    (cfg,) = plan([*chosen, "data=mini_face"], extra_dir=str(tmp_path)).trials
    assert cfg.data.name == "mini_face" and cfg.logger.name == "csv"


# -- every file runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Weights and data of every experiment, small, and one outputs/ for all of them."""

    weights: dict[str, Path]
    data: Path
    outputs: Path
    known: dict[tuple[str, str], list[TrialSpec]] = field(default_factory=dict)

    def trials(self, name: str, preset: str) -> list[TrialSpec]:
        """An experiment's trials for one seed and its fewest shots that learn; composed at the first call."""
        if (name, preset) not in self.known:
            expected = EXPERIMENTS[name]
            listed = expected.params["shots"]
            shots = {"0": "0", "10": "2"}.get(listed, "1")  # the small pools hold four pictures
            own = [] if preset == next(iter(expected.data)) else [f"preset={preset}"]
            own += [f"method={PRESETS[preset][2]}"] if "method" in expected.params else []
            own += [f"data={expected.data[preset]}"] if "data" in expected.params else []
            overrides = [f"experiment={name}", *own, *self.small(name, preset), "seed=0", f"shots={shots}"]
            self.known[name, preset] = [trial.spec_of(cfg) for cfg in plan(overrides, sweep=True).trials]
        return self.known[name, preset]

    def small(self, name: str, preset: str) -> list[str]:
        """Overrides that make a trial small and change nothing that an experiment file decides."""
        (backbone, _, method), data = PRESETS[preset], EXPERIMENTS[name].data[preset]
        method, backbone = EXPERIMENTS[name].method or method, EXPERIMENTS[name].backbone or backbone
        sizes = [f"backbone.weights={self.weights[backbone]}", f"backbone.image_size={SIDE}", "data.batch_size=3"]
        sizes += [] if data in ("voc2012", "coco_object") else [f"data.image_size={SIDE}"]
        if method == "supervised":
            return [*sizes, *self.places, "method.steps=11", "data.pool=4"]
        if method == "slime":
            sizes += ["method.train_map_size=16", "method.epochs=1"]
            sizes += ["method.patch_size=48"] if data == "celebamask_hq" else []  # of 64 pixels instead of 512
        else:
            sizes += ["method.max_steps=1"] if method == "infoscore" else ["method.resamples=2", "method.pairs=1"]
            sizes += ["method.rank_images=2"]
        return [*sizes, *self.places]

    @property
    def places(self) -> list[str]:
        """Overrides that say where, and with what."""
        return [f"data_root={self.data}", f"output_root={self.outputs}", "trainer=cpu", "trainer.progress=false"]


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mini world, which trials render where it is not there, has a handful of pictures."""
    monkeypatch.setattr(mini_world, "SPLIT_SIZES", SAMPLES)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("experiments")
    sd, deeper = save_tiny_sd(root / "sd"), save_tiny_sd(root / "sd21", layers_per_block=2)
    blip = save_blip(root / "blip")
    for name in {data for expected in EXPERIMENTS.values() for data in expected.data.values()} & set(STAND_INS):
        place, subject, write = STAND_INS[name]
        write(root / "data" / place, subject)
    resnet = save_resnet(root / "resnet")
    weights = {"mini_sd": sd, "sd21_base": deeper, "mini_blip": blip, "blip_large": blip, "mini_upernet": resnet}
    return World(weights, root / "data", root / "outputs")


@pytest.mark.usefixtures("small_world")
@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_every_experiment_goes_with_every_preset_that_it_fits(name: str, preset: str, world: World) -> None:
    expected, (backbone, protocol, method) = EXPERIMENTS[name], PRESETS[preset]
    found = world.trials(name, preset)
    maps = [getattr(spec.cfg.method, "maps", None) for spec in found]
    slimes = (expected.method or method) == "slime"
    assert list(dict.fromkeys(maps)) == (
        ["was", "cross"] if name in ("table1", "figure2") else ["was" if slimes else None]
    )
    refined = [spec.cfg.refine.name for spec in found]
    own = "crf" if (expected.method or method) == "infoscore" else "none"
    assert refined == (["none", "guided", "crf"] if name == "refine" else [own] * len(maps))
    assert len({spec.signature for spec in found}) == len(found)
    for spec in found:
        check(spec)
        cfg = spec.cfg
        names = (cfg.data.name, cfg.backbone.name, cfg.protocol.name, cfg.method.name)
        parts = (expected.backbone or backbone, expected.protocol or protocol, expected.method or method)
        assert names == (expected.data[preset], *parts)
        assert cfg.preset == preset.removesuffix("_infoscore"), (
            "tables of both methods stand under the preset's own name"
        )
        assert cfg.metric.convention == expected.metric
        published = load_published(cfg.data.subject)
        if published is not None:
            assert set(published.columns) == set(spec.data.classes), "the paper's columns are ours"
        if (name, preset) in RUN:
            result = trial.run(spec).result
            assert (result.data, result.backbone, result.protocol, result.method) == names
            assert (result.signature, result.preset) == (spec.signature, cfg.preset)
            assert (result.convention, result.classes) == (expected.metric, list(spec.data.classes))
    if preset in expected.same_as:
        twins = world.trials(expected.same_as[preset], preset)
        assert [each.signature for each in found] == [each.signature for each in twins], "the same trials by two names"


@pytest.mark.usefixtures("small_world")
def test_the_smoke_test_tries_every_kind_of_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a newcomer types it, with the bundled backbones."""
    kinds = content(SMOKE)["hydra"]["sweeper"]["params"]["method"].split(",")
    assert sorted(kinds) == options("method")
    monkeypatch.setenv("SLIME_BENCH_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr("sys.argv", ["slime-bench"])
    monkeypatch.setattr(classifier, "MOST_EPOCHS", 1)  # of SegDDPM's fit
    small = [f"data_root={tmp_path / 'data'}", "trainer.device=cpu", "trainer.progress=false"]
    assert cli.main(["--multirun", f"experiment={SMOKE}", *small]) == 0
    files = {path.parents[2].name: path for path in (tmp_path / "outputs").rglob("result.json")}
    assert sorted(files) == sorted(kinds)
    assert all(path.is_relative_to(tmp_path / "outputs" / "smoke" / "runs") for path in files.values())
    for path in files.values():
        assert read_result(path).num_test_images == SAMPLES["val"]
    (alone,) = plan([f"experiment={SMOKE}", *small]).trials
    assert alone.method.name == "slime" and alone.force, "without a sweep it is one trial, and is computed each time"


# -- ablations ---------------------------------------------------------------------------------------------------------

#: settings of each ablation beside the preset's own, which the paper's grids hold as well where they can
SETTINGS = {"was": 2, "prompt": 3, "losses": 5, "t_opt": 4, "t_test": 4, "lr": 4, "layers": 3, "start": 2}
#: the same of the feature probe, with the shots of each
PROBED = {"probe_t": (7, "1"), "probe_layers": (5, "1"), "probe_parts": (3, "1,10")}
BASES = [
    name
    for name, expected in EXPERIMENTS.items()
    if "slime" in {expected.method or PRESETS[preset][2] for preset in expected.data}
    and "method" not in expected.params
]


def test_every_ablation_is_counted_here() -> None:
    assert uncovered(options("ablation"), {**SETTINGS, **PROBED}) == {"without contract": [], "no longer there": []}


@pytest.mark.parametrize("name", [*SETTINGS, *PROBED])
def test_every_ablation_changes_something_and_nothing_else(name: str) -> None:
    count, shots = PROBED.get(name, (SETTINGS.get(name), "10"))
    params = yaml.safe_load((config_dir() / "ablation" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert params.pop("shots") == shots and params.pop("seed") == "0,1,2" and len(params) == 1
    method = ["method=feature_probe"] if name in PROBED else []
    trials = plan(["experiment=mini_car", *method, f"ablation={name}", "seed=0", "shots=10"], sweep=True).trials
    assert len(trials) == count
    flat = [dict(flatten(deciding(cfg))) for cfg in trials]
    (key,) = params
    changed = {each for each in flat[0] if len({canonical_json(one[each]) for one in flat}) > 1}
    assert changed and all(each == key or each.startswith(f"{key}.") for each in changed)


@pytest.mark.parametrize("base", BASES)
def test_every_ablation_fits_every_experiment_of_slime(base: str, compose_config: Callable[..., Any]) -> None:
    """The keys that it sweeps are the experiment's, for every preset that it fits, and mean something there."""
    sweeps = [
        yaml.safe_load((config_dir() / "ablation" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
        for name in SETTINGS
    ]
    for preset in EXPERIMENTS[base].data:
        cfg = compose_config(f"experiment={base}", f"preset={preset}", f"ablation=[{','.join(SETTINGS)}]")
        for key, values in (item for params in sweeps for item in params.items()):
            assert OmegaConf.select(cfg, key) is not None, f"{base} has no {key} to sweep"
            for reference in re.findall(r"\$\{([a-z_.]+)\}", str(values)):
                assert OmegaConf.select(cfg, reference), f"{preset} does not have {reference}"
