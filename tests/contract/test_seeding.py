"""Named generators: the same name gives the same numbers, another name gives others."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.seeding import derive_seed, generator, numpy_generator

# Control characters apart: a key is an id or a purpose, never a separator.
words = st.text(st.characters(min_codepoint=32, codec="utf-8"), max_size=12)
keys = st.lists(st.one_of(words, st.integers(-(10**6), 10**6)), max_size=4)


def test_seeds_are_pinned() -> None:
    # A change here changes every published number of the bench.
    assert derive_seed(0, "support") == 4682993347503583509
    assert derive_seed(1, "augment", "car-support-0003", 7) == 6224543979154179505


def test_streams_are_pinned() -> None:
    assert torch.randint(1000, (4,), generator=generator(0, "support")).tolist() == [486, 156, 112, 935]
    assert numpy_generator(0, "support").integers(1000, size=4).tolist() == [965, 192, 597, 443]


def test_no_two_key_lists_collide_by_joining() -> None:
    assert derive_seed(0, "x", "a", "b") != derive_seed(0, "x", 'a", "b')
    assert derive_seed(0, "x", np.int64(1)) == derive_seed(0, "x", 1)


@given(st.integers(0, 2**31), words, keys, keys)
def test_seed_is_a_function_of_its_keys(seed: int, purpose: str, first: list, second: list) -> None:
    assert derive_seed(seed, purpose, *first) == derive_seed(seed, purpose, *first)
    assert 0 <= derive_seed(seed, purpose, *first) < 2**63
    same = [(type(key), key) for key in first] == [(type(key), key) for key in second]
    assert (derive_seed(seed, purpose, *first) == derive_seed(seed, purpose, *second)) == same


def test_generators_do_not_touch_the_global_streams() -> None:
    before = torch.random.get_rng_state()
    state = np.random.get_state()[1].copy()
    torch.rand(3, generator=generator(3, "noise"))
    numpy_generator(3, "noise").random(3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (state == np.random.get_state()[1]).all()
