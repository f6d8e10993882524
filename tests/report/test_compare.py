"""`slime-bench compare`: what differs is found, what does not is not, and what is not recorded is said to be so."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file

from slime_bench.errors import ResultError
from slime_bench.metrics.iou import IouCounts
from slime_bench.report.compare import show
from slime_bench.report.comparison import (
    Change,
    Comparison,
    as_json,
    changes,
    compare,
    compare_images,
    compare_learned,
    find_run,
)
from slime_bench.results.identity import trial_folder
from slime_bench.results.result import from_counts, write_per_image, write_result

CLASSES = ["background", "[red]", "wheel"]
FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}
ENVIRONMENT = {
    "device": "x86_64 CPU, 1 threads",
    "packages": {"torch": "2.13.0", "wandb": None},
    "gpu": None,
    "git": {"commit": "0" * 40, "dirty": False},
    "seconds": {"fit": 10.0, "test": 2.5},
    "peak_rss_bytes": 3 * 2**30,
    "finished": "2026-11-21T10:00:00+00:00",
    "pid": 7,
}


def counts(*percent: list[int]) -> IouCounts:
    """One image for each row: IoU in percent [K] over unions of 100 pixels; -1 = class nowhere."""
    values = torch.tensor(percent)
    union = torch.where(values < 0, 0, 100)
    return IouCounts(values.clamp(min=0), union, union > 0)


class Maker:
    """Writes trials as a sweep would leave them."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs

    def __call__(
        self,
        *percent: list[int],
        seed: int = 0,
        lr: float = 0.1,
        ids: list[str] | None = None,
        classes: list[str] = CLASSES,
        environment: dict[str, Any] | None = ENVIRONMENT,
        state: dict[str, torch.Tensor] | None = None,
        settings: dict[str, Any] | None = None,
        **changed: Any,
    ) -> Path:
        rows = percent or ([90, 50, 20], [80, 70, -1])
        config = {"seed": seed, "shots": 1, "method": {"name": "slime", "lr": lr}, "data": {"name": "mini_car"}}
        facts = {"method": "slime", "backbone": "mini_sd", "data": "mini_car", "subject": "car", "shots": 1}
        facts |= {"preset": "mini", "protocol": "slime_mini", "classes": classes, "fingerprints": FINGERPRINTS}
        found = counts(*rows)
        result = from_counts(found, config=config, seed=seed, **{**facts, **changed})
        folder = trial_folder(self.outputs, result.data, "slime", 1, seed, result.signature)
        write_result(folder, result)
        write_per_image(folder / "per_image.parquet", ids or [f"car-{i}" for i in range(len(rows))], classes, found)
        save_file(state if state is not None else {"embeddings": torch.arange(4.0)}, folder / "state.safetensors")
        whole = {**config, "trainer": {"threads": 1}, "per_preset": {"slime": {"epochs": 3}}, **(settings or {})}
        (folder / "config.yaml").write_text(json.dumps(whole))
        if environment is not None:
            (folder / "environment.json").write_text(json.dumps(environment))
        return folder


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "a")


@pytest.fixture
def other(tmp_path: Path) -> Maker:
    """For a second trial of the same signature."""
    return Maker(tmp_path / "b")


def compared(a: Path, b: Path, *arguments: Any) -> Comparison:
    return compare(find_run(str(a), Path("none")), find_run(str(b), Path("none")), *arguments)


