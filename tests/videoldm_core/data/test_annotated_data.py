"""Labels and boxes from a store into batches; which frames a stage of boxes draws."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from videoldm_core.cascade.annotations import Box, BoxedFrame, LabelKind, Vocabulary
from videoldm_core.data.loader import Batches, read_batch
from videoldm_core.data.plan import BoxedFrames, Plan, Windows
from videoldm_core.data.store import Store, open_store
from videoldm_core.errors import UserError

from .conftest import latent_clip, write_store

TIME = LabelKind(name="time", values=("day", "night"))
WORDS = Vocabulary(labels=(TIME,), box_classes=("car",), max_boxes=2)
CAR = Box("car", 0.0, 0.25, 0.5, 1.0)


@dataclass
class Clip:
    frames: int
    split: str = "train"
    boxes: tuple[BoxedFrame, ...] = field(default=())
    fps: float = 16
    source_fps: float | None = None


@dataclass
class Clips:
    samples: list[Clip]


def boxed(*frames: int) -> tuple[BoxedFrame, ...]:
    return tuple(BoxedFrame(frame, ()) for frame in frames)


def test_boxes_change_nothing_in_the_plan_of_a_stage_that_is_not_told_them():
    plain, told = (
        Clips([Clip(12), Clip(9, "heldout"), Clip(7, boxes=boxes), Clip(3)])
        for boxes in ((), boxed(1))
    )
    first, second = (
        Plan(Windows(clips, frames=3, strides=(2, 1), split="train"), 4, seed=5)
        for clips in (plain, told)
    )
    assert [first.indices(step) for step in range(8)] == [second.indices(step) for step in range(8)]


def test_a_stage_of_boxes_draws_every_annotated_frame_of_its_split_and_no_other():
    clips = Clips(
        [Clip(9, boxes=boxed(2, 7)), Clip(9), Clip(9, "heldout", boxed(0)), Clip(4, boxes=boxed(3))]
    )
    windows = BoxedFrames(clips, split="train")
    assert [tuple(windows[i]) for i in range(len(windows))] == [
        (0, 2, 1, 0),
        (0, 7, 1, 0),
        (3, 3, 1, 0),
    ]
    assert windows.evenly_spaced(2) == [0, 1]
    drawn = [number for step in range(3) for number in Plan(windows, 2, seed=1).indices(step)]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]


def test_a_split_without_boxes_is_refused():
    with pytest.raises(UserError, match=r"None of the 1 clips of the heldout split has a frame wi"):
        BoxedFrames(Clips([Clip(9, "heldout"), Clip(9, boxes=boxed(1))]), split="heldout")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two clips of 8 frames: one annotated at night with a car in frame 5, one not at all."""
    night, plain = latent_clip(0, 8), latent_clip(1, 8)
    told = {"labels": {"time": "night"}, "boxes": (BoxedFrame(5, (CAR,)), BoxedFrame(6, ()))}
    night = replace(night, info=night.info.model_copy(update=told))
    return open_store(write_store(tmp_path / "store", "latents", [[night, plain]]))


def test_a_batch_tells_labels_of_every_window_and_boxes_of_annotated_frames(store: Store):
    windows = Windows(store, frames=1, strides=(1,), split="train")
    batch = read_batch(store, windows, [4, 5, 6, 8], vocabulary=WORDS)
    assert batch.told is not None
    assert batch.told.labels.tolist() == [[2], [2], [2], [0]]
    assert batch.told.boxes[:, 0, 0].tolist() == [0, 2, 1, 0]
    assert batch.told.boxes[1, 0].tolist() == [2, 0, 0.25, 0.5, 1]


def test_the_boxes_of_a_clip_of_several_frames_are_unknown(store: Store):
    windows = Windows(store, frames=3, strides=(1,), split="train")
    batch = read_batch(store, windows, [5], vocabulary=WORDS)
    assert batch.told is not None
    assert batch.told.labels.tolist() == [[2]]
    assert not batch.told.boxes.any()


def test_without_a_vocabulary_nothing_is_told(store: Store):
    windows = Windows(store, frames=1, strides=(1,), split="train")
    assert read_batch(store, windows, [0]).told is None


def test_batches_read_ahead_tell_the_same(store: Store):
    windows = BoxedFrames(store, split="train")
    plan = Plan(windows, 2, seed=0)
    with Batches(store, plan, vocabulary=WORDS) as batches:
        batch = next(batches)
    expected = read_batch(store, windows, plan.indices(0), vocabulary=WORDS)
    assert batch.told is not None
    assert expected.told is not None
    assert torch.equal(batch.told.boxes, expected.told.boxes)
    assert torch.equal(batch.clip, expected.clip)
