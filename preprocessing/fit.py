"""One decoded frame into RGB at the wanted size: orientation, pixel shape, resize, centre crop.

Knows nothing about files, times or clips.
"""

import struct
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

_SHRINK = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_ENLARGE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_SAME_SIZE = (
    Interpolation.BICUBIC
)  # the ffmpeg program's own default, so native frames equal its frames

RESIZER = (
    "cover and centre crop; swscale area down, bicubic up, full chroma, accurate rounding; "
    f"PyAV {av.__version__}, libswscale {'.'.join(map(str, av.library_versions['libswscale']))}"
)
"""What turned decoded frames into pixels; part of a store's identity."""


class Orientation(NamedTuple):
    """How stored pixels are shown: transposed first, then mirrored."""

    is_transposed: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False
    is_readable: bool = True  # False: the file's display matrix is no multiple of a quarter turn


UPRIGHT = Orientation()


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Reads the display matrix that phones write; any combination of quarter turns and mirrors."""
    stated: Any = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if stated is None else _orientation(struct.unpack("=9i", bytes(stated)))


def _orientation(matrix: tuple[int, ...]) -> Orientation:
    """(x, y) is shown at (a x + c y, b x + d y), with y downwards."""
    a, b, _, c, d = matrix[:5]
    if a and d and not b and not c:
        return Orientation(False, a < 0, d < 0)
    if b and c and not a and not d:
        return Orientation(True, c < 0, b < 0)
    return UPRIGHT._replace(is_readable=False)


def shown_size(
    width: int, height: int, shape: Fraction, orientation: Orientation
) -> tuple[int, int]:
    """(width, height) a player shows: pixels made square by stretching the width, then turned."""
    width = max(1, round(width * shape))
    return (height, width) if orientation.is_transposed else (width, height)


def pixel_shape(stated: Fraction | None) -> Fraction:
    """The sample aspect ratio to believe: absent, zero and absurd ones count as square."""
    if stated is None or not Fraction(1, 8) <= stated <= 8:
        return Fraction(1)
    return stated


class Fitter:
    """Fits frames into `height` x `width`; keeps swscale's tables between frames.

    The frame is resized to cover the target while still YUV, converted to RGB in the same pass,
    then cropped at its centre and turned upright.
    """

    def __init__(self, height: int, width: int, shape: Fraction) -> None:
        self._height, self._width, self._shape = height, width, shape
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as uint8 (h w 3)."""
        turn = orientation_of(frame)
        height, width = self._height, self._width
        if turn.is_transposed:
            height, width = width, height
        shown_width = frame.width * self._shape
        scale = max(width / shown_width, Fraction(height, frame.height))
        cover_width = max(width, round(shown_width * scale))
        cover_height = max(height, round(frame.height * scale))
        pixels = self._resize(frame, cover_width, cover_height)
        top, left = (cover_height - height) // 2, (cover_width - width) // 2
        pixels = pixels[top : top + height, left : left + width]
        if turn.is_transposed:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if turn.mirrors_y else 1, :: -1 if turn.mirrors_x else 1]

    def _resize(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        if (width, height) == (frame.width, frame.height):
            method = _SAME_SIZE
        elif width <= frame.width and height <= frame.height:
            method = _SHRINK
        else:
            method = _ENLARGE
        # One thread: many videos are decoded side by side, one per core.
        rgb = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=method, threads=1
        )
        return rgb.to_ndarray()
