"""Turns a scene into frames: a fixed backdrop, moving lane marks, then everything far to near."""

import numpy as np
from PIL import Image

from preprocessing.world.backdrop import paint_ground, paint_panorama
from preprocessing.world.canvas import ATMOSPHERES, Camera, Canvas, tone_at
from preprocessing.world.car import car_rectangle, draw_car
from preprocessing.world.roadside import draw_roadside
from preprocessing.world.scene import DASH_PERIOD_M, LANE_M, Scene

SUPERSAMPLE = 2
DASH_M, DASH_HALF_WIDTH_M, DASHES_END_M = 4.0, 0.1, 75.0


def camera_of(scene: Scene, *, height: int, width: int) -> Camera:
    """The camera of a scene; its canvas is larger than the frames."""
    return Camera(
        width=width * SUPERSAMPLE,
        height=height * SUPERSAMPLE,
        height_m=scene.camera_m,
        horizon_px=round(scene.horizon * height * SUPERSAMPLE),
        curve_per_m=scene.curve_per_m,
    )


def boxes_of_cars(
    scene: Scene, camera: Camera, time_s: float
) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of every car in the frame at `time_s`, as shares of the frame.

    Rectangles of whole cars, cut at the frame's edges. A car of which less than a pixel is in the
    frame is left out; one behind another is not.
    """
    boxes = []
    sides = (camera.width, camera.height) * 2
    for car in scene.cars:
        rectangle = car_rectangle(camera, car, time_s, ATMOSPHERES[scene.time])
        if rectangle is None:
            continue
        x0, y0, x1, y1 = (
            round(min(1.0, max(0.0, edge / side)), 6)
            for edge, side in zip(rectangle, sides, strict=True)
        )
        if min((x1 - x0) * sides[0], (y1 - y0) * sides[1]) >= SUPERSAMPLE:
            boxes.append((x0, y0, x1, y1))
    return boxes


class Renderer:
    """Draws the frames of one scene; each frame depends on its time alone."""

    def __init__(self, scene: Scene, *, height: int, width: int, seconds: float) -> None:
        self.scene, self.air = scene, ATMOSPHERES[scene.time]
        self.camera = camera_of(scene, height=height, width=width)
        # In a bend we turn, so far things pan: radians per second times pixels per radian.
        self._pan_px_per_s = scene.curve_per_m * scene.ego_mps * self.camera.width
        self._margin = int(abs(self._pan_px_per_s) * seconds) + 1
        self._panorama = paint_panorama(scene, self.camera, self.air, margin=self._margin)
        self._ground = paint_ground(scene, self.camera, self.air)

    def frame(self, time_s: float) -> np.ndarray:
        """The frame at `time_s`, uint8 h w c."""
        image = Image.new("RGB", (self.camera.width, self.camera.height))
        image.paste(self._panorama, (-self._margin - round(self._pan_px_per_s * time_s), 0))
        image.paste(self._ground, (0, int(self.camera.horizon_px)))
        canvas = Canvas(image, self.camera)
        self._draw_dashes(canvas, time_s)
        things = [(thing.z_m - self.scene.ego_mps * time_s, thing) for thing in self.scene.roadside]
        cars = [(car.at(time_s)[1], car) for car in self.scene.cars]
        for z_m, thing in sorted(things, key=lambda placed: -placed[0]):
            draw_roadside(canvas, thing, z_m, self.air)
        for _, car in sorted(cars, key=lambda placed: -placed[0]):
            draw_car(canvas, car, time_s, self.air)
        return np.asarray(image.reduce(SUPERSAMPLE))

    def _draw_dashes(self, canvas: Canvas, time_s: float) -> None:
        first_m = -((self.scene.ego_mps * time_s) % DASH_PERIOD_M)
        for lane in self.scene.lanes[:-1]:
            x_m, near_m = (lane + 0.5) * LANE_M, first_m
            while near_m < DASHES_END_M:
                half, far_m = DASH_HALF_WIDTH_M, near_m + DASH_M
                corners = [(x_m - half, 0.0, near_m), (x_m + half, 0.0, near_m)]
                corners += [(x_m + half, 0.0, far_m), (x_m - half, 0.0, far_m)]
                canvas.polygon(corners, tone_at(self.air, near_m + 2)((240, 240, 236)))
                near_m += DASH_PERIOD_M
