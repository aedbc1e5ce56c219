"""What a child process does for one clip: decode its source, and for pixel stores code it again.

Imports no torch, so that child processes start quickly. Runs under isolation/workers.py; the
`..._call` functions say what the parent expects of an answer.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from preprocessing.isolation.child import Answer, Limits, Progress
from preprocessing.isolation.workers import MEMORY_BYTES, Call
from preprocessing.video.decode import OnFrame, shown_frames
from preprocessing.video.decoding_limits import worth_of_frame_s
from preprocessing.video.fields import Deinterlacing
from videoldm_core.data.pixels import encode_clip


class Wanted(NamedTuple):
    """The frames of one clip, as they are asked of a child process."""

    path: str
    times_s: Sequence[float]
    size: tuple[int, int]  # height, width, px
    how: Deinterlacing | None = None  # frames of two fields become pictures; None: there are none

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of all frames: t h w 3."""
        return (len(self.times_s), *self.size, 3)


def earning(progress: Progress) -> OnFrame:
    """Notes every decoded frame as progress that is worth its pixels."""

    def note(frame: av.VideoFrame) -> None:
        progress(worth_of_frame_s(frame.width, frame.height))

    return note


def frames_call(wanted: Wanted, limits: Limits) -> Call:
    """The call of `frames_of_clip` whose value is uint8 (t h w 3)."""
    count = math.prod(wanted.shape)

    def read(facts: Any, content: np.ndarray) -> np.ndarray:
        if facts is not None or len(content) != count:
            raise ValueError(f"{len(content)} bytes of frames instead of {count}")
        return content.reshape(wanted.shape)

    return Call((wanted,), limits, count, read)


def video_call(wanted: Wanted, limits: Limits, fps: float) -> Call:
    """The call of `video_of_clip` whose value is an mp4 file as bytes."""

    def read(facts: Any, content: np.ndarray) -> bytes:
        video = content.tobytes()
        if facts is not None or video[4:8] != b"ftyp":
            raise ValueError("no mp4 file")
        return video

    # Noise takes little more than its pixels when it is coded nearly without loss.
    most_bytes = min(2 * math.prod(wanted.shape) + 65536, MEMORY_BYTES)
    return Call((wanted, fps), limits, most_bytes, read)


def frames_of_clip(progress: Progress, wanted: Sequence[Any]) -> Answer:
    """The frames of a clip as bytes, uint8 (t h w 3), sent as they are decoded.

    Args:
        wanted: the fields of a `Wanted`.
    """
    clip = _wanted(*wanted)
    pieces = (np.ascontiguousarray(frame).data for frame in _shown(progress, clip))
    return Answer(None, math.prod(clip.shape), pieces)


def video_of_clip(progress: Progress, wanted: Sequence[Any], fps: float) -> Answer:
    """The same frames as the mp4 of a pixel shard, coded as they are decoded.

    All at once they would be 2 GiB, of ten seconds at 1280x2048.
    """
    coded = encode_clip(_shown(progress, _wanted(*wanted)), fps=fps)
    return Answer(None, len(coded), [coded])


def _wanted(path: str, times_s: list[float], size: list[int], how: list[str] | None) -> Wanted:
    """As it was before it travelled as JSON."""
    return Wanted(path, times_s, (size[0], size[1]), Deinterlacing(*how) if how else None)


def _shown(progress: Progress, wanted: Wanted) -> Iterator[np.ndarray]:
    height, width = wanted.size
    for frame in shown_frames(
        Path(wanted.path),
        wanted.times_s,
        height=height,
        width=width,
        deinterlacing=wanted.how,
        on_frame=earning(progress),
    ):
        yield frame
        progress(worth_of_frame_s(width, height))  # what was made of it since, too
