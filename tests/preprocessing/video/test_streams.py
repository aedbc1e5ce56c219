"""The video among a file's streams: covers, several videos, titles in any encoding."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import decode_frames, frame_times, probe_video

COVER, DEFAULT = Disposition.attached_pic, Disposition.default
NOT_UTF8 = b"\xe9\xff\xfe"


def mux(path, *streams, sound=False):
    """A file of (codec, grey level, frames, width, disposition) streams, of 16 frames a second."""
    with av.open(str(path), "w") as container:
        made = [_stream(container, codec, width, flags) for codec, _, _, width, flags in streams]
        if sound:
            audio = container.add_stream("aac", rate=16000, layout="mono")
        for stream, (_, grey, frames, width, _) in zip(made, streams, strict=True):
            pixels = np.full((width * 3 // 4, width, 3), grey, np.uint8)
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode(None))
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            container.mux([*audio.encode(silence), *audio.encode(None)])
    return path


def _stream(container, codec, width, flags):
    stream = container.add_stream(codec, rate=16)
    stream.width, stream.height = width, width * 3 // 4
    stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    stream.disposition = flags
    return stream


def grey_of(path):
    return decode_frames(path, [0], height=12, width=16).mean()


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "png"), ("a.mov", "png"), ("a.mp4", "mjpeg"), ("a.mkv", "mjpeg")]
)
@pytest.mark.parametrize("cover_first", [False, True])
def test_a_cover_picture_marked_default_is_not_taken_for_the_video(
    tmp_path, name, codec, cover_first
):
    streams = [("libx264", 80, 20, 64, Disposition(0)), (codec, 200, 1, 640, DEFAULT)]
    path = mux(tmp_path / name, *(reversed(streams) if cover_first else streams))
    assert probe_video(path).frames == 20
    assert grey_of(path) == pytest.approx(80, abs=2)


def test_an_attached_cover_is_not_taken_for_the_video(tmp_path):
    path = mux(tmp_path / "a.mp4", ("png", 200, 1, 640, COVER), ("libx264", 80, 20, 64, DEFAULT))
    with av.open(str(path)) as container:
        assert COVER in [stream.disposition for stream in container.streams.video]
    assert probe_video(path).frames == 20


def test_sound_with_a_cover_picture_is_no_video_and_says_so(tmp_path):
    path = mux(tmp_path / "song.mp4", ("png", 200, 1, 640, COVER), sound=True)
    with pytest.raises(DecodeError, match="^no video stream: the file holds sound or a cover pict"):
        probe_video(path)


def test_sound_alone_is_no_video_and_says_so(tmp_path):
    path = mux(tmp_path / "song.mp4", sound=True)
    with pytest.raises(DecodeError, match="^no video stream: the file holds sound or subtitles"):
        probe_video(path)


@pytest.mark.parametrize(
    ("small", "large", "chosen"), [(0, 0, "large"), (DEFAULT, 0, "small"), (0, DEFAULT, "large")]
)
def test_of_several_videos_the_default_is_taken_and_else_the_largest(
    tmp_path, small, large, chosen
):
    """As the ffmpeg program does; mkv, since mp4 marks one of them default by itself."""
    path = mux(
        tmp_path / "two.mkv",
        ("libx264", 80, 20, 64, Disposition(small)),
        ("libx264", 200, 10, 128, Disposition(large)),
    )
    assert probe_video(path).frames == {"small": 20, "large": 10}[chosen]


def test_a_video_of_pictures_is_a_video(tmp_path):
    path = mux(tmp_path / "a.mkv", ("mjpeg", 80, 20, 64, DEFAULT))
    assert len(frame_times(path)) == 20


def test_a_video_whose_codec_is_unknown_says_so(tmp_path):
    path = mux(tmp_path / "a.avi", ("mpeg4", 80, 20, 64, DEFAULT))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(DecodeError, match="^undecodable: ffmpeg has no decoder for its video$"):
        probe_video(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.flv"])
def test_titles_that_are_not_utf8_do_not_matter(tmp_path, name):
    """Of the file, of its stream and of a chapter, as far as the container has them."""
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "titl1___"
        stream = container.add_stream("flv" if name == "a.flv" else "mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["title"] = stream.metadata["handler_name"] = "titl2___"
        if path.suffix in (".mp4", ".mov", ".mkv"):
            chapter = {"id": 1, "start": 0, "end": 16, "time_base": Fraction(1, 16)}
            container.set_chapters([{**chapter, "metadata": {"title": "titl3___"}}])
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"titl1___" in content
    for number in b"123":
        title = b"titl%c___" % number
        content = content.replace(title, title[:5] + NOT_UTF8)
    path.write_bytes(content)
    assert probe_video(path).frames == 20
    assert len(frame_times(path)) == 20
