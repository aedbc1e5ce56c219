"""Frames of video files, chosen by the time at which they are shown, never by index.

Knows no clips, stores or stages, and imports no torch, so that child processes start quickly.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, dropwhile, islice
from pathlib import Path

import numpy as np

from preprocessing.video.damage import DecodeError, reason_for_no_frames
from preprocessing.video.fields import Deinterlacing, deinterlaced
from preprocessing.video.fit import RESIZER, Fitter, pixel_shape
from preprocessing.video.probe import Probe, frame_times, probe_video
from preprocessing.video.reader import OnFrame, Reader, Shown, open_video, unnoted

__all__ = [
    "RESIZER",
    "DecodeError",
    "Probe",
    "decode_frames",
    "frame_times",
    "probe_video",
    "shown_frames",
]

SEEK_FROM_S = 2.0  # decoding this much from the start is cheaper than seeking
SEEKABLE = ("mov,mp4", "matroska")  # containers with an index and true presentation times
STAMP_TOLERANCE_S = 0.0005  # containers round times to their tick; no rounding is larger than this


def decode_frames(
    path: Path,
    times_s: Sequence[float],
    *,
    height: int,
    width: int,
    deinterlacing: Deinterlacing | None = None,
    on_frame: OnFrame = unnoted,
) -> np.ndarray:
    """The frames shown at `times_s`, as uint8 (t h w 3); see `shown_frames`."""
    frames = np.empty((len(times_s), height, width, 3), np.uint8)
    shown = shown_frames(
        path,
        times_s,
        height=height,
        width=width,
        deinterlacing=deinterlacing,
        on_frame=on_frame,
    )
    for number, frame in enumerate(shown):
        frames[number] = frame
    return frames


def shown_frames(
    path: Path,
    times_s: Sequence[float],
    *,
    height: int,
    width: int,
    deinterlacing: Deinterlacing | None = None,
    on_frame: OnFrame = unnoted,
) -> Iterator[np.ndarray]:
    """The frames shown at `times_s`, one after the other, each uint8 (h w 3).

    Args:
        times_s: ascending, after the first shown frame; each takes the last frame shown by then.
        height, width: of the upright picture; filled, the rest is cropped evenly.
        deinterlacing: how frames of two fields become pictures; without it, rows stay as they are.
        on_frame: called with every frame that is decoded, also with those that are not shown.

    Raises:
        DecodeError: the file cannot be decoded, or not as far as the last of `times_s`.
    """
    assert len(times_s) > 0, "at least one time is asked for"
    assert all(a <= b for a, b in zip(times_s, times_s[1:], strict=False)), "times must ascend"
    assert times_s[0] >= 0, "times count from the first shown frame"
    for may_seek in (True, False):  # a seek lands too late in files with odd indexes
        with open_video(path, on_frame) as reader:
            begun = _begin(path, reader, times_s, deinterlacing, may_seek=may_seek)
            if begun is not None:
                fitter = Fitter(height, width, pixel_shape(reader.stream.sample_aspect_ratio))
                yield from _chosen(*begun, fitter=fitter, reader=reader)
                return


def _begin(
    path: Path,
    reader: Reader,
    times_s: Sequence[float],
    deinterlacing: Deinterlacing | None,
    *,
    may_seek: bool,
) -> tuple[list[float], Iterator[Shown]] | None:
    """Stamps that are wanted, and frames from one before the first of them on.

    None when a seek was made and its first sound frame comes too late.
    """
    shown: Iterator[Shown] = iter(reader)
    head = next(shown, None)
    if head is None:
        raise reason_for_no_frames(path, reader.header_frames, reader.damage)
    tolerance_s = min(float(reader.tick) / 2, STAMP_TOLERANCE_S) + 1e-6
    wanted = [head[0] + (time_s + tolerance_s) / float(reader.tick) for time_s in times_s]
    is_seekable = reader.container.format.name.startswith(SEEKABLE)
    if not (may_seek and is_seekable and times_s[0] >= SEEK_FROM_S):
        return wanted, _pictures(chain([head], shown), deinterlacing)
    # The first picture after a seek would be made without the frame before it.
    left_out = 1 if deinterlacing else 0
    shown = _sought(reader, wanted[0] - 2 * left_out * reader.lasts(head[1]))
    shown = islice(_pictures(shown, deinterlacing), left_out, None)
    head = next(shown, None)
    return (wanted, chain([head], shown)) if head and head[0] <= wanted[0] else None


def _pictures(shown: Iterator[Shown], deinterlacing: Deinterlacing | None) -> Iterator[Shown]:
    return deinterlaced(shown, deinterlacing) if deinterlacing else shown


def _sought(reader: Reader, stamp: float) -> Iterator[Shown]:
    """From the key frame before `stamp` on.

    Frames that come out before the first key frame lean on pictures from before it (open GOPs) and
    are skipped.
    """
    reader.container.seek(int(stamp), stream=reader.stream, backward=True)
    return dropwhile(lambda shown: not shown[1].key_frame, reader)


def _chosen(
    wanted: list[float], shown: Iterator[Shown], *, fitter: Fitter, reader: Reader
) -> Iterator[np.ndarray]:
    """For every wanted stamp the last frame shown by then; converts no other frame."""
    given = 0
    stamp, frame = next(shown)
    gap = 0
    while given < len(wanted):
        following = next(shown, None)
        until = following[0] if following else stamp + 1.5 * max(gap, reader.lasts(frame))
        count = sum(1 for at in wanted[given:] if at < until)
        if count:
            picture = fitter(frame)
            for _ in range(count):
                yield picture
            given += count
        if following is None:
            break
        gap = following[0] - stamp
        stamp, frame = following
    if given < len(wanted):
        raise DecodeError(
            "truncated",
            f"the frames end {(wanted[-1] - stamp) * float(reader.tick):.2f} s before the last "
            f"one asked for ({reader.damage or 'no damage was met'})",
        )
