"""Words become numbers, and what a request asks for is refused by name or told."""

import pytest
import torch
from pydantic import ValidationError

from videoldm_core.cascade.annotations import Box, GivenBox, LabelKind, Vocabulary
from videoldm_core.diffusion.labels_boxes import (
    check_request,
    nothing_told,
    told_of,
    told_of_request,
)
from videoldm_core.errors import UserError

TIME = LabelKind(name="time", values=("day", "night"))
CROWD = LabelKind(name="crowdedness", values=("low", "high"))
WORDS = Vocabulary(labels=(TIME, CROWD), box_classes=("car", "bus"), max_boxes=3)
LABELS_ONLY = Vocabulary(labels=(TIME,))


def box(name: str = "car", *sides: float) -> GivenBox:
    return GivenBox.model_validate({"class": name, "box": sides or (0.0, 0.0, 0.5, 0.5)})


def test_labels_are_numbered_from_one_and_unknown_is_zero():
    told = told_of(WORDS, [({"crowdedness": "high"}, None), ({"time": "day"}, ())])
    assert told.labels.tolist() == [[0, 2], [1, 0]]
    assert told.labels.dtype == torch.int64


def test_unknown_boxes_no_boxes_and_boxes_are_three_things():
    bus = Box("bus", 0.25, 0.0, 0.5, 1.0)
    told = told_of(WORDS, [({}, None), ({}, ()), ({}, (bus,))])
    assert told.boxes.dtype == torch.float32
    assert told.boxes[0].tolist() == [[0.0] * 5] * 3
    assert told.boxes[1].tolist() == [[1.0, 0, 0, 0, 0]] * 3
    assert told.boxes[2].tolist() == [[3.0, 0.25, 0, 0.5, 1.0], *[[1.0, 0, 0, 0, 0]] * 2]


def test_of_too_many_boxes_the_largest_are_told():
    boxes = [Box("car", 0.0, 0.0, side / 10, 1.0) for side in (3, 9, 1, 5)]
    told = told_of(WORDS, [({}, boxes)])
    assert sorted(told.boxes[0, :, 3].tolist()) == pytest.approx([0.3, 0.5, 0.9])


def test_a_model_is_told_only_the_words_it_has():
    told = told_of(
        LABELS_ONLY, [({"time": "night", "crowdedness": "low"}, (Box("x", 0, 0, 1, 1),))]
    )
    assert told.labels.tolist() == [[2]]
    assert told.boxes.shape == (1, 0, 5)
    told = told_of(Vocabulary(box_classes=("bus",)), [({}, (Box("car", 0, 0, 1, 1),))])
    assert told.labels.shape == (1, 0)
    assert told.boxes[0, 0, 0] == 1


def test_a_store_with_another_value_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'nigh' of label 'time'; did you mean 'night'\?"):
        told_of(WORDS, [({"time": "nigh"}, None)])


def test_dropping_makes_labels_and_boxes_of_a_clip_unknown_apart():
    told = told_of(WORDS, [({"time": "day"}, ())] * 4)
    some = told.without(
        torch.tensor([[1], [1], [0], [0]]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    )
    nothing = nothing_told(WORDS, 4)
    assert some.labels.eq(nothing.labels).all(dim=1).tolist() == [True, True, False, False]
    assert some.boxes.eq(nothing.boxes).flatten(1).all(dim=1).tolist() == [True, False, True, False]


def test_a_request_is_told_as_a_clip_is():
    asked = told_of_request(WORDS, {"time": "night"}, [box("bus", 0, 0, 1, 0.5)])
    clip = told_of(WORDS, [({"time": "night"}, (Box("bus", 0, 0, 1, 0.5),))])
    assert torch.equal(asked.labels, clip.labels)
    assert torch.equal(asked.boxes, clip.boxes)
    assert told_of_request(WORDS, {}, []).boxes[0, 0, 0] == 1
    assert told_of_request(WORDS, {}, None).boxes.eq(0).all()


@pytest.mark.parametrize(
    ("labels", "boxes", "said"),
    [
        ({"tim": "day"}, None, r"unknown label 'tim'; did you mean 'time'\?"),
        ({"time": "nite"}, None, r"unknown value 'nite' of label 'time'; did you mean 'night'\?"),
        ({}, [box("cat")], r"unknown class 'cat' of a box; did you mean 'car'\?"),
        ({}, [box()] * 4, r"4 boxes are more than the 3 that this model can be told"),
    ],
)
def test_a_request_with_unknown_words_is_refused_with_the_nearest(labels, boxes, said):
    with pytest.raises(UserError, match=rf"the request: {said}"):
        told_of_request(WORDS, labels, boxes)


def test_a_request_of_what_no_model_is_told_is_refused():
    check_request([None, WORDS], {"time": "day"}, [box()])
    check_request([None], {}, None)
    with pytest.raises(UserError, match=r"label 'time', but none of these models was trained with"):
        check_request([None], {"time": "day"}, None)
    with pytest.raises(UserError, match=r"names 1 boxes, but none of these models"):
        check_request([None, LABELS_ONLY], {}, [box()])


@pytest.mark.parametrize(
    "sides", [(0, 0, 0, 1), (0, 1, 1, 0), (0, 0, 1.1, 1), (0, 0, float("nan"), 1)]
)
def test_a_box_has_an_area_within_the_frame(sides):
    with pytest.raises(ValidationError):
        box("car", *sides)


def test_a_box_is_written_as_it_is_read():
    one = box("bus", 0, 0.25, 1, 0.5)
    assert GivenBox.model_validate_json(one.model_dump_json()) == one
    assert GivenBox.model_validate_json(one.model_dump_json(by_alias=True)) == one


@pytest.mark.parametrize(
    "words",
    [
        {"labels": [{"name": "time", "values": ["day", "day"]}]},
        {"labels": [{"name": "time", "values": []}]},
        {"labels": [TIME, TIME]},
        {"box_classes": ["car", "car"]},
        {"max_boxes": 0},
    ],
)
def test_words_are_named_once(words):
    with pytest.raises(ValidationError):
        Vocabulary.model_validate(words)


def test_a_vocabulary_holds_another_with_the_same_values_in_the_same_order():
    assert WORDS.holds(LABELS_ONLY)
    assert not LABELS_ONLY.holds(WORDS)
    turned = LabelKind(name="time", values=("night", "day"))
    assert not WORDS.holds(Vocabulary(labels=(turned,)))
