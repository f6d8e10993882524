"""`slime-bench compare`: what differs is found, what does not is not, and what is not recorded is said to be so."""

from __future__ import annotations

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
from slime_bench.report.compare import changes, compare, compare_images, compare_learned, find_run, show
from slime_bench.results.identity import trial_folder
from slime_bench.results.result import from_counts, write_per_image, write_result
from tests.fixtures.toy_results import FINGERPRINTS, percent_counts

CLASSES = ["background", "[red]", "wheel"]
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
        """`percent`: IoU [K] of each image; -1 = class nowhere."""
        rows = percent or ([90, 50, 20], [80, 70, -1])
        config = {"seed": seed, "shots": 1, "method": {"name": "slime", "lr": lr}, "data": {"name": "mini_car"}}
        facts = {"method": "slime", "backbone": "mini_sd", "data": "mini_car", "subject": "car", "shots": 1}
        facts |= {"preset": "mini", "protocol": "slime_mini", "classes": classes, "fingerprints": FINGERPRINTS}
        found = percent_counts(*rows)
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


def compared(a: Path, b: Path, *arguments: Any) -> dict[str, Any]:
    found = compare(find_run(str(a), Path("none")), find_run(str(b), Path("none")), *arguments)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def printed(found: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------------- which run is meant


def test_by_folder_file_and_signature(make: Maker) -> None:
    folder = make()
    signature = folder.name.removeprefix("seed0-")
    for name in (folder, folder / "result.json", signature, signature[:6], f"seed0-{signature[:1]}"):
        found = find_run(str(name), make.outputs)
        assert found.folder == folder and found.result.signature == signature, name
    assert found.environment == ENVIRONMENT and found.settings is not None and found.settings["trainer.threads"] == 1


def test_no_such_trial_and_several(make: Maker) -> None:
    folders = [make(seed=seed) for seed in range(20)]  # more than there are first digits
    digits = [folder.name.split("-")[1][0] for folder in folders]
    digit = next(each for each in digits if digits.count(each) > 1)
    for name, said in ((digit, "Several trials have"), ("0123456789abcdef", "No trial has a signature"), ("x", "such")):
        with pytest.raises(ResultError, match=said) as caught:
            find_run(name, make.outputs)
        assert "--outputs" in str(caught.value.remedy)


def test_a_trial_that_failed_says_why(make: Maker) -> None:
    folder = make()
    (folder / "result.json").unlink()
    (folder / "error.json").write_text(json.dumps({"type": "DataError", "summary": "a file went missing"}))
    for name in (str(folder), folder.name.removeprefix("seed0-")):
        with pytest.raises(ResultError, match="There is no result") as caught:
            find_run(name, make.outputs)
        assert caught.value.found == "a trial that failed: DataError: a file went missing"


def test_a_spoilt_result_is_no_result(make: Maker) -> None:
    folder = make()
    (folder / "result.json").write_bytes(b"\x00\xff")
    with pytest.raises(ResultError) as caught:
        find_run(str(folder), make.outputs)
    assert str(folder / "result.json") in str(caught.value)


# ------------------------------------------------------------------------------------------------------- comparisons

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=2)
FLAT = st.dictionaries(st.sampled_from(["a", "b", "c", "d.e", "d.f"]), LEAVES, max_size=5)


@settings(deadline=None)
@given(FLAT, FLAT)
def test_every_key_that_differs_is_named_and_no_other(a: dict[str, Any], b: dict[str, Any]) -> None:
    found = {each["key"]: each for each in changes(a, b)}
    for key in {*a, *b}:
        both = key in a and key in b
        same = both and a[key] == b[key] and isinstance(a[key], bool) == isinstance(b[key], bool)
        assert (key not in found) == same
        if key in found:
            assert found[key] == {"key": key, **{name: side[key] for name, side in (("a", a), ("b", b)) if key in side}}


