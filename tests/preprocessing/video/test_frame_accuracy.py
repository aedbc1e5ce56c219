"""Files that nobody in the project made: the frames and times that the ffmpeg program gives."""

import json
import random

import av
import numpy as np
import pytest

from preprocessing.video import decode
from preprocessing.video.decode import decode_frames, frame_times, probe_video


def frames_at(path, times_s, height=48, width=64):
    return decode_frames(path, list(times_s), height=height, width=width)


@pytest.mark.parametrize("number", [0, 15, 389])
def test_native_frames_equal_those_of_the_ffmpeg_program(asset, number):
    """The file has two video streams; the larger one, number 3, is the video."""
    torch = pytest.importorskip("torch")
    path = asset("videos/edge/torchcodec__nasa_13013.mp4")
    reference = torch.load(asset(f"videos/reference/nasa_13013.mp4.stream3.frame{number:06d}.pt"))
    time_s = frame_times(path)[number]
    assert np.array_equal(frames_at(path, [time_s], 270, 480)[0], reference.numpy())


def test_frame_times_equal_those_of_the_ffmpeg_program(asset, tmp_path):
    """Stream 0 of the same file, copied into a file of its own."""
    alone = tmp_path / "stream0.mp4"
    with (
        av.open(str(asset("videos/edge/torchcodec__nasa_13013.mp4"))) as source,
        av.open(str(alone), "w") as target,
    ):
        stream = target.add_stream_from_template(source.streams[0])
        for packet in source.demux(source.streams[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    facts = asset("videos/reference/nasa_13013.mp4.stream0.all_frames_info.json").read_text()
    expected = [float(frame["pts_time"]) for frame in json.loads(facts)]
    assert frame_times(alone) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("edge/torchcodec__discard_first_keyframe.mp4", 25),
        ("edge/udacity-veh__test_small2.mp4", 100),
        ("edge/mdn__flower-fragmented.mp4", 150),
        ("edge/energon__sync_test.mkv", 1891),
        ("codec/torchcodec__sine_stereo_mp2.mpg", 100),
        ("natural/bgslib__video02.avi", 748),
        ("natural/intel__person-bicycle-car-detection.gif", 41),
    ],
)
def test_headers_lie_and_decoded_counts_do_not(asset, name, frames):
    path = asset(f"videos/{name}")
    assert probe_video(path).frames == frames
    times_s = frame_times(path)
    assert len(times_s) == frames
    assert all(before < after for before, after in zip(times_s, times_s[1:], strict=False))


def test_avi_frames_come_in_order_although_their_stamps_do_not(asset):
    probe = probe_video(asset("videos/natural/bgslib__video02.avi"))
    assert (probe.duration_s, probe.fps, probe.variable_rate) == (29.92, 25, False)


@pytest.mark.parametrize(
    "name",
    [
        "edge/udacity-veh__test_small1.mp4",
        "edge/torchcodec__nasa_13013_mkv_duration_tag.mkv",
        "edge/mdn__flower-fragmented.mp4",
        "codec/torchcodec__av1_video.mkv",
        "codec/torchcodec__nasa_13013_hdr.mp4",
        "natural/mdn__flower.webm",
        "natural/asl/brother.mkv",
    ],
)
def test_seeking_in_real_files_gives_the_frames_that_reading_on_gives(asset, name):
    path = asset(f"videos/{name}")
    times_s = frame_times(path)
    every = frames_at(path, times_s, 36, 64)
    late = [index for index, time_s in enumerate(times_s) if time_s >= decode.SEEK_FROM_S]
    for index in random.Random(0).sample(late[:-1], 3):
        sought = frames_at(path, times_s[index : index + 2], 36, 64)
        assert np.array_equal(sought, every[index : index + 2])
