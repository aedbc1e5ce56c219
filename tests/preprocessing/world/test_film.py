"""The generated drives: deterministic files, true captions, predictable movement."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.world import film
from preprocessing.world.canvas import ATMOSPHERES, Camera
from preprocessing.world.car import LENGTH_M, PAINT
from preprocessing.world.render import Renderer
from preprocessing.world.scene import (
    BACKDROPS,
    COLOURS,
    DASH_PERIOD_M,
    EVENTS,
    LANE_M,
    SCENERIES,
    TIMES,
    Car,
    Scene,
    compose_scene,
)
from videoldm_core.errors import UserError

SIZE = {"seconds": 1.0, "fps": 8.0, "height": 40, "width": 64}
SCENES = [compose_scene(index, seed=3) for index in range(48)]


def make(folder: Path, videos: int = 1, seed: int = 5) -> dict[str, str]:
    """Makes a tiny world and returns its captions by file name."""
    film.make_world(folder, videos=videos, seed=seed, **SIZE)
    with (folder / "captions.csv").open(newline="") as table:
        return {row["file"]: row["caption"] for row in csv.DictReader(table)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the drives that were rendered, in this process."""
    indices: list[int] = []

    def noted(drive: film.Drive):
        indices.append(drive.index)
        return render(drive)

    render = film.render_frames
    monkeypatch.setattr(film, "render_frames", noted)
    monkeypatch.setattr(film, "usable_cores", lambda: 1)
    return indices


def test_the_same_seed_gives_the_same_files_in_one_process_and_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(film, "usable_cores", lambda: 2)
    make(tmp_path / "two", videos=3)
    monkeypatch.setattr(film, "usable_cores", lambda: 1)
    make(tmp_path / "one", videos=3)
    make(tmp_path / "other", videos=3, seed=6)
    assert len(contents(tmp_path / "two")) == 2 * 3 + 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not set(contents(tmp_path / "one").values()) & set(contents(tmp_path / "other").values())


def test_a_video_is_an_mp4_with_the_asked_frames_size_and_rate_and_the_renderers_pixels(
    tmp_path: Path,
):
    (name,) = make(tmp_path)
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 8)
    assert np.shape(frames) == (8, 40, 64, 3)
    renderer = Renderer(compose_scene(0, seed=5), height=40, width=64, seconds=1.0)
    for t in (0, 7):
        error = np.abs(frames[t].astype(float) - renderer.frame(t / 8)).mean()
        assert error < 6, f"frame {t} differs by {error} grey levels from what was drawn"


def test_a_second_call_rewrites_nothing(tmp_path: Path):
    make(tmp_path, videos=2)
    before = stamps(tmp_path)
    make(tmp_path, videos=2)
    assert stamps(tmp_path) == before


def test_an_interrupted_call_is_completed_without_redoing_what_is_there(
    tmp_path: Path, rendered: list[int]
):
    names = sorted(make(tmp_path, videos=3))
    whole = contents(tmp_path)
    (tmp_path / "captions.csv").unlink()
    (tmp_path / names[1]).unlink()
    rendered.clear()
    make(tmp_path, videos=3)
    assert rendered == [1]
    assert contents(tmp_path) == whole


def test_captions_appear_after_every_video(tmp_path: Path, rendered: list[int], monkeypatch):
    def full_disk(path: Path, content: bytes):
        if path.name.startswith("drive-001"):
            raise UserError("No space left.")
        path.write_bytes(content)

    tmp_path.joinpath("videos").mkdir()
    monkeypatch.setattr(film, "write_bytes_atomically", full_disk)
    with pytest.raises(UserError, match=r"No space left\."):
        make(tmp_path / "videos", videos=2)
    assert [path.name[:9] for path in (tmp_path / "videos").iterdir()] == ["drive-000"]


