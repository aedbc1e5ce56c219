"""Labels and boxes on their way from a video's sidecar into clips and shards."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from preprocessing.admission.clips import Clip, boxed_frames, cut_clips, with_boxes_in_crop
from preprocessing.encoding.shard import (
    build_shard,
    finished_units,
    info_of,
    plan_units,
    write_index,
)
from preprocessing.sources.folder import Source, find_sources
from preprocessing.sources.sidecars import TimedBoxes
from preprocessing.video.decode import Probe, decode_frames, probe_video
from preprocessing.video.fit import box_in_crop
from videoldm_core.cascade.annotations import Box, BoxedFrame, LabelKind, Vocabulary
from videoldm_core.data.shards import ClipInfo, LatentClip, StoreIdentity, from_members, to_members
from videoldm_core.data.storage import LocalStorage
from videoldm_core.data.store import open_store

CAR = Box("car", 0.25, 0.5, 0.75, 1.0)
IDENTITY = StoreIdentity(
    kind="latents", encoder="e", preprocessing="p", fps=16, height_px=8, width_px=8, text="t"
)


def source(*times_s: float) -> Source:
    return Source(
        name="a.mp4",
        path=Path("a.mp4"),
        size=1,
        digest="d",
        caption="",
        labels={"time": "night"},
        frames=tuple(TimedBoxes(t, (CAR,)) for t in times_s),
    )


def probe(seconds: float, size: tuple[int, int] = (64, 48)) -> Probe:
    return Probe(
        frames=round(8 * seconds),
        duration_s=seconds,
        fps=8,
        variable_rate=False,
        longest_frame_s=1 / 8,
        width=size[0],
        height=size[1],
        codec="h264",
        header_frames=None,
        header_fps=None,
        header_duration_s=None,
    )


def cut(a_source: Source, seconds: float = 4) -> list[Clip]:
    return cut_clips(a_source, probe(seconds), fps=8, clip_seconds=2, min_frames=1)


def test_every_clip_has_the_labels_and_the_boxes_of_its_own_frames():
    first, second = cut(source(0.0, 0.26, 2.0, 3.9))
    assert first.labels == second.labels == {"time": "night"}
    assert [boxed.frame for boxed in first.boxes] == [0, 2]
    assert [boxed.frame for boxed in second.boxes] == [0, 15]
    assert second.boxes[0] == BoxedFrame(0, (CAR,))


def test_a_time_between_two_clips_belongs_to_one_of_them():
    for step in range(33):
        time_s = 1.8 + step / 80
        frames = [boxed.frame for clip in cut(source(time_s)) for boxed in clip.boxes]
        assert len(frames) == 1


def test_of_two_times_near_one_frame_the_nearer_counts():
    (clip, _) = cut(source())
    near, far = Box("car", 0.0, 0.0, 0.5, 0.5), Box("bus", 0.0, 0.0, 1.0, 1.0)
    for timed in (
        [TimedBoxes(0.95, (far,)), TimedBoxes(1.01, (near,))],
        [TimedBoxes(0.99, (near,)), TimedBoxes(1.05, (far,))],
    ):
        assert boxed_frames(timed, clip) == (BoxedFrame(8, (near,)),)


def test_a_frame_without_things_stays_an_annotated_frame():
    nothing = source().model_copy(update={"frames": (TimedBoxes(1.0, ()),)})
    assert cut(nothing)[0].boxes == (BoxedFrame(8, ()),)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0.5, 0.0, 0.75, 0.5), (0.5, 0.0, 1.0, 0.5)),  # 2:1 cut to its middle square
        ((0.25, 0.0, 0.75, 1.0), (0.0, 0.0, 1.0, 1.0)),
        ((0.0, 0.2, 0.5, 0.4), (0.0, 0.2, 0.5, 0.4)),  # cut at the left edge
        ((0.0, 0.0, 0.25, 1.0), None),  # ends where the crop begins
        ((0.8, 0.0, 1.0, 1.0), None),
    ],
)
def test_boxes_are_cropped_and_left_out_as_frames_are(box, inside):
    found = box_in_crop(Box("car", *box), (200, 100), height=50, width=50)
    assert (found and tuple(found[1:])) == (inside and pytest.approx(inside))


@pytest.mark.parametrize("size", [(120, 48), (48, 120), (63, 41), (128, 96)])
@pytest.mark.parametrize("target", [(40, 64), (48, 48)])
def test_a_box_surrounds_in_the_cropped_frame_what_it_surrounds_in_the_video(
    tmp_path, write_frames, size, target
):
    width, height = size
    x0, y0, x1, y1 = (
        round(0.3 * width),
        round(0.2 * height),
        round(0.6 * width),
        round(0.7 * height),
    )
    frame = np.zeros((height, width, 3), np.uint8)
    frame[y0:y1, x0:x1] = 255
    path = write_frames(tmp_path / "a.mkv", [frame] * 2, [0, 100])
    (shown,) = decode_frames(path, [0.0], height=target[0], width=target[1])
    rows, columns = np.nonzero(shown[..., 0] > 127)
    seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    box = Box("car", x0 / width, y0 / height, x1 / width, y1 / height)
    facts = probe_video(path)
    moved = box_in_crop(box, (facts.width, facts.height), height=target[0], width=target[1])
    assert moved is not None
    sides = (target[1], target[0]) * 2
    expected = [share * side for share, side in zip(moved[1:], sides, strict=True)]
    assert seen == pytest.approx(expected, abs=1.0)


def test_admission_puts_cropped_boxes_into_clips_and_says_so(folder, admit_folder):
    said = {
        "labels": {"time": "night"},
        "frames": [{"time_s": 0.5, "boxes": [{"class": "car", "box": [0, 0, 1, 1]}]}],
    }
    (folder / "good0.json").write_text(json.dumps(said))
    words = Vocabulary(
        labels=(LabelKind(name="time", values=("day", "night")),), box_classes=("car",)
    )
    admission = admit_folder(sources=find_sources(folder, words))
    clips = [clip for clip in admission.clips if clip.source == "good0.mp4"]
    assert {clip.labels["time"] for clip in clips} == {"night"}
    assert [clip.boxes for clip in clips if clip.boxes] == [
        (BoxedFrame(4, (Box("car", 0.0, 0.0, 1.0, 1.0),)),)
    ]
    assert not any(clip.labels for clip in admission.clips if clip.source != "good0.mp4")
    notes = {video.name: video.notes for video in admission.videos}
    assert "labels: time night" in notes["good0.mp4"]
    assert "boxes in 1 frames, 1 of them frames of clips" in notes["good0.mp4"]


def test_boxes_are_moved_once_for_all_clips_of_a_video():
    wide = with_boxes_in_crop(source(1.0), probe(4, size=(96, 24)), height=24, width=48)
    assert wide.frames == (TimedBoxes(1.0, (Box("car", 0.0, 0.5, 1.0, 1.0),)),)
    assert with_boxes_in_crop(source(), probe(4), height=24, width=32) == source()


def clip(number: int, **told) -> Clip:
    return Clip(
        key=f"{number:016x}",
        source=f"{number}.mp4",
        source_digest="d",
        start_s=0,
        fps=16,
        frames=4,
        caption="a car",
        split="train",
        **told,
    )


def encode(clips: list[Clip], folder: Path) -> dict[str, str]:
    """Makes a store; the digest of every file."""

    def make(some):
        for place, one in enumerate(some):
            number = int(one.key, 16)
            yield (
                place,
                LatentClip(
                    info=info_of(one),
                    latents=np.full((4, 2, 3, 3), number, np.float16),
                    text=np.ones((2, 2), np.float16),
                ),
            )

    storage = LocalStorage(folder)
    units = plan_units(clips, storage, clips_per_shard=2)
    done = finished_units(units, storage, IDENTITY)
    for unit in units:
        if unit.shard not in done:
            build_shard(unit, storage=storage, identity=IDENTITY, make=make)
    write_index(clips, units, storage, IDENTITY)
    files = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def test_a_store_without_annotations_has_the_bytes_it_had_before_there_were_any(tmp_path):
    # Digests of what the code before labels and boxes wrote from the same clips.
    assert encode([clip(i) for i in range(3)], tmp_path) == {
        "index.json": "67868c658ca5b96d",
        "plan.json": "af7ac1dbe7072728",
        "quarantine.json": "4f53cda18c2baa0c",
        "shard-000000.json": "17bab7fea7dabb17",
        "shard-000000.tar": "b748143744267c88",
        "shard-000001.json": "594b8cea59c9d216",
        "shard-000001.tar": "8c7547d879e57882",
    }


def test_a_store_keeps_labels_and_boxes(tmp_path):
    boxes = (BoxedFrame(1, (CAR,)), BoxedFrame(3, ()))
    encode([clip(0, labels={"time": "day"}, boxes=boxes), clip(1)], tmp_path)
    told, untold = open_store(tmp_path).samples
    assert (told.labels, told.boxes) == ({"time": "day"}, boxes)
    assert (untold.labels, untold.boxes) == ({}, ())


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": {"time": "night"}},
        {"labels": {"time": "day"}, "boxes": (BoxedFrame(1, (CAR,)),)},
        {},
    ],
)
def test_a_changed_annotation_is_a_new_sample_and_retires_the_old(tmp_path, changed):
    encode([clip(0, labels={"time": "day"}), clip(1)], tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in ("shard-000000.tar",)}
    clips = [clip(0, **changed), clip(1)]
    encode(clips, tmp_path)
    found = {sample.key: sample for sample in open_store(tmp_path).samples}
    assert len(open_store(tmp_path).samples) == 2
    assert found[clips[0].key].labels == changed.get("labels", {})
    assert found[clips[0].key].boxes == changed.get("boxes", ())
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == before["shard-000000.tar"]
    assert set(encode(clips, tmp_path)) == {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "shard-000002.tar").exists()


def test_a_sample_can_be_taken_apart_and_put_together():
    info = info_of(clip(0, labels={"time": "day"}, boxes=(BoxedFrame(0, (CAR,)),)))
    assert isinstance(info, ClipInfo)
    arrays = {"latents": np.ones((4, 2, 3, 3), np.float16), "text": np.ones((2, 2), np.float16)}
    back = from_members(to_members(LatentClip(info=info, **arrays)))
    assert back.info == info
    assert hash(back.info) == hash(info)
    plain = json.loads(to_members(LatentClip(info=info_of(clip(0)), **arrays))["json"])
    assert not {"labels", "boxes"} & set(plain)
