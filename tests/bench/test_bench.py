"""The bench's arithmetic, clocks and refusals, and whole runs of it at a tiny size. No test looks at a speed."""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.bench import attention, memory, reference_slime, scaling, slime, timing, vlm_passes
from slime_bench.bench.architecture import WIDTHS, build_width
from slime_bench.bench.case import Case, Pictures, make_method
from slime_bench.bench.command import make_main, publish, table
from slime_bench.bench.memory import Peak
from slime_bench.bench.reference import Reference, StepResult
from slime_bench.bench.slime import Row, duel, tables
from slime_bench.bench.timing import Spread, Stopwatch, exponent, interleave, ratio, spread
from slime_bench.bench.ways import BARS, REFERENCE, WAYS, DifferentResultError, Fast, Way, distances
from slime_bench.errors import ConfigError, SlimeBenchError
from tests.fixtures.rounding import rounding

SIDE = 64


class Clock:
    """Stands still but for what is added."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing, "timer", found)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_width("golden", tmp_path_factory.mktemp("bench") / "golden"))


@pytest.fixture
def case(weights: str) -> Case:
    return Case("golden", SIDE, 4, weights)


class TestHarness:
    def test_ways_take_turns_and_another_one_comes_first_each_round(self, clock: Clock) -> None:
        order: list[tuple[int, str]] = []

        def way(name: str, seconds: float) -> Any:
            def call(turn: int) -> None:
                order.append((turn, name))
                clock.now += seconds * (turn + 1)

            return call

        found = interleave({"a": way("a", 1.0), "b": way("b", 10.0)}, rounds=2, warmup=1)
        assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
        assert found == {"a": [2.0, 3.0], "b": [20.0, 30.0]}  # without the warm-up

    def test_ratios(self) -> None:
        found = ratio([10.0, 12.0, 20.0], [2.0, 2.0, 5.0])
        assert (found.median, found.low, found.high) == (6.0, 4.0, 6.0)
        assert ratio([10.0], [5.0], work=3).median == 6.0  # three trials in the time of half of one
        assert spread([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)

    @pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 4.0])
    def test_exponent(self, power: float) -> None:
        sizes = [256, 512, 1024]
        assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


class TestStopwatch:
    def test_stages_exclude_each_other_and_add_up(self, clock: Clock) -> None:
        watch = Stopwatch()
        with watch.stage("outer"):
            clock.now += 1
            with watch.stage("inner"):
                clock.now += 10
            clock.now += 100
            with watch.stage("inner"):
                clock.now += 20
        clock.now += 1000  # of nobody
        with watch.stage("outer"):
            clock.now += 4
        assert watch.take() == {"outer": 105.0, "inner": 30.0}
        assert watch.take() == {}

    def test_a_whole_stage_swallows_those_within(self, clock: Clock) -> None:
        watch = Stopwatch()
        with watch.stage("backward", whole=True), watch.stage("U-Net forward"):
            clock.now += 3
        assert watch.take() == {"backward": 3.0}

    def test_calls_are_timed_and_uncovered_also_after_an_error(self, clock: Clock) -> None:
        watch = Stopwatch()

        class Layer(torch.nn.Module):
            def forward(self, x: int) -> int:
                clock.now += 2
                if x < 0:
                    raise ValueError
                return x + 1

        layer = Layer()
        with pytest.raises(ValueError), watch.around((layer, "forward", "pass")):
            assert layer(1) == 2
            layer(-1)
        assert watch.take() == {"pass": 4.0} and "forward" not in vars(layer)
        layer(1)
        assert watch.take() == {}

    def test_switched_off_it_keeps_nothing(self) -> None:
        watch = Stopwatch(on=False)
        with watch.stage("outer"):
            pass
        assert watch.take() == {}


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

    def test_what_is_missing_is_infinitely_far(self) -> None:
        with pytest.raises(DifferentResultError, match="inf"):
            distances("mine", StepResult({"was": 2.0}, self.wanted.gradient), self.wanted, "bf16")


class TestArchitecture:
    def test_the_golden_width_is_that_of_the_golden_weights(self, weights: str) -> None:
        unet, vae = (json.loads((Path(weights) / part / "config.json").read_text()) for part in ("unet", "vae"))
        assert unet["block_out_channels"] == [16, 32, 48, 48] and unet["attention_head_dim"] == [2, 4, 6, 6]
        assert unet["cross_attention_dim"] == 48 and unet["norm_num_groups"] == 16
        assert vae["block_out_channels"] == [16, 32, 32, 32] and vae["norm_num_groups"] == 8

    def test_a_fifth_has_heads_as_wide_as_the_whole(self) -> None:
        fifth = WIDTHS["fifth"]
        assert fifth is not None and WIDTHS["full"] is None
        assert [channels / heads for channels, heads in zip(fifth.unet, fifth.heads, strict=True)] == [64] * 4

    def test_attention_is_not_symmetric(self, case: Case) -> None:
        unet = make_method(case, "fp32").backbone.unet
        layer = unet.get_submodule("up_blocks.3.attentions.0.transformer_blocks.0.attn1")
        assert layer.to_q.weight.shape == layer.to_k.weight.shape
        assert not torch.allclose(layer.to_q.weight, layer.to_k.weight)


class TestCase:
    @pytest.mark.parametrize(
        "wrong",
        [{"size": 100}, {"size": 0}, {"classes": 1}, {"classes": 78}, {"patches": 3}, {"images": 0}, {"shots": 0},
         {"trials": 0}, {"width": "double"}],
    )  # fmt: skip
    def test_values_outside_their_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="cannot measure"):
            Case(**{"width": "golden", "size": 64, "classes": 4, "weights": "x", **wrong})

    @pytest.mark.parametrize("classes", [2, 77])
    def test_pictures_have_every_class_and_no_two_are_alike(self, classes: int) -> None:
        pictures = Pictures(Case("golden", SIDE, classes, "x", images=2, shots=2, trials=2))
        image, label = pictures.draw("support", 0)
        assert image.shape == (3, SIDE, SIDE) and image.min() >= 0 and image.max() <= 1
        assert label.unique().tolist() == list(range(classes))
        batches = [pictures.support(turn, trial) for turn, trial in itertools.product(range(2), range(2))]
        names = [name for batch in batches for name in batch["id"]] + pictures.test(0)[1] + pictures.test(1)[1]
        assert len(set(names)) == 12
        assert not torch.equal(pictures.test(0)[0], pictures.test(1)[0])


def test_the_reference_shares_nothing_with_what_it_is_compared_with() -> None:
    tree = ast.parse(Path(str(reference_slime.__file__)).read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert "torch" in modules and not [name for name in modules if str(name).startswith("slime_bench")]


def test_was_by_broadcast_is_was() -> None:
    draw = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 12, 12, generator=draw, dtype=torch.float64).softmax(-1)
    maps = torch.rand(2, 5, 3, 4, generator=draw, dtype=torch.float64)
    found = reference_slime.was_by_broadcast(attention, maps)
    torch.testing.assert_close(found, reference_slime.was(attention, maps))
    assert not torch.allclose(found, reference_slime.was(attention.mT, maps))


class TestReference:
    @pytest.mark.parametrize("patches", [1, 2])
    def test_it_finds_what_the_bench_finds(self, weights: str, patches: int) -> None:
        """The same draws give the same losses, gradients and label maps; so their times may be compared."""
        case = Case("golden", 128, 5, weights, patches=patches, images=2, trials=2)
        rows = duel(case, [REFERENCE, "fast fp32", "together fp32"], rounds=1, memory=False)
        assert [(row.task, row.way) for row in rows if row.differs] == [
            ("step", "fast fp32"), ("step", "together fp32"),
            ("inference", "fast fp32"), ("inference", "together fp32"),
        ]  # fmt: skip
        for row in rows:
            assert all(value <= BARS["fp32"][name] for name, value in row.differs.items()), row

    def test_it_does_all_that_the_authors_code_does(self, case: Case) -> None:
        """U-Net passes of both halves, one for the loss and one for the logged prediction, whose IoU is there."""
        method = make_method(case, "fp32")
        runner, sizes = Reference(method, Stopwatch(on=False)), []
        runner.unet.register_forward_pre_hook(lambda _, args: sizes.append((len(args[0]), torch.is_grad_enabled())))
        before = method.embeddings.detach().clone()
        found = runner.step([Pictures(case).support(0)])
        assert sizes == [(2, True), (2, True)]
        assert len(runner.logged) >= 2 and all(0 <= value <= 1 for value in runner.logged)
        assert (method.embeddings.detach() - before).abs().max() == pytest.approx(0.1, rel=1e-2)
        assert found.gradient.shape == method.embeddings.shape

    def test_another_protocol_is_refused(self, case: Case) -> None:
        method = make_method(case, "fp32", overrides=["protocol=slime_paper"])
        with pytest.raises(ConfigError, match="one protocol"):
            Reference(method, Stopwatch(on=False))


class TestDuel:
    def test_rows(self, case: Case) -> None:
        rows = duel(case, [REFERENCE, "fast fp32"], rounds=2, memory=False)
        assert [(row.way, row.task, len(row.seconds), row.work) for row in rows] == [
            (REFERENCE, "step", 2, 1), ("fast fp32", "step", 2, 1),
            (REFERENCE, "inference", 2, 1), ("fast fp32", "inference", 2, 1),
        ]  # fmt: skip
        assert [row.faster is None for row in rows] == [True, False] * 2
        stages = {"data", "VAE", "U-Net forward", "maps and losses"}
        more = {"backward", "optimiser"}
        assert [set(row.stages) for row in rows] == [stages | more | {"logging"}, stages | more, stages, stages]
        assert all(value > 0 for row in rows for value in row.stages.values())

    @pytest.mark.parametrize("task", ["step", "inference"])
    def test_a_way_that_computes_something_else_is_refused(self, case: Case, task: str) -> None:
        class Wrong(Fast):
            def step(self, batches: Sequence[dict[str, Any]]) -> StepResult:
                found = super().step(batches)
                return StepResult(found.losses, found.gradient * 1.01)

            def segment(self, images: torch.Tensor, ids: list[str]) -> torch.Tensor:
                return super().segment(images, ids).roll(1, -1)

        ways = {REFERENCE: WAYS[REFERENCE], "wrong": Way(lambda c, w: Wrong([make_method(c, "fp32")], w), "")}
        with pytest.raises(DifferentResultError, match="`wrong`"):
            duel(case, list(ways), [task], rounds=1, memory=False, ways=ways)

    def test_bfloat16(self, case: Case) -> None:
        rows = duel(case, [REFERENCE, "fast bf16"], ["step"], rounds=1, memory=False)
        assert rows[1].differs["gradient"] > 1e-4  # it is another precision indeed

    def test_pictures_that_an_earlier_trial_has_seen_are_not_encoded_again(self, case: Case) -> None:
        rows = duel(case, [REFERENCE, "next trial fp32"], rounds=2, memory=False)
        assert [(row.way, row.task) for row in rows] == [
            (REFERENCE, "step"), (REFERENCE, "inference"), ("next trial fp32", "inference"),
        ]  # fmt: skip
        assert (
            "VAE" in rows[1].stages
            and "VAE" not in rows[2].stages
            and rows[2].differs["labels"] <= BARS["fp32"]["labels"]
        )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_on_cuda(self, case: Case) -> None:
        rows = duel(replace(case, device="cuda"), list(WAYS), rounds=1)
        assert {row.way for row in rows} == set(WAYS)
        assert all(row.memory and row.memory.peak > row.memory.loaded for row in rows if not WAYS[row.way].seen)


def test_memory_of_a_task(case: Case) -> None:
    """In this process; the command that the bench starts prints the same."""
    found = memory.measure(replace(case, size=128), "fast fp32", ["step", "inference"])
    assert list(found) == ["inference", "step"]
    assert all(peak.peak >= peak.loaded > 1e6 for peak in found.values())
    assert Peak(10, 30).added == 20 and Peak(10, 10).added == 1


@pytest.mark.slow
@pytest.mark.release
def test_memory_in_a_process_of_its_own(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    found = memory.measure_apart(case, "fast fp32", ["step"])
    assert found["step"].peak > found["step"].loaded > 1e7
    with pytest.raises(SlimeBenchError, match="could not be measured"):
        memory.measure_apart(replace(case, weights="nowhere"), "fast fp32", ["step"])


class TestOutput:
    def test_table(self) -> None:
        text = table(["way", "seconds"], [["slow", "12.5"], ["fast", "1"]])
        assert text.splitlines() == [
            "| way  | seconds |", "| ---- | ------: |", "| slow |    12.5 |", "| fast |       1 |",
        ]  # fmt: skip

    def test_rows_are_per_step_and_ratios_against_the_reference(self) -> None:
        rows = [
            Row(REFERENCE, "step", 1, [8.0, 10.0, 12.0], stages={"VAE": 1.0}, memory=Peak(10**9, 9 * 10**9)),
            Row("together fp32", "step", 3, [3.0, 6.0, 9.0], ratio([8.0, 10.0, 12.0], [3.0, 6.0, 9.0], 3),
                {"losses": 1e-6}, {"backward": 2.0}, Peak(10**9, 3 * 10**9)),
        ]  # fmt: skip
        times, sizes, stages = (part.splitlines() for part in tables(rows).split("\n\n"))
        cells = [cell.strip() for cell in times[3].split("|")[1:-1]]
        assert cells == ["step", "together fp32", "2", "1..3", "5.0", "4.0..8.0", "losses 1e-06"]
        cells = [cell.strip() for cell in sizes[3].split("|")[1:-1]]
        assert cells == ["step", "together fp32", "1.00", "3.00", "3.0", "2.00", "4.0"]
        assert [cell.strip() for cell in stages[3].split("|")[1:-1]] == ["step", "together fp32", "", "2"]

    def test_files(self, tmp_path: Path) -> None:
        page = publish(tmp_path, "name", "Title", "text", "cpu", "python -m x", {"rows": [1]})
        assert (tmp_path / "name.md").read_text() == page and page.startswith("# Title\n\n`python -m x`")
        found = json.loads((tmp_path / "name.json").read_text())
        assert found["rows"] == [1]
        assert {"cpu", "date", "git", "packages", "threads", "command", "load"} <= set(found["made_with"])
        assert set(found["made_with"]["packages"]) >= {"torch", "diffusers"}


class TestCommands:
    def test_slime(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--device", "cpu", "--width", "golden", "--size", str(SIDE), "--classes", "3", "--rounds", "2"]
        words += ["--no-memory", "--ways", "fast fp32", REFERENCE, "--threads", "1", "--out", str(tmp_path)]
        assert slime.main(words) == 0
        shown = capsys.readouterr()
        assert "times faster" in shown.out and "comparing results" in shown.err
        found = json.loads((tmp_path / f"slime_cpu_golden_{SIDE}.json").read_text())
        assert set(found) == {"made_with", "case", "rounds", "rows"}
        assert found["case"]["classes"] == 3 and "weights" not in found["case"]
        assert str(tmp_path) not in json.dumps(found) and found["made_with"]["threads"]["torch"] == 1
        row = found["rows"][1]
        assert set(row) == {
            "way", "task", "work", "seconds", "faster", "differs", "stages", "memory", "median", "low", "high",
        }  # fmt: skip
        assert row["way"] == "fast fp32" and len(row["seconds"]) == 2 and row["low"] <= row["median"] <= row["high"]
        assert row["faster"]["low"] <= row["faster"]["high"]

    def test_the_bundled_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--device", "cpu", "--width", "mini", "--size", "64", "--rounds", "1", "--no-memory"]
        assert slime.main([*words, "--ways", REFERENCE, "fast fp32", "fast bf16"]) == 0
        assert "mini width, 64 px" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words",
        [["--size", "100"], ["--size", "0"], ["--classes", "99"], ["--images", "0"], ["--set", "method.nope=1"]],
    )
    def test_bad_arguments_end_with_2(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert slime.main(["--device", "cpu", "--width", "golden", "--no-memory", *words]) == 2
        assert "found" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("main", "words"),
        [(slime.main, ["--speed", "9"]), (slime.main, ["--width", "double"]), (slime.main, ["--ways", "magic"]),
         (slime.main, ["--rounds", "0"]), (slime.main, ["--warmup", "0"]), (slime.main, ["--threads", "0"]),
         (attention.main, ["--rounds", "0"]), (attention.main, ["--threads", "0"]), (scaling.main, ["--axis", "time"])],
    )  # fmt: skip
    def test_unknown_arguments_end_with_2(
        self, main: Callable[..., int], words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2 and words[0] in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
    def test_no_cuda(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert slime.main(["--device", "cuda"]) == 2
        assert "CUDA was asked for" in capsys.readouterr().err

    def test_what_is_measured_is_printed_and_a_mistake_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        def mistaken(*_: Any) -> str:
            raise ConfigError("no such thing", path="--there")

        assert make_main("x", None, lambda _: None, lambda _, command: command)(["--threads", "1"]) == 0
        assert tuple(capsys.readouterr()) == ("python -m x --threads 1\n", "")
        assert make_main("x", None, lambda _: None, mistaken)([]) == 2
        assert tuple(capsys.readouterr()) == ("", "error: no such thing\n  where: --there\n")

    def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        place = ["--out", str(tmp_path / "file" / "folder")]
        case = ["--device", "cpu", "--width", "golden", "--size", str(SIDE), "--no-memory"]

        def measured(*_: Any, **__: Any) -> Any:
            raise AssertionError("it was measured")

        for module, name in ((slime, "duel"), (scaling, "measure"), (attention, "compare"), (vlm_passes, "compare")):
            monkeypatch.setattr(module, name, measured)
        commands = [(slime.main, case), (scaling.main, [*case, "--axis", "classes"]), (attention.main, [])]
        for main, words in [*commands, (vlm_passes.main, [])]:
            assert main([*words, *place]) == 2
            assert "choose another folder" in capsys.readouterr().err

    def test_a_traceback_on_demand(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        assert slime.main(["--device", "cpu", "--size", "1"]) == 2
        assert "Traceback" in capsys.readouterr().err

    def test_attention(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr(attention, "SHAPES", ((2, 256, 8), (1, 64, 4)))
        assert attention.main(["--rounds", "2", "--threads", "1", "--out", str(tmp_path)]) == 0
        assert "| heads | positions | width |" in capsys.readouterr().out
        found = json.loads((tmp_path / "attention_cpu.json").read_text())
        shapes = [[row[name] for name in ("heads", "positions", "width", "filled_to")] for row in found["rows"]]
        assert shapes == [[2, 256, 8, 16], [1, 64, 4, 4]] and found["rounds"] == 2
        for row in found["rows"]:
            assert 0 <= row["differs"] < rounding(1.0, terms=300, steps=4)  # of the largest value
            assert all(0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"] for name in ("forward", "both"))
        assert attention.compare(2, 300, 12, "cpu", 1)[1] < rounding(1.0, terms=300, steps=4)

    def test_scaling(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--device", "cpu", "--width", "golden", "--size", str(SIDE), "--rounds", "1", "--no-memory"]
        assert scaling.main([*words, "--axis", "classes", "--points", "4", "2", "--out", str(tmp_path)]) == 0
        assert "exponent of the seconds" in capsys.readouterr().out
        found = json.loads((tmp_path / "scaling_cpu_golden.json").read_text())
        assert [(curve["axis"], curve["task"]) for curve in found["curves"]] == [
            ("classes", "step"), ("classes", "inference"),
        ]  # fmt: skip
        for curve in found["curves"]:
            assert [point["value"] for point in curve["points"]] == [2, 4]
            sizes, medians = [2, 4], [point["seconds"][0] for point in curve["points"]]
            assert curve["seconds_exponent"] == pytest.approx(exponent(sizes, medians))
            assert curve["memory_exponent"] is None

    @pytest.mark.parametrize("axis", ["shots", "images", "trials"])
    def test_other_axes(self, axis: str, weights: str) -> None:
        curves = scaling.measure(Case("golden", SIDE, 3, weights), axis, [1, 2], 1, 1, memory=False)
        assert [len(curve.points) for curve in curves] == [2]

    @pytest.mark.parametrize(
        "words", [["--axis", "size", "classes", "--points", "64"], ["--axis", "size", "--points", "64"],
                  ["--axis", "size", "--points", "64", "65"]],
    )  # fmt: skip
    def test_bad_curves_end_with_2(self, words: list[str]) -> None:
        assert scaling.main(["--device", "cpu", "--width", "golden", "--no-memory", *words]) == 2
