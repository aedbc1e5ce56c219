"""What the generated drives say of themselves is true, in the words of the driving preset."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.sources.folder import find_sources
from preprocessing.world import film
from preprocessing.world.canvas import ATMOSPHERES, Canvas
from preprocessing.world.car import _body
from preprocessing.world.render import SUPERSAMPLE, boxes_of_cars, camera_of
from preprocessing.world.scene import compose_scene
from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.stage import preset

SCENES = [compose_scene(index, seed=3) for index in range(24)]
WORDS = Vocabulary(labels=preset("driving").labels, box_classes=("car",))
SIZE = {"height": 80, "width": 128}


def test_the_driving_preset_reads_what_lies_beside_the_drives(tmp_path: Path):
    film.make_world(tmp_path, videos=3, seconds=1.5, fps=4, seed=3, **SIZE)
    for index, source in enumerate(find_sources(tmp_path, WORDS)):
        scene = SCENES[index]
        times = {"by day": "day", "at night": "night", "at dusk": None}
        assert source.labels.get("time") == times[scene.time]
        assert source.labels["crowdedness"] == ("high" if len(scene.cars) > 1 else "low")
        assert [frame.time_s for frame in source.frames] == [0.0, 0.5, 1.0]
        assert all(box.name == "car" for frame in source.frames for box in frame.boxes)


def test_a_lost_or_spoilt_file_is_written_again_and_nothing_else(tmp_path: Path):
    options = {"videos": 2, "seconds": 1.0, "fps": 4.0, "seed": 3, **SIZE}
    film.make_world(tmp_path, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    lost, spoilt = sorted(tmp_path.glob("*.json"))
    lost.unlink()
    spoilt.write_text("{}")
    film.make_world(tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    touched = {p.name for p in tmp_path.iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert touched == {lost.name, spoilt.name}


@pytest.mark.parametrize("time_s", [0.0, 2.5, 5.0])
def test_a_box_is_what_the_drawn_car_covers(time_s: float):
    compared = 0
    for scene in SCENES:
        # By day: at night lamps glow, and light has no edge.
        (car, *others), air = scene.cars, ATMOSPHERES["by day"]
        if others:
            continue
        camera = camera_of(scene, **SIZE)
        picture = Image.new("RGB", (camera.width, camera.height), (1, 2, 3))
        _body(Canvas(picture, camera), car, time_s, air)
        drawn = (np.asarray(picture) != (1, 2, 3)).any(axis=2)
        boxes = boxes_of_cars(scene, camera, time_s)
        if not boxes:
            assert drawn.any(axis=0).sum() <= SUPERSAMPLE or drawn.any(axis=1).sum() <= SUPERSAMPLE
            continue
        if {0.0, 1.0} & {*boxes[0]}:
            continue  # what of a car is highest may be outside the frame; its box is cut there
        rows, columns = np.nonzero(drawn)
        seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        sides = (camera.width, camera.height) * 2
        expected = [share * side for share, side in zip(boxes[0], sides, strict=True)]
        assert seen == pytest.approx(expected, abs=1.5)
        compared += 1
    assert compared >= 5
