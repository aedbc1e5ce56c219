"""How often a video really shows a new frame, and which stages see its motion because of it."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from preprocessing.admission.clips import Clip, cut_clips, hold_out
from preprocessing.encoding.shard import info_of, plan_units
from preprocessing.sources.folder import Source, digest_of_text, find_sources
from preprocessing.video.decode import probe_video
from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.data.plan import BoxedFrames, Windows
from videoldm_core.data.storage import LocalStorage
from videoldm_core.errors import UserError

NTSC = 30_000 / 1001
WORDS = Vocabulary(box_classes=("car",))


@dataclass
class Store:
    """As much of a store as a plan needs."""

    samples: tuple[Clip, ...]


def clips_of(path, *, fps):
    (source,) = (s for s in find_sources(path.parent) if s.path == path)
    return cut_clips(source, probe_video(path), fps=fps, clip_seconds=4, min_frames=1)


@pytest.fixture
def varying(write_frames):
    """varying(path, gaps_ms): a video whose frames stand for so long."""

    def write(path, gaps_ms):
        stamps = np.cumsum([0, *gaps_ms]).tolist()
        frames = np.random.default_rng(0).integers(0, 255, (len(stamps), 48, 64, 3), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_frames(path, frames, stamps)

    return write


@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (NTSC, 30, None),
        (30, 30, None),
        (30, 8, None),
        (24_000 / 1001, 24, None),
        (25, 30, 25.0),
        (10, 30, 10.0),
        (15, 16, 15.0),
    ],
)
def test_clips_know_the_rate_of_a_source_that_is_slower_than_the_store(
    counting_video, rate, fps, expected
):
    clips = clips_of(counting_video(frames=40, fps=rate), fps=fps)
    assert {clip.source_fps for clip in clips} == {expected}
    assert {info_of(clip).source_fps for clip in clips} == {expected}


def test_of_a_variable_rate_the_mean_counts(tmp_path, varying):
    # Most frames come at 30 per second, but the picture stands still for two seconds between them.
    path = varying(tmp_path / "pause.mkv", [33, 33, 34] * 10 + [2000] + [33, 33, 34] * 10)
    probe = probe_video(path)
    assert probe.variable_rate
    assert probe.fps == pytest.approx(30, rel=0.01)
    assert probe.mean_fps == pytest.approx(62 / 4.033, rel=0.01)
    (clip, *_) = clips_of(path, fps=30)
    assert clip.source_fps == round(probe.mean_fps, 3)
    # A wobbling one that is as fast on average keeps up.
    wobbling = varying(tmp_path / "wobble.mkv", [20, 47] * 20)
    assert probe_video(wobbling).variable_rate
    assert {clip.source_fps for clip in clips_of(wobbling, fps=30)} == {None}


def test_ticks_of_a_container_do_not_make_a_source_slow(tmp_path, varying):
    path = varying(tmp_path / "ticks.mkv", [62, 63] * 2)
    assert {clip.source_fps for clip in clips_of(path, fps=16)} == {None}


def windows_of(admission, stage, split):
    """What training makes of the admitted clips."""
    store = Store(admission.clips)
    if stage.needs_boxes:
        return BoxedFrames(store, split=split)
    return Windows(store, frames=stage.frames, strides=stage.strides, split=split)


def test_the_report_counts_exactly_the_windows_that_training_draws_from(
    admit_folder, folder, counting_video, varying, tmp_path
):
    counting_video("slow.mp4", frames=30, fps=4, folder=folder)
    counting_video("ntsc.mp4", frames=40, fps=NTSC / 3, folder=folder)
    varying(folder / "pause.mkv", [125] * 10 + [4000] + [125] * 10)
    boxes = {"frames": [{"time_s": t, "boxes": []} for t in (0, 0.5, 6.5, 7.0)]}
    (folder / "slow.json").write_text(json.dumps(boxes))
    windows = {"image": (1, (1,)), "boxes": (1, (1,)), "motion": (5, (4, 1))}
    admission = admit_folder(
        sources=find_sources(folder, WORDS), windows=windows, boxed=("boxes",), fps=8.0
    )
    assert {clip.source: clip.source_fps for clip in admission.clips} == {
        "good0.mp4": None,
        "good1.mp4": None,
        "good2.mp4": None,
        "ntsc.mp4": None,
        "slow.mp4": 4.0,
        "pause.mkv": pytest.approx(22 / 6.54, abs=0.001),
    }
    for stage in admission.stages:
        assert stage.train_windows == windows_of(admission, stage, "train").counts
        assert stage.heldout_windows == windows_of(admission, stage, "heldout").counts
    stages = {stage.name: stage for stage in admission.stages}
    assert (stages["image"].videos, stages["motion"].videos, stages["boxes"].videos) == (6, 6, 1)
    assert stages["boxes"].train_windows[0] + stages["boxes"].heldout_windows[0] == 4
    assert (stages["image"].needs_fps, stages["motion"].needs_fps) == (0, 8)

    reports = {video.name: video for video in admission.videos}
    assert reports["slow.mp4"].too_slow_for == ("motion at stride 1",)
    assert reports["slow.mp4"].without_boxes_for == ()
    assert reports["pause.mkv"].too_slow_for == ("motion at stride 1",)
    assert reports["ntsc.mp4"].too_slow_for == reports["good0.mp4"].too_slow_for == ()
    assert reports["ntsc.mp4"].without_boxes_for == ("boxes",)
    page = (tmp_path / "out" / "admission.html").read_text()
    assert page.count("too slow (4 frames/s) for motion at stride 1") == 1
    assert page.count("without boxes for boxes") == 5
    assert "2.12 s of 8 frames/s" in page


def test_a_video_too_slow_for_every_stride_of_a_stage_is_named_once(
    admit_folder, folder, counting_video
):
    counting_video("slow.mp4", frames=5, fps=1, folder=folder)
    reports = {video.name: video for video in admit_folder().videos}
    assert reports["slow.mp4"].too_slow_for == ("motion", "upscaler")
    assert reports["slow.mp4"].unseen_by == ()


def test_a_stage_that_only_slow_videos_are_left_for_is_named_before_anything_is_encoded(
    admit_folder, folder, counting_video
):
    for index in range(3):
        counting_video(f"good{index}.mp4", frames=25 + index, fps=5, folder=folder)
    with pytest.raises(
        UserError,
        match=r"Stage 'motion' would see no training window that shows motion: 5 frames at stride "
        r"1 need videos of 8 frames/s, and the fastest that is long enough has 5, so that frames "
        r"would repeat; add videos of 8 frames/s, set video.fps to 5, or choose larger strides for "
        r"this stage \(see '.*admission.html'\)",
    ):
        admit_folder()
    assert admit_folder(fps=5.0, clip_seconds=4).accepted == 3, "what it says to do is right"


def test_a_stage_of_boxes_without_any_is_named_before_anything_is_encoded(admit_folder, folder):
    with pytest.raises(
        UserError,
        match=r"Stage 'image' would see no training frame: it learns from frames with boxes, and "
        r"none of the 3 training clips has any; put boxes into NAME.json beside more videos",
    ):
        admit_folder(boxed=("image",))
    # All at the start of one video, whose last part is held out.
    (folder / "good0.json").write_text(json.dumps({"frames": [{"time_s": 0.5, "boxes": []}]}))
    with pytest.raises(UserError, match=r"'image' would see no held-out frame: .*last part \(1/5"):
        admit_folder(sources=find_sources(folder, WORDS), boxed=("image",))


@pytest.mark.parametrize("names", range(8))
def test_of_slow_and_fast_videos_fast_ones_are_held_out(tmp_path, counting_video, names):
    slow = probe_video(counting_video("slow.mp4", frames=20, fps=4))
    fast = probe_video(counting_video("fast.mp4", frames=40, fps=8))

    def videos(count, probe, kind):
        digests = [digest_of_text(f"{names} {kind} {i}") for i in range(count)]
        told = {"path": tmp_path, "size": 1, "caption": ""}
        return [(Source(name=f"{kind} {d}", digest=d, **told), probe) for d in digests]

    def held(some, longest):
        chosen = hold_out(some, fps=8, longest_window=longest, needed_fps=8.0)
        return [s.name.split()[0] for s, _ in some if s.digest in chosen.whole]

    # Too short to be divided: one whole video, and it must be one that every stage can read.
    assert held(videos(4, slow, "slow") + videos(2, fast, "fast"), 40) == ["fast"]
    many = held(videos(20, slow, "slow") + videos(4, fast, "fast"), 17)
    assert 1 <= many.count("fast") <= 2, "both splits have fast ones"


def test_a_clip_whose_rate_becomes_known_is_encoded_anew(tmp_path, counting_video):
    (clip,) = clips_of(counting_video(frames=20, fps=5), fps=8)
    before = clip.model_copy(update={"source_fps": None})
    storage = LocalStorage(tmp_path / "store")
    for _ in range(2):
        (unit,) = plan_units([before], storage, clips_per_shard=2)
    (again,) = plan_units([clip], storage, clips_per_shard=2)
    assert (unit.shard, again.shard) == ("shard-000000", "shard-000001")
    assert again.clips[0].source_fps == 5.0