def test_two_runs_of_one_trial(make: Maker, tmp_path: Path) -> None:
    found = compared(make(), Maker(tmp_path / "b")())
    assert found["same_trial"] and found["same_series"] and found["same_numbers"] and found["learned"]["equal"]
    assert not any(found[name] for name in ("config", "other", "data", "fingerprints", "environment"))
    assert {each["difference"] for each in found["scores"]} == {0.0} and found["average"]["difference"] == 0.0
    text = printed(found)
    assert "the same trial (one signature); every number is the same" in text
    assert "learned state: equal bit for bit" in text and "the environment is the same" in text
    assert "counts: the same in all of them" in text and "test images: the same 2" in text


def test_numbers_by_hand(make: Maker) -> None:
    """slime takes the mean over the images that have the class; wheel is in the first image alone."""
    found = compared(make(), make([90, 40, 30], [80, 70, -1], seed=1, lr=0.5, environment={"device": "GPU"}))
    rows = {each["name"]: (each["a"], each["b"], each["difference"]) for each in found["scores"]}
    assert list(rows) == CLASSES
    assert rows["background"] == (pytest.approx(0.85), pytest.approx(0.85), 0.0)
    assert rows["[red]"] == (pytest.approx(0.6), pytest.approx(0.55), pytest.approx(-0.05))
    assert rows["wheel"] == (pytest.approx(0.2), pytest.approx(0.3), pytest.approx(0.1))
    assert found["average"]["difference"] == pytest.approx(0.05 / 3) and not found["same_numbers"]
    assert found["images"]["differ"] == [{"id": "car-0", "pixels": 20}] and not found["same_trial"]
    assert found["config"] == [{"key": "method.lr", "a": 0.1, "b": 0.5}, {"key": "seed", "a": 0, "b": 1}]
    assert {"key": "device", "a": "x86_64 CPU, 1 threads", "b": "GPU"} in found["environment"]
    assert {"key": "seconds.fit", "a": 10.0} in found["cost"]
    lines = [line.split() for line in printed(found).splitlines()]
    assert ["background", "85.00", "85.00", "="] in lines and ["[red]", "60.00", "55.00", "-5.00"] in lines
    assert ["average", "55.00", "56.67", "+1.67"] in lines and ["fit,", "seconds", "10.0", "-"] in lines
    assert ["peak", "rss,", "MiB", "3,072", "-"] in lines


def test_other_classes_and_another_order(make: Maker) -> None:
    folder = make()
    with pytest.raises(ResultError, match="other classes") as caught:
        compared(folder, make(seed=1, classes=["background", "[red]", "leaf"]))
    assert "leaf" in str(caught.value.found) and "wheel" in str(caught.value.expected)
    turned = make([90, 20, 50], [80, -1, 70], seed=2, classes=["background", "wheel", "[red]"])
    found = compared(folder, turned)
    assert found["same_numbers"] and not found["images"]["differ"]
    assert [each["key"] for each in found["data"]] == ["classes"]


def test_settings_that_decide_and_that_do_not(make: Maker) -> None:
    prints = {**FINGERPRINTS, "backbone": "ef" * 32, "start": "12" * 32}
    changed = {"support_ids": ["x"], "prepared": {"rule": "lagm"}, "fingerprints": prints}
    other = make(seed=1, settings={"trainer": {"threads": 4}, "per_preset": {}}, **changed)
    found = compared(make(support_ids=["y"]), other)
    assert found["other"] == [{"key": "trainer.threads", "a": 1, "b": 4}] and not found["same_series"]
    assert [each["key"] for each in found["fingerprints"]] == ["backbone", "start"]
    assert {each["key"] for each in found["data"]} == {"support_ids", "prepared.rule"}
    text = printed(found)
    assert "efefefefefef" in text and "ef" * 32 not in text and "two different trials" in text


def test_what_was_not_kept_or_cannot_be_read_is_said(make: Maker) -> None:
    """Each file beside a result can be missing or damaged, and costs its own part of the comparison alone."""
    files = ("config.yaml", "environment.json", "state.safetensors", "per_image.parquet")
    folder, bare, spoilt = make(), make(seed=1), make(seed=2)
    for name in files:
        (bare / name).unlink()
        (spoilt / name).write_bytes(b"[")
    for other in (bare, spoilt):
        found = compared(folder, other)
        assert found["without_settings"] == found["without_environment"] == ["b"]
        assert found["other"] == found["environment"] == [] and found["learned"]["equal"] is None
        text = " ".join(printed(found).split())
        for words in ("the other settings of B are not", "the environment of B is not", "learned state: unknown"):
            assert words in text
        assert "test images: unknown" in text and found["scores"][0]["difference"] == 0


