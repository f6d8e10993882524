"""Parts to classes, and label maps against a painter that goes pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.pascal_part.annotations import Part, PartObject
from data_prep.pascal_part.merge import MERGES, check_parts, class_names, paint, part_class
from slime_bench.data.mini_world.subjects import CLASSES
from slime_bench.errors import DataError

SHAPE = (4, 5)
NAMES = {
    "car": ["frontside", "door_1", "leftmirror", "headlight_3", "fliplate", "bliplate", "wheel_12", "window_2"],
    "horse": ["head", "lear", "muzzle", "torso", "neck", "lfuleg", "rbho", "tail"],
}


def test_classes_are_those_of_the_tables() -> None:
    for subject in MERGES:
        assert list(class_names(subject)) == CLASSES[subject]


def test_merges_are_those_of_the_protocol() -> None:
    text = {
        "car": "body <- frontside leftside rightside backside roofside leftmirror rightmirror door_1 door_2 door_9; "
        "light <- headlight_1 headlight_6; plate <- fliplate bliplate; wheel <- wheel_1 wheel_10; window <- window_7",
        "horse": "head <- head lear rear leye reye muzzle; neck+torso <- neck torso; tail <- tail; leg <- lfuleg lflleg"
        " rfuleg rflleg lbuleg lblleg rbuleg rblleg lfho rfho lbho rbho",
    }
    for subject, merges in text.items():
        for line in merges.split("; "):
            name, parts = line.split(" <- ")
            for part in parts.split():
                assert part_class(subject, part) == CLASSES[subject].index(name), part
    for subject, part in (
        ("car", "door"), ("car", "wheel_x"), ("car", "frontside_1"), ("car", "head"), ("horse", "tail_1"),
    ):  # fmt: skip
        with pytest.raises(KeyError):
            part_class(subject, part)


def slow(subject: str, objects: list[PartObject]) -> np.ndarray:
    """As the lab does it: body and the others apart, body erased under the others of every object, then added."""
    classes = CLASSES[subject]
    label = np.zeros(SHAPE, dtype=np.uint8)
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            here = {part_class(subject, part.name) for item in objects for part in item.parts if part.mask[row, column]}
            body = others = 0
            for index, name in enumerate(classes):
                if index in here and name == "body":
                    body = index
                elif index in here:
                    others = index
            if any(classes[index] != "body" for index in here):
                body = 0
            label[row, column] = body + others
    return label


@st.composite
def scenes(draw: st.DrawFn, subject: str) -> list[PartObject]:
    mask = st.integers(0, 2 ** (SHAPE[0] * SHAPE[1]) - 1).map(
        lambda bits: np.array([bits >> place & 1 for place in range(20)], dtype=bool).reshape(SHAPE)
    )
    part = st.builds(Part, st.sampled_from(NAMES[subject]), mask)
    return draw(
        st.lists(st.builds(PartObject, st.just(subject), mask, st.lists(part, max_size=5).map(tuple)), max_size=3)
    )


@given(scenes("car"), scenes("horse"))
def test_objects_are_painted_as_the_lab_does(cars: list[PartObject], horses: list[PartObject]) -> None:
    assert np.array_equal(paint("car", cars, SHAPE), slow("car", cars))
    assert np.array_equal(paint("horse", horses, SHAPE), slow("horse", horses))


def test_unknown_parts_are_named(tmp_path: Path) -> None:
    mask = np.ones(SHAPE, dtype=bool)
    person = PartObject("person", mask, (Part("lebrow", mask),))
    horse = PartObject("horse", mask, (Part("head", mask), Part("wing", mask)))
    check_parts("horse", [person], tmp_path)
    check_parts("car", [person, horse], tmp_path)
    with pytest.raises(DataError, match="unknown part `wing`") as caught:
        check_parts("horse", [person, horse], tmp_path / "a.mat")
    assert caught.value.path == tmp_path / "a.mat" and caught.value.found == "object 2 (horse), part wing"
    assert "head, lear, rear" in str(caught.value.expected) and "rbho" in str(caught.value.expected)
