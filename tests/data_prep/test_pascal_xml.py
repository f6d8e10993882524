"""VOC's boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.pascal_part.annotations import VocObject, read_voc
from data_prep.pascal_part.boxes import Box
from slime_bench.errors import DataError
from tests.fixtures.twins.pascal import Case, Thing, voc_xml


def write(path: Path, body: str) -> Path:
    path.write_text(f"<annotation>{body}</annotation>")
    return path


def item(name: str = "car", box: str = "1 2 30 40", rest: str = "") -> str:
    ends = "".join(
        f"<{end}>{value}</{end}>" for end, value in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    )
    return f"<object><name>{name}</name>{rest}<bndbox>{ends}</bndbox></object>"


def test_boxes_count_from_one_with_both_ends(tmp_path: Path) -> None:
    case = Case((Thing("person", (10, 20, 30, 40)), Thing("car", (0, 0, 50, 60), difficult=True)))
    (tmp_path / "a.xml").write_text(voc_xml("a", case))
    assert "<part>" in voc_xml("a", case)
    assert read_voc(tmp_path / "a.xml") == (
        VocObject("person", Box(10, 20, 40, 60), difficult=False, truncated=False),
        VocObject("car", Box(0, 0, 50, 60), difficult=True, truncated=False),
    )
    edge = Case((Thing("car", (200, 0, 40, 60)),))
    (tmp_path / "a.xml").write_text(voc_xml("a", edge))
    assert read_voc(tmp_path / "a.xml")[0].truncated


def test_decimals_and_other_letters(tmp_path: Path) -> None:
    path = tmp_path / "größe.xml"
    path.write_text(f"<annotation>{item('auto-ü', '45.70000076293945 2.2 90.1 40')}</annotation>", encoding="utf-8")
    assert read_voc(path) == (VocObject("auto-ü", Box(45, 1, 90, 40), False, False),)
    assert read_voc(write(path, "")) == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (item(box="1 2 x 4"), "'x'"),
        (item(box="nan 2 3 4"), "NaN"),
        (item(box="30 2 29 4"), "an object 'car' with the box 30 2 29 4"),
        (item() + item(name=" "), "an object ''"),
        ("<object><name>car</name></object>", "float"),
        ("<object>", "mismatched tag"),
    ],
)
def test_other_layouts(tmp_path: Path, body: str, words: str) -> None:
    path = tmp_path / "a.xml"
    for expected in ("No such file", words):
        with pytest.raises(DataError, match="cannot read the box annotation") as caught:
            read_voc(path)
        assert expected in str(caught.value.found) and caught.value.path == path
        write(path, body)
