"""Interlaced video: whole pictures stay whole, fields become pictures, at unchanged times."""

import av
import numpy as np
import pytest
import torch

from preprocessing.admission.clips import Clip
from preprocessing.encoding.stores import StoreRequest, encode_pixels
from preprocessing.sources.folder import find_sources
from preprocessing.video.decode import decode_frames, frame_times, probe_video
from preprocessing.video.fields import Deinterlacing, deinterlacing
from videoldm_core.cascade.stage import VideoFormat
from videoldm_core.data.store import open_store
from videoldm_core.errors import UserError
from videoldm_core.records import parse_record
from videoldm_core.system.files import sha256_of_file

HEIGHT, WIDTH = 96, 128
FPS = 25


def moving(count, step=3):
    """Pictures (h w) of a soft texture that moves `step` px to the right in each."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(HEIGHT, WIDTH)))
    down, right = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    texture = np.fft.irfft2(spectrum * np.exp(-120 * (down**2 + right**2)), s=(HEIGHT, WIDTH))
    texture = 128 + 40 * texture / texture.std()
    texture = texture.clip(16, 235).astype(np.uint8)
    return [np.roll(texture, step * number, axis=1) for number in range(count)]


def woven(pictures, first="tff"):
    """Frames of two fields each: of picture 2 i, and of picture 2 i + 1."""
    frames = []
    for early, late in zip(pictures[::2], pictures[1::2], strict=True):
        top, bottom = (early, late) if first == "tff" else (late, early)
        frame = top.copy()
        frame[1::2] = bottom[1::2]
        frames.append(frame)
    return frames


def write(path, pictures, *, codec="libx264", flagged="tff", pix_fmt="yuv420p"):
    """Grey pictures (h w) as frames that are flagged interlaced, or (None) are not."""
    x264 = {"x264-params": f"{flagged}=1" if flagged else "", "crf": "6"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=x264 if codec == "libx264" else {})
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = pix_fmt
        stream.bit_rate, stream.gop_size = 4_000_000, 10
        if flagged:
            stream.codec_context.options = {**x264, "flags": "+ilme+ildct"}
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "gray")
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


def pictures_of(path, numbers, how=None, height=HEIGHT, width=WIDTH):
    times_s = [number / FPS for number in numbers]
    return decode_frames(path, times_s, height=height, width=width, deinterlacing=how)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2))


def is_flagged(path):
    with av.open(str(path)) as container:
        return [frame.interlaced_frame for frame in container.decode(video=0)]


CODECS = [("a.mp4", "libx264"), ("a.mpg", "mpeg2video"), ("a.mkv", "mpeg2video")]


@pytest.mark.parametrize(("name", "codec"), CODECS)
@pytest.mark.parametrize("size", [(40, 56), (150, 200), (HEIGHT, WIDTH)])
def test_whole_pictures_that_are_flagged_interlaced_are_resized_as_pictures(
    tmp_path, name, codec, size
):
    flagged = write(tmp_path / name, moving(12), codec=codec)
    twin = write(tmp_path / f"twin-{name}", moving(12), codec=codec, flagged=None)
    assert all(is_flagged(flagged))
    assert not any(is_flagged(twin))
    probe = probe_video(flagged)
    assert probe.scan == "progressive"
    assert "flagged interlaced, but its frames are whole pictures" in probe.warnings
    height, width = size
    shown = [pictures_of(path, range(12), None, height, width) for path in (flagged, twin)]
    assert psnr(*shown) > 40


def test_frames_that_are_not_flagged_are_not_looked_into(tmp_path):
    path = write(tmp_path / "a.mkv", woven(moving(24)), flagged=None)
    assert (probe_video(path).scan, probe_video(path).warnings) == ("progressive", ())
    plain, asked = (
        pictures_of(path, range(12), how) for how in (None, Deinterlacing("bwdif", "tff"))
    )
    assert np.array_equal(plain, asked)


@pytest.mark.parametrize(("name", "codec"), CODECS)
@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize("method", ["bwdif", "yadif"])
def test_fields_become_whole_pictures_of_the_time_of_the_first(
    tmp_path, name, codec, first, method
):
    truth = moving(24)
    path = write(tmp_path / name, woven(truth, first), codec=codec, flagged=first)
    probe = probe_video(path)
    assert (probe.scan, probe.frames, probe.warnings) == (first, 12, ())
    assert frame_times(path) == pytest.approx(np.arange(12) / FPS, abs=0.001)
    combed = pictures_of(path, range(12))[..., 0]
    whole = pictures_of(path, range(12), deinterlacing(first, method))[..., 0]
    for number in range(1, 11):  # the ends have no neighbour to be made from
        quality = [psnr(whole[number], picture) for picture in truth]
        assert np.argmax(quality) == 2 * number
        assert max(quality) > max(33, psnr(combed[number], truth[2 * number]) + 8)


def test_the_field_order_is_measured_and_not_taken_from_the_flag(tmp_path):
    path = write(tmp_path / "a.mkv", woven(moving(24), "bff"), flagged="tff")
    assert probe_video(path).scan == "bff"


def test_film_in_interlaced_video_counts_as_interlaced(tmp_path):
    """3:2 pulldown: two of five frames are woven from neighbouring pictures."""
    film = moving(24)
    frames = []
    for a, b, c, d in zip(*[iter(film)] * 4, strict=True):
        frames += [a, b, *woven([b, c, c, d]), d]
    assert probe_video(write(tmp_path / "a.mkv", frames)).scan == "tff"


def test_cuts_and_stills_between_whole_pictures_do_not_count_as_interlaced(tmp_path):
    other = [255 - picture.T[:HEIGHT, :].repeat(2, 1)[:, :WIDTH] for picture in moving(40)]
    film = moving(40)
    cut = [(film if number // 4 % 2 else other)[number] for number in range(40)]
    assert probe_video(write(tmp_path / "cuts.mkv", cut)).scan == "progressive"
    assert probe_video(write(tmp_path / "still.mkv", [film[0]] * 20)).scan == "progressive"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_deinterlaced_pictures_do_not_depend_on_where_decoding_began(tmp_path, name):
    path = write(tmp_path / name, woven(moving(200)))
    how = deinterlacing("tff", "bwdif")
    every = pictures_of(path, range(100), how)
    for first in (51, 59, 60, 61, 69, 70, 99):  # a key frame comes every 10
        numbers = range(first, min(100, first + 2))
        assert np.array_equal(pictures_of(path, numbers, how), every[first : first + 2])


def test_a_change_of_picture_size_starts_anew(tmp_path):
    parts = [woven(moving(40))]
    parts.append([np.pad(frame, [(0, 0), (0, 32)], mode="wrap") for frame in parts[0]])
    paths = [write(tmp_path / f"{part[0].shape[1]}.ts", part) for part in parts]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    probe = probe_video(joined)
    assert (probe.scan, probe.frames) == ("tff", 40)
    assert "the picture size changes (2 sizes)" in probe.warnings
    how = deinterlacing("tff", "bwdif")
    first, second = pictures_of(joined, range(20), how), pictures_of(joined, range(20, 40), how)
    assert np.array_equal(first, pictures_of(paths[0], range(20), how))
    assert np.array_equal(second, pictures_of(paths[1], range(20), how))


def test_what_needs_no_deinterlacing_or_shall_have_none_gets_none():
    assert deinterlacing("progressive", "bwdif") is None
    assert deinterlacing("tff", "none") is None
    assert deinterlacing("bff", "yadif") == Deinterlacing("yadif", "bff")


def test_an_unknown_way_to_deinterlace_is_refused():
    values = {"fps": 8, "height": 16, "width": 24, "clip_seconds": 2, "deinterlace": "nnedi"}
    with pytest.raises(UserError, match="deinterlace"):
        parse_record(VideoFormat, values, where="video")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("bwdif", "interlaced, top field first: deinterlaced (bwdif)"),
        ("none", "interlaced, top field first: not deinterlaced, as set"),
    ],
)
def test_the_admission_says_what_becomes_of_an_interlaced_video(
    tmp_path, admit_folder, method, said
):
    (tmp_path / "tv").mkdir()
    write(tmp_path / "tv" / "a.mkv", woven(moving(240)))
    admission = admit_folder(sources=find_sources(tmp_path / "tv"), deinterlace=method)
    assert said in admission.videos[0].notes
    assert {clip.scan for clip in admission.clips} == {"tff"}


class NoText:
    def encode(self, captions):
        return torch.zeros(len(captions), 1, 1)

    def digest(self) -> str:
        return "none"


def test_stores_hold_deinterlaced_pictures_and_are_others_for_another_setting(tmp_path):
    truth = moving(48)
    path = write(tmp_path / "a.mkv", woven(truth))
    clip = Clip(
        key="0" * 16,
        source=path.name,
        source_digest=sha256_of_file(path),
        start_s=0.0,
        fps=FPS,
        frames=20,
        caption="",
        split="train",
        scan=probe_video(path).scan,
    )
    stores, quality = set(), {}
    for method in ("bwdif", "none"):
        video = VideoFormat(
            fps=FPS, height=HEIGHT, width=WIDTH, upscale=1, clip_seconds=1, deinterlace=method
        )
        store = encode_pixels(
            StoreRequest(
                clips=[clip], folder_of_videos=tmp_path, out=tmp_path, video=video, text=NoText()
            )
        )
        stores.add(store)
        opened = open_store(store)
        frames = opened.read_frames(opened.samples[0], range(20))
        quality[method] = psnr(np.asarray(frames[10])[..., 0], truth[20])
    assert len(stores) == 2
    assert quality["bwdif"] > quality["none"] + 8
