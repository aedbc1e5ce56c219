"""HDR pictures as an SDR display shows them.

PQ (SMPTE ST 2084) and HLG (ARIB STD-B67, on a display of 1000 nits) become light; a tone curve (the
EETF of ITU-R BT.2390, on each of R, G and B) takes 1000 nits to the 203 of an SDR white, and leaves
what is below 88 alone; BT.2020's primaries become BT.709's, colours out of its reach are
clipped; the codes are those of an SDR display (BT.1886, gamma 2.4). What a file says of the display
that it was graded on is not looked at: it comes and goes between frames and files.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

PEAK_NITS, WHITE_NITS = 1000, 203  # the brightest that is told apart; SDR white (ITU-R BT.2408)
TONE = f"HDR by BT.2390 per channel, {PEAK_NITS} to {WHITE_NITS} nits"
"""How HDR becomes SDR; part of a store's identity."""

Transfer = Literal["PQ", "HLG"]
_TRANSFERS: dict[int, Transfer] = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
_UNSPECIFIED = 2  # of colour matrices
_CODES = 1 << 16
Matrix = tuple[tuple[float, float, float], ...]
# Linear light of a file's primaries to linear BT.709; all others count as BT.2020.
_FROM_BT2020 = (
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008350),
    (-0.018151, -0.100579, 1.118730),
)
_FROM_P3 = (
    (1.224940, -0.224940, 0.0),
    (-0.042057, 1.042057, 0.0),
    (-0.019638, -0.078636, 1.098274),
)
_FROM_BT709 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_TO_BT709: dict[int, Matrix] = {
    ColorPrimaries.BT709: _FROM_BT709,
    ColorPrimaries.SMPTE432: _FROM_P3,
}
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020, for which HLG is made
_SYSTEM_GAMMA = 1.2  # of HLG on a display of 1000 nits
_ROWS = 64  # at a time: they stay in the processor's cache


class Hdr(NamedTuple):
    """How the colours of a frame are coded."""

    transfer: Transfer
    primaries: int
    matrix: int | None  # of YCbCr, where the file does not say
    white: int  # what the brightest code becomes in swscale's 16-bit RGB


def hdr_of(frame: av.VideoFrame) -> Hdr | None:
    """The colours of an HDR frame; None of an SDR frame."""
    transfer = _TRANSFERS.get(frame.color_trc)
    if transfer is None:
        return None
    # swscale fills bits up with zeros, and limited range to 255 / 256 of full scale.
    bits = frame.format.components[0].bits
    is_full = frame.format.is_rgb or frame.color_range == ColorRange.JPEG
    white = ((1 << bits) - 1) << (16 - bits) if is_full else 255 << 8
    matrix = Colorspace.BT2020 if frame.colorspace == _UNSPECIFIED else None
    return Hdr(transfer, frame.color_primaries, matrix, white)


def to_sdr(rgb: np.ndarray, hdr: Hdr) -> np.ndarray:
    """A picture as SDR.

    Args:
        rgb: uint16 (h w 3), codes of the transfer function.

    Returns:
        uint8 (h w 3), BT.709.
    """
    to_bt709 = np.array(_TO_BT709.get(hdr.primaries, _FROM_BT2020), np.float32).T
    toned = _toned_pq if hdr.transfer == "PQ" else _toned_hlg
    sdr = np.empty(rgb.shape, np.uint8)
    for row in range(0, len(rgb), _ROWS):
        light = (toned(rgb[row : row + _ROWS], hdr.white) @ to_bt709).clip(0, 1)
        sdr[row : row + _ROWS] = _sdr_codes()[_place(np.sqrt(light))]
    return sdr


def _toned_pq(codes: np.ndarray, white: int) -> np.ndarray:
    """SDR light (h w 3), 1 is white, of PQ codes."""
    return _light_of_pq(white)[codes]


def _toned_hlg(codes: np.ndarray, white: int) -> np.ndarray:
    """SDR light (h w 3), 1 is white, of HLG codes."""
    scene = _scene_of_hlg(white)[codes]
    luminance = scene @ _LUMINANCE
    display = scene * np.power(luminance, np.float32(_SYSTEM_GAMMA - 1))[..., None]
    return _light_of_root()[_place(np.sqrt(np.sqrt(display)).clip(0, 1))]


def _place(share: np.ndarray) -> np.ndarray:
    """The place in a table of shares 0 to 1."""
    return (share * np.float32(_CODES - 1) + np.float32(0.5)).astype(np.uint16)


def _table(function: Callable[[np.ndarray], np.ndarray], white: int = _CODES - 1) -> np.ndarray:
    return function(np.minimum(np.arange(_CODES) / white, 1)).astype(np.float32)


@cache
def _light_of_pq(white: int) -> np.ndarray:
    """SDR light of every PQ code."""
    return _table(lambda code: toned(pq_nits(code)), white)


@cache
def _scene_of_hlg(white: int) -> np.ndarray:
    """Scene light, 0 to 1, of every HLG code (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073

    def light(code: np.ndarray) -> np.ndarray:
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)

    return _table(light, white)


@cache
def _light_of_root() -> np.ndarray:
    """SDR light, by the fourth root of light as a share of the peak."""
    return _table(lambda root: toned(PEAK_NITS * root**4))


@cache
def _sdr_codes() -> np.ndarray:
    """8-bit codes of a BT.1886 display, by the square root of light."""
    return _table(lambda root: np.round(255 * root ** (2 / 2.4))).astype(np.uint8)


_M1, _M2 = 2610 / 16384, 2523 / 32  # of ST 2084
_C1, _C2, _C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def pq_nits(code: np.ndarray) -> np.ndarray:
    """Light in nits of PQ codes 0 to 1."""
    root = code ** (1 / _M2)
    return 10_000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def pq_code(nits: np.ndarray | float) -> np.ndarray:
    """PQ codes, 0 to 1, of light in nits."""
    power = (np.asarray(nits) / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def toned(nits: np.ndarray) -> np.ndarray:
    """SDR light, 1 is white, that stands for light on an HDR display: the EETF of BT.2390."""
    peak = pq_code(PEAK_NITS)
    code = np.minimum(pq_code(nits) / peak, 1)
    white = pq_code(WHITE_NITS) / peak
    knee = 1.5 * white - 0.5
    t = (code - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    spline += (3 * t**2 - 2 * t**3) * white
    return pq_nits(np.where(code < knee, code, spline) * peak) / WHITE_NITS