def printed(found: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------------- which run is meant


class TestFindRun:
    def test_by_folder_file_and_signature(self, make: Maker) -> None:
        folder = make()
        signature = folder.name.removeprefix("seed0-")
        for name in (folder, folder / "result.json", signature, signature[:6], f"seed0-{signature[:1]}"):
            found = find_run(str(name), make.outputs)
            assert found.folder == folder and found.result.signature == signature, name
        assert (
            found.environment == ENVIRONMENT and found.settings is not None and found.settings["trainer.threads"] == 1
        )

    def test_a_copied_result_without_anything_beside_it(self, make: Maker, tmp_path: Path) -> None:
        alone = tmp_path / "kept" / "first.json"
        alone.parent.mkdir()
        alone.write_bytes((make() / "result.json").read_bytes())
        found = find_run(str(alone), make.outputs)
        assert found.environment is None and found.settings is None

    def test_several(self, make: Maker) -> None:
        folders = [make(seed=seed) for seed in range(20)]  # more than there are first digits
        digits = [folder.name.split("-")[1][0] for folder in folders]
        digit = next(each for each in digits if digits.count(each) > 1)
        with pytest.raises(ResultError, match="Several trials have signatures") as caught:
            find_run(digit, make.outputs)
        listed = [folder for folder in folders if folder.name.split("-")[1].startswith(digit)]
        assert all(folder.name in str(caught.value.found) for folder in listed[:8])
        assert "more digits" in str(caught.value.remedy)

    def test_none(self, make: Maker) -> None:
        make()
        with pytest.raises(ResultError, match="No trial has a signature") as caught:
            find_run("0123456789abcdef", make.outputs)
        assert "1 finished trial(s)" in str(caught.value.found) and "--outputs" in str(caught.value.remedy)

    @pytest.mark.parametrize("name", ["nowhere/at/all", "first-run", "seedx-0123", ""])
    def test_neither_a_place_nor_a_signature(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ResultError, match=r"no such run|no result in this folder"):
            find_run(name, tmp_path / "outputs")

    def test_a_trial_that_failed_says_why(self, make: Maker) -> None:
        folder = make()
        (folder / "result.json").unlink()
        (folder / "error.json").write_text(json.dumps({"type": "DataError", "summary": "a file went missing"}))
        for name in (str(folder), folder.name.removeprefix("seed0-")):
            with pytest.raises(ResultError, match="There is no result") as caught:
                find_run(name, make.outputs)
            assert caught.value.found == "a trial that failed: DataError: a file went missing"

    def test_a_trial_that_is_not_finished(self, make: Maker) -> None:
        folder = make()
        (folder / "result.json").unlink()
        with pytest.raises(ResultError, match="There is no result") as caught:
            find_run(str(folder), make.outputs)
        assert "config.yaml" in str(caught.value.found)

    def test_a_folder_above_trials(self, make: Maker) -> None:
        folders = [make(seed=seed) for seed in range(2)]
        with pytest.raises(ResultError, match="several trials, or lies above one") as caught:
            find_run(str(make.outputs), make.outputs)
        assert all(folder.name in str(caught.value.found) for folder in folders)

    @pytest.mark.parametrize("damage", [b"", b"{}", b"\x00\xff", b'{"schema_version": 99}'])
    def test_a_spoilt_result_is_no_result(self, make: Maker, damage: bytes) -> None:
        folder = make()
        (folder / "result.json").write_bytes(damage)
        with pytest.raises(ResultError) as caught:
            find_run(str(folder), make.outputs)
        assert str(folder / "result.json") in str(caught.value)

    def test_spoilt_companions_are_as_good_as_none(self, make: Maker) -> None:
        folder = make()
        (folder / "config.yaml").write_text("a: [")
        (folder / "environment.json").write_text("[]")
        found = find_run(str(folder), make.outputs)
        assert found.environment is None and found.settings is None


# --------------------------------------------------------------------------------------------------------- changes

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=2)
FLAT = st.dictionaries(st.sampled_from(["a", "b", "c", "d.e", "d.f"]), LEAVES, max_size=5)


