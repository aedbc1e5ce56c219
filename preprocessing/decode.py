"""Video files into facts and frames, by decoding: headers lie about length, rate and rotation.

Frames are chosen by the time at which they are shown, never by index. Knows no clips, stores or
stages, and imports no torch, so that child processes start quickly.
"""

import statistics
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, dropwhile, islice
from pathlib import Path

import av
import numpy as np

from preprocessing.damage import DecodeError, reason_for_no_frames
from preprocessing.fields import Deinterlacing, Scan, ScanMeter, deinterlaced
from preprocessing.fit import RESIZER, Fitter, orientation_of, pixel_shape, shown_size
from preprocessing.reader import Reader, Shown, open_video
from videoldm_core.records import Record

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


class Probe(Record):
    """What decoding every frame of a video showed, beside what its header claims."""

    frames: int
    duration_s: float  # from the first shown frame to the end of the last
    fps: float  # of the typical frame distance
    variable_rate: bool
    longest_frame_s: float  # how long the longest-standing frame is shown
    width: int  # as shown: after pixel shape and rotation
    height: int
    codec: str
    header_frames: int | None
    header_fps: float | None
    header_duration_s: float | None
    scan: Scan = "progressive"  # as measured, whatever the file says
    warnings: tuple[str, ...] = ()  # differences between header and frames, damage, oddities

    @property
    def mean_fps(self) -> float:
        """Frames shown per second, over the whole video; of a variable rate, the mean."""
        return self.frames / self.duration_s


def frame_times(path: Path) -> list[float]:
    """When every frame is shown, in seconds after the first shown frame."""
    with open_video(path) as reader:
        stamps = [stamp for stamp, _ in reader]
        if not stamps:
            raise reason_for_no_frames(path, reader.header_frames, reader.damage)
        return [float((stamp - stamps[0]) * reader.tick) for stamp in stamps]


def probe_video(path: Path) -> Probe:
    """Decodes every frame (without converting it) and says what is there.

    Raises:
        DecodeError: no frame can be decoded; with its category and reason.
    """
    with open_video(path) as reader:
        stamps: list[int] = []
        sizes: set[tuple[int, int]] = set()
        meter = ScanMeter()
        first = final = None
        for stamp, frame in reader:
            meter.add(frame)
            stamps.append(stamp)
            sizes.add((frame.width, frame.height))
            first, final = first or frame, frame
        if first is None or final is None:
            raise reason_for_no_frames(path, reader.header_frames, reader.damage)
        return _with_scan(_summary(reader, stamps, sizes, (first, final)), meter)


def _summary(
    reader: Reader,
    stamps: list[int],
    sizes: set[tuple[int, int]],
    ends: tuple[av.VideoFrame, av.VideoFrame],
) -> Probe:
    first, final = ends
    gaps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)]
    typical = statistics.median(gaps) if gaps else reader.lasts(first)
    # Ticks are rounded (33, 34, 33 ms): the rate is the mean of the ordinary gaps, not the median.
    ordinary = [gap for gap in gaps if abs(gap - typical) <= 1 + typical / 10] or [typical]
    last = final.duration or statistics.mean(ordinary)
    turn = orientation_of(first)
    shape = pixel_shape(reader.stream.sample_aspect_ratio)
    width, height = shown_size(first.width, first.height, shape, turn)
    rate, stated_duration = reader.stream.average_rate, reader.container.duration
    probe = Probe(
        frames=len(stamps),
        duration_s=float((stamps[-1] - stamps[0] + Fraction(last)) * reader.tick),
        fps=float(1 / (Fraction(statistics.mean(ordinary)) * reader.tick)),
        variable_rate=len(ordinary) < len(gaps),
        longest_frame_s=float(Fraction(max([*gaps, last])) * reader.tick),
        width=width,
        height=height,
        codec=reader.stream.codec_context.name,
        header_frames=reader.header_frames,
        header_fps=float(rate) if rate else None,
        header_duration_s=stated_duration / av.time_base if stated_duration else None,
    )
    return probe.model_copy(
        update={"warnings": tuple(_warnings(probe, reader, sizes, turn.is_readable))}
    )


def _warnings(
    probe: Probe, reader: Reader, sizes: set[tuple[int, int]], is_turn_readable: bool
) -> Iterator[str]:
    if probe.header_frames and probe.header_frames != probe.frames:
        yield f"the header says {probe.header_frames} frames, {probe.frames} are shown"
    stated_s = probe.header_duration_s
    if stated_s and abs(stated_s - probe.duration_s) > max(0.25, 2 * probe.longest_frame_s):
        yield f"the header says {stated_s:.2f} s, the frames last {probe.duration_s:.2f} s"
    if probe.header_fps and abs(probe.header_fps / probe.fps - 1) > 0.02:
        yield f"the header says {probe.header_fps:.3g} frames/s, the frames come at {probe.fps:.3g}"
    if reader.damage:
        yield f"damaged after {probe.duration_s:.2f} s and used up to there ({reader.damage})"
    yield from reader.oddities()
    if len(sizes) > 1:
        yield f"the picture size changes ({len(sizes)} sizes)"
    if not is_turn_readable:
        yield "the rotation in the header is no multiple of 90 degrees and is ignored"


def _with_scan(probe: Probe, meter: ScanMeter) -> Probe:
    scan = meter.scan()
    warnings = probe.warnings
    if scan == "progressive" and meter.flagged:
        warnings = (*warnings, "flagged interlaced, but its frames are whole pictures")
    return probe.model_copy(update={"scan": scan, "warnings": warnings})


def decode_frames(
    path: Path,
    times_s: Sequence[float],
    *,
    height: int,
    width: int,
    deinterlacing: Deinterlacing | None = None,
) -> np.ndarray:
    """The frames shown at `times_s`, as uint8 (t h w 3); see `shown_frames`."""
    frames = np.empty((len(times_s), height, width, 3), np.uint8)
    shown = shown_frames(path, times_s, height=height, width=width, deinterlacing=deinterlacing)
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
) -> Iterator[np.ndarray]:
    """The frames shown at `times_s`, one after the other, each uint8 (h w 3).

    Args:
        times_s: ascending, after the first shown frame; each takes the last frame shown by then.
        height, width: of the upright picture; filled, the rest is cropped evenly.
        deinterlacing: how frames of two fields become pictures; without it, rows stay as they are.

    Raises:
        DecodeError: the file cannot be decoded, or not as far as the last of `times_s`.
    """
    assert len(times_s) > 0, "at least one time is asked for"
    assert all(a <= b for a, b in zip(times_s, times_s[1:], strict=False)), "times must ascend"
    assert times_s[0] >= 0, "times count from the first shown frame"
    for may_seek in (True, False):  # a seek lands too late in files with odd indexes
        with open_video(path) as reader:
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
