"""The bench's arithmetic and refusals, and whole runs of it at a tiny size. No test looks at a speed."""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.bench import attention, memory, methods, reference_slime, scaling, slime, timing
from slime_bench.bench.architecture import build_width
from slime_bench.bench.case import Case, Pictures, make_method
from slime_bench.bench.memory import Peak
from slime_bench.bench.race import Row, race
from slime_bench.bench.reference import Reference, StepResult
from slime_bench.bench.slime import tables
from slime_bench.bench.timing import Spread, exponent, interleave, ratio, spread
from slime_bench.bench.ways import BARS, REFERENCE, TASKS, WAYS, DifferentResultError, Fast, Way, distances
from slime_bench.errors import SlimeBenchError
from tests.fixtures.rounding import rounding

SIDE = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_width("golden", tmp_path_factory.mktemp("bench") / "golden"))


@pytest.fixture
def case(weights: str) -> Case:
    return Case("golden", SIDE, 4, weights)


class TestHarness:
    def test_ways_take_turns_and_another_one_comes_first_each_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[tuple[int, str]] = []
        now = 100.0
        monkeypatch.setattr(timing, "timer", lambda: now)

        def way(name: str, seconds: float) -> Any:
            def call(turn: int) -> None:
                nonlocal now
                order.append((turn, name))
                now += seconds * (turn + 1)

            return call

        found = interleave({"a": way("a", 1.0), "b": way("b", 10.0)}, rounds=2, warmup=1)
        assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
        assert found == {"a": [2.0, 3.0], "b": [20.0, 30.0]}  # without the warm-up

    def test_ratios(self) -> None:
        found = ratio([10.0, 12.0, 20.0], [2.0, 2.0, 5.0])
        assert (found.median, found.low, found.high) == (6.0, 4.0, 6.0)
        assert ratio([10.0], [5.0], work=3).median == 6.0  # three trials in the time of half of one
        assert spread([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)

    @pytest.mark.parametrize("power", [0.0, 2.0])
    def test_exponent(self, power: float) -> None:
        sizes = [256, 512, 1024]
        assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


class TestDistances:
    wanted = StepResult({"was": 2.0, "diffusion": 100.0}, torch.tensor([[3.0, 4.0]]))

    def found(self, was: float = 2.0, gradient: float = 4.0) -> dict[str, float]:
        found = StepResult({"was": was, "diffusion": 100.0}, torch.tensor([[3.0, gradient]]))
        return distances("mine", found, self.wanted, "bf16")

    def test_distances(self) -> None:
        assert self.found(2.1, 4.5) == pytest.approx({"losses": 0.05, "gradient": 0.1})
        ours, theirs = torch.arange(100), torch.arange(100).index_fill(0, torch.tensor([3]), 0)
        assert distances("mine", ours, theirs, "bf16") == pytest.approx({"labels": 0.01})

    @pytest.mark.parametrize("value", [4.0, math.nan, math.inf])
    def test_another_result_is_refused(self, value: float) -> None:
        for name in ("was", "gradient"):
            with pytest.raises(DifferentResultError, match="`mine` computes something else") as error:
                self.found(**{name: 2 * value})
            assert isinstance(error.value, SlimeBenchError) and error.value.exit_code == 2
        with pytest.raises(DifferentResultError, match="inf"):
            distances("mine", StepResult({"was": 2.0}, self.wanted.gradient), self.wanted, "bf16")


def test_the_golden_width_is_that_of_the_golden_weights(weights: str) -> None:
    unet, vae = (json.loads((Path(weights) / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert unet["block_out_channels"] == [16, 32, 48, 48] and unet["attention_head_dim"] == [2, 4, 6, 6]
    assert unet["cross_attention_dim"] == 48 and unet["norm_num_groups"] == 16
    assert vae["block_out_channels"] == [16, 32, 32, 32] and vae["norm_num_groups"] == 8


@pytest.mark.parametrize("classes", [2, 77])
def test_pictures_have_every_class_and_no_two_are_alike(classes: int) -> None:
    pictures = Pictures(Case("golden", SIDE, classes, "x", images=2, shots=2, trials=2))
    image, label = pictures.draw("support", 0)
    assert image.shape == (3, SIDE, SIDE) and image.min() >= 0 and image.max() <= 1
    assert label.unique().tolist() == list(range(classes))
    batches = [pictures.support(turn, trial) for turn, trial in itertools.product(range(2), range(2))]
    names = [name for batch in batches for name in batch["id"]] + pictures.test(0)[1] + pictures.test(1)[1]
    assert len(set(names)) == 12
    assert not torch.equal(pictures.test(0)[0], pictures.test(1)[0])


class TestReference:
    def test_it_shares_nothing_with_what_it_is_compared_with(self) -> None:
        tree = ast.parse(Path(str(reference_slime.__file__)).read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert "torch" in modules and not [name for name in modules if str(name).startswith("slime_bench")]

    def test_was_is_a_product_with_the_attention(self) -> None:
        draw = torch.Generator().manual_seed(0)
        matrix = torch.rand(2, 12, 12, generator=draw, dtype=torch.float64).softmax(-1)
        maps = torch.rand(2, 5, 3, 4, generator=draw, dtype=torch.float64)
        found = reference_slime.was(matrix, maps)
        torch.testing.assert_close(found, torch.einsum("bqp,bkp->bkq", matrix, maps.flatten(2)).view_as(maps))
        assert not torch.allclose(found, reference_slime.was(matrix.mT, maps))

    def test_it_finds_what_the_bench_finds(self, weights: str) -> None:
        """The same draws give the same losses, gradients and label maps; so their times may be compared."""
        case = Case("golden", 128, 5, weights, patches=2, images=2, trials=2)
        names = (REFERENCE, "fast fp32", "batch of trials fp32")
        rows = race({name: (case, name) for name in names}, TASKS, rounds=1, memory=False)
        assert [(row.task, row.runner, row.work) for row in rows if row.differs] == [
            ("step", "fast fp32", 1), ("step", "batch of trials fp32", 2),
            ("inference", "fast fp32", 2), ("inference", "batch of trials fp32", 4),
        ]  # fmt: skip
        for row in rows:
            assert all(value <= BARS["fp32"][name] for name, value in row.differs.items()), row

    def test_it_does_all_that_the_authors_code_does(self, case: Case) -> None:
        """U-Net passes of both halves, one for the loss and one for the logged prediction, whose IoU is there."""
        method = make_method(case, "fp32")
        runner, sizes = Reference(method), []
        runner.unet.register_forward_pre_hook(lambda _, args: sizes.append((len(args[0]), torch.is_grad_enabled())))
        before = method.embeddings.detach().clone()
        found = runner.step([Pictures(case).support(0)])
        assert sizes == [(2, True), (2, True)]
        assert len(runner.logged) >= 2 and all(0 <= value <= 1 for value in runner.logged)
        assert (method.embeddings.detach() - before).abs().max() == pytest.approx(0.1, rel=1e-2)
        assert found.gradient.shape == method.embeddings.shape


class TestRace:
    @pytest.mark.parametrize("task", ["step", "inference"])
    def test_a_way_that_computes_something_else_is_refused(
        self, case: Case, task: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Wrong(Fast):
            def step(self, batches: Sequence[dict[str, Any]]) -> StepResult:
                found = super().step(batches)
                return StepResult(found.losses, found.gradient * 1.01)

            def segment(self, images: torch.Tensor, ids: list[str]) -> torch.Tensor:
                return super().segment(images, ids).roll(1, -1)

        monkeypatch.setitem(WAYS, "wrong", Way(lambda c: Wrong([make_method(c, "fp32")]), ""))
        with pytest.raises(DifferentResultError, match="`wrong`"):
            race({name: (case, name) for name in (REFERENCE, "wrong")}, [task], rounds=1, memory=False)

    def test_pictures_that_an_earlier_trial_has_seen_are_not_encoded_again(self, case: Case) -> None:
        runner, pictures, calls = WAYS["next trial fp32"].make(case), Pictures(case), []
        assert isinstance(runner, Fast)
        runner.methods[0].backbone.vae.encoder.register_forward_hook(lambda *_: calls.append(1))
        runner.see(*pictures.test(0))
        assert len(calls) == 1
        runner.segment(*pictures.test(0))
        assert len(calls) == 1

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_on_cuda(self, case: Case) -> None:
        entries = {name: (replace(case, device="cuda"), name) for name in WAYS}
        rows = race(entries, TASKS, rounds=1)
        assert {row.runner for row in rows} == set(WAYS)
        assert all(row.memory and row.memory.peak > row.memory.loaded for row in rows if not WAYS[row.runner].seen)


class TestMemory:
    def test_of_a_task(self, case: Case) -> None:
        found = memory.measure(replace(case, size=128), "fast fp32", ["step", "inference"])
        assert list(found) == ["inference", "step"]
        assert all(peak.peak >= peak.loaded > 1e6 for peak in found.values())
        assert Peak(10, 30).added == 20 and Peak(10, 10).added == 1

    @pytest.mark.slow
    @pytest.mark.release
    def test_what_goes_wrong_in_a_process_of_its_own(self, case: Case) -> None:
        """What goes well there is measured in tests/parity/test_peak_memory.py."""
        with pytest.raises(SlimeBenchError, match="no such backbone"):
            memory.apart(memory.measure, replace(case, weights="nowhere"), "fast fp32", ["step"])


def test_rows_are_per_step_and_ratios_against_the_reference() -> None:
    rows = [
        Row(REFERENCE, "step", 1, [8.0, 10.0, 12.0], memory=Peak(10**9, 9 * 10**9)),
        Row("batch of trials fp32", "step", 3, [3.0, 6.0, 9.0], ratio([8.0, 10.0, 12.0], [3.0, 6.0, 9.0], 3),
            {"losses": 1e-6}, Peak(10**9, 3 * 10**9)),
    ]  # fmt: skip
    times, sizes = (part.splitlines() for part in tables(rows).split("\n\n"))
    cells = [cell.strip() for cell in times[3].split("|")[1:-1]]
    assert cells == ["step", "batch of trials fp32", "2", "1..3", "5.0", "4.0..8.0", "losses 1e-06"]
    cells = [cell.strip() for cell in sizes[3].split("|")[1:-1]]
    assert cells == ["step", "batch of trials fp32", "1.00", "3.00", "3.0", "2.00", "4.0"]


class TestCommands:
    def test_slime(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--device", "cpu", "--width", "golden", "--size", str(SIDE), "--classes", "3", "--rounds", "2"]
        words += ["--no-memory", "--ways", "fast fp32", REFERENCE, "--threads", "1", "--out", str(tmp_path)]
        assert slime.main(words) == 0
        shown = capsys.readouterr()
        assert "times faster" in shown.out and "comparing results" in shown.err
        assert (tmp_path / f"slime_cpu_golden_{SIDE}.md").read_text() == shown.out.removesuffix("\n")
        found = json.loads((tmp_path / f"slime_cpu_golden_{SIDE}.json").read_text())
        assert {"cpu", "date", "git", "packages", "threads", "command", "load"} <= set(found["made_with"])
        assert found["case"]["classes"] == 3 and "weights" not in found["case"]
        assert str(tmp_path) not in json.dumps(found) and found["made_with"]["threads"]["torch"] == 1
        assert [(row["runner"], row["task"], len(row["seconds"])) for row in found["rows"]] == [
            (REFERENCE, "step", 2), ("fast fp32", "step", 2), (REFERENCE, "inference", 2), ("fast fp32", "inference", 2)
        ]  # fmt: skip
        row = found["rows"][1]
        assert row["low"] <= row["median"] <= row["high"] and row["faster"]["low"] <= row["faster"]["high"]

    def test_the_bundled_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--device", "cpu", "--width", "mini", "--size", "64", "--rounds", "1", "--no-memory"]
        assert slime.main([*words, "--ways", REFERENCE, "fast bf16"]) == 0
        assert "mini width, 64 px" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words", [["--size", "100"], ["--classes", "99"], ["--patches", "3"], ["--images", "0"]],
    )  # fmt: skip
    def test_bad_arguments_end_with_2(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert slime.main(["--device", "cpu", "--width", "golden", "--no-memory", *words]) == 2
        shown = capsys.readouterr().err
        assert words[0].removeprefix("--") in shown and f"found: {words[1]}" in shown

    @pytest.mark.parametrize("words", [["--rounds", "0"], ["--ways", "magic"]])
    def test_unknown_arguments_end_with_2(self, words: list[str]) -> None:
        with pytest.raises(SystemExit) as end:
            slime.main(words)
        assert end.value.code == 2

    def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")

        def measured(*_: Any, **__: Any) -> Any:
            raise AssertionError("it was measured")

        monkeypatch.setattr(attention, "compare", measured)
        assert attention.main(["--out", str(tmp_path / "file" / "folder")]) == 2
        assert "choose another place with --out <folder>" in capsys.readouterr().err

    def test_attention(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr(attention, "SHAPES", ((2, 256, 8), (1, 64, 4)))
        assert attention.main(["--rounds", "2", "--threads", "1", "--out", str(tmp_path)]) == 0
        found = json.loads((tmp_path / "attention_cpu.json").read_text())
        shapes = [[row[name] for name in ("heads", "positions", "width", "filled_to")] for row in found["rows"]]
        assert shapes == [[2, 256, 8, 16], [1, 64, 4, 4]] and found["rounds"] == 2
        for row in found["rows"]:
            assert 0 <= row["differs"] < rounding(1.0, terms=300, steps=4)  # of the largest value
            assert all(0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"] for name in ("forward", "both"))

    def test_scaling(self, tmp_path: Path) -> None:
        words = ["--device", "cpu", "--width", "golden", "--size", str(SIDE), "--rounds", "1", "--no-memory"]
        assert scaling.main([*words, "--axis", "trials", "--points", "2", "1", "--out", str(tmp_path)]) == 0
        found = json.loads((tmp_path / "scaling_cpu_golden.json").read_text())
        (curve,) = found["curves"]
        assert (curve["axis"], curve["task"]) == ("trials", "step")
        assert [(point["runner"], point["work"]) for point in curve["points"]] == [("1", 1), ("2", 2)]
        medians = [point["seconds"][0] for point in curve["points"]]
        assert curve["seconds_exponent"] == pytest.approx(exponent([1, 2], medians))
        assert curve["memory_exponent"] is None

    @pytest.mark.parametrize(
        "words", [["--axis", "size", "classes", "--points", "64"], ["--axis", "size", "--points", "64"],
                  ["--axis", "size", "--points", "64", "65"]],
    )  # fmt: skip
    def test_bad_curves_end_with_2(self, words: list[str]) -> None:
        assert scaling.main(["--device", "cpu", "--width", "golden", "--no-memory", *words]) == 2


class TestMethods:
    def test_ratios_are_to_the_first_of_the_same_shots(self) -> None:
        def row(method: str, shots: int, fit: float, test: float, average: float | None = 50.0) -> dict[str, Any]:
            facts = {"method": method, "shots": shots, "fit": fit, "test": test, "images": 10}
            return {**facts, "peak": 2_000_000_000, "mIoU": average}

        text = methods.tables([row("slime", 1, 60.0, 4.0), row("mine", 1, 3.0, 8.0), row("slime", 10, 70.0, 4.0, None)])
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
        assert lines[0] == ["slime", "1", "60", "", "0.4", "", "2.00", "50"]
        assert lines[1] == ["mine", "1", "3", "20.0", "0.8", "0.5", "2.00", "50"]
        assert lines[2][:4] == ["slime", "10", "70", ""] and lines[2][-1] == ""
