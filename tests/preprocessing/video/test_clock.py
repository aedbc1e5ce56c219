"""Clocks that restart: joined recordings and restarted senders lose no frame and gain no time."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from preprocessing.video.clock import Clock
from preprocessing.video.decode import decode_frames, frame_times, probe_video

HOURS = 3600
CODECS = {"ts": ("mpegts", "libx264"), "mpg": ("vob", "mpeg2video"), "flv": ("flv", "flv")}
FPS = 15


def continued(*stamps):
    """Stamps of frames that last 2 ticks of 0.1 s, and how often the clock restarted."""
    clock = Clock(Fraction(1, 10), lambda frame: 2)
    return [stamp for stamp, _ in clock.continued((at, None) for at in stamps)], clock.restarts


def record(path, numbers, *, at_s=0.0, size=(64, 48)):
    """The frames `numbers` of a counting video, from `at_s` of its sender's clock."""
    kind, codec = CODECS[path.suffix[1:]]
    offset = {"output_ts_offset": f"{at_s}"}
    with av.open(str(path), "w", format=kind, options=offset) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": "12", "bf": "2"} if codec == "libx264" else {"g": "12"}
        for number in numbers:
            grey = np.full((size[1], size[0], 3), 16 + 6 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        container.mux(stream.encode(None))
    return path


def join(path, *starts_s):
    """Recordings of 12 frames each, one after the other in one file."""
    parts = []
    for place, at_s in enumerate(starts_s):
        numbers = range(12 * place, 12 * place + 12)
        parts.append(record(path.with_stem(f"part{place}"), numbers, at_s=at_s).read_bytes())
    path.write_bytes(b"".join(parts))
    return path


def restamp_flv(path, change):
    """Changes the stamps, ms, of all video tags: change(number, stamp)."""
    content = bytearray(path.read_bytes())
    at, number = 9 + 4, 0
    while at + 11 <= len(content):
        kind, size = content[at], int.from_bytes(content[at + 1 : at + 4], "big")
        if kind == 9:
            stamp = int.from_bytes(content[at + 4 : at + 7], "big") | content[at + 7] << 24
            changed = change(number, stamp)
            content[at + 4 : at + 7] = (changed & 0xFFFFFF).to_bytes(3, "big")
            content[at + 7] = changed >> 24
            number += 1
        at += 11 + size + 4
    path.write_bytes(content)
    return path


def assert_shows_every_frame(path, counted, frames, restarts):
    probe = probe_video(path)
    assert (probe.frames, probe.duration_s) == (frames, pytest.approx(frames / FPS, abs=0.002))
    assert frame_times(path) == pytest.approx(np.arange(frames) / FPS, abs=0.002)
    shown = decode_frames(path, [i / FPS for i in range(frames)], height=48, width=64)
    assert counted(shown) == list(range(frames))
    said = [text for text in probe.warnings if "clock" in text]
    times = "once" if restarts == 1 else f"{restarts} times"
    assert said == ([f"its clock restarts {times} and is continued"] if restarts else [])


def test_a_clock_that_goes_on_is_left_alone():
    assert continued(7, 9, 11, 13) == ([7, 9, 11, 13], 0)


def test_a_clock_that_falls_back_begins_where_the_last_frame_ended():
    assert continued(7, 9, 11, 0, 2, 4) == ([7, 9, 11, 13, 15, 17], 1)


def test_a_clock_that_leaps_ahead_begins_where_the_last_frame_ended():
    assert continued(7, 9, 11, 90_000, 90_002, 1, 3) == ([7, 9, 11, 13, 15, 17, 19], 2)


def test_a_gap_in_a_recording_stays_a_gap():
    assert continued(0, 2, 100, 102) == ([0, 2, 100, 102], 0)


def test_two_frames_out_of_order_are_no_restart():
    assert continued(0, 4, 2, 6, 8) == ([0, 4, 2, 6, 8], 0)


@pytest.mark.parametrize("stray", [0, 90_000])
def test_one_stray_stamp_is_no_restart(stray):
    assert continued(1000, 1002, stray, 1006, 1008) == ([1000, 1002, 1004, 1006, 1008], 0)


def test_after_a_stray_stamp_the_clock_may_restart():
    assert continued(1000, 1002, 5000, 20, 22) == ([1000, 1002, 1004, 1006, 1008], 1)


def test_frames_without_stamps_stay_without():
    assert continued(7, None, 11, 0, None, 4) == ([7, None, 11, 13, None, 17], 1)


@pytest.mark.parametrize("kind", ["ts", "mpg"])
@pytest.mark.parametrize(
    "starts_s",
    [(0, 0, 0), (0, 5 * HOURS, 0), (2 * HOURS, 0, 20 * HOURS), (30, 0, 60), (0, 15, 1)],
    ids=["from zero", "ahead by hours", "back by hours", "both ways", "by seconds"],
)
def test_joined_recordings_are_used_whole(tmp_path, counted, kind, starts_s):
    path = join(tmp_path / f"joined.{kind}", *starts_s)
    assert_shows_every_frame(path, counted, 36, restarts=2)


@pytest.mark.parametrize("kind", ["ts", "mpg"])
def test_a_clock_of_33_bits_that_overflows_goes_on(tmp_path, counted, kind):
    path = record(tmp_path / f"wraps.{kind}", range(36), at_s=2**33 / 90_000 - 1.2)
    assert_shows_every_frame(path, counted, 36, restarts=0)


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        (lambda number, stamp: stamp + (10**6 if number < 12 else 0), 1),
        (lambda number, stamp: stamp + (5 * 10**6 if number >= 12 else 0), 1),
        (lambda number, stamp: 2**31 - 1 if number == 12 else stamp, 0),
    ],
    ids=["back", "ahead", "one stray"],
)
def test_flv_of_a_sender_that_restarts_is_used_whole(tmp_path, counted, change, restarts):
    path = restamp_flv(record(tmp_path / "a.flv", range(36)), change)
    assert_shows_every_frame(path, counted, 36, restarts)


def test_a_gap_of_seconds_in_a_recording_stays(tmp_path):
    times_s = frame_times(join(tmp_path / "gap.ts", 0, 3))
    assert len(times_s) == 24
    assert times_s[12] - times_s[11] == pytest.approx(3 - 12 / FPS, abs=0.1)


def test_a_clock_that_can_be_trusted_is_trusted(tmp_path, write_frames):
    grey = [np.full((48, 64, 3), level, np.uint8) for level in (40, 90, 140)]
    path = write_frames(tmp_path / "slow.mkv", grey, [0, 40, 60_000])
    assert frame_times(path) == pytest.approx([0, 0.04, 60])


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
@pytest.mark.parametrize("kind", ["ts", "mpg"])
def test_frames_of_joined_recordings_are_those_of_the_ffmpeg_program(tmp_path, kind):
    path = join(tmp_path / f"joined.{kind}", 0, 5 * HOURS, 1)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-r", str(FPS), "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    theirs = np.frombuffer(raw.stdout, np.uint8).reshape(-1, 48, 64, 3).astype(int)
    ours = decode_frames(path, [i / FPS for i in range(36)], height=48, width=64)
    assert len(theirs) == 36
    assert abs(ours - theirs).max() <= 2


def test_the_outside_joined_recording_is_used_whole(asset):
    path = asset("videos/reported/cat.ts")
    assert (probe_video(path).frames, probe_video(path).duration_s) == (250, 10.0)
