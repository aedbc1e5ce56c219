"""A computed shuffle holds everything once, in an order that shows no rule and never changes."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoldm_core.data.shuffle import mixed, shuffled

keys = st.integers(0, 2**64 - 1)


def _shuffle(count: int, key: int, places: np.ndarray | None = None) -> np.ndarray:
    """int64: the whole shuffle of `count`, or what stands at some places of it."""
    asked = np.arange(count) if places is None else places
    known = [np.full(len(asked), number, np.uint64) for number in (count, key)]
    return shuffled(asked.astype(np.uint64), *known).astype(np.int64)


def _many(count: int, how_many: int) -> np.ndarray:
    """int64 (how_many, count): shuffles of one count by as many keys."""
    made = mixed(np.arange(how_many, dtype=np.uint64))
    counts = np.full(how_many, count, np.uint64)
    columns = [shuffled(np.full(how_many, i, np.uint64), counts, made) for i in range(count)]
    return np.stack(columns, axis=1).astype(np.int64)


@given(st.integers(1, 5000), keys)
def test_everything_comes_exactly_once(count, key):
    assert np.array_equal(np.sort(_shuffle(count, key)), np.arange(count))


@given(st.integers(1, 3000), keys, st.data())
def test_a_place_holds_the_same_whatever_is_asked_beside_it(count, key, data):
    whole = _shuffle(count, key)
    begin = data.draw(st.integers(0, count - 1))
    assert np.array_equal(_shuffle(count, key, np.arange(begin, count)), whole[begin:])
    others = np.array([begin, 0], np.uint64)
    counts, two_keys = np.array([count, 3], np.uint64), np.array([key, 1], np.uint64)
    assert shuffled(others, counts, two_keys)[0] == whole[begin]


@given(st.integers(30, 3000), keys, keys)
def test_another_key_is_another_order(count, key, other):
    if key != other:
        # Two orders without relation agree at one place, on average.
        assert (_shuffle(count, key) == _shuffle(count, other)).sum() < 15


def test_keys_that_are_neighbours_give_orders_without_relation():
    first, *others = (_shuffle(1000, key) for key in range(50))
    found = [np.corrcoef(first, other)[0, 1] for other in others]
    assert np.abs(found).max() < 5 / math.sqrt(1000)


@pytest.mark.parametrize("count", [999, 1000, 1024, 4097, 100_000])
def test_the_order_shows_no_rule(count: int):
    shuffle = _shuffle(count, 7)
    # Five standard deviations of what chance gives.
    assert abs(np.corrcoef(np.arange(count), shuffle)[0, 1]) < 5 / math.sqrt(count)
    assert abs(np.corrcoef(shuffle[:-1], shuffle[1:])[0, 1]) < 5 / math.sqrt(count)
    steps = Counter(np.diff(shuffle).tolist())
    # Without a rule about two neighbours stay neighbours, and no distance is seen often.
    assert steps[1] + steps[-1] <= 12
    assert max(steps.values()) <= 12
    assert np.abs(np.diff(shuffle)).mean() == pytest.approx(count / 3, rel=0.1)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_every_order_of_a_few_comes_about_equally_often(count: int):
    orders, each = math.factorial(count), 100
    seen = Counter(map(tuple, _many(count, orders * each).tolist()))
    assert len(seen) == orders
    excess = sum((times - each) ** 2 / each for times in seen.values()) / (orders - 1)
    assert excess < 3  # 1 where chance decides


@pytest.mark.parametrize("count", [7, 10, 50, 101])
def test_every_thing_comes_to_every_place_equally_often(count: int):
    shuffles = _many(count, 200 * count)
    times = np.stack([np.bincount(column, minlength=count) for column in shuffles.T])
    assert ((times - 200) ** 2 / 200).mean() == pytest.approx(1, abs=0.35)


def test_billions_take_as_little_memory_as_a_few():
    tracemalloc.start()
    places = np.arange(10**10, 10**10 + 1000)
    assert len(set(_shuffle(3 * 10**12, 3, places).tolist())) == 1000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_orders_are_the_same_on_every_machine_and_in_every_version():
    assert _shuffle(10, 0).tolist() == [5, 9, 6, 8, 0, 1, 7, 2, 3, 4]
    assert _shuffle(10**9, 2**63, np.arange(3)).tolist() == [950107848, 438883397, 287265998]
