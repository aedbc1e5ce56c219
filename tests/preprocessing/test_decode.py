"""The right frames at the right times, the right way up; and reasons where there are none."""

import json
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing import decode
from preprocessing.damage import DecodeError
from preprocessing.decode import decode_frames, frame_times, probe_video

OPEN_GOPS = {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal:keyint=12:scenecut=0"}


def frames_at(path: Path, times_s, height=48, width=64):
    return decode_frames(path, list(times_s), height=height, width=width)


def write_frames(path, frames, stamps, *, tick=Fraction(1, 1000), codec="libx264", prepare=None):
    """Writes RGB frames (t h w 3) at `stamps` ticks, near-lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"
        stream.options = {"crf": "4"}
        stream.codec_context.time_base = tick
        if prepare:
            prepare(stream)
        for pixels, stamp in zip(frames, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grey(level, height=48, width=64):
    return np.full((height, width, 3), level, np.uint8)


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


# --- times ------------------------------------------------------------------------------------


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
    monkeypatch.setattr(decode, "_seek", lambda reader, stamp: (None, iter(())))
    assert counted(frames_at(path, [5.0, 5.25])) == [20, 21]


def test_times_count_from_the_first_shown_frame(tmp_path):
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


# --- pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "shown", "size"),
    [
        (0, "rgbw", (64, 48)),
        (90, "gwrb", (48, 64)),
        (180, "wbgr", (64, 48)),
        (-90, "brwg", (48, 64)),
    ],
)
def test_a_rotated_video_is_shown_upright(tmp_path, turn, shown, size):
    path = write_frames(
        tmp_path / "turned.mp4",
        [quarters()],
        [0],
        prepare=lambda stream: stream.set_display_rotation(turn) if turn else None,
    )
    probe = probe_video(path)
    assert (probe.width, probe.height) == size
    assert corners(frames_at(path, [0], height=size[1], width=size[0])[0]) == shown


def test_a_mirrored_video_is_shown_mirrored(tmp_path):
    matrix = [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]
    path = write_frames(
        tmp_path / "mirrored.mp4",
        [quarters()],
        [0],
        prepare=lambda stream: stream.set_display_matrix(matrix),
    )
    assert corners(frames_at(path, [0])[0]) == "grwb"


def test_the_picture_fills_the_target_and_is_cropped_evenly(tmp_path):
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


# --- facts ------------------------------------------------------------------------------------


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


def test_a_variable_rate_is_noticed_and_its_usual_rate_given(tmp_path):
    stamps = [0, 40, 80, 120, 320, 360, 400, 440]
    probe = probe_video(write_frames(tmp_path / "vfr.mkv", [grey(99)] * 8, stamps))
    assert probe.variable_rate
    assert probe.fps == pytest.approx(25)
    assert probe.longest_frame_s == pytest.approx(0.2)
    assert probe.duration_s == pytest.approx(0.48)


def grainy_count(path):
    """Frame i of 36 is grey level 16 + 6 i under film grain: a file with bytes to damage."""
    grain = np.random.default_rng(0).integers(-8, 8, (36, 48, 64, 1))
    frames = [(np.full((48, 64, 3), 16 + 6 * i) + grain[i]).clip(0, 255) for i in range(36)]
    return write_frames(path, [frame.astype(np.uint8) for frame in frames], range(0, 1440, 40))


@pytest.mark.parametrize("name", ["cut.mkv", "cut.ts"])
def test_a_video_that_breaks_off_is_used_up_to_there(tmp_path, counted, name):
    path = grainy_count(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    probe = probe_video(path)
    assert 15 <= probe.frames <= 25
    frames = frames_at(path, frame_times(path))
    assert counted(frames)[:15] == list(range(15))
    assert len(frames) == probe.frames


@pytest.mark.parametrize("name", ["bad.mp4", "bad.mkv"])
def test_damage_in_the_middle_ends_the_video(tmp_path, counted, name):
    path = grainy_count(tmp_path / name)
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


# --- files that nobody in the project made ----------------------------------------------------


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


def test_an_impossible_rotation_is_ignored_and_told(tmp_path):
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
