"""A clip of a pixel shard is coded while it is decoded."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from preprocessing.recode import frames_of_clip, video_of_clip
from videoldm_core.data.pixels import decode_clip_frames

SIZE = (512, 640)  # height, width
TIMES_S = [number / 16 for number in range(36)]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_memory_holds_a_few_frames_however_long_the_clip(counting_video, traced):
    """Ten seconds at 1280x2048 would be 2 GiB, more than the child process may use twice over."""
    video_of_clip(counting_video(), TIMES_S, SIZE, 16.0)
    held = tracemalloc.get_traced_memory()[1]
    frame = SIZE[0] * SIZE[1] * 3
    assert frame < held < 6 * frame


def test_it_holds_the_frames_that_a_clip_of_frames_does(counting_video):
    path, size = counting_video(), (64, 64)
    video = video_of_clip(path, TIMES_S, size, 16.0)
    found = decode_clip_frames(video, range(len(TIMES_S)), width_px=size[1])
    expected = frames_of_clip(path, TIMES_S, size)
    assert np.abs(found.astype(int) - expected).mean() < 1
