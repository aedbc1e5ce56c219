"""Clips: stretches of a video's timeline at one frame rate, and which of them are held out.

Pure arithmetic over sources and probes; decodes nothing.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from preprocessing.sources.folder import Source, digest_of_text
from preprocessing.sources.sidecars import TimedBoxes
from preprocessing.video.decode import Probe
from preprocessing.video.fields import Scan
from preprocessing.video.fit import box_in_crop
from preprocessing.video.plausible import LONGEST_VIDEO_S, why_too_still
from videoldm_core.cascade.annotations import Annotations, BoxedFrame
from videoldm_core.data.names import ClipKey, Frames, Rate, Words
from videoldm_core.data.plan import keeps_up
from videoldm_core.records import InnerPath, Record

Split = Literal["train", "heldout"]
Span = tuple[float, float]  # start_s, end_s on a video's timeline

HELD_OUT_SHARE = 6  # one video in this many
WHOLE_VIDEOS_FROM = 8  # with this many videos, whole ones are held out
LAST_PART = 5  # with fewer, the last 1/5 of each timeline
_ROUNDING_FRAMES = 1e-3  # times are floats: 79.9999 frames are 80


class Clip(Annotations):
    """One stretch of one source, resampled by time to `fps`."""

    key: ClipKey  # another split, start, length or rate is another clip
    source: InnerPath  # file name below the user's folder
    source_digest: Words
    start_s: float = Field(ge=0, le=LONGEST_VIDEO_S)  # after the first shown frame
    fps: Rate
    frames: Frames  # at `fps`
    caption: str
    split: Split
    # Of the source; written only where it is interlaced.
    scan: Scan = Field(default="progressive", exclude_if=lambda scan: scan == "progressive")

    def times_s(self) -> list[float]:
        """When each frame is taken, after the source's first shown frame."""
        return [self.start_s + frame / self.fps for frame in range(self.frames)]


class HoldOut(Record):
    """Which part of which video training never sees."""

    rule: str  # for the report
    whole: frozenset[str] = frozenset()  # digests of the videos held out completely
    # Digest -> its (train, held-out) parts of the timeline.
    spans: dict[str, tuple[Span, Span]] = {}


def window_frames(frames: int, stride: int) -> int:
    """Clip frames that a window of `frames` at `stride` spans."""
    return (frames - 1) * stride + 1


def cut_clips(
    source: Source,
    probe: Probe,
    *,
    fps: float,
    clip_seconds: float,
    min_frames: int,
    held: HoldOut | None = None,
) -> list[Clip]:
    """Cuts a video into clips of `clip_seconds`, end to end; the last may be shorter.

    Args:
        probe: of a video that is not too still for such clips (plausible.py).
        min_frames: what is left over is dropped when shorter than this.
        held: what is held out; without it every clip is for training.
    """
    still = why_too_still(
        frames=probe.frames, duration_s=probe.duration_s, clip_seconds=clip_seconds
    )
    assert not still, still
    parts: list[tuple[Span, Split]]
    if held and source.digest in held.spans:
        train, heldout = held.spans[source.digest]
        parts = [(train, "train"), (heldout, "heldout")]
    else:
        is_held = held is not None and source.digest in held.whole
        parts = [((0.0, probe.duration_s), "heldout" if is_held else "train")]
    longest = max(1, round(clip_seconds * fps))
    source_fps = None if keeps_up(probe.mean_fps, fps) else round(probe.mean_fps, 3)
    clips = []
    for (start_s, end_s), split in parts:
        total = frames_in(end_s - start_s, fps)
        for first in range(0, total, longest):
            frames = min(longest, total - first)
            if frames >= min_frames:
                clip = _clip(source, start_s + first / fps, fps, frames=frames, split=split)
                told = {"boxes": boxed_frames(source.frames, clip), "source_fps": source_fps}
                clips.append(clip.model_copy(update={**told, "scan": probe.scan}))
    return clips


def boxed_frames(timed: Sequence[TimedBoxes], clip: Clip) -> tuple[BoxedFrame, ...]:
    """What was annotated within half a frame of a frame of the clip; of two times, the nearer."""
    nearest: dict[int, tuple[float, TimedBoxes]] = {}
    for boxes in timed:
        place = (boxes.time_s - clip.start_s) * clip.fps
        frame = math.floor(place + 0.5)
        away = abs(place - frame)
        if 0 <= frame < clip.frames and (frame not in nearest or away < nearest[frame][0]):
            nearest[frame] = away, boxes
    return tuple(BoxedFrame(frame, nearest[frame][1].boxes) for frame in sorted(nearest))


