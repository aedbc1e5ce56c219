"""How long decoding may take follows the frames that come, not the bytes and not the clock."""

import av
import numpy as np
import pytest

from preprocessing.admission import examine
from preprocessing.admission.examine import examine_all, examine_call, examine_video
from preprocessing.isolation.child import no_progress
from preprocessing.isolation.workers import IsolatedError, Workers
from preprocessing.sources.folder import find_sources
from preprocessing.video.damage import DecodeError
from preprocessing.video.decoding_limits import decoding_limits, worth_of_frame_s

LIMITS = decoding_limits(1.0)


def examine_without_progress(_, path):
    """As if the frames that are decoded counted for nothing."""
    return examine_video(no_progress, path)


@pytest.fixture
def long_and_small(tmp_path):
    """Many frames that cost some processor time, in few bytes: one key frame, nothing moves."""
    path = tmp_path / "videos" / "still.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.options = {"preset": "ultrafast", "g": "9999", "sc_threshold": "0"}
        grey = np.full((360, 640, 3), 90, np.uint8)
        frame = av.VideoFrame.from_ndarray(grey, "rgb24").reformat(format="yuv420p")
        for number in range(2500):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def outcome_of(function, path, limits):
    (source,) = find_sources(path.parent)
    with Workers(1, errors=(DecodeError,)) as workers:
        (outcome,) = workers.run(function, [examine_call(source, limits)])
    return outcome


def test_a_video_of_many_frames_in_few_bytes_is_decoded_to_its_end(long_and_small):
    """Half an hour of a still scene at 1080p is 8 MB, and takes minutes to decode."""
    assert long_and_small.stat().st_size < 200_000
    limits = LIMITS._replace(idle_cpu_s=0.2)
    stopped = outcome_of(examine_without_progress, long_and_small, limits)
    assert isinstance(stopped.error, IsolatedError)
    assert stopped.error.cause == "idle", "it takes longer than that limit"
    probe, _ = outcome_of(examine_video, long_and_small, limits).value
    assert (probe.frames, probe.duration_s) == (2500, 100.0)


def test_a_video_that_needs_more_than_all_its_time_says_which_setting_gives_more(
    long_and_small, tmp_path, monkeypatch
):
    tight = LIMITS._replace(total_cpu_s=0.001)
    monkeypatch.setattr(examine, "decoding_limits", lambda hours: tight)
    monkeypatch.setattr(examine, "examine_video", decode_for_ever)
    sources = find_sources(long_and_small.parent)
    (finding,) = examine_all(sources, out=tmp_path / "out", workers=1, cpu_hours=0.5).values()
    assert finding.category == "too long to decode"
    assert finding.detail.endswith("s of processor time; set decode_cpu_hours to more than 0.5")


def decode_for_ever(progress, path):
    while True:
        examine_video(progress, path)


@pytest.mark.parametrize("size", [0, 10**12, 10**18, 2**63 - 1])
def test_no_size_of_a_file_decides_how_long_it_may_take(counting_video, tmp_path, size):
    """A file with a hole may claim any size; its limit was 29 days, then an OverflowError."""
    folder = counting_video("a.mp4", folder=tmp_path / "videos").parent
    (source,) = find_sources(folder)
    claiming = source.model_copy(update={"size": size})
    assert examine_call(claiming, LIMITS).limits == LIMITS
    (finding,) = examine_all([claiming], out=tmp_path / "out", workers=1).values()
    assert finding.digest == source.digest


def test_a_file_that_is_mostly_a_hole_is_decoded_as_what_is_there(counting_video, tmp_path):
    path = counting_video("hole.mp4", folder=tmp_path / "videos")
    whole = outcome_of(examine_video, path, LIMITS).value[0]
    with path.open("r+b") as file:
        file.truncate(2**29)
    found = outcome_of(examine_video, path, LIMITS).value[0]
    assert (found.frames, found.duration_s) == (whole.frames, whole.duration_s)


def test_a_larger_frame_may_take_longer():
    assert worth_of_frame_s(64, 48) < worth_of_frame_s(1920, 1080) < worth_of_frame_s(7680, 4320)
    assert worth_of_frame_s(7680, 4320) < LIMITS.idle_cpu_s