class TestChanges:
    @settings(deadline=None)
    @given(FLAT)
    def test_nothing_differs_from_itself(self, values: dict[str, Any]) -> None:
        assert changes(values, dict(reversed(values.items()))) == []

    @settings(deadline=None)
    @given(FLAT, FLAT)
    def test_both_ways_the_same_keys(self, a: dict[str, Any], b: dict[str, Any]) -> None:
        turned = {"a": "b", "b": "a", "": ""}
        assert changes(b, a) == [Change(each.key, each.b, each.a, turned[each.only]) for each in changes(a, b)]

    @settings(deadline=None)
    @given(FLAT, FLAT)
    def test_every_key_of_one_alone_is_named_and_no_equal_one(self, a: dict[str, Any], b: dict[str, Any]) -> None:
        found = {each.key: each for each in changes(a, b)}
        for key in set(a) & set(b):
            same = a[key] == b[key] and isinstance(a[key], bool) == isinstance(b[key], bool)
            assert (key not in found) == same
        assert {key for key, each in found.items() if each.only == "a"} <= set(a) - set(b)
        assert set(found) >= {key for key in set(a) ^ set(b)}

    def test_numbers_by_value_and_other_kinds_apart(self) -> None:
        assert changes({"x": 1, "y": [1.0]}, {"x": 1.0, "y": [1]}) == []
        assert [each.key for each in changes({"x": 1, "y": None}, {"x": True, "y": ""})] == ["x", "y"]

    def test_null_above_says_that_there_is_none(self) -> None:
        assert changes({"gpu": None}, {"gpu.name": "H200"}) == [Change("gpu.name", None, "H200")]
        assert changes({}, {"gpu.name": "H200"}) == [Change("gpu.name", None, "H200", "b")]

    def test_values_that_json_cannot_hold(self) -> None:
        assert changes({"x": {1}}, {"x": {1}}) == [] and len(changes({"x": {1}}, {"x": {2}})) == 1


# ------------------------------------------------------------------------------------------------------- comparisons


class TestSame:
    def test_two_runs_of_one_trial(self, make: Maker, other: Maker) -> None:
        found = compared(make(), other())
        assert found.same_trial and found.same_series and found.same_numbers and found.learned.equal
        for changed in (found.config, found.other, found.data, found.fingerprints, found.environment, found.unsaid):
            assert not changed
        assert {each.difference for each in found.scores} == {0.0} and found.average.difference == 0.0
        text = printed(found)
        assert "the same trial (one signature); every number is the same" in text
        assert "learned state: equal bit for bit" in text and "the environment is the same" in text
        assert "counts: the same in all of them" in text and "test images: the same 2" in text

    def test_nothing_learned(self, make: Maker, other: Maker) -> None:
        found = compared(make(state={}), other(state={}))
        assert found.learned.equal and "learned state: none" in printed(found)

    def test_a_run_and_itself(self, make: Maker) -> None:
        folder = make()
        assert compared(folder, folder).same_numbers


