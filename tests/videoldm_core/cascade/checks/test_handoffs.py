"""Handoffs between stages are refused on the table, naming both sides."""

import pytest

from tests.videoldm_core.tables import PRESETS, changed
from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.checks.handoffs import check_handoffs, told_vocabulary
from videoldm_core.cascade.stage import preset
from videoldm_core.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_together(name):
    assert check_handoffs(preset(name)) is None, "no sentence is raised"


def test_a_parent_that_comes_later_is_refused():
    with pytest.raises(UserError, match=r"'image' starts from 'upscaler', which is no stage befo"):
        check_handoffs(changed("tiny", "image", starts_from=("upscaler",)))


def test_a_parent_without_the_needed_part_is_refused():
    with pytest.raises(UserError, match=r"'temporal' needs 'scheduler'.*\(autoencoder\).*vae"):
        check_handoffs(changed("tiny", "temporal", starts_from=("autoencoder",)))


def test_latents_need_the_autoencoder_they_came_from():
    with pytest.raises(UserError, match=r"'upscaler' needs 'vae'.*\(image_upscaler\)"):
        check_handoffs(changed("text_to_video", "upscaler", reads="latents"))


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"strides": (1, 4)}, r"5 frames at strides \[1, 4\]"),
        ({"strides": (8, 4)}, r"5 frames at strides \[8, 4\]"),
        ({"frames": 9}, r"9 frames at strides \[4, 1\]"),
    ],
)
def test_an_interpolator_sees_its_key_frames_coarse_pass_first(fields, seen):
    """Sampling calls the pass over key frames 0: training must have called it so too."""
    expected = rf"'interpolator' is given every 4th frame, but sees {seen}; expected 5 .*\[4, 1\]"
    with pytest.raises(UserError, match=expected):
        check_handoffs(changed("tiny", "interpolator", **fields))


@pytest.mark.parametrize("strides", [(4,), (8, 2)])
def test_an_interpolator_may_make_one_pass_or_end_at_fewer_frames_a_second(strides):
    table = changed("tiny", "interpolator", strides=strides)
    check_handoffs(table)
    assert table.stage("interpolator").strides == strides


def test_an_alpha_per_frame_of_other_clips_is_refused():
    with pytest.raises(
        UserError, match=r"'interpolator' \(per_frame alpha, 5 frames\).*'temporal'.*15 frames"
    ):
        check_handoffs(changed("driving", "interpolator", starts_from=("temporal",)))


def test_another_layout_of_alpha_is_refused():
    table = preset("driving")
    objective = table.stage("predictor").objective.model_copy(update={"alpha": "scalar"})
    with pytest.raises(UserError, match=r"'predictor' \(scalar alpha.*'temporal' \(per_frame"):
        check_handoffs(changed("driving", "predictor", objective=objective))


def test_what_a_stage_is_told_is_its_own_or_inherited():
    table = preset("driving")
    words = Vocabulary(labels=table.labels)
    told = {stage.name for stage in table.stages if told_vocabulary(stage, table) == words}
    assert told == {"image", "temporal", "predictor", "interpolator"}
    assert told_vocabulary(table.stage("upscaler"), table) is None
    assert told_vocabulary(table.stage("decoder"), table) is None, "a decoder reads no tokens"


def test_of_two_parents_the_later_ones_words_are_told():
    boxes = Vocabulary(box_classes=("car",))
    objective = preset("driving").stage("temporal").objective
    table = changed("driving", "temporal", objective=objective.model_copy(update={"tokens": boxes}))
    both = table.stage("predictor").model_copy(update={"starts_from": ("image", "temporal")})
    assert told_vocabulary(both, table) == boxes
    back = both.model_copy(update={"starts_from": ("temporal", "image", "upscaler")})
    assert told_vocabulary(back, table) == told_vocabulary(table.stage("image"), table)


def test_only_single_frames_are_drawn_for_their_boxes():
    image = preset("driving").stage("image")
    boxes = Vocabulary(box_classes=("car",))
    assert image.sees_boxes_only(boxes)
    assert not image.model_copy(update={"frames": 2}).sees_boxes_only(boxes)
    assert not image.sees_boxes_only(Vocabulary(labels=preset("driving").labels))
    assert not image.sees_boxes_only(None)