def test_environments(make: Maker) -> None:
    newer = {**ENVIRONMENT, "packages": {"torch": "2.14.0", "wandb": "0.31"}, "pid": 8}
    newer |= {"finished": "2027-01-01T00:00:00+00:00", "cpu": "X"}
    found = compared(make(), make(seed=1, environment=newer))
    assert found["environment"] == [
        {"key": "cpu", "b": "X"},
        {"key": "packages.torch", "a": "2.13.0", "b": "2.14.0"},
        {"key": "packages.wandb", "a": None, "b": "0.31"},
    ]
    assert found["same_series"] and "two seeds of one series" in printed(found)


def test_learned_names_and_shapes(make: Maker) -> None:
    states = [{"x": torch.ones(2), "y": torch.ones(2)}, {"y": torch.ones(3), "z": torch.ones(1)}]
    found = compared(*(make(seed=seed, state=state) for seed, state in enumerate(states)))
    learned = found["learned"]
    assert (learned["only_a"], learned["only_b"], learned["reshaped"], learned["tensors"]) == (["x"], ["z"], ["y"], 0)
    assert "A alone has x; B alone has z; other shape or number format: y" in printed(found)


def test_learned_bit_for_bit(make: Maker) -> None:
    nan, zero = torch.tensor([float("nan"), 0.0]), torch.tensor(0.0)
    folder = make(state={"x": nan, "y": zero})
    assert compare_learned(folder, make(seed=1, state={"x": nan.clone(), "y": zero.clone()}))["equal"]
    found = compare_learned(folder, make(seed=2, state={"x": nan, "y": -zero}))
    assert (found["differ"], found["largest"]) == (["y"], 0.0)
    found = compare_learned(folder, make(seed=3, state={"x": torch.zeros(2), "y": torch.tensor(5.0)}))
    assert (found["differ"], found["largest"]) == (["x", "y"], None)
    one, two = (make(seed=seed, state={"x": torch.full((3,), seed).to(torch.bfloat16)}) for seed in (4, 6))
    assert compare_learned(one, two)["largest"] == 2.0


def test_other_images_in_another_order(make: Maker) -> None:
    found = compared(make(ids=["x", "y"]), make(seed=1, ids=["y", "z"]))
    # y is the second picture of one and the first of the other: 10 + 20 + (20 and a union of 100)
    assert found["images"]["differ"] == [{"id": "y", "pixels": 10 + 20 + 20 + 100}]
    assert "test images: 1 in both; 1 in A alone: x; 1 in B alone: z" in printed(found)
    rows = [[90, 50, 20], [80, 70, -1], [10, -1, 30], [5, 6, 7]]
    turned = [rows[3], [81, 70, -1], rows[0], rows[2]]
    images = compare_images(make(*rows, seed=2), make(*turned, seed=3, ids=["car-3", "car-1", "car-0", "car-2"]))
    assert images["differ"] == [{"id": "car-1", "pixels": 1}] and not images["only_a"] and not images["only_b"]


def test_eighty_columns_are_enough(make: Maker) -> None:
    long = {
        f"key{index}": {"a_very_long_name_of_a_setting": f"up_blocks.{index}.attentions." * 6} for index in range(3)
    }
    support = [f"car-support-{index:04d}" for index in range(30)]
    found = compared(make(support_ids=support), make(seed=1, settings=long, support_ids=support[::-1]))
    wide = [line for line in printed(found).splitlines() if len(line) > 80]
    assert all(line.startswith(("A  ", "B  ")) for line in wide), "only the folders, to be copied, are not folded"
    assert "up_blocks.2" in printed(found) and support[29] in printed(found)
