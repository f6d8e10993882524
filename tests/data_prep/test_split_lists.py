"""Support and validation lists of prepared data sets, and the recovered lists of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.build import Sample
from data_prep.split_lists import MIN_PIXELS, SEEDS, SHOTS, choose_val, committed, drawn_lists

CLASSES = ("background", "body", "wheel")


def samples(*counts: tuple[int, int]) -> list[Sample]:
    return [Sample("support", f"s{index}", {"pixels": [100, *count]}) for index, count in enumerate(counts)]


POOLS = st.lists(st.tuples(st.sampled_from([0, MIN_PIXELS - 1, MIN_PIXELS, 90]), st.sampled_from([0, 50])), max_size=30)


@given(POOLS)
def test_drawn_sets_are_nested_and_show_all_that_the_pool_allows(counts: list[tuple[int, int]]) -> None:
    pool = samples(*counts)
    shown = {each.id: sum(c >= MIN_PIXELS for c in count) for each, count in zip(pool, counts, strict=True)}
    lists = drawn_lists(pool)
    assert set(lists) == {f"drawn-{k}-seed{s}" for k in SHOTS for s in SEEDS if k <= len(pool)}
    for name, ids in lists.items():
        shots, seed = int(name.split("-")[1]), name.split("-")[2]
        assert len(set(ids)) == shots
        assert sorted((shown[key] for key in ids), reverse=True) == sorted(shown.values(), reverse=True)[:shots]
        assert lists[f"drawn-1-{seed}"] == ids[:1]


@given(POOLS, st.randoms())
def test_the_order_of_the_samples_decides_nothing(counts: list[tuple[int, int]], random: object) -> None:
    pool = samples(*counts)
    shuffled = sorted(pool, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert drawn_lists(pool) == drawn_lists(shuffled)
    assert choose_val(pool) == choose_val(shuffled)


def test_builders_and_trials_agree_on_the_rule() -> None:
    from slime_bench.data.support import LISTED_BY

    assert LISTED_BY == ("each", MIN_PIXELS)


def test_seeds_differ() -> None:
    lists = drawn_lists(samples(*[(90, 50)] * 40))
    assert len({tuple(lists[f"drawn-10-seed{seed}"]) for seed in SEEDS}) == len(SEEDS)


def test_the_trial_draws_the_same_where_the_list_is_missing(tmp_path: Path) -> None:
    """`data.support=drawn` without its file: the data module's own draw, from the label maps, is the builder's."""
    import numpy as np
    from PIL import Image

    from slime_bench.data.config import DataConfig
    from slime_bench.data.reading import FolderDataset
    from slime_bench.data.support import choose_support

    counts = [(90, 50), (0, 50), (90, 50), (0, 0), (90, 50), (MIN_PIXELS, 50)]
    for index, (body, wheel) in enumerate(counts):
        label = np.repeat([0, 1, 2], [400 - body - wheel, body, wheel]).astype(np.uint8).reshape(20, 20)
        for kind, array in (("images", np.zeros((20, 20, 3), np.uint8)), ("labels", label)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"s{index}.png")
    lists = drawn_lists(samples(*counts))
    pool = FolderDataset(tmp_path, CLASSES)
    config = DataConfig("some", str(tmp_path), classes=list(CLASSES), require_all_classes="each", min_pixels=MIN_PIXELS)
    for seed in SEEDS:
        assert choose_support(pool, 1, seed, config) == lists[f"drawn-1-seed{seed}"]


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
