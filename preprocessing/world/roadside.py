"""Draws what stands beside the road: trees, pines, houses, street lamps."""

import random

from preprocessing.world.canvas import RGB, Atmosphere, Canvas, Point, Tone, tone_at
from preprocessing.world.scene import Roadside

BARK: RGB = (104, 76, 54)
LEAVES: tuple[RGB, ...] = ((70, 132, 58), (92, 148, 56), (58, 116, 70))
NEEDLES: tuple[RGB, ...] = ((38, 96, 70), (46, 108, 66))
WALLS: tuple[RGB, ...] = ((226, 204, 168), (206, 150, 128), (198, 206, 212), (232, 220, 196))
ROOFS: tuple[RGB, ...] = ((158, 72, 56), (104, 84, 92), (176, 98, 62))
WINDOW_LIT: RGB = (255, 214, 120)


def draw_roadside(canvas: Canvas, thing: Roadside, z_m: float, air: Atmosphere) -> None:
    """Draws a thing standing `z_m` ahead."""
    if z_m > 1.0:
        tone = tone_at(air, z_m)
        {"tree": _tree, "pine": _pine, "house": _house, "lamp": _lamp}[thing.kind](
            canvas, thing, z_m, air, tone
        )


def _tree(canvas: Canvas, thing: Roadside, z_m: float, air: Atmosphere, tone: Tone) -> None:
    x, size = thing.x_m, thing.size
    leaf = LEAVES[thing.look % len(LEAVES)]
    canvas.facing((x - 0.2 * size, x + 0.2 * size), (0.0, 2.2 * size), z_m, tone(BARK))
    crown = ((-0.85, 2.7, 1.1), (0.85, 2.8, 1.1), (0.0, 3.7, 1.35), (0.0, 2.6, 1.2))
    for brightness, shift, share in ((0.72, 0.0, 1.0), (1.0, 0.16, 0.82)):
        for dx, y, radius in crown:
            centre = (x + (dx - shift) * size, (y + shift) * size, z_m)
            canvas.disc(centre, radius * share * size, tone(leaf, brightness))
    chance = random.Random(thing.look)
    for _ in range(7):
        dx, y = chance.uniform(-1.3, 0.9), chance.uniform(2.4, 4.4)
        centre = (x + dx * size, y * size, z_m)
        canvas.disc(centre, 0.26 * size, tone(leaf, chance.choice((0.82, 1.25))))


def _pine(canvas: Canvas, thing: Roadside, z_m: float, air: Atmosphere, tone: Tone) -> None:
    x, size = thing.x_m, thing.size * 1.1
    needle = NEEDLES[thing.look % len(NEEDLES)]
    canvas.facing((x - 0.16 * size, x + 0.16 * size), (0.0, 1.0 * size), z_m, tone(BARK))
    for low, half, high in ((0.8, 1.45, 2.9), (2.0, 1.15, 4.0), (3.2, 0.8, 5.2)):
        tip: Point = (x, high * size, z_m)
        left: Point = (x - half * size, low * size, z_m)
        middle: Point = (x + 0.2 * half * size, (low - 0.12) * size, z_m)
        right: Point = (x + half * size, low * size, z_m)
        canvas.polygon([tip, left, middle], tone(needle, 1.15))
        canvas.polygon([tip, middle, right], tone(needle, 0.78))


def _house(canvas: Canvas, thing: Roadside, z_m: float, air: Atmosphere, tone: Tone) -> None:
    wall, roof = WALLS[thing.look % len(WALLS)], ROOFS[thing.look % len(ROOFS)]
    side = 1 if thing.x_m > 0 else -1
    near_x, far_x = thing.x_m - side * 2.6, thing.x_m + side * 3.2
    deep, eaves, ridge = z_m + 7.0, 3.3 * thing.size, 5.4 * thing.size
    flank = [(near_x, 0.0, z_m), (near_x, 0.0, deep), (near_x, eaves, deep), (near_x, eaves, z_m)]
    canvas.polygon(flank, tone(wall, 0.78))
    middle = (near_x + far_x) / 2
    front = [(near_x, 0.0, z_m), (far_x, 0.0, z_m), (far_x, eaves, z_m), (middle, ridge, z_m)]
    slope = [
        (near_x, eaves, z_m),
        (near_x, eaves, deep),
        (middle, ridge, deep),
        (middle, ridge, z_m),
    ]
    canvas.polygon([*front, (near_x, eaves, z_m)], tone(wall))
    canvas.polygon(slope, tone(roof))
    lit = WINDOW_LIT if air.lamps_lit else tone((74, 96, 122))
    for y in (0.9, 2.2):
        for z in (z_m + 1.2, z_m + 3.2, z_m + 5.2):
            low, high = y * thing.size, (y + 0.8) * thing.size
            pane = [
                (near_x, low, z),
                (near_x, low, z + 1),
                (near_x, high, z + 1),
                (near_x, high, z),
            ]
            canvas.polygon(pane, lit)
        for step in (0.9, 2.5, 4.1):
            x = near_x + side * step
            span = (min(x, x + side * 0.9), max(x, x + side * 0.9))
            canvas.facing(span, (y * thing.size, (y + 0.8) * thing.size), z_m, lit)


def _lamp(canvas: Canvas, thing: Roadside, z_m: float, air: Atmosphere, tone: Tone) -> None:
    x, steel = thing.x_m, tone((96, 100, 108))
    side = 1 if x > 0 else -1
    reach = x - side * 1.5
    canvas.facing((x - 0.13, x + 0.13), (0.0, 5.2), z_m, steel)
    canvas.facing((min(x, reach), max(x, reach)), (5.1, 5.28), z_m, steel)
    head = (min(reach, reach + side * 0.8), max(reach, reach + side * 0.8))
    canvas.facing(head, (4.9, 5.12), z_m, (255, 236, 180) if air.lamps_lit else steel)
    if air.lamps_lit:
        canvas.glow((reach + side * 0.4, 4.95, z_m), 1.7, (255, 226, 150))
