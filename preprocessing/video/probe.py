"""The facts of a video file, by decoding all of it: headers lie about length, rate and rotation.

Imports no torch, so that child processes start quickly.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
from pydantic import Field

from preprocessing.video.damage import DecodeError, reason_for_no_frames
from preprocessing.video.fields import Scan, ScanMeter
from preprocessing.video.fit import orientation_of, pixel_shape, shown_size
from preprocessing.video.plausible import (
    LONGEST_FRAME_S,
    LONGEST_VIDEO_S,
    Timeline,
    why_implausible,
)
from preprocessing.video.reader import OnFrame, Reader, open_video, unnoted
from preprocessing.video.timing import Timing
from preprocessing.video.tone import Hdr, hdr_of
from videoldm_core.records import Record

Pixels = Annotated[int, Field(ge=1, le=2**20)]
Claim = Annotated[float, Field(allow_inf_nan=False)]  # of a header: anything
Sentence = Annotated[str, Field(max_length=500)]


class Probe(Record):
    """What decoding every frame of a video showed, beside what its header claims."""

    frames: int = Field(ge=1, le=2**31)
    # From the first shown frame to the end of the last.
    duration_s: float = Field(gt=0, le=LONGEST_VIDEO_S, allow_inf_nan=False)
    # Of the typical frame distance; no tick is shorter.
    fps: float = Field(gt=0, le=2.0**31, allow_inf_nan=False)
    variable_rate: bool
    # That one frame is shown.
    longest_frame_s: float = Field(gt=0, le=LONGEST_FRAME_S, allow_inf_nan=False)
    width: Pixels  # as shown: after pixel shape and rotation
    height: Pixels
    codec: str = Field(max_length=50)
    header_frames: int | None = Field(ge=-(2**63), lt=2**63)
    header_fps: Claim | None
    header_duration_s: Claim | None
    scan: Scan = "progressive"  # as measured, whatever the file says
    # Differences between header and frames, damage, oddities.
    warnings: tuple[Sentence, ...] = Field(default=(), max_length=20)

    @property
    def mean_fps(self) -> float:
        """Frames shown per second, over the whole video; of a variable rate, the mean."""
        return self.frames / self.duration_s


def frame_times(path: Path) -> list[float]:
    """When every frame is shown, in seconds after the first shown frame.

    Raises:
        DecodeError: no frame can be decoded, or their times cannot be true.
    """
    with open_video(path) as reader:
        timing, stamps = Timing(), []
        for stamp, _ in reader:
            timing.add(stamp)
            stamps.append(stamp)
        if not stamps:
            raise reason_for_no_frames(path, reader.header_frames, reader.damage)
        _check_times(path, reader, timing, last=Fraction(1))
        return [float((stamp - stamps[0]) * reader.tick) for stamp in stamps]


def probe_video(path: Path, on_frame: OnFrame = unnoted) -> Probe:
    """Decodes every frame (without converting it) and says what is there.

    Args:
        on_frame: called with every frame that is decoded.

    Raises:
        DecodeError: no frame can be decoded, or their times cannot be true; with its category and
            reason.
    """
    with open_video(path, on_frame) as reader:
        timing = Timing()
        sizes: set[tuple[int, int]] = set()
        meter = ScanMeter()
        first = final = None
        for stamp, frame in reader:
            meter.add(frame)
            timing.add(stamp)
            sizes.add((frame.width, frame.height))
            first, final = first or frame, frame
        if first is None or final is None:
            raise reason_for_no_frames(path, reader.header_frames, reader.damage)
        probe = _summary(path, reader, timing, sizes, (first, final))
        return _with_pictures(probe, meter, hdr_of(first))


def _summary(
    path: Path,
    reader: Reader,
    timing: Timing,
    sizes: set[tuple[int, int]],
    ends: tuple[av.VideoFrame, av.VideoFrame],
) -> Probe:
    first, final = ends
    usual, is_variable = timing.usual_gap(alone=reader.lasts(first))
    last = Fraction(final.duration) if final.duration and final.duration > 0 else usual
    duration_s, longest_s = _check_times(path, reader, timing, last=last)
    turn = orientation_of(first)
    shape = pixel_shape(reader.stream.sample_aspect_ratio)
    width, height = shown_size(first.width, first.height, shape, turn)
    rate, stated_duration = reader.stream.average_rate, reader.container.duration
    probe = Probe(
        frames=timing.frames,
        duration_s=float(duration_s),
        fps=float(1 / (usual * reader.tick)),
        variable_rate=is_variable,
        longest_frame_s=float(longest_s),
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


def _check_times(
    path: Path, reader: Reader, timing: Timing, *, last: Fraction
) -> tuple[Fraction, Fraction]:
    """(how long all frames are shown, how long the longest-standing one is), s; both plausible."""
    duration_s, longest_s = (ticks * reader.tick for ticks in timing.span(last))
    timeline = Timeline(timing.frames, duration_s, longest_s)
    if reason := why_implausible(timeline, size=path.stat().st_size):
        raise DecodeError("implausible times", reason)
    return duration_s, longest_s


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


def _with_pictures(probe: Probe, meter: ScanMeter, hdr: Hdr | None) -> Probe:
    """Adds what must be known to make pictures of the frames."""
    scan, warnings = meter.scan(), [*probe.warnings]
    if scan == "progressive" and meter.flagged:
        warnings.append("flagged interlaced, but its frames are whole pictures")
    if hdr:
        warnings.append(f"HDR ({hdr.transfer}) is mapped to SDR")
    return probe.model_copy(update={"scan": scan, "warnings": tuple(warnings)})