def with_boxes_in_crop(source: Source, probe: Probe, *, height: int, width: int) -> Source:
    """The source with its boxes as shares of the frames that are cut to `height` x `width`."""
    if not source.frames:
        return source
    shown, frames = (probe.width, probe.height), []
    for time_s, boxes in source.frames:
        moved = (box_in_crop(box, shown, height=height, width=width) for box in boxes)
        frames.append(TimedBoxes(time_s, tuple(box for box in moved if box is not None)))
    return source.model_copy(update={"frames": tuple(frames)})


def frames_in(seconds: float, fps: float) -> int:
    """Whole frames at `fps` that fit into `seconds`."""
    return max(0, math.floor(seconds * fps + _ROUNDING_FRAMES))


def _clip(source: Source, start_s: float, fps: float, *, frames: int, split: Split) -> Clip:
    start_s = round(start_s, 6)
    key = digest_of_text(f"{source.digest} {start_s:.6f} {fps:.6f} {frames} {split}")[:16]
    return Clip(
        key=key,
        source=source.name,
        source_digest=source.digest,
        start_s=start_s,
        fps=fps,
        frames=frames,
        caption=source.caption,
        split=split,
        labels=source.labels,
    )


def hold_out(
    videos: Sequence[tuple[Source, Probe]],
    *,
    fps: float,
    longest_window: int,
    needed_fps: float = 0.0,
) -> HoldOut:
    """Decides what is kept from training, from the videos' digests alone, never from their order.

    Args:
        longest_window: clip frames that the widest window of any stage spans; both parts of a
            divided timeline must hold one.
        needed_fps: of a video, for every stage to see motion in it; where several videos have
            as much, some of these are held out.
    """
    needed_s = longest_window / fps
    long = [(source, probe) for source, probe in videos if probe.duration_s + 1e-6 >= needed_s]
    fast = [source for source, probe in long if keeps_up(probe.mean_fps, needed_fps)]
    long_enough = fast if len(fast) >= 2 else [source for source, _ in long]
    if len(videos) >= WHOLE_VIDEOS_FROM:
        return _whole_videos([source for source, _ in videos], long_enough)
    spans = {}
    for source, probe in videos:
        divided = _divide(probe, fps, needed_s)
        if divided:
            spans[source.digest] = divided
    if spans:
        return HoldOut(
            rule=f"the last part (1/{LAST_PART}, or as much as the widest window needs) of "
            f"{len(spans)} of {len(videos)} videos, after a gap so that no frame is in both",
            spans=spans,
        )
    if len(long_enough) >= 2:
        chosen = min(long_enough, key=_lot)
        return HoldOut(
            rule=f"one whole video of {len(videos)}, as none is long enough to be divided",
            whole=frozenset([chosen.digest]),
        )
    return HoldOut(
        rule="nothing: there are too few videos, and none is long enough to be divided",
    )


def _lot(source: Source) -> str:
    return digest_of_text(f"heldout {source.digest}")


def _whole_videos(sources: Sequence[Source], long_enough: Sequence[Source]) -> HoldOut:
    """About one video in six, by a lot that later videos do not change; with two long ones."""
    lots = {source.digest: _lot(source) for source in sources}
    drawn = {digest for digest, lot in lots.items() if int(lot[:8], 16) * HELD_OUT_SHARE < 16**8}
    long_ones = {source.digest for source in long_enough}
    by_lot = sorted(long_ones, key=lots.__getitem__)
    least = min(2, len(by_lot) // 2)
    count = min(max(len(drawn & long_ones), least), max(least, len(by_lot) // 3))
    chosen = frozenset(by_lot[:count]) | (drawn - long_ones)
    return HoldOut(
        rule=f"{len(chosen)} whole videos of {len(sources)}, about one in {HELD_OUT_SHARE}, "
        "drawn by the digest of their bytes",
        whole=chosen,
    )


def _divide(probe: Probe, fps: float, needed_s: float) -> tuple[Span, Span] | None:
    """(train, held-out) parts that share no frame and can each hold the widest window."""
    gap_s = max(probe.longest_frame_s, 1 / fps)
    held_s = max(probe.duration_s / LAST_PART, needed_s + 0.5 / fps)
    train_end_s = probe.duration_s - held_s - gap_s
    if train_end_s + 1e-6 < needed_s:
        return None
    return (0.0, train_end_s), (probe.duration_s - held_s, probe.duration_s)
