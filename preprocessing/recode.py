"""What a child process does for one clip: decode its source, and for pixel stores code it again.

Imports no torch, so that child processes start quickly. Runs under preprocessing/isolation.py.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocessing.decode import decode_frames, shown_frames
from preprocessing.fields import Deinterlacing
from videoldm_core.data.pixels import encode_clip


def frames_of_clip(
    path: Path, times_s: Sequence[float], size: tuple[int, int], how: Deinterlacing | None = None
) -> np.ndarray:
    """The frames shown at these times, uint8 (t h w 3).

    Args:
        size: (height, width) of the frames, px.
        how: frames of two fields become pictures; None where there are none.
    """
    return decode_frames(path, times_s, height=size[0], width=size[1], deinterlacing=how)


def video_of_clip(
    path: Path,
    times_s: Sequence[float],
    size: tuple[int, int],
    fps: float,
    how: Deinterlacing | None = None,
) -> bytes:
    """The same frames as the mp4 of a pixel shard, coded as they are decoded.

    All at once they would be 2 GiB, of ten seconds at 1280x2048.
    """
    frames = shown_frames(path, times_s, height=size[0], width=size[1], deinterlacing=how)
    return encode_clip(frames, fps=fps)
