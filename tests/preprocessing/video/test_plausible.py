"""A few frames are never taken for hours of video, and a slide show is taken for one."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from preprocessing.admission.clips import Clip, cut_clips
from preprocessing.sources.folder import find_sources
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import Probe, frame_times, probe_video
from preprocessing.video.plausible import LONGEST_FRAME_S, Timeline, why_implausible, why_too_still
from preprocessing.video.timing import Timing

YEAR_MS = 365 * 86_400_000


def grey(count):
    return [np.full((48, 64, 3), 16 + index % 200, np.uint8) for index in range(count)]


@pytest.fixture
def stamped(tmp_path, write_frames):
    """stamped(stamps_ms): a video of frames at these times."""

    def write(stamps_ms, name="stamped.mkv"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        return write_frames(tmp_path / "videos" / name, grey(len(stamps_ms)), stamps_ms)

    return write


@pytest.mark.parametrize(
    ("stamps_ms", "said"),
    [
        ([0, 40, 80, 30 * YEAR_MS], r"one frame would be shown for 946,079,999.92 s, at most 120"),
        ([0, 40, 80, 121_000], "one frame would be shown for 120.92 s, at most 120 s"),
        ([index * 60_000 for index in range(9)], "9 frames would last 480.0. s, at most 30 s each"),
    ],
)
def test_frames_far_apart_are_no_video(stamped, stamps_ms, said):
    path = stamped(stamps_ms)
    for look in (probe_video, frame_times):
        with pytest.raises(DecodeError, match=f"^implausible times: .*{said}"):
            look(path)


def test_a_video_of_years_is_set_aside_with_its_reason_and_costs_nobody_else(
    admit_folder, folder, stamped, processes
):
    stamped([0, 40, 80, 30 * YEAR_MS], "years.mkv")
    admission = admit_folder()
    (refused,) = (video for video in admission.videos if not video.is_accepted)
    assert refused.name == "years.mkv"
    assert refused.reason.startswith("implausible times: one frame would be shown for 946,079,999")
    assert refused.reason.endswith("write its time stamps anew, or cut it")
    assert admission.seconds == 15.0


def test_an_index_that_claims_days_is_no_video(counting_video):
    """The mp4's one entry of 8 frames lasts 2^31 ticks each instead of an eighth of a second."""
    path = counting_video("days.mp4", frames=8, fps=8, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    stts = content.index(b"stts")
    assert struct.unpack_from(">II", content, stts + 8) == (1, 8)
    struct.pack_into(">I", content, stts + 16, 2**31 - 1)
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="^implausible times"):
        probe_video(path)


def test_a_slide_show_of_a_picture_every_ten_seconds_is_used(admit_folder, folder, stamped):
    stamped([10_000 * index for index in range(12)], "slides.mkv")
    stamped([0, 40, 80, 60_000, 60_040, 60_080], "pause.mkv")
    reports = {video.name: video for video in admit_folder(clip_seconds=8.0).videos}
    assert reports["slides.mkv"].is_accepted, reports["slides.mkv"].reason
    assert reports["slides.mkv"].probe.duration_s == pytest.approx(110.04)
    assert reports["slides.mkv"].too_slow_for == ("motion", "upscaler")
    assert reports["pause.mkv"].is_accepted, reports["pause.mkv"].reason


def test_a_video_that_would_be_cut_into_copies_of_stills_is_set_aside(
    admit_folder, folder, stamped
):
    windows = {"image": (1, (1,))}
    stamped([10_000 * index for index in range(12)], "slides.mkv")
    reports = {v.name: v for v in admit_folder(windows=windows, clip_seconds=0.5).videos}
    assert reports["slides.mkv"].reason == (
        "too still: 12 frames in 110.04 s would be more than 10 clips of 0.5 s per frame, copies "
        "of one still; set video.clip_seconds to at least 0.917"
    )
    reports = {v.name: v for v in admit_folder(windows=windows, clip_seconds=0.917).videos}
    assert reports["slides.mkv"].is_accepted, "what it says to do is right"