class TestNumbers:
    """By hand: slime takes the mean over the images that have the class; wheel is in the first image alone."""

    @pytest.fixture
    def found(self, make: Maker) -> Comparison:
        return compared(make(), make([90, 40, 30], [80, 70, -1], seed=1))

    def test_per_class(self, found: Comparison) -> None:
        rows = {each.name: (each.a, each.b, each.difference) for each in found.scores}
        assert list(rows) == CLASSES
        assert rows["background"] == (pytest.approx(0.85), pytest.approx(0.85), 0.0)
        assert rows["[red]"] == (pytest.approx(0.6), pytest.approx(0.55), pytest.approx(-0.05))
        assert rows["wheel"] == (pytest.approx(0.2), pytest.approx(0.3), pytest.approx(0.1))
        assert found.average.difference == pytest.approx(0.05 / 3) and not found.same_numbers

    def test_on_the_terminal(self, found: Comparison) -> None:
        lines = [line.split() for line in printed(found).splitlines()]
        assert ["background", "85.00", "85.00", "="] in lines and ["[red]", "60.00", "55.00", "-5.00"] in lines
        assert ["average", "55.00", "56.67", "+1.67"] in lines

    def test_other_convention_and_without_background(self, make: Maker) -> None:
        folders = make(), make([90, 40, 30], [80, 70, -1], seed=1)
        found = compared(*folders, "dataset", False)
        assert (found.convention, found.background) == ("dataset", False)
        assert found.average.difference == pytest.approx((-0.05 + 0.1) / 2)
        assert "average without background" in " ".join(printed(found).split())

    def test_images(self, found: Comparison) -> None:
        assert found.images.differ == (("car-0", 20),) and found.images.common == 2
        assert "counts: 1 of 2 images differ; most in car-0 (20 pixels)" in printed(found)

    def test_a_class_that_is_nowhere(self, make: Maker) -> None:
        found = compared(make([90, 50, -1]), make([90, 50, -1], seed=1))
        assert (found.scores[2].a, found.scores[2].difference) == (None, None)
        assert ["wheel", "-", "-", "="] in [line.split() for line in printed(found).splitlines()]
        found = compared(make([90, 50, -1]), make([90, 50, 10], seed=2))
        assert ["wheel", "-", "10.00", "-"] in [line.split() for line in printed(found).splitlines()]

    def test_other_classes(self, make: Maker) -> None:
        folders = make(), make(seed=1, classes=["background", "[red]", "leaf"])
        with pytest.raises(ResultError, match="other classes") as caught:
            compared(*folders)
        assert "leaf" in str(caught.value.found) and "wheel" in str(caught.value.expected)

    def test_classes_in_another_order(self, make: Maker) -> None:
        turned = make([90, 20, 50], [80, -1, 70], seed=1, classes=["background", "wheel", "[red]"])
        found = compared(make(), turned)
        assert found.same_numbers and found.images.differ == () and [each.key for each in found.data] == ["classes"]


class TestSettings:
    def test_what_decides_and_what_does_not(self, make: Maker) -> None:
        found = compared(make(), make(seed=1, lr=0.5, settings={"trainer": {"threads": 4}, "per_preset": {}}))
        assert [(each.key, each.a, each.b) for each in found.config] == [("method.lr", 0.1, 0.5), ("seed", 0, 1)]
        assert [(each.key, each.a, each.b) for each in found.other] == [("trainer.threads", 1, 4)]
        assert not found.same_trial and not found.same_series and "two different trials" in printed(found)

    def test_another_seed_alone(self, make: Maker) -> None:
        found = compared(make(), make(seed=1))
        assert found.same_series and "two seeds of one series" in printed(found)

    def test_data_support_and_fingerprints(self, make: Maker) -> None:
        prints = {**FINGERPRINTS, "backbone": "ef" * 32, "start": "12" * 32}
        changed = {"support_ids": ["x"], "prepared": {"rule": "lagm"}, "fingerprints": prints}
        found = compared(make(support_ids=["y"]), make(seed=1, **changed))
        assert [each.key for each in found.fingerprints] == ["backbone", "start"]
        assert {each.key for each in found.data} == {"support_ids", "prepared.rule"}
        text = printed(found)
        assert "efefefefefef" in text and "ef" * 32 not in text

    def test_without_the_whole_configuration(self, make: Maker) -> None:
        folder = make(seed=1)
        (folder / "config.yaml").unlink()
        found = compared(make(), folder)
        assert found.other == [] and found.without_settings == ["b"]
        assert "the other settings of B are not recorded" in printed(found)


