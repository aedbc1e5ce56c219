"""Damaged files are used up to the damage; what is no video says why."""

import random

import av
import numpy as np
import pytest

from preprocessing.video import damage
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import decode_frames, frame_times, probe_video


def frames_at(path, times_s, height=48, width=64):
    return decode_frames(path, list(times_s), height=height, width=width)


def grainy_count(path, write_frames):
    """Frame i of 36 is grey level 16 + 6 i under film grain: a file with bytes to damage."""
    grain = np.random.default_rng(0).integers(-8, 8, (36, 48, 64, 1))
    frames = [(np.full((48, 64, 3), 16 + 6 * i) + grain[i]).clip(0, 255) for i in range(36)]
    return write_frames(path, [frame.astype(np.uint8) for frame in frames], range(0, 1440, 40))


@pytest.mark.parametrize("name", ["cut.mkv", "cut.ts"])
def test_a_video_that_breaks_off_is_used_up_to_there(tmp_path, counted, name, write_frames):
    path = grainy_count(tmp_path / name, write_frames)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    probe = probe_video(path)
    assert 15 <= probe.frames <= 25
    frames = frames_at(path, frame_times(path))
    assert counted(frames)[:15] == list(range(15))
    assert len(frames) == probe.frames


@pytest.mark.parametrize("name", ["bad.mp4", "bad.mkv"])
def test_damage_in_the_middle_ends_the_video(tmp_path, counted, name, write_frames):
    path = grainy_count(tmp_path / name, write_frames)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = random.Random(0).randbytes(60)
    path.write_bytes(content)
    times_s = frame_times(path)
    assert 12 <= len(times_s) <= 24
    assert counted(frames_at(path, times_s)) == list(range(len(times_s)))
    assert any("damaged after" in warning for warning in probe_video(path).warnings)


@pytest.mark.parametrize("name", ["notes.mp4", "notes.ts", "notes.gif", "notes.avi", "notes.mkv"])
def test_a_text_file_is_no_video(tmp_path, name):
    path = tmp_path / name
    path.write_text("dear diary,\n" * 500)
    for attempt in (probe_video, lambda path: frames_at(path, [0])):
        with pytest.raises(DecodeError, match="^not a video: it is a text file$"):
            attempt(path)


def test_an_empty_file_and_an_unfinished_one_say_so(counting_video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DecodeError, match="^empty file: it has 0 bytes$"):
        probe_video(tmp_path / "empty.mp4")
    path = counting_video("unfinished.mp4")
    path.write_bytes(path.read_bytes()[:800])  # the index comes last
    with pytest.raises(DecodeError, match="^truncated: an mp4 file without its index"):
        probe_video(path)


def test_a_file_of_nothing_but_boxes_is_looked_through_only_so_far(tmp_path, monkeypatch):
    path = tmp_path / "boxes.mp4"
    path.write_bytes(b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * 50 + b"\0\0\0\x09last")
    assert damage._mp4_boxes(path) == ({"ftyp", "free", "last"}, True)
    monkeypatch.setattr(damage, "_MOST_BOXES", 20)
    assert damage._mp4_boxes(path) == ({"ftyp", "free"}, False)


def test_a_playlist_opens_no_other_file(counting_video, tmp_path):
    secret = counting_video("secret.mp4", frames=4)
    playlist = tmp_path / "playlist.mp4"
    for text in (
        f"#EXTM3U\n#EXTINF:9.0,\n{secret}\n",
        f"ffconcat version 1.0\nfile {secret.name}\n",
    ):
        playlist.write_text(text)
        with pytest.raises(DecodeError, match="not a video"):
            probe_video(playlist)


def test_a_recording_that_starts_between_key_frames_begins_at_the_next(counting_video, counted):
    whole = counting_video("whole.ts", frames=36, fps=16, options={"g": "12", "bf": "2"})
    cut = whole.with_name("cut.ts")
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= 5 and packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert counted(frames_at(cut, frame_times(cut))) == list(range(12, 36))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mp4parse__chunk_out_of_range.mp4", "not a video: it does not open"),
        ("mp4parse__short-cenc.mp4", "encrypted:"),
        ("mp4parse__bipbop_480wp_1001kbps-cenc-video-key1-init.mp4", "encrypted:"),
        ("mp4parse__test_case_1185230.mp4", "undecodable: the header promises 10 frames"),
        ("mp4parse__invalid_userdata.mp4", "truncated: the header promises 5544 frames"),
        ("mp4parse__no_timescale.mp4", "undecodable: it has a header, no frame"),
        ("mp4parse__media_small.mp4", "the header promises 297 frames"),
        ("udacity-veh__project_cut_result.mp4", r"truncated: .*without its index \(moov\)"),
        ("udacity-veh__44bytes_project_result.mp4", r"truncated: .*without its index"),
    ],
)
def test_broken_files_are_refused_with_their_reason(asset, name, said):
    path = asset(f"videos/broken/{name}")
    for attempt in (probe_video, lambda path: frames_at(path, [0])):
        with pytest.raises(DecodeError, match=said):
            attempt(path)
