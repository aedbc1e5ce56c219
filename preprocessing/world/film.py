"""Makes the demo's videos: short drives through a small world, as real H.264 files.

With captions, and with labels and boxes of cars for the presets that use them.

A video's name holds a digest of everything that decides its frames, so a file that is there is
right, and an interrupted call is completed by the same call. What a drive shows is decided in
`scene.py`, what it looks like in `render.py`.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from preprocessing.world.render import Renderer, boxes_of_cars, camera_of
from preprocessing.world.scene import Scene, compose_scene
from videoldm_core.records import Record
from videoldm_core.system.files import write_bytes_atomically, write_text_atomically
from videoldm_core.system.machine import usable_cores

WORLD_VERSION = 1  # raise it when a scene's frames change, so that old files are made anew
ENCODER = {"crf": "16", "preset": "faster"}
OWN_NAME = re.compile(r"drive-\d{3,}-[0-9a-f]{8}\.(mp4|json)")
BOXES_EVERY_S = 0.5
# The words of the driving preset (§4.1); a drive at dusk is neither, so its time is unknown.
TIMES_OF_DAY = {"by day": "day", "at night": "night"}


class Drive(Record):
    """One video to make."""

    scene: Scene
    index: int
    seconds: float
    fps: float
    height: int
    width: int

    @property
    def file_name(self) -> str:
        """Names the video by its place and by the digest of all that decides its frames."""
        decided = f"{WORLD_VERSION} {sorted(ENCODER.items())} {self.model_dump_json()}"
        return f"drive-{self.index:03d}-{hashlib.sha256(decided.encode()).hexdigest()[:8]}.mp4"


def make_world(  # noqa: PLR0913 (the demo's knobs, all plain numbers)
    folder: Path, *, videos: int, seconds: float, fps: float, height: int, width: int, seed: int
) -> None:
    """Fills `folder` with `videos` drives, with labels, boxes and captions.

    Those are in NAME.json beside NAME.mp4, and, written last, captions.csv (file, caption).

    The same arguments give the same files. What is there already is kept, so a second call does
    nothing; drives made with other arguments are removed.

    Raises:
        UserError: the folder cannot be written to.
    """
    assert height % 2 == width % 2 == 0, f"size {height}x{width} must be even"
    drives = [
        Drive(
            scene=compose_scene(index, seed=seed),
            index=index,
            seconds=seconds,
            fps=fps,
            height=height,
            width=width,
        )
        for index in range(videos)
    ]
    _make_missing(folder, [drive for drive in drives if not (folder / drive.file_name).exists()])
    names = {Path(drive.file_name).stem for drive in drives}
    for path in folder.glob("drive-*"):
        if OWN_NAME.fullmatch(path.name) and path.stem not in names:
            path.unlink()
    for drive in drives:
        _write_changed_text((folder / drive.file_name).with_suffix(".json"), annotations(drive))
    _write_changed_text(folder / "captions.csv", _captions_table(drives))


def _make_missing(folder: Path, missing: list[Drive]) -> None:
    workers = min(usable_cores(), len(missing))
    if workers <= 1:
        for drive in missing:
            write_drive(folder, drive)
        return
    # Spawned, not forked: the caller may hold threads (an orchestrator's, a database's).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for written in [pool.submit(write_drive, folder, drive) for drive in missing]:
            written.result()


def write_drive(folder: Path, drive: Drive) -> None:
    """Renders and encodes one drive; the file appears when it is complete."""
    write_bytes_atomically(
        folder / drive.file_name, encode_mp4(render_frames(drive), fps=drive.fps)
    )


def render_frames(drive: Drive) -> Iterator[np.ndarray]:
    """The drive's frames, uint8 h w c."""
    renderer = Renderer(drive.scene, height=drive.height, width=drive.width, seconds=drive.seconds)
    for t in range(round(drive.seconds * drive.fps)):
        yield renderer.frame(t / drive.fps)


def encode_mp4(frames: Iterator[np.ndarray], *, fps: float) -> bytes:
    """An H.264 mp4 of at least one frame, uint8 h w c."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {**ENCODER}
        stream.codec_context.thread_count = 1  # processes share the cores; the bytes stay the same
        for t, pixels in enumerate(frames):
            if t == 0:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return content.getvalue()


def annotations(drive: Drive) -> str:
    """The drive's NAME.json (sidecars.py): true labels, and every half second a frame's cars."""
    time = TIMES_OF_DAY.get(drive.scene.time)
    labels = {"crowdedness": "high" if len(drive.scene.cars) > 1 else "low"}
    camera = camera_of(drive.scene, height=drive.height, width=drive.width)
    every = max(1, round(BOXES_EVERY_S * drive.fps))
    times = [t / drive.fps for t in range(0, round(drive.seconds * drive.fps), every)]
    frames = []
    for time_s in times:
        boxes = boxes_of_cars(drive.scene, camera, time_s)
        frames.append({"time_s": time_s, "boxes": [{"class": "car", "box": b} for b in boxes]})
    said = {"labels": labels | ({"time": time} if time else {}), "frames": frames}
    return json.dumps(said, indent=1, sort_keys=True) + "\n"


def _write_changed_text(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text_atomically(path, text)


def _captions_table(drives: list[Drive]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "caption"))
    table.writerows((drive.file_name, drive.scene.caption) for drive in drives)
    return text.getvalue()