def test_clips_are_never_cut_from_what_the_admission_refuses(stamped, tmp_path):
    path = stamped([10_000 * index for index in range(12)])
    (source,) = find_sources(path.parent)
    probe = probe_video(path)
    assert len(cut_clips(source, probe, fps=8, clip_seconds=1.0, min_frames=1)) == 110
    with pytest.raises(AssertionError, match="copies of one still"):
        cut_clips(source, probe, fps=8, clip_seconds=0.9, min_frames=1)


@pytest.mark.parametrize(
    ("timeline", "size", "said"),
    [
        (Timeline(1, 30, 30), 1000, ""),
        (Timeline(1, 30.1, 30.1), 1000, "last 30.10 s, at most 30 s each"),
        (Timeline(100, 3000, 120), 3000, ""),
        (Timeline(100, 3000, 120), 2999, "from 2999 bytes, at most 1 s per byte"),
        (Timeline(10**9, 604_800, 1), 10**9, ""),
        (Timeline(10**9, 604_801, 1), 10**9, "last 604,801.00 s, at most 604,800.00 s"),
        (Timeline(2, Fraction(2**63) * 2**63, 2**63), 10**9, "one frame would be shown for"),
    ],
)
def test_what_is_believed_of_frames_and_bytes(timeline, size, said):
    reason = why_implausible(timeline, size=size)
    assert (said in reason) if said else reason == ""


def test_no_number_of_clips_is_cut_from_a_frame():
    assert why_too_still(frames=3, duration_s=30, clip_seconds=1) == ""
    assert why_too_still(frames=3, duration_s=30.1, clip_seconds=1)
    assert why_too_still(frames=3, duration_s=30, clip_seconds=1e-9)


FACTS = {
    "frames": 50, "duration_s": 2.0, "fps": 25.0, "variable_rate": False, "longest_frame_s": 0.04,
    "width": 64, "height": 48, "codec": "h264", "header_frames": None, "header_fps": None,
    "header_duration_s": None, "warnings": ["damaged"],
}  # fmt: skip
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0}, {"frames": -1}, {"frames": 2**40}, {"frames": 2.5},
        *({"duration_s": value} for value in (0, -1.0, NAN, INFINITY, 1e300, 604_801)),
        *({"longest_frame_s": value} for value in (0, -1, NAN, INFINITY, LONGEST_FRAME_S + 1)),
        *({"fps": value} for value in (0, -25, NAN, INFINITY, 1e12)),
        *({"header_fps": value} for value in (NAN, INFINITY, "fast")),
        *({"header_duration_s": value} for value in (NAN, -INFINITY)),
        {"header_frames": 2**63}, {"width": 0}, {"height": -48}, {"width": 2**40},
        {"codec": "h" * 100}, {"warnings": ["w" * 1000]}, {"warnings": ["w"] * 100},
        {"more": "than there is"},
    ],
)  # fmt: skip
def test_facts_that_cannot_be_are_no_probe(wrong):
    assert Probe.model_validate(FACTS).mean_fps == 25
    with pytest.raises(ValidationError):
        Probe.model_validate(FACTS | wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"frames": -8}, {"start_s": -1}, {"start_s": NAN}, {"fps": INFINITY}],
)
def test_a_clip_that_cannot_be_is_no_clip(wrong):
    clip = {"key": "0" * 16, "source": "a.mp4", "source_digest": "d" * 64}
    clip |= {"start_s": 0.0, "fps": 8.0, "frames": 8, "caption": "", "split": "train"}
    assert Clip.model_validate(clip).times_s()[-1] == 7 / 8
    with pytest.raises(ValidationError):
        Clip.model_validate(clip | wrong)


def test_stamps_at_the_ends_of_their_numbers_are_no_video():
    """64-bit stamps in ticks of nanoseconds to years: nothing overflows."""
    timing = Timing()
    for stamp in (-(2**63), -(2**63) + 1, 2**63 - 1):
        timing.add(stamp)
    usual, is_variable = timing.usual_gap(alone=1)
    duration, longest = timing.span(usual)
    for tick in (Fraction(1, 2**31), Fraction(2**31)):
        reason = why_implausible(Timeline(3, duration * tick, longest * tick), size=10**6)
        assert "one frame would be shown for" in reason
    assert is_variable