def test_other_arguments_replace_the_drives_and_leave_other_files_alone(tmp_path: Path):
    old = make(tmp_path, seed=5)
    (tmp_path / "drive-home.mp4").write_bytes(b"mine")
    new = make(tmp_path, seed=6)
    beside = {Path(name).with_suffix(".json").name for name in new}
    expected = {*new, *beside, "captions.csv", "drive-home.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert not set(old) & set(new)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_the_caption_is_true_of_the_scene(scene: Scene):
    assert scene.caption.endswith(
        f" {scene.time}, {scene.scenery} by the road, {scene.backdrop} ahead"
    )
    assert {thing.kind for thing in scene.roadside} == {scene.scenery.removesuffix("s")}
    for car in scene.cars:
        assert EVENTS[car.event].phrase.format(car=f"a {car.colour} car") in scene.caption
        assert happens(car, scene), f"{car} does not do what {scene.caption!r} says"


def happens(car: Car, scene: Scene) -> bool:
    """Whether the car's movement over 6 s is what its event's phrase says."""
    (x, z), (end_x, end_z) = car.at(0.0), car.at(6.0)
    own_speed_mps = scene.ego_mps + car.speed_mps
    stays = x == end_x and round(x / LANE_M) in scene.lanes
    return {
        "overtakes": stays and x < 0 and z < 4 and end_z > 8,
        "overtaken": stays and x > 0 and z > 5 and end_z < 2 and own_speed_mps > 0,
        "oncoming": stays and x < 0 and z > 9 and end_z < 3 and own_speed_mps < 0,
        "ahead": stays and x == 0 and z == end_z,
        "leaves": stays and x == 0 and end_z > z + 5,
        "nears": stays and x == 0 and end_z < z - 6 and end_z > 2,
        "enters": x == -LANE_M and abs(end_x) < 1 and -1 in scene.lanes,
        "exits": x == 0 and abs(end_x + LANE_M) < 1 and -1 in scene.lanes,
    }[car.event]


def test_everything_moves_with_constant_velocity():
    times = np.arange(0.0, 6.0, 0.25)
    for scene in SCENES:
        for car in scene.cars:
            steps = np.diff([car.at(time_s) for time_s in times], axis=0)
            assert np.allclose(steps, steps[0])
            assert np.allclose(steps[0], (0.25 * car.sideways_mps, 0.25 * car.speed_mps))


def test_the_drawn_car_is_where_the_scene_says():
    compared = 0
    for index, scene in enumerate(SCENES):
        car = scene.cars[0]
        if scene.time != "by day" or len(scene.cars) > 1 or car.colour not in ("red", "yellow"):
            continue
        camera = Camera(
            width=256,
            height=160,
            height_m=scene.camera_m,
            horizon_px=scene.horizon * 160,
            curve_per_m=scene.curve_per_m,
        )
        renderer = Renderer(scene, height=160, width=256, seconds=6.0)
        for time_s in (2.0, 3.0):
            x_m, z_m = car.at(time_s)
            u, v = camera.project(x_m, 0.9, z_m + 0.05)
            if 0 <= u < 256:
                seen = renderer.frame(time_s)[int(v), int(u)].astype(float)
                likeness = np.corrcoef(seen, PAINT[car.colour])[0, 1]
                assert likeness > 0.95, f"drive {index} at {time_s} s shows {seen}"
                compared += 1
    assert compared >= 4


def test_nothing_repeats_after_one_second():
    for scene in SCENES:
        assert scene.ego_mps < DASH_PERIOD_M / 2
        for side in (-1, 1):
            places = sorted(thing.z_m for thing in scene.roadside if thing.x_m * side > 0)
            assert min(np.diff(places)) > 2 * scene.ego_mps


def test_the_main_car_is_seen_for_four_seconds_and_large_at_some_time():
    for scene in SCENES:
        car, widths = scene.cars[0], []
        for time_s in np.arange(0.0, 6.0, 0.125):
            x_m, z_m = car.at(time_s)
            far_m = z_m + LENGTH_M
            if z_m > 0.7 and abs(x_m) - 1 < far_m / 2:
                widths.append(2.0 / max(z_m, 0.7))
        assert len(widths) * 0.125 >= 4.0, scene.caption
        assert max(widths) > 1 / 6, scene.caption


def test_times_colours_events_and_places_come_in_equal_shares():
    def shares(values: list[str]) -> set[int]:
        return {values.count(value) for value in set(values)}

    assert {scene.time for scene in SCENES} == set(TIMES) == set(ATMOSPHERES)
    assert shares([scene.time for scene in SCENES]) == {16}
    assert shares([scene.backdrop for scene in SCENES]) == {48 // len(BACKDROPS)}
    assert shares([scene.scenery for scene in SCENES]) == {48 // len(SCENERIES)}
    assert shares([scene.cars[0].event for scene in SCENES]) == {48 // len(EVENTS)}
    assert shares([scene.cars[0].colour for scene in SCENES]) <= {9, 10}
    assert set(COLOURS) == set(PAINT)
