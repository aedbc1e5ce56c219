"""Draws a car as a few shaded boxes: body, cabin, windows, wheels, lights, plate, shadow."""

import math
from typing import NamedTuple

from preprocessing.world.canvas import (
    RGB,
    Atmosphere,
    Camera,
    Canvas,
    Outline,
    Point,
    Tone,
    tone_at,
)
from preprocessing.world.scene import Car

PAINT: dict[str, RGB] = {
    "red": (214, 44, 40),
    "blue": (40, 92, 214),
    "white": (236, 236, 232),
    "yellow": (246, 200, 36),
    "green": (34, 148, 82),
}
GLASS: RGB = (52, 66, 84)
TYRE: RGB = (28, 28, 32)
HALF_WIDTH_M, LENGTH_M = 0.98, 4.1
SILL_M, BELT_M, ROOF_M = 0.32, 0.98, 1.55
INSET_M = 0.16  # of the roof, each side


class Cabin(NamedTuple):
    """Where the cabin stands, metres from the car's near end."""

    foot_near: float
    roof_near: float
    roof_far: float
    foot_far: float


SEEN_FROM_BEHIND = Cabin(0.15, 0.75, 2.35, 3.1)
SEEN_FROM_FRONT = Cabin(1.1, 1.8, 3.4, 3.95)


def draw_car(canvas: Canvas, car: Car, time_s: float, air: Atmosphere) -> None:
    """Draws the car where it is at `time_s`."""
    x_m, z_m = car.at(time_s)
    if z_m + LENGTH_M < 1.0:
        return
    _shadow(canvas, x_m, z_m, air)
    _body(canvas, car, time_s, air)