class TestEnvironment:
    def test_versions_and_cost(self, make: Maker) -> None:
        newer = {**ENVIRONMENT, "packages": {"torch": "2.14.0", "wandb": "0.31"}, "gpu": {"name": "H200"}, "pid": 8}
        newer |= {"seconds": {"fit": 1.0, "test": 0.5}, "finished": "2027-01-01T00:00:00+00:00"}
        found = compared(make(), make(seed=1, environment=newer))
        assert [(each.key, each.a, each.b) for each in found.environment] == [
            ("gpu.name", None, "H200"),
            ("packages.torch", "2.13.0", "2.14.0"),
            ("packages.wandb", None, "0.31"),
        ]
        assert found.unsaid == {} and {each.key for each in found.cost} == {
            "seconds.fit", "seconds.test", "peak_rss_bytes",
        }  # fmt: skip
        lines = [" ".join(line.split()) for line in printed(found).splitlines()]
        assert "fit, seconds 10.0 1.0" in lines and "peak rss, MiB 3,072 3,072" in lines

    def test_an_old_result_that_says_less(self, make: Maker) -> None:
        old = {key: ENVIRONMENT[key] for key in ("device", "packages", "git")}
        found = compared(make(), make(seed=1, environment=old | {"cpu": {"model": "X"}}))
        assert found.environment == [] and found.unsaid == {"gpu": "a", "cpu.model": "b"}
        text = printed(found)
        assert "recorded for A alone: gpu" in text and "recorded for B alone: cpu.model" in text
        assert "the environment is the same, as far as both record it" in text
        assert ["fit,", "seconds", "10.0", "-"] in [line.split() for line in text.splitlines()]

    @pytest.mark.parametrize("content", [None, "{", "[]"])
    def test_none_at_all(self, make: Maker, content: str | None) -> None:
        folder = make(seed=1, environment=None)
        if content is not None:
            (folder / "environment.json").write_text(content)
        found = compared(make(), folder)
        assert found.without_environment == ["b"] and found.unsaid == {}
        assert "the environment of B is not recorded" in " ".join(printed(found).split())


class TestLearned:
    def test_how_much(self, make: Maker) -> None:
        found = compared(make(), make(seed=1, state={"embeddings": torch.tensor([0.0, 1.0, 2.5, 3.0])})).learned
        assert (found.equal, found.differ, found.largest) == (False, ("embeddings",), 0.5)

    def test_names_and_shapes(self, make: Maker) -> None:
        states = [{"x": torch.ones(2), "y": torch.ones(2)}, {"y": torch.ones(3), "z": torch.ones(1)}]
        folders = [make(seed=seed, state=state) for seed, state in enumerate(states)]
        found = compare_learned(*folders)
        assert (found.only_a, found.only_b, found.reshaped, found.tensors) == (("x",), ("z",), ("y",), 0)
        text = printed(compared(*folders))
        assert "A alone has x; B alone has z; other shape or number format: y" in text

    def test_bit_for_bit(self, make: Maker) -> None:
        nan, zero = torch.tensor([float("nan"), 0.0]), torch.tensor(0.0)
        folder = make(state={"x": nan, "y": zero})
        assert compare_learned(folder, make(seed=1, state={"x": nan.clone(), "y": zero.clone()})).equal
        found = compare_learned(folder, make(seed=2, state={"x": nan, "y": -zero}))
        assert (found.differ, found.largest) == (("y",), 0.0)
        found = compare_learned(folder, make(seed=3, state={"x": torch.zeros(2), "y": torch.tensor(5.0)}))
        assert (found.differ, found.largest) == (("x", "y"), None)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
    def test_other_number_formats(self, make: Maker, dtype: torch.dtype) -> None:
        one, two = (
            make(state={"x": torch.ones(3, dtype=dtype)}),
            make(seed=1, state={"x": torch.ones(3, dtype=dtype) * 3}),
        )
        assert compare_learned(one, one).equal and compare_learned(one, two).largest == 2.0

    def test_missing_and_spoilt(self, make: Maker) -> None:
        folder = make(seed=1)
        (folder / "state.safetensors").write_bytes(b"no tensors")
        assert compare_learned(make(), folder).equal is None
        (folder / "state.safetensors").unlink()
        found = compared(make(), folder)
        assert found.learned.equal is None and "learned state: unknown" in printed(found)


