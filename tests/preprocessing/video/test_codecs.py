"""Only decoders of footage see strangers' files; of other codecs the admission says which."""

import av
import numpy as np
import pytest

from preprocessing.video.codecs import DECODERS
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import decode_frames, probe_video


@pytest.fixture
def coded(tmp_path):
    """coded(name, encoder, pixels): a video of 6 frames."""

    def write(name, encoder, pixels="yuv420p", size=(128, 96)):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            for level in range(6):
                grey = np.full((size[1], size[0], 3), 40 * level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.mark.parametrize(
    ("name", "encoder", "pixels", "codec"),
    [
        ("a.mp4", "libx264", "yuv420p", "h264"),
        ("a.mp4", "libx265", "yuv420p", "hevc"),
        ("a.mkv", "libvpx", "yuv420p", "vp8"),
        ("a.webm", "libvpx-vp9", "yuv420p", "vp9"),
        ("a.mp4", "mpeg4", "yuv420p", "mpeg4"),
        ("a.mpg", "mpeg1video", "yuv420p", "mpeg1video"),
        ("a.ts", "mpeg2video", "yuv420p", "mpeg2video"),
        ("a.mov", "prores_ks", "yuv422p10le", "prores"),
        ("a.mov", "qtrle", "rgb24", "qtrle"),
        ("a.mov", "png", "rgb24", "png"),
        ("a.avi", "mjpeg", "yuvj420p", "mjpeg"),
        ("a.avi", "huffyuv", "yuv422p", "huffyuv"),
        ("a.avi", "msmpeg4", "yuv420p", "msmpeg4"),
        ("a.avi", "rawvideo", "yuv420p", "rawvideo"),
        ("a.avi", "utvideo", "yuv420p", "utvideo"),
        ("a.mkv", "ffv1", "yuv420p", "ffv1"),
        ("a.mkv", "libtheora", "yuv420p", "theora"),
        ("a.flv", "flv", "yuv420p", "flv"),
        ("a.wmv", "wmv2", "yuv420p", "wmv2"),
        ("a.gif", "gif", "rgb8", "gif"),
    ],
)
def test_footage_is_read(coded, name, encoder, pixels, codec):
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {encoder!r} to make the video with")
    path = coded(name, encoder, pixels)
    probe = probe_video(path)
    assert (probe.codec, probe.width, probe.height) == (codec, 128, 96)
    assert probe.codec in DECODERS
    assert decode_frames(path, [0.1], height=96, width=128).shape == (1, 96, 128, 3)


@pytest.mark.parametrize(
    ("name", "encoder", "pixels", "codec"),
    [
        ("a.avi", "zmbv", "bgr0", "zmbv"),
        ("a.avi", "cljr", "yuv411p", "cljr"),
        ("a.mkv", "snow", "yuv420p", "snow"),
        ("a.mov", "rpza", "rgb555le", "rpza"),
    ],
)
def test_another_codec_is_named(coded, name, encoder, pixels, codec):
    path = coded(name, encoder, pixels)
    for look in (probe_video, lambda path: decode_frames(path, [0.0], height=96, width=128)):
        with pytest.raises(
            DecodeError, match=f"^codec not read: codec {codec} is not read; re-encode it as H.264$"
        ):
            look(path)


def test_a_codec_that_does_not_exist_costs_only_its_video(admit_folder, folder, coded, processes):
    path = coded("known.mkv", "libx264")
    content = path.read_bytes()
    assert b"V_MPEG4/ISO/AVC" in content
    (folder / "unknown.mkv").write_bytes(content.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/AVX"))
    (folder / "old.avi").write_bytes(coded("old.avi", "zmbv", "bgr0").read_bytes())
    admission = admit_folder()
    assert admission.accepted == 3
    reasons = {video.name: video.reason for video in admission.videos if not video.is_accepted}
    assert reasons == {
        "unknown.mkv": "undecodable: ffmpeg has no decoder for its video",
        "old.avi": "codec not read: codec zmbv is not read; re-encode it as H.264",
    }


def test_every_decoder_that_is_named_exists():
    assert set(av.codecs_available) >= DECODERS
