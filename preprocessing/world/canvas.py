"""A perspective camera to draw on: shapes in metres become pixels, colours meet light and haze.

Knows nothing of cars, trees or what is drawn.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from videoldm_core.records import Record

RGB = tuple[int, int, int]
Point = tuple[float, float, float]  # x to the right, y up from the road, z ahead; metres
NEAR_M = 0.7


class Atmosphere(Record):
    """The colours and the light of a time of day."""

    sky: tuple[RGB, RGB]  # top, horizon
    ridges: tuple[RGB, RGB]  # far, near
    haze: RGB
    ambient: tuple[float, float, float]
    beam: float  # of our own headlamps; 0 when they are off
    lamps_lit: bool


ATMOSPHERES = {
    "by day": Atmosphere(
        sky=((84, 152, 222), (206, 230, 242)),
        ridges=((142, 176, 190), (92, 142, 112)),
        haze=(190, 214, 222),
        ambient=(1.0, 1.0, 1.0),
        beam=0.0,
        lamps_lit=False,
    ),
    "at dusk": Atmosphere(
        sky=((72, 70, 132), (252, 172, 110)),
        ridges=((146, 98, 124), (88, 68, 100)),
        haze=(204, 138, 122),
        ambient=(0.80, 0.62, 0.62),
        beam=0.12,
        lamps_lit=True,
    ),
    "at night": Atmosphere(
        sky=((8, 12, 34), (40, 50, 92)),
        ridges=((26, 34, 66), (14, 20, 42)),
        haze=(20, 27, 54),
        ambient=(0.24, 0.27, 0.38),
        beam=0.62,
        lamps_lit=True,
    ),
}


class Tone(NamedTuple):
    """What distance and light make of a colour: `gain * colour + veil`."""

    gain: tuple[float, float, float]
    veil: tuple[float, float, float]

    def __call__(self, colour: RGB, brightness: float = 1.0) -> RGB:
        """The colour as seen, with a surface's own brightness."""
        r, g, b = (
            min(255, int(value * brightness * gain + veil))
            for value, gain, veil in zip(colour, self.gain, self.veil, strict=True)
        )
        return r, g, b


def tone_at(air: Atmosphere, z_m: float, *, extra: float = 0.0) -> Tone:
    """Light and haze at a distance; `extra` light keeps a main object readable at night."""
    z_m = max(z_m, 0.0)
    clear = math.exp(-z_m / 75.0)
    light = air.beam * math.exp(-z_m / 16.0) + extra
    r, g, b = (min(1.1, ambient + light) * clear for ambient in air.ambient)
    veil_r, veil_g, veil_b = (value * (1 - clear) for value in air.haze)
    return Tone((r, g, b), (veil_r, veil_g, veil_b))


class Camera(Record):
    """A pinhole over a road that bends; pixels of a canvas `width` x `height`."""

    width: int
    height: int
    height_m: float
    horizon_px: float
    curve_per_m: float

    def project(self, x_m: float, y_m: float, z_m: float) -> tuple[float, float]:
        """Pixel of a point; the road's bend moves far points aside."""
        scale = self.width / z_m
        bent_m = x_m + 0.5 * self.curve_per_m * z_m * z_m
        return 0.5 * self.width + scale * bent_m, self.horizon_px + scale * (self.height_m - y_m)


class Canvas:
    """An image and the camera that draws on it; later shapes cover earlier ones."""

    def __init__(self, image: Image.Image, camera: Camera) -> None:
        self.image, self.camera = image, camera
        self._draw: Any = ImageDraw.Draw(image)

    def polygon(self, points: Sequence[Point], colour: RGB) -> None:
        """Fills a flat convex shape, cut at the near plane."""
        if any(point[2] < NEAR_M for point in points):
            points = _cut_near(points)
        if len(points) > 2:
            self._draw.polygon([self.camera.project(*point) for point in points], fill=colour)

    def facing(
        self, x_m: tuple[float, float], y_m: tuple[float, float], z_m: float, colour: RGB
    ) -> None:
        """Fills an upright rectangle that faces the camera."""
        if z_m >= NEAR_M:
            left, low = self.camera.project(x_m[0], y_m[0], z_m)
            right, high = self.camera.project(x_m[1], y_m[1], z_m)
            self._draw.rectangle((left, high, max(left, right), max(low, high)), fill=colour)

    def disc(self, centre: Point, radius_m: float, colour: RGB) -> None:
        """Fills a disc that faces the camera."""
        if centre[2] >= NEAR_M:
            u, v = self.camera.project(*centre)
            radius = radius_m * self.camera.width / centre[2]
            self._draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=colour)

    def glow(self, centre: Point, radius_m: float, colour: RGB) -> None:
        """Blends a soft round light over what is there."""
        if centre[2] < NEAR_M:
            return
        u, v = self.camera.project(*centre)
        radius = min(radius_m * self.camera.width / centre[2], 0.3 * self.camera.width)
        side = max(2, round(2 * radius))
        if -radius < u < self.camera.width + radius:
            corner = (round(u - side / 2), round(v - side / 2))
            self.image.paste(colour, corner, _SOFT.resize((side, side), Image.Resampling.BILINEAR))


class Outline(Canvas):
    """Draws nothing; remembers the rectangle that all its shapes together would fill."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self._draw = self._corners = _Corners()

    @property
    def rectangle(self) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom in pixels, off the canvas too; None: there was no shape."""
        if not self._corners.points:
            return None
        u, v = zip(*self._corners.points, strict=True)
        return min(u), min(v), max(u), max(v)

    def glow(self, centre: Point, radius_m: float, colour: RGB) -> None:
        """Light has no edge."""


class _Corners:
    """Takes shapes as PIL's drawing does, and keeps their corners."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def polygon(self, points: Sequence[tuple[float, float]], *, fill: RGB) -> None:
        self.points += points

    def rectangle(self, corners: tuple[float, float, float, float], *, fill: RGB) -> None:
        self.points += [corners[:2], corners[2:]]

    ellipse = rectangle


def _cut_near(points: Sequence[Point]) -> list[Point]:
    kept: list[Point] = []
    for (x0, y0, z0), (x1, y1, z1) in zip(points, [*points[1:], points[0]], strict=True):
        if z0 >= NEAR_M:
            kept.append((x0, y0, z0))
        if (z0 >= NEAR_M) != (z1 >= NEAR_M):
            share = (NEAR_M - z0) / (z1 - z0)
            kept.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0), NEAR_M))
    return kept


def _soft_disc(side: int) -> Image.Image:
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    distance = np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    return Image.fromarray((190 * np.clip(1 - distance, 0, 1) ** 2).astype(np.uint8))


_SOFT = _soft_disc(64)
