"""The right frames at the right times, and facts from decoded frames."""

from fractions import Fraction

import av
import numpy as np
import pytest

from preprocessing.video import decode
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import decode_frames, frame_times, probe_video

OPEN_GOPS = {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal:keyint=12:scenecut=0"}


def frames_at(path, times_s, height=48, width=64):
    return decode_frames(path, list(times_s), height=height, width=width)


def grey(level, height=48, width=64):
    return np.full((height, width, 3), level, np.uint8)


def test_every_frame_comes_at_its_own_time(counting_video, counted):
    path = counting_video(frames=36, fps=16)
    assert counted(frames_at(path, frame_times(path))) == list(range(36))


def test_a_frame_is_shown_until_the_next_one(counting_video, counted):
    path = counting_video(frames=8, fps=4)
    assert counted(frames_at(path, [0, 0.24, 0.25, 0.26, 0.99, 1.0, 1.99])) == [0, 0, 1, 1, 3, 4, 7]


def test_a_higher_rate_repeats_frames_and_a_lower_one_skips_them(counting_video, counted):
    path = counting_video(frames=10, fps=10)
    assert counted(frames_at(path, np.arange(6) / 20)) == [0, 0, 1, 1, 2, 2]
    assert counted(frames_at(path, np.arange(5) / 5)) == [0, 2, 4, 6, 8]


def test_times_rounded_by_the_container_skip_no_frame(counting_video, counted):
    path = counting_video("ticks.mkv", frames=30, fps=30)  # mkv: 0, 33, 67, 100 ms
    assert counted(frames_at(path, np.arange(30) / 30)) == list(range(30))


@pytest.mark.parametrize("options", [{}, OPEN_GOPS, {"bf": "0", "g": "1"}, {"g": "250"}])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_seeking_gives_the_frames_that_reading_on_gives(counting_video, counted, name, options):
    path = counting_video(name, frames=36, fps=4, options=options)
    for first in range(8, 36):
        times_s = [(first + i) / 4 for i in range(min(3, 36 - first))]
        assert counted(frames_at(path, times_s)) == list(range(first, first + len(times_s)))


def test_a_seek_that_lands_too_late_falls_back_to_reading_on(counting_video, counted, monkeypatch):
    path = counting_video(frames=36, fps=4, options={"g": "6"})
    monkeypatch.setattr(decode, "_sought", lambda reader, stamp: iter(()))
    assert counted(frames_at(path, [5.0, 5.25])) == [20, 21]


def test_times_count_from_the_first_shown_frame(tmp_path, write_frames):
    path = write_frames(tmp_path / "late.mkv", [grey(40), grey(90), grey(140)], [5000, 5100, 5300])
    assert frame_times(path) == pytest.approx([0, 0.1, 0.3])
    shown = frames_at(path, [0, 0.1, 0.29, 0.3]).mean(axis=(1, 2, 3))
    assert shown == pytest.approx([40, 90, 90, 140], abs=2)


def test_a_cut_without_re_encoding_starts_where_its_edit_list_says(
    counting_video, counted, tmp_path
):
    """The mp4 holds the pictures from the key frame on, and tells players to skip four of them."""
    whole = counting_video(frames=36, fps=16, options={"g": "12", "bf": "2"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        tick = source.streams.video[0].time_base
        offset = int(Fraction(16, 16) / tick)
        for packet in source.demux(video=0):
            if packet.pts is None or packet.pts < 12 * offset // 16:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, stream
            target.mux(packet)
    numbers = counted(frames_at(cut, frame_times(cut)))
    assert numbers == list(range(16, 36))


def test_asking_past_the_end_says_how_far(counting_video):
    path = counting_video(frames=16, fps=16)
    with pytest.raises(DecodeError, match=r"truncated: the frames end 1.9\d s before the last one"):
        frames_at(path, [0.5, 2.9])


def test_probing_counts_what_is_shown(counting_video):
    probe = probe_video(counting_video(frames=24, fps=12))
    assert (probe.frames, probe.duration_s, probe.fps) == (24, 2.0, 12.0)
    assert (probe.width, probe.height, probe.codec) == (64, 48, "h264")
    assert not probe.variable_rate
    assert probe.warnings == ()


def test_a_rate_rounded_to_milliseconds_is_still_the_rate(counting_video):
    probe = probe_video(counting_video("a.mkv", frames=31, fps=30))
    assert probe.fps == pytest.approx(30)
    assert not probe.variable_rate


def test_a_variable_rate_is_noticed_and_its_usual_rate_given(tmp_path, write_frames):
    stamps = [0, 40, 80, 120, 320, 360, 400, 440]
    probe = probe_video(write_frames(tmp_path / "vfr.mkv", [grey(99)] * 8, stamps))
    assert probe.variable_rate
    assert probe.fps == pytest.approx(25)
    assert probe.longest_frame_s == pytest.approx(0.2)
    assert probe.duration_s == pytest.approx(0.48)