class TestImages:
    def test_other_images(self, make: Maker) -> None:
        found = compared(make(ids=["x", "y"]), make(seed=1, ids=["y", "z"])).images
        assert (found.common, found.only_a, found.only_b) == (1, ("x",), ("z",))
        # y is the second picture of one and the first of the other: 10 + 20 + (20 and a union of 100)
        assert found.differ == (("y", 10 + 20 + 20 + 100),)

    def test_nothing_in_common(self, make: Maker) -> None:
        found = compared(make(ids=["x", "y"]), make(seed=1, ids=["v", "w"]))
        assert found.images.common == 0 and not found.same_numbers
        assert "test images: 0 in both; 2 in A alone: x, y; 2 in B alone: v, w" in printed(found)

    def test_a_class_that_left_the_annotation(self, make: Maker) -> None:
        folders = [make(seed=seed) for seed in range(2)]
        for folder, shown in zip(folders, (True, False), strict=True):
            rows = counts([90, 50, -1])
            present = rows.present.clone()
            present[0, 2] = shown
            write_per_image(
                folder / "per_image.parquet", ["x"], CLASSES, IouCounts(rows.intersection, rows.union, present)
            )
        assert compare_images(*folders).differ == (("x", 0),)

    @pytest.mark.parametrize("content", [None, b"", b"PAR1"])
    def test_missing_and_spoilt(self, make: Maker, content: bytes | None) -> None:
        folder = make(seed=1)
        path = folder / "per_image.parquet"
        path.unlink() if content is None else path.write_bytes(content)
        found = compared(make(), folder)
        assert found.images.unknown and "test images: unknown" in printed(found)

    def test_a_table_of_other_classes(self, make: Maker) -> None:
        folder = make(seed=1)
        write_per_image(folder / "per_image.parquet", ["x"], ["background", "leaf"], counts([1, 2]))
        assert "other classes" in compare_images(make(), folder).unknown

    def test_the_order_of_the_images_does_not_matter(self, make: Maker) -> None:
        rows = [[90, 50, 20], [80, 70, -1], [10, -1, 30], [5, 6, 7]]
        turned = [rows[3], [81, 70, -1], rows[0], rows[2]]
        found = compare_images(make(*rows), make(*turned, seed=1, ids=["car-3", "car-1", "car-0", "car-2"]))
        assert found.differ == (("car-1", 1),) and not found.only_a and not found.only_b


# ------------------------------------------------------------------------------------------------------------ output


def test_eighty_columns_are_enough(make: Maker) -> None:
    long = {
        f"key{index}": {"a_very_long_name_of_a_setting": f"up_blocks.{index}.attentions." * 6} for index in range(3)
    }
    support = [f"car-support-{index:04d}" for index in range(30)]
    found = compared(make(support_ids=support), make(seed=1, settings=long, support_ids=support[::-1]))
    wide = [line for line in printed(found).splitlines() if len(line) > 80]
    assert all(line.startswith(("A  ", "B  ")) for line in wide), (
        "only the folders, which are to be copied, are not folded"
    )
    assert "up_blocks.2" in printed(found) and support[29] in printed(found)


def test_json_says_all_of_it(make: Maker) -> None:
    found = compared(make(), make([90, 40, 30], [80, 70, -1], seed=1, lr=0.5, environment={"device": "GPU"}))
    record = json.loads(json.dumps(as_json(found), allow_nan=False))
    names = {field.name for field in dataclasses.fields(found)} - {"names_a", "names_b"}
    assert set(record) == names | {"a", "b", "same_trial"}
    assert record["same_trial"] is False and record["a"]["seed"] == 0 and record["learned"]["equal"] is True
    assert {"key": "method.lr", "a": 0.1, "b": 0.5} in record["config"]
    assert record["environment"] == [{"key": "device", "a": "x86_64 CPU, 1 threads", "b": "GPU"}]
    assert {"key": "seconds.fit", "a": 10.0} in record["cost"] and record["unsaid"]["packages.torch"] == "a"
    assert record["images"]["differ"] == [{"id": "car-0", "pixels": 20}]
    assert record["scores"][1] == {
        "name": "[red]", "a": pytest.approx(0.6), "b": pytest.approx(0.55), "difference": pytest.approx(-0.05),
    }  # fmt: skip
