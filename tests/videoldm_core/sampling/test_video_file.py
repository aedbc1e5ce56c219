"""The video that is written: complete or absent, of the right size, count and pace."""

import os
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from videoldm_core.errors import UserError
from videoldm_core.sampling.video_file import (
    PREVIEW_FPS,
    PREVIEW_STILLS,
    VideoFile,
    join_videos,
    write_preview,
)


def greys(first: int, count: int, *, height: int = 32, width: int = 48) -> torch.Tensor:
    """Frame i has the value -0.9 + i / 10."""
    values = -0.9 + torch.arange(first, first + count) / 10
    return values.view(-1, 1, 1, 1).expand(count, 3, height, width)


def decoded(path: Path) -> tuple[list[float], tuple[int, int], Fraction]:
    """Mean value of each frame, (height, width), frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24").mean() / 127.5 - 1 for f in container.decode(stream)]
        assert stream.average_rate is not None
        return frames, (stream.height, stream.width), stream.average_rate


@pytest.mark.parametrize("fps", [16, 30000 / 1001])
def test_portions_become_one_video_in_order(tmp_path: Path, fps: float):
    path = tmp_path / "new" / "video.mp4"
    with VideoFile(path, fps=fps) as file:
        for first, count in ((0, 5), (5, 1), (6, 4)):
            file.write(greys(first, count))
    frames, size, rate = decoded(path)
    assert frames == pytest.approx([-0.9 + i / 10 for i in range(10)], abs=0.03)
    assert size == (32, 48)
    assert float(rate) == pytest.approx(fps, rel=1e-6)


def test_values_beyond_the_range_become_black_and_white(tmp_path: Path):
    with VideoFile(tmp_path / "v.mp4", fps=8) as file:
        file.write(torch.stack([torch.full((3, 32, 32), -7.0), torch.full((3, 32, 32), 7.0)]))
    frames, _, _ = decoded(tmp_path / "v.mp4")
    assert frames == pytest.approx([-1, 1], abs=0.03)


def test_colours_keep_their_places(tmp_path: Path):
    red = torch.tensor([0.9, -0.9, -0.9]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    with VideoFile(tmp_path / "v.mp4", fps=8) as file:
        file.write(red)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame[16, 16, 0] > 200
    assert frame[16, 16, 1:].max() < 50


def written(path: Path, count: int, *, fps: float = 8, first: int = 0) -> Path:
    with VideoFile(path, fps=fps) as file:
        file.write(greys(first, count))
    return path


@pytest.mark.parametrize(
    ("fps", "frames", "stills", "each_ms"), [(16, 9, 5, 125), (8, 3, 3, 125), (2, 3, 3, 500)]
)
def test_a_preview_keeps_the_pace_of_the_video(tmp_path: Path, fps, frames, stills, each_ms):
    write_preview(written(tmp_path / "v.mp4", frames, fps=fps), tmp_path / "v.gif")
    with Image.open(tmp_path / "v.gif") as preview:
        assert preview.n_frames == stills  # type: ignore[attr-defined]
        assert preview.size == (48, 32)
        assert preview.info["duration"] == pytest.approx(each_ms, abs=10)
        assert preview.info["loop"] == 0
    assert sorted(os.listdir(tmp_path)) == ["v.gif", "v.mp4"]


def test_a_preview_of_a_long_video_has_few_stills_from_all_of_it(tmp_path: Path):
    frames = torch.linspace(-0.9, 0.9, 1000).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    with VideoFile(tmp_path / "v.mp4", fps=2 * PREVIEW_FPS) as file:
        file.write(frames)
    write_preview(tmp_path / "v.mp4", tmp_path / "v.gif")
    with Image.open(tmp_path / "v.gif") as preview:
        count = preview.n_frames  # type: ignore[attr-defined]
        assert PREVIEW_STILLS / 2 < count <= PREVIEW_STILLS
        preview.seek(count - 1)
        assert preview.convert("L").getpixel((8, 8)) > 230


@pytest.mark.parametrize("fps", [16, 30000 / 1001])
@pytest.mark.parametrize("counts", [(6,), (1, 1, 1), (4, 4, 2), (4, 4, 4, 1), (16, 3)])
def test_joined_videos_are_all_their_frames_in_order(tmp_path: Path, fps: float, counts):
    parts, first = [], 0
    for count in counts:
        parts.append(written(tmp_path / f"{len(parts)}.mp4", count, fps=fps, first=first))
        first += count
    join_videos(parts, tmp_path / "v.mp4", frames_per_part=counts[0])
    frames, size, rate = decoded(tmp_path / "v.mp4")
    assert frames == pytest.approx([-0.9 + i / 10 for i in range(sum(counts))], abs=0.03)
    assert size == (32, 48)
    assert float(rate) == pytest.approx(fps, rel=1e-6)
    separate = [frame for part in parts for frame in decoded(part)[0]]
    assert frames == separate, "packets are copied"
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        seconds = [float(frame.time) for frame in container.decode(stream)]  # type: ignore[arg-type]
        assert stream.frames == sum(counts)
        assert float(stream.duration * stream.time_base) == pytest.approx(
            sum(counts) / fps, rel=1e-3
        )  # type: ignore[operator]
    assert seconds == pytest.approx([i / fps for i in range(sum(counts))], abs=1e-4)


def test_joining_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path):
    parts = [written(tmp_path / f"{i}.mp4", 4, first=4 * i) for i in range(3)]
    for name in ("a.mp4", "b.mp4"):
        join_videos(parts, tmp_path / name, frames_per_part=4)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["0.mp4", "1.mp4", "2.mp4", "a.mp4", "b.mp4"]


def test_nothing_is_left_when_making_the_frames_fails(tmp_path: Path):
    def fail() -> None:
        with VideoFile(tmp_path / "v.mp4", fps=8) as file:
            file.write(greys(0, 1).expand(80, -1, -1, -1))  # so many that the encoder has written
            assert [name for name in os.listdir(tmp_path) if name != "v.mp4"]
            assert not (tmp_path / "v.mp4").exists()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_failure_keeps_the_video_that_was_there(tmp_path: Path):
    written(tmp_path / "v.mp4", 3)
    before = (tmp_path / "v.mp4").read_bytes()

    def fail() -> None:
        with VideoFile(tmp_path / "v.mp4", fps=8) as file:
            file.write(greys(5, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert os.listdir(tmp_path) == ["v.mp4"]


def test_no_frames_make_no_file(tmp_path: Path):
    with VideoFile(tmp_path / "v.mp4", fps=8):
        pass
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    file = VideoFile(tmp_path / "file" / "v.mp4", fps=8)
    with pytest.raises(UserError, match=r"Cannot write .*v\.mp4.*choose another output folder"):
        file.write(greys(0, 1))
