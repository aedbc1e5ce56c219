"""How timelines become clips, and what training never sees."""

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.admission.clips import HoldOut, cut_clips, hold_out, window_frames
from preprocessing.sources.folder import Source
from preprocessing.video.decode import Probe
from videoldm_core.data.plan import window_count


def source(name="a.mp4"):
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Source(name=name, path=Path(name), size=1, digest=digest, caption=f"about {name}")


def probe(duration_s, fps=25.0):
    return Probe(
        frames=max(1, round(duration_s * fps)),
        duration_s=duration_s,
        fps=fps,
        variable_rate=False,
        longest_frame_s=1 / fps,
        width=64,
        height=48,
        codec="h264",
        header_frames=None,
        header_fps=None,
        header_duration_s=None,
    )


def videos(count, duration_s=10.0):
    return [(source(f"{index}.mp4"), probe(duration_s)) for index in range(count)]


def cut(duration_s, *, fps=16.0, clip_seconds=4.0, min_frames=5, held=None):
    return cut_clips(
        source(),
        probe(duration_s),
        fps=fps,
        clip_seconds=clip_seconds,
        min_frames=min_frames,
        held=held,
    )


def test_a_video_is_cut_end_to_end_and_the_rest_kept_when_long_enough():
    clips = cut(10.0)
    assert [(clip.start_s, clip.frames) for clip in clips] == [(0, 64), (4, 64), (8, 32)]
    assert [clip.frames for clip in cut(8.25)] == [64, 64], "4 frames are fewer than 5"
    assert cut(0.3) == []


def test_a_clip_carries_its_source_caption_and_times():
    (clip,) = cut(2.0, clip_seconds=2.0)
    assert (clip.source, clip.caption, clip.split) == ("a.mp4", "about a.mp4", "train")
    assert clip.times_s()[:3] == [0, 0.0625, 0.125]
    assert clip.times_s()[-1] == pytest.approx(2 - 1 / 16)


def test_a_duration_just_short_of_a_frame_by_rounding_keeps_the_frame():
    assert [clip.frames for clip in cut(3.99999999)] == [64]


def test_keys_tell_clips_apart_and_are_the_same_every_time():
    clips = [*cut(10), *cut(10, fps=8), *cut(10, clip_seconds=3)]
    everything_held = HoldOut(rule="", whole=frozenset([source().digest]))
    clips += cut(10, held=everything_held)
    keys = [clip.key for clip in clips]
    assert len(set(keys)) == len(set(clips)) == len(keys)
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    assert cut(10)[0].key == "cbaab6d4d46ad95e"


def test_windows_are_counted_by_the_places_they_fit():
    assert window_frames(5, 16) == 65
    for frames, stride, count in ((65, 16, 1), (64, 16, 0), (20, 4, 4), (20, 1, 16)):
        (clip,) = cut(frames / 16, clip_seconds=5)
        assert window_count(clip, frames=5, stride=stride) == count


def test_with_many_videos_about_one_in_six_is_held_out_whole():
    held = hold_out(videos(120), fps=16, longest_window=65)
    assert 10 <= len(held.whole) <= 30
    assert not held.spans
    assert f"{len(held.whole)} whole videos of 120" in held.rule


def test_more_videos_never_move_one_from_one_split_to_the_other():
    few, many = videos(60), videos(90)
    before = hold_out(few, fps=16, longest_window=65).whole
    after = hold_out(many, fps=16, longest_window=65).whole
    assert before == after & {video.digest for video, _ in few}


def test_who_is_held_out_is_found_without_comparing_videos_with_one_another(monkeypatch):
    compared = []
    plain = Source.__eq__
    monkeypatch.setattr(
        Source, "__eq__", lambda one, other: compared.append(1) or plain(one, other)
    )
    assert hold_out(videos(300), fps=16, longest_window=65).whole
    assert len(compared) <= 300, "comparisons grow as the square of the number of videos"


def test_the_order_of_the_videos_does_not_matter():
    some = videos(20)
    assert hold_out(some, fps=16, longest_window=65) == hold_out(
        some[::-1], fps=16, longest_window=65
    )


@pytest.mark.parametrize("count", range(8, 24))
def test_both_splits_have_videos_long_enough_for_the_widest_window(count):
    mixed = [*videos(count - 4, 1.0), *[(source(f"long{i}"), probe(9.0)) for i in range(4)]]
    held = hold_out(mixed, fps=16, longest_window=65)
    long_held = [
        video for video, facts in mixed if facts.duration_s > 5 and video.digest in held.whole
    ]
    assert len(long_held) == 2


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 7),
    duration_s=st.floats(8.5, 60),
    source_fps=st.sampled_from([2.0, 24.0, 29.97]),
    fps=st.sampled_from([8.0, 16.0, 30.0]),
)
def test_few_videos_are_divided_without_a_shared_frame(count, duration_s, source_fps, fps):
    some = [(source(f"{index}.mp4"), probe(duration_s, source_fps)) for index in range(count)]
    longest = int(3.5 * fps)
    held = hold_out(some, fps=fps, longest_window=longest)
    for video, facts in some:
        clips = cut_clips(video, facts, fps=fps, clip_seconds=4, min_frames=1, held=held)
        splits = {clip.split: [] for clip in clips}
        for clip in clips:
            splits[clip.split] += [int(time * source_fps + 1e-3) for time in clip.times_s()]
            assert clip.times_s()[-1] < duration_s
        assert set(splits) == {"train", "heldout"}
        assert not set(splits["train"]) & set(splits["heldout"])
        for split in splits:
            assert max(clip.frames for clip in clips if clip.split == split) >= longest


def test_few_short_videos_hold_out_one_of_them():
    held = hold_out(videos(3, 5.0), fps=16, longest_window=65)
    assert len(held.whole) == 1
    assert "one whole video of 3" in held.rule


def test_a_single_short_video_holds_out_nothing_and_says_so():
    held = hold_out(videos(1, 5.0), fps=16, longest_window=65)
    assert not held.whole
    assert not held.spans
    assert held.rule.startswith("nothing")


def test_the_parts_of_a_divided_video_end_to_end():
    some = videos(1, 30.0)
    held = hold_out(some, fps=16, longest_window=65)
    clips = cut_clips(*some[0], fps=16, clip_seconds=5, min_frames=1, held=held)
    heldout = [clip for clip in clips if clip.split == "heldout"]
    assert heldout[0].start_s == pytest.approx(24)
    assert sum(clip.frames for clip in heldout) == 96
    for before, after in itertools.pairwise(clips):
        assert after.start_s >= before.start_s + before.frames / before.fps - 1e-6
