"""Paints what does not come nearer: a wide panorama of sky and ridges, and the road's ground."""

import random

import numpy as np
from PIL import Image, ImageDraw

from preprocessing.world.canvas import RGB, Atmosphere, Camera
from preprocessing.world.scene import LANE_M, Scene

GRASS = ((106, 158, 72), (128, 170, 80), (170, 168, 88))
ASPHALT, GRAVEL, LINE = (110, 112, 120), (150, 142, 126), (240, 240, 236)


def paint_panorama(scene: Scene, camera: Camera, air: Atmosphere, *, margin: int) -> Image.Image:
    """Sky and ridges, `margin` pixels wider than the canvas on both sides."""
    chance = random.Random(scene.look)
    width, height = camera.width + 2 * margin, round(camera.horizon_px) + 2
    share = np.linspace(0, 1, height)[:, None, None] ** 1.3
    top, low = (np.array(colour, np.float32) for colour in air.sky)
    sky = np.broadcast_to(top + (low - top) * share, (height, width, 3)).copy()
    sun = (chance.uniform(0.2, 0.8) * width, height * (0.82 if air.beam < 0.5 else 0.3))
    _add_halo(sky, sun, scene.time)
    image = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    if scene.time == "by day":
        _clouds(draw, (width, height), chance)
    elif scene.time == "at dusk":
        _disc(draw, sun, 0.13 * height, (255, 222, 150))
    else:
        _stars(draw, (width, height), chance)
        _disc(draw, sun, 0.09 * height, (232, 234, 220))
    {"hills": _hills, "mountains": _mountains, "a city": _city}[scene.backdrop](
        draw, (width, height), chance, air
    )
    return image


def paint_ground(scene: Scene, camera: Camera, air: Atmosphere) -> Image.Image:
    """Fields, verge, asphalt and solid edge lines below the horizon, edges smooth by coverage."""
    top = int(camera.horizon_px)
    v = np.arange(top, camera.height, dtype=np.float32)[:, None] + 0.5
    z = camera.width * camera.height_m / np.maximum(v - camera.horizon_px, 0.4)
    u = np.arange(camera.width, dtype=np.float32)[None, :] + 0.5
    x = (u - camera.width / 2) * z / camera.width - 0.5 * scene.curve_per_m * z * z
    left, right = (min(scene.lanes) - 0.5) * LANE_M, (max(scene.lanes) + 0.5) * LANE_M
    aside = np.abs(x - (left + right) / 2) - (right - left) / 2  # metres beyond the asphalt
    pixels_per_m = camera.width / z

    def cover(low_m: float, high_m: float) -> np.ndarray:
        inside = np.minimum(aside - low_m, high_m - aside)
        return np.clip(inside * pixels_per_m + 0.5, 0, 1)[..., None]

    ground = np.zeros((*x.shape, 3), np.float32) + np.array(GRASS[0], np.float32)
    layers = [(5.0, 11.0, GRASS[1]), (11.0, 19.0, GRASS[0]), (19.0, 1e6, GRASS[2])]
    layers += [(0.0, 0.7, GRAVEL), (-1e6, 0.0, ASPHALT), (-0.35, -0.18, LINE)]
    for low_m, high_m, colour in layers:
        ground += cover(low_m, high_m) * (np.array(colour, np.float32) - ground)
    return Image.fromarray(_lit(ground, x, z, air).astype(np.uint8))


def _lit(ground: np.ndarray, x: np.ndarray, z: np.ndarray, air: Atmosphere) -> np.ndarray:
    """Our headlamps' pool and the haze, as `tone_at` has them for objects."""
    clear = np.exp(-z / 75.0)[..., None]
    pool = np.exp(-z / 16.0) * np.exp(-((x / 7.0) ** 2))
    light = np.minimum(1.1, np.array(air.ambient, np.float32) + air.beam * pool[..., None])
    return ground * light * clear + np.array(air.haze, np.float32) * (1 - clear)


def _add_halo(sky: np.ndarray, centre: tuple[float, float], time: str) -> None:
    height, width, _ = sky.shape
    u, v = np.arange(width)[None, :] - centre[0], np.arange(height)[:, None] - centre[1]
    fall = np.exp(-np.sqrt(u**2 + v**2) / (0.45 * height))[..., None]
    strength = {"by day": (10, 8, 0), "at dusk": (70, 52, 10), "at night": (34, 36, 44)}[time]
    sky += fall * np.array(strength, np.float32)


