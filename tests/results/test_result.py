"""Result files: exact round trip, strict reading, and writing that leaves nothing half done."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.errors import ResultError, StorageError
from slime_bench.metrics.iou import CONVENTIONS, IouCounts, intersection_union, mean_iou
from slime_bench.results.identity import signature_of
from slime_bench.results.result import (
    TrialResult,
    find_finished,
    from_counts,
    read_per_image,
    read_result,
    write_per_image,
    write_result,
)
from slime_bench.storage import write_atomic

CLASSES = ["background", "body", "neck+torso"]
FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}
CONFIG: dict[str, Any] = {
    "preset": "mini",
    "shots": 1,
    "seed": 0,
    "method": {"name": "slime", "lr": 0.1},
    "metric": {"convention": "slime", "background": True},
}


def counts_of(seed: int = 0, images: int = 6, classes: int = 3) -> IouCounts:
    maps = torch.randint(0, classes, (2, images, 5, 5), generator=torch.Generator().manual_seed(seed))
    return intersection_union(maps[0], maps[1], classes)


def result_of(counts: IouCounts | None = None, **changes: Any) -> TrialResult:
    fields: dict[str, Any] = {
        "config": CONFIG,
        "fingerprints": FINGERPRINTS,
        "method": "slime",
        "backbone": "mini_sd",
        "data": "mini_car",
        "subject": "car",
        "shots": 1,
        "seed": 0,
        "preset": "mini",
        "protocol": "slime_code",
        "classes": CLASSES,
        "support_ids": ["support-003"],
        "validation": {"epoch": 7, "score": 0.1 + 0.2},
    }
    return from_counts(counts or counts_of(), **(fields | changes))


def fields_of(result: TrialResult) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(result)))  # type: ignore[no-any-return]


def edited(**changes: Any) -> bytes:
    return json.dumps(fields_of(result_of()) | changes).encode()


def back(result: TrialResult, folder: Path) -> TrialResult:
    """The result, written and read."""
    return read_result(write_result(folder, result))


def test_all_conventions_are_filled_in() -> None:
    counts = counts_of()
    result = result_of(counts, convention="dataset")
    for name, reduce in CONVENTIONS.items():
        assert list(result.conventions[name]["per_class"].values()) == reduce(counts).tolist()
        assert result.conventions[name]["average"] == mean_iou(reduce(counts))
    assert result.per_class == result.conventions["dataset"]["per_class"]
    decided = {key: value for key, value in CONFIG.items() if key != "metric"}
    assert result.signature == signature_of(decided, FINGERPRINTS)
    assert result_of(config={**CONFIG, "seed": 1}, seed=1).series == result.series != result.signature
    assert result.num_test_images == 6


def test_undefined_classes_are_null_and_left_out_of_the_average() -> None:
    target = torch.tensor([[[0, 1, 1, 0]]])
    result = result_of(intersection_union(torch.tensor([[[0, 1, 0, 0]]]), target, 3))
    assert result.undefined_classes == ["neck+torso"]
    assert result.per_class == {"background": 2 / 3, "body": 0.5, "neck+torso": None}
    assert result.average == pytest.approx((2 / 3 + 0.5) / 2)


def test_nothing_defined_at_all(tmp_path: Path) -> None:
    zeros = torch.zeros(1, 3, dtype=torch.int64)
    result = result_of(IouCounts(zeros, zeros, zeros.bool()))
    assert result.average is None and result.undefined_classes == CLASSES
    assert back(result, tmp_path) == result


def test_average_without_background() -> None:
    result = result_of(background=False)
    parts = [result.per_class[name] for name in CLASSES[1:]]
    assert result.average == pytest.approx(sum(parts) / 2)


def test_restated_under_another_convention_as_if_run_with_it() -> None:
    metric = {"convention": "dataset", "background": False}
    direct = result_of(config=CONFIG | {"metric": metric}, convention="dataset", background=False)
    assert result_of().under("dataset", background=False) == direct
    assert direct.under("slime") == result_of()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 5), st.sampled_from(list(CONVENTIONS)), st.booleans())
def test_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, seed: int, images: int, classes: int, convention: str, background: bool
) -> None:
    names = [f"class {index}" for index in range(classes)]
    counts = counts_of(seed, images, classes)
    result = result_of(counts, classes=names, convention=convention, background=background)
    folder = tmp_path_factory.getbasetemp() / "exact"
    content = write_result(folder, result).read_bytes()
    assert read_result(folder / "result.json") == result
    assert write_result(folder, read_result(folder / "result.json")).read_bytes() == content


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda leaf: st.lists(leaf, max_size=3) | st.dictionaries(st.text(), leaf, max_size=3),
        max_leaves=8,
    )
)
def test_any_validation_record_survives(tmp_path_factory: pytest.TempPathFactory, record: Any) -> None:
    result = result_of(validation={"record": record})
    assert back(result, tmp_path_factory.getbasetemp() / "any").validation == {"record": record}


def test_results_of_before_prepared_data_are_read(tmp_path: Path) -> None:
    content = fields_of(result_of())
    assert content.pop("prepared") == {}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_result(tmp_path / "result.json") == result_of()


def test_same_trial_same_bytes(tmp_path: Path) -> None:
    one = write_result(tmp_path / "a", result_of(config=dict(reversed(CONFIG.items()))))
    two = write_result(tmp_path / "b", result_of())
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["cannot be read"]),
        (b"\xff\xfe", ["cannot be read"]),
        (b"[1]", ["cannot be read"]),
        (edited()[:-40], ["cannot be read"]),
        (edited(average=float("nan")), ["`average`"]),
        (edited(schema_version=2), ["schema_version 2", "schema_version 1"]),
        (edited(extra=1), ["`extra`"]),
        (json.dumps({k: v for k, v in fields_of(result_of()).items() if k != "seed"}).encode(), ["`seed`"]),
        (edited(seed="0"), ["`seed`", "0", "integer"]),
        (edited(signature="xyz"), ["`signature`", "[0-9a-f]{16}"]),
        (edited(per_class={"background": 1.5}), ["`per_class.background`", "1.5"]),
    ],
)
def test_what_does_not_hold_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ResultError) as caught:
        read_result(path)
    message = str(caught.value)
    assert all(word in message for word in [*words, str(path), "what to do"]), message


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path, result_of(validation={"score": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_find_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = result_of()
    assert find_finished(tmp_path, result.signature) is None
    path = write_result(tmp_path, result)
    assert find_finished(tmp_path, result.signature) == result
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert find_finished(tmp_path, "0" * 16) is None
        path.write_bytes(path.read_bytes()[:100])
        assert find_finished(tmp_path, result.signature) is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "runs again" in caplog.text and str(path) in caplog.text


def test_write_atomic_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask  # readable as any other file of the user


@pytest.mark.parametrize("name", ["a" * 250, "写" * 80])
def test_a_name_that_is_almost_too_long(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / name, b"one")
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failing_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """A full disk at any step: a typed error with the remedy, the old file whole, no temporary file."""
    path = tmp_path / "result.json"
    old = write_result(tmp_path, result_of(seed=3)).read_bytes()

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            write_result(tmp_path, result_of())
    assert all(word in str(caught.value) for word in (str(path), "output_root", os.strerror(number)))
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(StorageError, match="output_root"):
        write_atomic(tmp_path / "runs" / "result.json", b"x")
    assert (tmp_path / "runs").read_text() == "in the way"


def test_per_image_round_trip(tmp_path: Path) -> None:
    counts, ids = counts_of(images=4), ["b", "a", "d", "c"]
    write_per_image(tmp_path / "one.parquet", ids, CLASSES, counts)
    write_per_image(tmp_path / "two.parquet", ids, CLASSES, counts)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    found_ids, found_classes, found = read_per_image(tmp_path / "one.parquet")
    assert (found_ids, found_classes) == (ids, CLASSES)
    for name in ("intersection", "union", "present"):
        assert torch.equal(getattr(found, name), getattr(counts, name))
    assert result_of(found) == result_of(counts)


def test_per_image_is_a_plain_long_table(tmp_path: Path) -> None:
    counts = counts_of(images=2)
    write_per_image(tmp_path / "t.parquet", ["a", "b"], CLASSES, counts)
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(frame.columns) == ["image_id", "class", "intersection", "union", "present"]
    assert list(frame["image_id"]) == ["a"] * 3 + ["b"] * 3 and list(frame["class"]) == CLASSES * 2
    row = frame[(frame["image_id"] == "b") & (frame["class"] == "body")].iloc[0]
    assert (row["intersection"], row["union"]) == (counts.intersection[1, 1].item(), counts.union[1, 1].item())


def test_per_image_errors(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    with pytest.raises(ResultError, match="cannot be read"):
        read_per_image(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ResultError, match="cannot be read"):
        read_per_image(path)
    write_per_image(path, ["a", "b"], CLASSES, counts_of(images=2))
    table = pyarrow.parquet.read_table(path)
    for spoilt in (table.drop_columns(["union"]), table.slice(0, 5)):
        pyarrow.parquet.write_table(spoilt, path)
        with pytest.raises(ResultError, match="cannot be read"):
            read_per_image(path)
