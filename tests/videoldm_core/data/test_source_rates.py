"""A stage sees only motion that its sources have: which windows a slow source's clips hold."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoldm_core.cascade.annotations import BoxedFrame
from videoldm_core.data.plan import BoxedFrames, Plan, Windows, keeps_up, window_count
from videoldm_core.data.shards import LatentClip, from_members, to_members
from videoldm_core.data.store import open_store
from videoldm_core.errors import UserError

from .conftest import latent_clip, write_store


@dataclass
class Clip:
    frames: int
    source_fps: float | None = None
    split: str = "train"
    fps: float = 30
    boxes: tuple[BoxedFrame, ...] = ()


@dataclass
class Clips:
    samples: list[Clip]


@pytest.mark.parametrize(
    ("source_fps", "fps", "enough"),
    [
        (30, 30, True),
        (30_000 / 1001, 30, True),
        (24_000 / 1001, 24, True),
        (60, 30, True),
        (25, 30, False),
        (24, 25, False),
        (15, 16, False),
        (10, 30, False),
    ],
)
def test_a_rate_is_kept_up_with_up_to_a_little_rounding(source_fps, fps, enough):
    assert keeps_up(source_fps, fps) is enough


def test_a_source_of_10_frames_per_second_gives_key_frames_to_a_store_of_30_and_nothing_near():
    slow = Clip(241, source_fps=10)
    assert window_count(slow, frames=15, stride=16) == 17
    assert window_count(slow, frames=5, stride=4) == 225, "7.5 frames/s are fewer than 10"
    assert window_count(slow, frames=5, stride=3) == 229
    assert window_count(slow, frames=5, stride=2) == 0
    assert window_count(slow, frames=5, stride=1) == 0
    assert window_count(slow, frames=1, stride=1) == 241, "a single frame has no motion"


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([None, 29.0, 15.0, 10.0])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([(3, (1,)), (3, (3, 1)), (2, (2,)), (1, (1,))]),
)
def test_windows_are_those_that_fit_and_whose_frames_differ_in_the_source(clips, seen):
    frames, strides = seen
    # A fast clip, so that no stride is without a window.
    store = Clips([Clip(count, rate) for count, rate in clips] + [Clip(9)])
    windows = Windows(store, frames=frames, strides=strides, split="train")
    expected = [
        (sample, start, stride, which)
        for which, stride in enumerate(strides)
        for sample, clip in enumerate(store.samples)
        for start in range(clip.frames - (frames - 1) * stride)
        if frames == 1 or (clip.source_fps or 30) * stride >= 0.98 * 30
    ]
    assert [tuple(windows[i]) for i in range(len(windows))] == expected


def test_slow_clips_leave_the_plan_of_the_others_as_it_was():
    fast = [Clip(12), Clip(9, split="heldout"), Clip(7), Clip(3)]
    slow = [*fast, Clip(40, source_fps=10), Clip(40, source_fps=10, split="heldout")]
    plans = [
        Plan(Windows(Clips(clips), frames=3, strides=(2, 1), split="train"), 4, seed=5)
        for clips in (fast, slow)
    ]
    first, second = ([plan.indices(step) for step in range(8)] for plan in plans)
    assert first == second
    windows = plans[1].windows
    assert {windows[number].sample for number in range(len(windows))} == {0, 2, 3}


def test_a_stride_that_only_slow_sources_are_long_enough_for_says_so_and_what_to_do():
    clips = Clips([Clip(90, 8.0), Clip(80, 10.0), Clip(4), Clip(90, 29.0, split="heldout")])
    with pytest.raises(
        UserError,
        match=r"^The train split has no window that shows motion: 5 frames at stride 1 need videos "
        r"of 30 frames/s, and the fastest that is long enough has 10, so that frames would repeat; "
        r"add videos of 30 frames/s, set video.fps to 10, or choose larger strides for this stage",
    ):
        Windows(clips, frames=5, strides=(4, 1), split="train")
    Windows(
        Clips([replace(c, fps=10.0) for c in clips.samples]), frames=5, strides=(1,), split="train"
    )


def test_frames_with_boxes_are_taken_from_every_source():
    boxes = (BoxedFrame(2, ()), BoxedFrame(7, ()))
    windows = BoxedFrames(Clips([Clip(9, 2.0, boxes=boxes), Clip(9)]), split="train")
    assert [windows[i].start for i in range(len(windows))] == [2, 7]


def test_a_store_keeps_the_rate_of_a_slow_source_and_its_windows(tmp_path: Path):
    fast, slow = latent_clip(0, 8), latent_clip(1, 8)
    slow = replace(slow, info=slow.info.model_copy(update={"source_fps": 5.0}))
    store = open_store(write_store(tmp_path / "store", "latents", [[fast, slow]]))
    assert [sample.source_fps for sample in store.samples] == [None, 5.0]
    windows = Windows(store, frames=2, strides=(4, 1), split="train")
    assert windows.counts == (8, 7)


@pytest.mark.parametrize("rate", [12.5, 0.0])
def test_the_rate_is_written_only_where_there_is_one(rate):
    clip = latent_clip(0, 8)
    assert b"source_fps" not in to_members(clip)["json"]
    told = clip.info.model_copy(update={"source_fps": rate})
    back = from_members(to_members(LatentClip(info=told, latents=clip.latents, text=clip.text)))
    assert back.info.source_fps == rate