def _disc(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: RGB
) -> None:
    u, v = centre
    draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=colour)


def _stars(draw: ImageDraw.ImageDraw, size: tuple[int, int], chance: random.Random) -> None:
    width, height = size
    for _ in range(width // 24):
        u, v = chance.randrange(width), chance.randrange(height * 2 // 3)
        draw.rectangle((u, v, u + 1, v + 1), fill=(150, 160, 190))


def _clouds(draw: ImageDraw.ImageDraw, size: tuple[int, int], chance: random.Random) -> None:
    width, height = size
    for _ in range(4):
        u, v = chance.uniform(0, width), chance.uniform(0.12, 0.5) * height
        for step in (-1.4, -0.6, 0.3, 1.1):
            radius = height * (0.09 - 0.022 * abs(step))
            middle = u + step * height * 0.09
            draw.ellipse(
                (middle - 1.5 * radius, v - 0.8 * radius, middle + 1.5 * radius, v + 0.7 * radius),
                fill=(238, 244, 248),
            )


def _ridge(width: int, chance: random.Random, waves: tuple[float, ...]) -> np.ndarray:
    """A smooth line of heights in -1..1; `waves` are wavelengths as shares of the width."""
    u = np.arange(width) / width
    line = sum(wave * np.sin(2 * np.pi * (u / wave + chance.random())) for wave in waves) / sum(
        waves
    )
    return np.asarray(line)


def _hills(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], chance: random.Random, air: Atmosphere
) -> None:
    width, height = size
    far, near = air.ridges
    for colour, rise, waves in ((far, 0.32, (0.7, 0.3)), (near, 0.17, (0.5, 0.23))):
        tops = height * (1 - rise * (0.62 + 0.38 * _ridge(width, chance, waves)))
        draw.polygon([(0, height), *enumerate(tops.tolist()), (width, height)], fill=colour)


def _mountains(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], chance: random.Random, air: Atmosphere
) -> None:
    width, height = size
    peak = -0.05 * width
    while peak < 1.1 * width:
        rise, half = chance.uniform(0.34, 0.56) * height, chance.uniform(0.55, 0.8) * height
        tip, foot = (peak, height - rise), height + 2
        draw.polygon([tip, (peak - half, foot), (peak + half, foot)], fill=air.ridges[0])
        slope = [tip, (peak + 0.15 * half, foot), (peak + half, foot)]
        draw.polygon(slope, fill=_dim(air.ridges[0], 0.88))
        low, cap = tip[1] + 0.3 * rise, 0.3 * half
        snow = [tip, (peak - cap, low), (peak, tip[1] + 0.22 * rise), (peak + cap, low)]
        draw.polygon(snow, fill=_dim(air.ridges[0], 1.55))
        peak += chance.uniform(0.7, 1.2) * half
    tops = height * (1 - 0.12 * (0.65 + 0.35 * _ridge(width, chance, (0.6, 0.27))))
    draw.polygon([(0, height), *enumerate(tops.tolist()), (width, height)], fill=air.ridges[1])


def _city(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], chance: random.Random, air: Atmosphere
) -> None:
    width, height = size
    pane = max(2, height // 26)
    for colour, rises in ((air.ridges[0], (0.3, 0.62)), (_dim(air.ridges[0], 0.72), (0.14, 0.36))):
        u = 0
        while u < width:
            columns, top = chance.randint(2, 4), round(height * (1 - chance.uniform(*rises)))
            across = (2 * columns + 1) * pane
            draw.rectangle((u, top, u + across - 1, height), fill=colour)
            for left in range(u + pane, u + across - pane, 2 * pane):
                for high in range(top + pane, height - pane, 2 * pane):
                    lit = air.lamps_lit and chance.random() < 0.3
                    fill = (214, 176, 104) if lit else _dim(colour, 0.86)
                    draw.rectangle((left, high, left + pane - 1, high + pane // 2), fill=fill)
            u += across + chance.choice((0, 0, 2 * pane))


def _dim(colour: RGB, gain: float) -> RGB:
    r, g, b = (min(255, int(value * gain)) for value in colour)
    return r, g, b
