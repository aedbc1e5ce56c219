"""One decoded frame into RGB at the wanted size: orientation, pixel shape, resize, centre crop.

Knows nothing about files, times or clips.
"""

import errno
import struct
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from preprocessing.video.damage import DecodeError
from preprocessing.video.fields import AsPictures
from preprocessing.video.tone import TONE, Hdr, hdr_of, to_sdr
from videoldm_core.cascade.annotations import Box

_ACCURATE = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# The ffmpeg program's own default, so native frames equal its frames.
_SAME_SIZE = Interpolation.BICUBIC

RESIZER = (
    "cover and centre crop; swscale area down, bicubic up, full chroma, accurate rounding; "
    f"whole pictures, deinterlaced by measured field order; {TONE}; "
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


class Cover(NamedTuple):
    """A frame enlarged or shrunk until it covers a target, and where the target lies in it; px."""

    width: int
    height: int
    left: int
    top: int


def cover(shown_width: Fraction | int, shown_height: int, *, height: int, width: int) -> Cover:
    """How a frame shown at shown_width x shown_height covers width x height, cropped evenly."""
    scale = max(width / Fraction(shown_width), Fraction(height, shown_height))
    cover_width = max(width, round(shown_width * scale))
    cover_height = max(height, round(shown_height * scale))
    return Cover(
        cover_width, cover_height, (cover_width - width) // 2, (cover_height - height) // 2
    )


def box_in_crop(box: Box, shown: tuple[int, int], *, height: int, width: int) -> Box | None:
    """Where a box of the shown frame is in the frame that `Fitter` makes of it.

    Exact for upright square pixels; for others within a pixel of the target, as `Fitter` rounds
    before it turns the frame.

    Args:
        box: shares of the shown frame.
        shown: (width, height) of the frame as shown, px.

    Returns:
        Shares of the cropped frame, cut at its edges; None when nothing of the box is in it.
    """
    whole = cover(*shown, height=height, width=width)
    x0, x1 = ((x * whole.width - whole.left) / width for x in (box.x0, box.x1))
    y0, y1 = ((y * whole.height - whole.top) / height for y in (box.y0, box.y1))
    # Rounded, so that the record of a clip does not depend on the last bit of a division.
    x0, y0, x1, y1 = (round(min(1.0, max(0.0, share)), 6) for share in (x0, y0, x1, y1))
    return Box(box.name, x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


class Fitter:
    """Fits frames into `height` x `width`; keeps swscale's tables between frames.

    A frame is one picture, also where it is flagged interlaced: what has fields has passed
    fields.py. It is resized to cover the target while still YUV, converted to RGB in the same pass,
    then cropped at its centre and turned upright.
    """

    def __init__(self, height: int, width: int, shape: Fraction) -> None:
        self._height, self._width, self._shape = height, width, shape
        self._reformatter, self._as_picture = VideoReformatter(), AsPictures()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as uint8 (h w 3)."""
        frame = self._as_picture(frame)
        turn = orientation_of(frame)
        height, width = self._height, self._width
        if turn.is_transposed:
            height, width = width, height
        whole = cover(frame.width * self._shape, frame.height, height=height, width=width)
        hdr = hdr_of(frame)
        pixels = self._resize(frame, whole.width, whole.height, hdr)
        pixels = pixels[whole.top : whole.top + height, whole.left : whole.left + width]
        if hdr:
            pixels = to_sdr(pixels, hdr)
        if turn.is_transposed:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if turn.mirrors_y else 1, :: -1 if turn.mirrors_x else 1]

    def _resize(self, frame: av.VideoFrame, width: int, height: int, hdr: Hdr | None) -> np.ndarray:
        """RGB (h w 3): uint8, or uint16 codes of HDR."""
        try:
            return self._reformatter.reformat(
                frame,
                width,
                height,
                "rgb48le" if hdr else "rgb24",
                src_colorspace=hdr.matrix if hdr else None,
                interpolation=_method(frame, width, height) | (_ACCURATE if hdr else 0),
                threads=1,  # many videos are decoded side by side, one per core
            ).to_ndarray()
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            said = f"matrix {frame.colorspace} in {frame.format.name}"
            raise DecodeError(
                "colours not read", f"its colours are coded in a way that is not read ({said})"
            ) from None


def _method(frame: av.VideoFrame, width: int, height: int) -> Interpolation:
    if (width, height) == (frame.width, frame.height):
        return _SAME_SIZE
    is_smaller = width <= frame.width and height <= frame.height
    return (Interpolation.AREA if is_smaller else Interpolation.BICUBIC) | _ACCURATE
