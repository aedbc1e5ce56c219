"""The plan draws every window once per epoch, whoever reads it and from wherever it resumes."""

import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoldm_core.data.plan import Plan, Windows
from videoldm_core.errors import UserError

COUNTING_S = 2  # CPU-seconds, far fewer than looking at a hundred million windows takes


@dataclass
class Clip:
    frames: int
    split: str = "train"
    fps: float = 30
    source_fps: float | None = None


@dataclass
class Clips:
    samples: list[Clip]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda x: max(x) >= 9)


def _windows(frame_counts: list[int], frames: int = 3, strides: tuple[int, ...] = (1,)) -> Windows:
    store = Clips([Clip(count) for count in frame_counts])
    return Windows(store, frames=frames, strides=strides, split="train")


@given(lengths, st.integers(1, 5), st.sampled_from([(1,), (2,), (2, 1), (1, 2)]))
def test_windows_are_exactly_those_that_fit(frame_counts, frames, strides):
    windows = _windows(frame_counts, frames, strides)
    expected = {
        (sample, start, stride, which)
        for which, stride in enumerate(strides)
        for sample, length in enumerate(frame_counts)
        for start in range(length)
        if start + (frames - 1) * stride < length
    }
    assert len(windows) == len(expected)
    assert {tuple(windows[i]) for i in range(len(windows))} == expected


def test_windows_come_only_from_their_split():
    store = Clips([Clip(5), Clip(5, "heldout"), Clip(5)])
    held_out = Windows(store, frames=5, strides=(1,), split="heldout")
    assert [tuple(held_out[i]) for i in range(len(held_out))] == [(1, 0, 1, 0)]
    with pytest.raises(IndexError, match="window 1 of 1"):
        held_out[1]


def test_a_stride_that_no_clip_is_long_enough_for_is_refused():
    with pytest.raises(
        UserError,
        match=r"train split has no clip of 9 frames \(3 at stride 4\): the longest of its 2 clips "
        "has 8; add longer videos",
    ):
        _windows([8, 5], 3, (1, 4))
    with pytest.raises(UserError, match="it has no clip; add longer videos"):
        Windows(Clips([Clip(9)]), frames=1, strides=(1,), split="heldout")


@given(lengths, st.integers(1, 7), st.integers(0, 9))
def test_every_window_comes_exactly_once_per_epoch(frame_counts, batch, seed):
    plan = Plan(_windows(frame_counts), batch, seed)
    count = len(plan.windows)
    epochs = 3
    drawn = [n for step in range(-(-epochs * count // batch)) for n in plan.indices(step)]
    for epoch in range(epochs):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(lengths, st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 20))
def test_ranks_share_the_same_global_batch(frame_counts, world, step):
    plan = Plan(_windows(frame_counts, 3, (1, 2)), 12, seed=5)
    shared = [n for rank in range(world) for n in plan.of_rank(step, rank=rank, world=world)]
    assert shared == plan.indices(step)


@given(lengths, st.integers(0, 50))
def test_a_new_plan_asked_for_a_later_step_continues_the_first(frame_counts, step):
    windows = _windows(frame_counts)
    ran = Plan(windows, 4, seed=1)
    drawn = [ran.indices(s) for s in range(step + 1)]
    assert Plan(windows, 4, seed=1).indices(step) == drawn[step]


@given(lengths, st.integers(1, 4))
def test_strides_come_equally_often_and_each_is_shuffled_in_full(frame_counts, batch):
    plan = Plan(_windows(frame_counts, 3, (4, 1)), 2 * batch, seed=2)
    count_far, count_near = plan.windows.counts
    steps = -(-count_near // batch)
    drawn = [plan.windows[n] for step in range(steps) for n in plan.indices(step)]
    assert Counter(w.stride for w in drawn) == {4: steps * batch, 1: steps * batch}
    far = [w for w in drawn if w.stride == 4]
    for epoch in range(len(far) // count_far):
        assert len(set(far[epoch * count_far : (epoch + 1) * count_far])) == count_far


def test_epochs_and_seeds_are_shuffled_differently():
    windows = _windows([40, 40])
    count = len(windows)
    plan = Plan(windows, count, seed=0)
    assert plan.indices(0) != plan.indices(1)
    assert plan.indices(0) != Plan(windows, count, seed=1).indices(0)
    assert plan.indices(0) != sorted(plan.indices(0))


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="batch of 10 cannot be shared by 4 processes; choose a ba"):
        Plan(_windows([20]), 10, seed=0).of_rank(0, rank=0, world=4)


@given(lengths, st.integers(1, 30), st.sampled_from([(1,), (4, 1)]))
def test_a_held_out_subset_is_spread_out_and_repeatable(frame_counts, count, strides):
    windows = _windows(frame_counts, 3, strides)
    chosen = windows.evenly_spaced(count)
    assert chosen == windows.evenly_spaced(count)
    assert len(set(chosen)) == len(chosen) <= count
    for which, available in enumerate(windows.counts):
        places = sorted(n for n in chosen if windows[n].stride_index == which)
        assert len(places) >= min(count // len(strides), available)
        gaps = {b - a for a, b in zip(places, places[1:], strict=False)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_seed_draws_the_same_on_every_machine_and_in_every_version():
    plan = Plan(_windows([12, 7, 3], 3, (2, 1)), 4, seed=5)
    assert [plan.indices(step) for step in (0, 1, 7, 10**6)] == [
        [1, 23, 10, 18],
        [4, 22, 3, 11],
        [2, 26, 4, 24],
        [10, 21, 6, 15],
    ]


def test_strides_with_as_many_windows_are_shuffled_differently():
    plan = Plan(_windows([40, 40], 1, (1, 2)), 160, seed=0)
    drawn = [plan.windows[n] for n in plan.indices(0)]
    first, second = ([w[:2] for w in drawn if w.stride == stride] for stride in (1, 2))
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_hundred_million_windows_take_no_more_time_and_memory_than_a_few():
    windows = _windows([1_000_002] * 100)
    assert len(windows) == 100_000_000
    tracemalloc.start()
    began = time.process_time()
    first = Plan(windows, 64, seed=0).indices(10**9)
    assert time.process_time() - began < COUNTING_S
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert len(set(first)) == 64
    plan = Plan(windows, 64, seed=0)
    began = time.process_time()
    for step in range(1, 101):
        for number in plan.indices(step):
            windows[number]
    assert time.process_time() - began < COUNTING_S
