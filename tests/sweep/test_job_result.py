"""Results of jobs: as files that any process can read, and as the table at the end of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.errors import StorageError
from slime_bench.sweep import job_result as states
from slime_bench.sweep.job_result import JobResult, died, forget_records, read_records, write_record
from slime_bench.sweep.summary import summarise, table, tell

TEXTS = st.text(max_size=20)
RESULTS = st.builds(
    JobResult,
    index=st.integers(0, 30),
    name=TEXTS,
    status=st.sampled_from([states.DONE, states.FAILED, states.BUSY, states.OOM]),
    message=TEXTS,
    exit_code=st.sampled_from([0, 1, 2]),
    seconds=st.floats(0, 1e6),
    average=st.none() | st.floats(0, 1),
    folder=st.none() | TEXTS,
    log=st.none() | TEXTS,
    code=st.none() | TEXTS,
)


class TestRecords:
    @given(st.lists(RESULTS, max_size=4))
    def test_the_last_one_written_of_every_trial_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, results: list[JobResult]
    ) -> None:
        folder = tmp_path_factory.mktemp("sweep")
        for each in results:
            write_record(folder, each)
        assert read_records(folder) == {each.index: each for each in results}
        forget_records(folder, [each.index for each in results])
        assert read_records(folder) == {}

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "jobs").write_text("")
        with pytest.raises(StorageError):
            write_record(tmp_path, JobResult(0, "a", states.DONE))
        assert read_records(tmp_path) == {}


def results() -> list[JobResult]:
    why = "a file went missing\n  where: a.png\n  what to do: put it back"
    return [
        JobResult(0, "seed=0", states.DONE, average=0.519, seconds=12.4),
        JobResult(1, "seed=1", states.SKIPPED, code="commit 0123"),
        JobResult(2, "seed=2", states.FAILED, message=why, exit_code=2, log="runs/a/error.json"),
        JobResult(3, "seed=3", states.FAILED, message=why, exit_code=2, log="runs/b/error.json"),
        died(4, "seed=4", "killed", "jobs/4.err"),
        JobResult(5, "seed=5", states.LEFT_OUT),
    ]


class TestTable:
    def test_every_trial_has_its_row_and_every_reason_is_told_once(self) -> None:
        lines = table(results())
        assert lines[0] == "2 of 6 trials finished (1 before), 3 failed, 1 left out:"
        text = "\n".join(lines)
        for status, name in (("done", "seed=0  mIoU 51.9  (12 s)"), ("skipped", "seed=1"), ("left out", "seed=5")):
            assert f"  {status:<8}  {name}" in lines
        assert text.count("a file went missing") == 1 and text.count("put it back") == 1
        for log in ("runs/a/error.json", "runs/b/error.json", "jobs/4.err"):
            assert text.count(f"see {log}") == 1
        assert text.index("seed=3") < text.index("a file went missing") < text.index("seed=4")
        assert "without a word: killed" in text and lines[-1].startswith("Finished trials are kept")

    def test_where_all_is_well_nothing_more_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        done = [JobResult(index, f"seed={index}", states.DONE) for index in range(2)]
        assert table(done) == [
            "2 of 2 trials finished:",
            "  done      seed=0  (0 s)",
            "  done      seed=1  (0 s)",
        ]
        summarise({0: done[0]}, ["the default trial"])
        assert capsys.readouterr().err == ""

    def test_results_of_other_code_are_warned_of_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = [JobResult(n, f"seed={n}", states.SKIPPED, code=by) for n, by in enumerate(["a", "b", "a", None])]
        summarise({each.index: each for each in found}, [each.name for each in found])
        (line,) = [each for each in capsys.readouterr().err.splitlines() if "warning" in each]
        assert "3 of the finished results were made by other code" in line and "(a, b)" in line


class TestTell:
    def test_a_reason_that_was_told_before_is_told_in_short(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, _, first, second, dead, _ = results()
        tell(first, [])
        tell(second, [first])
        tell(dead, [first, second])
        text = capsys.readouterr().err
        assert text.count("put it back") == 1 and "a file went missing (as above)" in text
        assert "unexpected" not in text and "without a word" in text

    def test_an_unexpected_error_says_how_to_see_more_and_the_traceback_stands_for_it(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one = JobResult(0, "a", states.FAILED, message="ZeroDivisionError: by nothing", exit_code=1)
        tell(one, [])
        assert "unexpected error: ZeroDivisionError" in (text := capsys.readouterr().err) and "HYDRA_FULL_ERROR" in text
        tell(JobResult(0, "a", states.FAILED, message="m", exit_code=1, traceback="Traceback: here"), [])
        assert capsys.readouterr().err == "Traceback: here\n"
