"""Bounds between what a video claims to last and what of it is there: frames and bytes.

One damaged time stamp can claim years. What is beyond these bounds is set aside, never shortened.
"""

import math
from fractions import Fraction
from typing import NamedTuple

RULES = 2
"""Version of all rules by which videos are refused; what was found under others is not believed."""

# A slide of a lecture, or a camera's stream that dropped out, stands for minutes, not for days.
LONGEST_FRAME_S = 120.0
# A slide show changes its picture every ten seconds or so: three times as long is believed.
LONGEST_MEAN_FRAME_S = 30.0
# A frame that repeats the one before takes some twenty bytes with its entry in the container, so
# that a slide show of one plain picture gives half a second per byte.
MOST_S_PER_BYTE = 1.0
# Of one file: a week, longer than recorders write.
LONGEST_VIDEO_S = 7 * 86_400.0
# Pieces of a video that may be cut per frame it shows: more are copies of one still.
MOST_CLIPS_PER_FRAME = 10


class Timeline(NamedTuple):
    """How long a video and its longest-standing frame are shown."""

    frames: int
    duration_s: Fraction | float
    longest_frame_s: Fraction | float


def why_implausible(timeline: Timeline, *, size: int) -> str:
    """Why these cannot be the times of real frames, and what to do; empty if they can.

    Args:
        size: of the file, bytes.
    """
    reason = _excess(timeline, size)
    return f"{reason}; write its time stamps anew, or cut it" if reason else ""


def _excess(timeline: Timeline, size: int) -> str:
    frames, duration_s, longest_s = timeline
    claimed = f"its {frames} frames would last {_seconds(duration_s)}"
    if longest_s > LONGEST_FRAME_S:
        return f"one frame would be shown for {_seconds(longest_s)}, at most {LONGEST_FRAME_S:g} s"
    if duration_s > frames * LONGEST_MEAN_FRAME_S:
        return f"{claimed}, at most {LONGEST_MEAN_FRAME_S:g} s each"
    if duration_s > size * MOST_S_PER_BYTE:
        return f"{claimed} from {size} bytes, at most {MOST_S_PER_BYTE:g} s per byte"
    if duration_s > LONGEST_VIDEO_S:
        return f"{claimed}, at most {_seconds(LONGEST_VIDEO_S)}"
    return ""


def _seconds(seconds: Fraction | float) -> str:
    return f"{float(seconds):,.2f} s"


def why_too_still(*, frames: int, duration_s: float, clip_seconds: float) -> str:
    """Why a video is not cut into clips of this length, and what to do; empty if it is."""
    if duration_s <= MOST_CLIPS_PER_FRAME * frames * clip_seconds:
        return ""
    enough_s = math.ceil(duration_s / frames / MOST_CLIPS_PER_FRAME * 1000) / 1000
    return (
        f"{frames} frames in {duration_s:.2f} s would be more than {MOST_CLIPS_PER_FRAME} clips of "
        f"{clip_seconds:g} s per frame, copies of one still; set video.clip_seconds to at least "
        f"{enough_s:g}"
    )
