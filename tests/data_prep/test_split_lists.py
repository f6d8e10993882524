"""Validation lists of prepared data sets, and the recovered lists of the repository."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.build import Sample
from data_prep.split_lists import MIN_PIXELS, choose_val, committed


def samples(*counts: tuple[int, int]) -> list[Sample]:
    return [Sample("support", f"s{index}", {"pixels": [100, *count]}) for index, count in enumerate(counts)]


POOLS = st.lists(st.tuples(st.sampled_from([0, MIN_PIXELS - 1, MIN_PIXELS, 90]), st.sampled_from([0, 50])), max_size=30)


@given(POOLS, st.randoms())
def test_the_order_of_the_samples_decides_nothing(counts: list[tuple[int, int]], random: object) -> None:
    pool = samples(*counts)
    shuffled = sorted(pool, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert choose_val(pool) == choose_val(shuffled)


@given(POOLS)
def test_validation_leaves_a_sample_for_support(counts: list[tuple[int, int]]) -> None:
    pool = samples(*counts)
    chosen = choose_val(pool, size=4)
    assert len(chosen) == len(set(chosen)) == min(4, max(0, len(pool) - 1))


@pytest.mark.parametrize(
    ("name", "shots", "expected"),
    [
        ("pascal_part_car", "1", [71]),
        ("pascal_part_car", "10", [7, 8, 12, 19, 30, 35, 52, 56, 58, 69]),
        ("pascal_part_car", "val", [48, 55, 71, 73, 74, 89, 94, 99, 100, 103]),
        ("pascal_part_horse", "1", [2]),
        ("pascal_part_horse", "10", [2, 3, 4, 5, 6, 12, 18, 20, 25, 27]),
        ("pascal_part_horse", "val", [28, 29, 30, 31, 33, 35, 39, 40, 41, 43]),
    ],
)
def test_the_recovered_lists(name: str, shots: str, expected: list[int]) -> None:
    """Typed from shared/protocol.md, section 2.1."""
    assert committed(name, f"slime_lab-{shots}") == expected
