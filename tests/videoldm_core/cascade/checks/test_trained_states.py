"""No request puts a model into a state that its training never shows, whatever kind it is of."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.videoldm_core.tables import PRESETS
from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.cascade.checks.handoffs import told_vocabulary
from videoldm_core.cascade.checks.trained_states import Inputs, check_states
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.cascade.stage import Stage, preset
from videoldm_core.diffusion.conditioning import FirstFrames, KeyFrames
from videoldm_core.errors import UserError
from videoldm_core.sampling.guidance import Guidance

OFF = {"guidance": Guidance(), "interpolation_guidance": Guidance(), "upscale_guidance": 1.0}
TEXT, CONTEXT = Guidance(text=2.0), Guidance(context=1.5)
LABELS = {"time": "night", "crowdedness": "low"}
WORDS = Vocabulary(
    labels=(
        LabelKind(name="time", values=("day", "night")),
        LabelKind(name="crowdedness", values=("low", "high")),
    )
)
BOXES = Vocabulary(box_classes=("car",))


def roles_of(name: str, role: str = "", **objective: Any) -> dict[str, Stage]:
    """The stages of a preset by role, one of them with another objective."""
    table = preset(name)
    named = table.roles.model_dump(exclude_none=True)
    roles = {each: table.stage(stage) for each, stage in named.items()}
    if role:
        changed = roles[role].objective.model_copy(update=objective)
        roles[role] = roles[role].model_copy(update={"objective": changed})
    return roles


def check(
    roles: dict[str, Stage],
    words: Mapping[str, Vocabulary | None] | None = None,
    inputs: Inputs | None = None,
    **sampling: Any,
) -> None:
    check_states(roles, words or {}, inputs or Inputs(), SamplingConfig(**OFF | sampling))


@pytest.mark.parametrize("inputs", [Inputs(), Inputs(prompt="x", labels={"time": "day"})])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_what_any_guidance_starts_from(name, inputs):
    table, both = preset(name), Guidance(text=3.0, context=2.0)
    roles = roles_of(name)
    words = {role: told_vocabulary(stage, table) for role, stage in roles.items()}
    guided = {"guidance": both, "interpolation_guidance": both, "upscale_guidance": 9.0}
    assert check(roles, words, inputs, **guided) is None, "no sentence is raised"


@pytest.mark.parametrize(
    ("role", "setting", "value", "said"),
    [
        ("first_frame", "guidance", TEXT, "guidance.text = 2"),
        ("key_frames", "guidance", TEXT, "guidance.text = 2"),
        ("interpolator", "interpolation_guidance", TEXT, "interpolation_guidance.text = 2"),
        ("upscaler", "upscale_guidance", 9.0, "upscale_guidance = 9"),
    ],
)
def test_text_guidance_of_a_model_that_never_saw_the_empty_text_is_refused(
    role, setting, value, said
):
    roles = roles_of("tiny", role, text_dropout=0.0)
    name = roles[role].name
    check(roles)
    check(roles_of("tiny", role, text_dropout=0.01), **{setting: value})
    with pytest.raises(UserError) as refused:
        check(roles, **{setting: value})
    assert str(refused.value) == (
        f"sampling.{said} starts from the empty text, but the stage {name!r} is never trained so "
        f"(stages.{name}.objective.text_dropout = 0): raise that above 0 and train it, or set the "
        "guidance to 1."
    )


@pytest.mark.parametrize("guidance", [CONTEXT, TEXT, Guidance(text=2.0, context=1.0)])
def test_interpolation_guidance_without_windows_of_no_key_frames_is_refused(guidance):
    """Text guidance too, for it predicts without the given frames."""
    roles = roles_of("tiny", "interpolator", given=KeyFrames(dropout=0.0))
    check(roles)
    check(roles_of("tiny"), interpolation_guidance=guidance)
    sentence = (
        f"interpolation_guidance of text {guidance.text:g} and context {guidance.context:g} also "
        r"gives the interpolator no key frames, .*stages.interpolator.objective.given.dropout = 0\)"
    )
    with pytest.raises(UserError, match=sentence):
        check(roles, interpolation_guidance=guidance)


@pytest.mark.parametrize(
    ("weights", "guidance", "sentence"),
    [
        ((0.5, 0.5, 0.0), Guidance(), "Every call after its first gives the key-frame model 2 fra"),
        ((0.5, 0.0, 0.5), Guidance(), "Its first call gives the key-frame model 1 frames, but the"),
        ((0.0, 0.5, 0.5), CONTEXT, "guidance of text 1 and context 1.5 also gives .* 0 frames"),
        ((0.0, 0.5, 0.5), TEXT, "guidance of text 2 and context 1 also gives .* 0 frames, but"),
    ],
)
def test_numbers_of_given_frames_that_p_s_never_draws_are_refused(weights, guidance, sentence):
    roles = roles_of("tiny", "key_frames", given=FirstFrames(weights=weights))
    with pytest.raises(UserError, match=sentence):
        check(roles, guidance=guidance)


def test_numbers_of_frames_that_are_not_given_need_no_weight():
    check(roles_of("tiny", "key_frames", given=FirstFrames(weights=(0.0, 0.5, 0.5))))
    roles = roles_of("tiny", "key_frames", given=FirstFrames(weights=(0.5, 0.0, 0.5)))
    del roles["first_frame"]
    check(roles)
    with pytest.raises(UserError, match="Its first call gives the key-frame model 1 frames"):
        check(roles, inputs=Inputs(has_first_frame=True))


@pytest.mark.parametrize(
    ("labels", "guidance", "sentence"),
    [
        (LABELS, TEXT, "guidance.text = 2 starts from an unknown label 'time', but the stage 'pre"),
        ({"time": "day"}, Guidance(), "The request leaves the label 'crowdedness' unknown, but th"),
        ({}, Guidance(), "The request leaves the label 'time' unknown, .* labels.time a value"),
    ],
)
def test_labels_that_were_never_dropped_must_be_given_and_not_be_guided(labels, guidance, sentence):
    roles = roles_of("tiny", "key_frames", label_dropout=0.0)
    words = {"key_frames": WORDS}
    check(roles, words, Inputs(labels=LABELS))
    check(roles_of("tiny"), words, Inputs(labels=labels), guidance=guidance)
    with pytest.raises(UserError, match=sentence):
        check(roles, words, Inputs(labels=labels), guidance=guidance)


@pytest.mark.parametrize(
    ("has_boxes", "guidance", "sentence"),
    [
        (True, TEXT, "guidance.text = 2 starts from unknown boxes, but the stage 'image' is never"),
        (False, Guidance(), r"The request leaves boxes unknown, but .* or boxes=\[\] for none"),
    ],
)
def test_boxes_that_were_never_dropped_must_be_given_and_not_be_guided(
    has_boxes, guidance, sentence
):
    roles = roles_of("tiny", "first_frame", label_dropout=0.0)
    words = {"first_frame": BOXES}
    check(roles, words, Inputs(has_boxes=True))
    check(roles_of("tiny"), words, Inputs(has_boxes=has_boxes), guidance=guidance)
    with pytest.raises(UserError, match=sentence):
        check(roles, words, Inputs(has_boxes=has_boxes), guidance=guidance)


def test_boxes_for_a_model_of_clips_are_refused_as_it_never_saw_any():
    words = {"key_frames": BOXES}
    check(roles_of("tiny"), words)
    with pytest.raises(UserError, match=r"has boxes, .* 'predictor' .*stages.predictor.frames = 5"):
        check(roles_of("tiny"), words, Inputs(has_boxes=True))


@pytest.mark.parametrize(
    ("objective", "inputs", "words", "sentence"),
    [
        ({"text_dropout": 1.0}, Inputs(prompt="rain"), {}, "has the prompt 'rain', but .* below 1"),
        (
            {"label_dropout": 1.0},
            Inputs(labels={"time": "day"}),
            {"first_frame": WORDS},
            "has the label 'time' = 'day', but .* leave the label out",
        ),
        ({"label_dropout": 1.0}, Inputs(has_boxes=True), {"first_frame": BOXES}, "has boxes, but"),
    ],
)
def test_what_training_always_drops_cannot_be_given(objective, inputs, words, sentence):
    roles = roles_of("tiny", "first_frame", **objective)
    check(roles, words)
    with pytest.raises(UserError, match=sentence):
        check(roles, words, inputs)


def test_an_interpolator_that_was_never_given_key_frames_is_refused():
    with pytest.raises(UserError, match="Interpolation gives key frames, .* lower that below 1"):
        check(roles_of("tiny", "interpolator", given=KeyFrames(dropout=1.0)))
