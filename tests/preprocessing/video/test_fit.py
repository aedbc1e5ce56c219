"""Frames the right way up, in the right shape, from every pixel format."""

import numpy as np
import pytest

from preprocessing.video.decode import decode_frames, probe_video


def frames_at(path, times_s, height=48, width=64):
    return decode_frames(path, list(times_s), height=height, width=width)


def quarters(height=48, width=64):
    """Red, green over blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255, 0, 0
    picture[: height // 2, width // 2 :] = 0, 255, 0
    picture[height // 2 :, : width // 2] = 0, 0, 255
    picture[height // 2 :, width // 2 :] = 255, 255, 255
    return picture


def corners(frame):
    """The colours of a picture of quarters, row by row, as letters."""
    height, width = frame.shape[:2]
    letters = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    at = [(y, x) for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]
    return "".join(letters[tuple((frame[y, x] > 127).astype(int))] for y, x in at)


@pytest.mark.parametrize(
    ("turn", "shown", "size"),
    [
        (0, "rgbw", (64, 48)),
        (90, "gwrb", (48, 64)),
        (180, "wbgr", (64, 48)),
        (-90, "brwg", (48, 64)),
    ],
)
def test_a_rotated_video_is_shown_upright(tmp_path, turn, shown, size, write_frames):
    path = write_frames(
        tmp_path / "turned.mp4",
        [quarters()],
        [0],
        prepare=lambda stream: stream.set_display_rotation(turn) if turn else None,
    )
    probe = probe_video(path)
    assert (probe.width, probe.height) == size
    assert corners(frames_at(path, [0], height=size[1], width=size[0])[0]) == shown


def test_a_mirrored_video_is_shown_mirrored(tmp_path, write_frames):
    matrix = [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]
    path = write_frames(
        tmp_path / "mirrored.mp4",
        [quarters()],
        [0],
        prepare=lambda stream: stream.set_display_matrix(matrix),
    )
    assert corners(frames_at(path, [0])[0]) == "grwb"


def test_the_picture_fills_the_target_and_is_cropped_evenly(tmp_path, write_frames):
    stripes = np.zeros((40, 120, 3), np.uint8)
    for third, level in enumerate((50, 120, 200)):
        stripes[:, third * 40 : (third + 1) * 40] = level
    path = write_frames(tmp_path / "wide.mp4", [stripes], [0])
    for height, width in ((40, 40), (20, 20), (80, 80)):
        centre = frames_at(path, [0], height=height, width=width)
        assert centre.shape == (1, height, width, 3)
        inner = centre[0, :, width // 10 : -width // 10]
        assert inner.min() >= 116
        assert inner.max() <= 124


def test_non_square_pixels_are_made_square(asset):
    path = asset("videos/edge/mp4parse__h264_white_frame_sar_16_9.mp4")
    assert (probe_video(path).width, probe_video(path).height) == (1138, 480)


def test_an_impossible_rotation_is_ignored_and_told(tmp_path, write_frames):
    half_turned = [46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30]
    for number, matrix in enumerate((half_turned, [0] * 9)):
        path = write_frames(
            tmp_path / f"{number}.mp4",
            [quarters()],
            [0],
            prepare=lambda stream, matrix=matrix: stream.set_display_matrix(matrix),
        )
        probe = probe_video(path)
        assert (probe.width, probe.height) == (64, 48)
        assert any("rotation" in warning for warning in probe.warnings)
        assert corners(frames_at(path, [0])[0]) == "rgbw"


def test_every_pixel_format_becomes_a_picture(asset):
    """8 to 12 bits, 4:2:0 and 4:4:4, RGB, palettes; odd sizes; larger and smaller targets."""
    folder = asset("videos/codec")
    paths = [*sorted(folder.glob("*c__*")), *sorted((folder.parent / "edge").glob("*odd*"))]
    assert len(paths) > 15
    for path in paths:
        for height, width in ((40, 64), (160, 256)):
            frames = frames_at(path, [0], height, width)
            assert frames.shape == (1, height, width, 3)
            assert frames.std() > 5, f"{path.name} is no flat colour"