def car_rectangle(
    camera: Camera, car: Car, time_s: float, air: Atmosphere
) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of the drawn car, px; None where it is behind the camera.

    Without shadow and glow, as if nothing stood before it.
    """
    if car.at(time_s)[1] + LENGTH_M < 1.0:
        return None
    outline = Outline(camera)
    _body(outline, car, time_s, air)
    return outline.rectangle


def _body(canvas: Canvas, car: Car, time_s: float, air: Atmosphere) -> None:
    x_m, z_m = car.at(time_s)
    tone = tone_at(air, z_m + 1.0, extra=0.25 if air.beam > 0.5 else 0.16 if air.lamps_lit else 0.0)
    paint = PAINT[car.colour]
    cabin = SEEN_FROM_FRONT if car.towards_us else SEEN_FROM_BEHIND
    side = _visible_side(canvas, x_m, z_m)
    if side:
        _side(canvas, (x_m, z_m, side), cabin, tone, paint)
    _top(canvas, x_m, z_m, cabin, tone, paint)
    _end(canvas, x_m, z_m, tone, paint)
    _lights(canvas, car, (x_m, z_m), air, tone)


def _visible_side(canvas: Canvas, x_m: float, z_m: float) -> int:
    """-1 when its left flank faces the camera, 1 for the right one, 0 when we look along it."""
    near, far = max(z_m, 0.7), z_m + LENGTH_M
    for side in (-1, 1):
        edge_m = x_m + side * HALF_WIDTH_M
        near_u, _ = canvas.camera.project(edge_m, 0, near)
        far_u, _ = canvas.camera.project(edge_m, 0, far)
        if side * (far_u - near_u) > 0:
            return side
    return 0


def _shadow(canvas: Canvas, x_m: float, z_m: float, air: Atmosphere) -> None:
    half = HALF_WIDTH_M + 0.15
    near, far = z_m - 0.2, z_m + LENGTH_M + 0.1
    corners = [(x_m - half, 0.0, near), (x_m + half, 0.0, near)]
    corners += [(x_m + half, 0.0, far), (x_m - half, 0.0, far)]
    canvas.polygon(corners, tone_at(air, z_m)((44, 46, 52)))


def _side(
    canvas: Canvas, place: tuple[float, float, int], cabin: Cabin, tone: Tone, paint: RGB
) -> None:
    x_m, z_m, side = place
    edge = x_m + side * HALF_WIDTH_M
    roof = x_m + side * (HALF_WIDTH_M - INSET_M)

    def flank(*corners: tuple[float, float]) -> list[Point]:
        return [
            (edge + (roof - edge) * max(0.0, (y - BELT_M) / (ROOF_M - BELT_M)), y, z_m + s)
            for s, y in corners
        ]

    end = LENGTH_M
    body = ((0, SILL_M), (end, SILL_M), (end, BELT_M - 0.1), (end - 0.3, BELT_M), (0, BELT_M))
    canvas.polygon(flank(*body), tone(paint, 0.74))
    canvas.polygon(flank((0, SILL_M), (end, SILL_M), (end, 0.45), (0, 0.45)), tone((50, 52, 58)))
    a, b, c, d = cabin
    canvas.polygon(flank((a, BELT_M), (d, BELT_M), (c, ROOF_M), (b, ROOF_M)), tone(paint, 0.74))
    low, high, middle = BELT_M + 0.03, ROOF_M - 0.09, (b + c) / 2
    panes = (
        ((a + 0.25, low), (middle - 0.06, low), (middle - 0.06, high), (b + 0.1, high)),
        ((middle + 0.06, low), (d - 0.25, low), (c - 0.1, high), (middle + 0.06, high)),
    )
    for pane in panes:
        canvas.polygon(flank(*pane), tone(GLASS, 1.15))
    for axle in (0.8, end - 0.8):
        for radius, colour in ((0.36, TYRE), (0.2, (168, 172, 180))):
            canvas.polygon(flank(*_ring(axle, radius)), tone(colour))


def _ring(axle: float, radius: float) -> list[tuple[float, float]]:
    turns = [i / 14 * 2 * math.pi for i in range(14)]
    return [(axle + radius * math.cos(a), 0.36 + radius * math.sin(a)) for a in turns]


def _top(canvas: Canvas, x_m: float, z_m: float, cabin: Cabin, tone: Tone, paint: RGB) -> None:
    wide, narrow = HALF_WIDTH_M, HALF_WIDTH_M - INSET_M

    def sheet(near: tuple[float, float, float], far: tuple[float, float, float]) -> list[Point]:
        (s0, y0, half0), (s1, y1, half1) = near, far
        return [
            (x_m - half0, y0, z_m + s0),
            (x_m + half0, y0, z_m + s0),
            (x_m + half1, y1, z_m + s1),
            (x_m - half1, y1, z_m + s1),
        ]

    foot, head = cabin.foot_near, cabin.roof_near
    canvas.polygon(
        sheet((head, ROOF_M, narrow), (cabin.roof_far, ROOF_M, narrow)), tone(paint, 1.12)
    )
    canvas.polygon(sheet((foot, BELT_M, wide), (head, ROOF_M, narrow)), tone(paint, 0.92))
    lean = head - foot
    pane = (foot + 0.08 * lean, BELT_M + 0.05, wide - 0.12)
    top = (head - 0.16 * lean, ROOF_M - 0.09, narrow - 0.06)
    canvas.polygon(sheet(pane, top), tone(GLASS, 1.0))
    gleam = (foot + 0.55 * lean, BELT_M + 0.32, wide - 0.22)
    canvas.polygon(sheet(gleam, top), tone(GLASS, 1.45))
    canvas.polygon(sheet((0, BELT_M - 0.04, wide), (foot, BELT_M, wide)), tone(paint, 1.08))


def _end(canvas: Canvas, x_m: float, z_m: float, tone: Tone, paint: RGB) -> None:
    left, right = x_m - HALF_WIDTH_M, x_m + HALF_WIDTH_M
    for tyre in (left + 0.06, right - 0.36):
        canvas.facing((tyre, tyre + 0.3), (0.0, 0.4), z_m, tone(TYRE))
    canvas.facing((left, right), (SILL_M - 0.04, BELT_M - 0.04), z_m, tone(paint, 0.95))
    canvas.facing((left, right), (SILL_M - 0.04, 0.47), z_m, tone((58, 60, 66)))
    canvas.facing((x_m - 0.3, x_m + 0.3), (0.5, 0.66), z_m, tone((240, 240, 230)))
    canvas.facing((x_m - 0.2, x_m + 0.2), (0.55, 0.61), z_m, tone((60, 60, 70)))


def _lights(
    canvas: Canvas, car: Car, place: tuple[float, float], air: Atmosphere, tone: Tone
) -> None:
    x_m, z_m = place
    lit: RGB = (255, 250, 222) if car.towards_us else (255, 48, 36)
    unlit: RGB = (226, 232, 236) if car.towards_us else (150, 16, 20)
    for side in (-1, 1):
        inner, outer = x_m + side * 0.55, x_m + side * 0.93
        span = (min(inner, outer), max(inner, outer))
        canvas.facing(span, (0.68, 0.87), z_m, lit if air.lamps_lit else tone(unlit))
        if air.lamps_lit:
            strength = 1.0 if car.towards_us else 0.6
            canvas.glow(((inner + outer) / 2, 0.78, z_m), strength, lit)
