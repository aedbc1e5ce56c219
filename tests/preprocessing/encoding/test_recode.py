"""A clip of a pixel shard is coded while it is decoded."""

import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from preprocessing.encoding.recode import (
    Wanted,
    frames_call,
    frames_of_clip,
    video_call,
    video_of_clip,
)
from preprocessing.isolation.child import Limits, no_progress
from preprocessing.video.decoding_limits import worth_of_frame_s
from videoldm_core.data.pixels import decode_clip_frames

SIZE = (512, 640)  # height, width
LIMITS = Limits(60, 300, 600)
TIMES_S = [number / 16 for number in range(36)]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_memory_holds_a_few_frames_however_long_the_clip(counting_video, traced):
    """Ten seconds at 1280x2048 would be 2 GiB, more than the child process may use twice over."""
    video_of_clip(no_progress, Wanted(str(counting_video()), TIMES_S, SIZE), 16.0)
    held = tracemalloc.get_traced_memory()[1]
    frame = SIZE[0] * SIZE[1] * 3
    assert frame < held < 6 * frame


def value_of(function, call, progress=no_progress):
    """What the parent reads of what the child answers."""
    answer = function(progress, *json.loads(json.dumps(call.args)))
    content = np.frombuffer(b"".join(answer.pieces), np.uint8)
    assert len(content) == answer.size <= call.most_bytes
    return call.read(answer.facts, content)


def test_it_holds_the_frames_that_a_clip_of_frames_does(counting_video):
    wanted = Wanted(str(counting_video()), TIMES_S, (64, 64))
    video = value_of(video_of_clip, video_call(wanted, LIMITS, 16.0))
    found = decode_clip_frames(video, range(len(TIMES_S)), width_px=64)
    expected = value_of(frames_of_clip, frames_call(wanted, LIMITS))
    assert expected.shape == (36, 64, 64, 3)
    assert np.abs(found.astype(int) - expected).mean() < 1


@pytest.mark.parametrize("size", [(64, 64), (144, 256)])
def test_noise_fits_into_what_a_coded_clip_may_take(tmp_path, write_frames, size):
    noise = np.random.default_rng(0).integers(0, 256, (12, *size, 3), np.uint8)
    path = write_frames(tmp_path / "noise.mkv", noise, range(0, 480, 40))
    wanted = Wanted(str(path), TIMES_S[:7], size)
    assert value_of(video_of_clip, video_call(wanted, LIMITS, 16.0))


def test_every_frame_that_is_decoded_or_made_is_progress(counting_video):
    path = counting_video("long.mkv", options={"g": "250"})
    wanted = Wanted(str(path), [1.5, 1.6, 1.7], (24, 32))
    earned = []
    value_of(frames_of_clip, frames_call(wanted, LIMITS), earned.append)
    assert earned.count(worth_of_frame_s(64, 48)) > 24, "also those before the clip"
    assert earned.count(worth_of_frame_s(32, 24)) == 3


@pytest.mark.parametrize(
    ("facts", "content"), [({}, b"\0" * 24), (None, b"\0" * 23), (None, b"\0" * 25)]
)
def test_other_frames_than_were_asked_for_are_a_lie(facts, content, tmp_path):
    call = frames_call(Wanted(str(tmp_path), [0.0], (2, 4)), LIMITS)
    assert call.read(None, np.zeros(24, np.uint8)).shape == (1, 2, 4, 3)
    with pytest.raises(ValueError, match="bytes of frames instead of 24"):
        call.read(facts, np.frombuffer(content, np.uint8))


def test_a_coded_clip_that_is_no_mp4_is_a_lie(tmp_path):
    call = video_call(Wanted(str(tmp_path), [0.0], (2, 4)), LIMITS, 16.0)
    with pytest.raises(ValueError, match="no mp4 file"):
        call.read(None, np.frombuffer(b"\x80\x04cposix\nsystem", np.uint8))
