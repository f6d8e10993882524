"""The schema finds every mistake in a configuration before anything runs, and says which key it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from slime_bench.config import compose as bench
from slime_bench.config import schema
from slime_bench.config.read import nearest, plain, read
from slime_bench.config.schema import TrialConfig
from slime_bench.errors import ConfigError


def compose(*overrides: str) -> TrialConfig:
    (trial,) = bench.plan(list(overrides)).trials
    return trial


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        bench.plan(list(overrides))
    return caught.value


class Colour(Enum):
    RGB = "rgb"
    BGR = "bgr"


@dataclass
class Inner:
    depth: int = 1


@dataclass
class Sample:
    count: int
    rate: float = 0.5
    label: str = "a"
    flag: bool = False
    maybe: int | None = None
    either: int | str = 1
    items: list[int] = field(default_factory=list)
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    inners: list[Inner] = field(default_factory=list)
    colour: Colour = Colour.RGB
    mode: Literal["fast", 3] = "fast"
    place: Path = Path("here")


@dataclass
class Bounded:
    least: list[Annotated[int, Field(ge=0)]]
    most: Annotated[int, Field(le=3)]
    choice: Literal[1, 2]
    optional: Annotated[int, Field(ge=1)] | None
    two: Annotated[list[int], Field(min_length=2, max_length=2)]


SAMPLES = st.builds(
    Sample,
    count=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    label=st.text(),
    flag=st.booleans(),
    items=st.lists(st.integers()),
    inner=st.builds(Inner, st.integers()),
)


class TestTyped:
    def test_values_arrive_in_their_types(self) -> None:
        values = {
            "count": 2,
            "rate": 1,
            "maybe": None,
            "either": "x",
            "items": [1, 2],
            "pair": [3, 4],
            "table": {"a": 1},
            "inner": {"depth": 4},
            "inners": [{"depth": 5}, {}],
            "colour": "bgr",
            "mode": 3,
            "place": "there/x",
        }
        sample = read(Sample, values)
        assert sample == Sample(
            2, 1.0, "a", False, None, "x", [1, 2], (3, 4.0), {"a": 1.0}, Inner(4), [Inner(5), Inner(1)], Colour.BGR, 3,
            Path("there/x"),
        )  # fmt: skip
        assert type(sample.rate) is float and type(sample.pair[1]) is float and type(sample.table["a"]) is float

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("count", 1.0, "integer"),
            ("count", "1", "integer"),
            ("count", True, "integer"),
            ("count", None, "integer"),
            ("rate", float("nan"), "finite number"),
            ("rate", True, "number"),
            ("label", 3, "string"),
            ("flag", "yes", "boolean"),
            ("either", 1.5, "integer or a valid string"),
            ("items", [1, 2.5], "integer"),
            ("pair", [1], ""),
            ("table", {"a": "x"}, "number"),
            ("inner", 3, "object"),
            ("colour", "green", "'rgb' or 'bgr'"),
            ("mode", "slow", "'fast' or 3"),
            ("place", 3, "string"),
        ],
    )
    def test_wrong_types_are_refused_by_name(self, name: str, value: object, expected: str) -> None:
        with pytest.raises(ConfigError) as caught:
            read(Sample, {"count": 1, name: value}, "group")
        assert str(caught.value.path).startswith(f"group.{name}")
        assert expected in str(caught.value.expected)

    def test_items_are_named_by_their_place(self) -> None:
        with pytest.raises(ConfigError, match=r"group\.inners\[1\]\.depth"):
            read(Sample, {"count": 1, "inners": [{}, {"depth": "x"}]}, "group")

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("least", [0, -1], "greater than or equal to 0"),
            ("most", 4, "less than or equal to 3"),
            ("choice", 3, "1 or 2"),
            ("optional", 0, "greater than or equal to 1"),
            ("two", [1], "at least 2 items"),
        ],
    )
    def test_bounds_hold_for_values_and_items(self, name: str, value: Any, expected: str) -> None:
        good = {"least": [0, 5], "most": 3, "choice": 2, "optional": None, "two": [1, 2]}
        assert plain(read(Bounded, good)) == good
        with pytest.raises(ConfigError) as caught:
            read(Bounded, {**good, name: value})
        assert str(caught.value.path).startswith(name) and expected in str(caught.value.expected)

    @given(SAMPLES)
    def test_plain_and_typed_are_inverse(self, sample: Sample) -> None:
        values = plain(sample)
        # "???" is OmegaConf's word for a missing value, and so cannot be a value.
        if sample.label != "???":
            assert read(Sample, values) == sample

    def test_nearest_prefers_a_key_that_only_lacks_its_group(self) -> None:
        assert nearest("lr", ["ls", "method.lr", "lx"])[0] == "method.lr"
        assert nearest("methd", ["method", "metric", "data"])[0] == "method"
        assert nearest("zzz", ["method"]) == []


class TestValidate:
    def test_defaults_are_filled_in_and_presets_and_command_line_win_in_order(self, toy_bench: Path) -> None:
        cfg = compose()
        assert (cfg.method.epochs, cfg.method.lr, cfg.method.unlisted) == (4, 0.1, 7)
        assert (cfg.method.schedule.epochs, cfg.method.schedule.warmup) == (2, 0.0)
        assert (cfg.preset, cfg.shots, cfg.seed, cfg.force) == ("mini", 1, 0, False)
        assert compose("preset=paper").backbone.name == "sd21"
        assert compose("preset=paper", "backbone=mini_sd").backbone.name == "mini_sd"
        assert compose("experiment=paper_face").data.name == "mini_face"
        assert compose("experiment=paper_face").backbone.name == "sd21"
        assert compose("method.epochs=9").method.epochs == 9

    def test_a_field_without_a_line_in_the_yaml_can_be_given(self, toy_bench: Path) -> None:
        assert compose("method.unlisted=8").method.unlisted == 8
        assert compose("method.weights={wheel: 2}").method.weights == {"wheel": 2.0}

    def test_interpolations_are_followed(self, toy_bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIME_BENCH_DATA", "2024")
        assert compose().data.root == "2024/mini/car"
        monkeypatch.setenv("TOY_COUNT", "12")
        assert compose("method.epochs='${oc.decode:${oc.env:TOY_COUNT}}'").method.epochs == 12
        error = refused("method.epochs=${oc.env:TOY_COUNT}")
        assert error.path == "method.epochs" and "integer" in str(error.expected)

    def test_equal_numbers_are_written_equally(self, toy_bench: Path) -> None:
        assert compose("method.lr=1").plain == compose("method.lr=1.0").plain
        assert type(compose("method.lr=1").method.lr) is float

    @pytest.mark.parametrize(
        ("override", "path", "hint"),
        [
            ("method.lrr=1", "method.lrr", "`method.lr`"),
            ("methd=slime", "methd", "`method`"),
            ("lr=1", "lr", "`method.lr`"),
            ("method.schedule.epoch=1", "method.schedule.epoch", "`method.schedule.epochs`"),
            ("trainer.devise=cpu", "trainer.devise", "`trainer.device`"),
            ("method.epochs=0", "method.epochs", "correct"),
            ("method.maps=wass", "method.maps", "method.maps=was"),
            ("method.t_opt=[1,x]", "method.t_opt[1]", "correct"),
            ("method.name=3", "method.name", "quotes"),
            ("method.lr.x=1", "method.lr", "correct"),
            ("method.epochs=???", "method.epochs", "give it"),
            ("~method.name", "method.name", "give it"),
            ("method._target_=toy_bench_targets.ToyMethd", "method._target_", "ToyMethod"),
            ("method._target_=toy_bench_target.ToyMethod", "method._target_", "correct the name"),
            ("method._target_=toy", "method._target_", "correct the name"),
            ("method._target_=toy_bench_targets.NoSchema", "method._target_", "dataclass"),
            ("method._target_=toy_bench_targets.Nameless", "method._target_", "dataclass"),
            ("seed=-1", "seed", "correct"),
            ("trainer.device=gpu", "trainer.device", "correct"),
            ("~data", "data", "data=<name>"),
            ("~metric", "metric", "give it"),
        ],
    )
    def test_every_mistake_names_its_key_and_a_way_out(
        self, toy_bench: Path, override: str, path: str, hint: str
    ) -> None:
        error = refused(override)
        assert error.path == path
        assert hint in str(error.remedy)

    def test_contradictions_that_a_dataclass_refuses_are_reported(self, toy_bench: Path) -> None:
        error = refused("method.limit=1")
        assert "method" in str(error.path) and "limit is below epochs" in str(error.found)

    def test_a_module_that_breaks_while_it_is_imported(self, toy_bench: Path) -> None:
        (toy_bench.parent / "site" / "toy_broken.py").write_text("import toy_not_installed\n")
        error = refused("method._target_=toy_broken.Method")
        assert error.path == "method._target_" and "toy_not_installed" in str(error.found)


class TestBuild:
    def test_a_class_gets_its_config_and_the_arguments(self, toy_bench: Path) -> None:
        cfg = compose("method.lr=2")
        method = cfg.build("method", backbone="b")
        assert type(method).__name__ == "ToyMethod" and type(method) is cfg.parts["method"]
        assert type(method.config).__name__ == "ToyConfig" and method.config.lr == 2.0
        assert method.arguments == {"backbone": "b"}

    def test_a_dataclass_is_its_own_object(self, toy_bench: Path) -> None:
        cfg = compose()
        assert cfg.build("data") is cfg.data and cfg.data.root == "data/mini/car"

    def test_a_light_class_names_the_one_that_computes(self, toy_bench: Path) -> None:
        (toy_bench.parent / "site" / "toy_light.py").write_text(
            "from toy_bench_targets import ToyConfig\n\nclass Light:\n    Config = ToyConfig\n"
            "    implementation = 'toy_heavy.Heavy'\n"
        )
        (toy_bench.parent / "site" / "toy_heavy.py").write_text(
            "from toy_light import Light\n\nclass Heavy(Light):\n    def __init__(self, config):\n"
            "        self.config = config\n"
        )
        import sys

        cfg = compose("method._target_=toy_light.Light")
        assert cfg.parts["method"].__name__ == "Light" and "toy_heavy" not in sys.modules
        assert type(cfg.build("method")).__name__ == "Heavy"

    def test_other_values_are_another_configuration(self, toy_bench: Path) -> None:
        cfg = compose("seed=3")
        other = cfg.replace(force=True, trainer={"device": "cpu"})
        assert (other.force, other.trainer.device, other.seed) == (True, "cpu", 3)
        assert (cfg.force, cfg.trainer.device) == (False, "auto") and other.plain["trainer"]["device"] == "cpu"


class TestOwnFiles:
    """The bench's own YAML files; that each composes is in tests/contract."""

    def test_conventions_are_those_of_the_metric(self, repository: Path) -> None:
        from slime_bench.metrics import iou

        files = {file.stem for file in (repository / "conf/metric").glob("*.yaml")}
        assert set(iou.CONVENTIONS) == set(schema.CONVENTIONS) == files
