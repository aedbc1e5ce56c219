"""What is asked of models that are not trained for it is refused on their rows."""

from typing import Any

import pytest

from tests.videoldm_core.tables import PRESETS
from videoldm_core.cascade.checks.sampling import check_asked
from videoldm_core.cascade.checks.trained_states import Inputs
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.cascade.stage import Stage, preset
from videoldm_core.errors import UserError
from videoldm_core.sampling.guidance import Guidance

PLAIN = SamplingConfig(guidance=Guidance(text=2.0, context=1.5), upscale_noise_timestep=20)


def roles_of(name: str, **changed: dict[str, Any]) -> dict[str, Stage]:
    """The stages of a preset by role, with changed fields by role."""
    table = preset(name)
    rows = {
        role: table.stage(stage)
        for role, stage in table.roles.model_dump(exclude_none=True).items()
    }
    return {role: row.model_copy(update=changed.get(role, {})) for role, row in rows.items()}


def check(roles: dict[str, Stage], **asked: Any) -> None:
    check_asked(
        roles, **{"passes": 2, "inputs": Inputs(), "sampling": PLAIN, "vocabularies": {}, **asked}
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_what_its_sampling_asks(name):
    assert check(roles_of(name)) is None, "no sentence is raised"


@pytest.mark.parametrize("stride", [8, 32])
def test_key_frames_at_another_stride_than_the_first_pass_takes_are_refused(stride):
    roles = roles_of("tiny", key_frames={"strides": (stride,)})
    with pytest.raises(UserError, match=rf"at stride {stride}, .*'interpolator'.* 16 apart"):
        check(roles)


def test_a_model_of_several_strides_is_refused_where_sampling_asks_for_one():
    with pytest.raises(UserError, match=r"roles.key_frames = 'predictor' .*\[16, 8\] and told"):
        check(roles_of("tiny", key_frames={"strides": (16, 8)}))


def test_more_passes_than_an_interpolator_is_trained_for_are_refused():
    roles = roles_of("tiny", interpolator={"strides": (4,)})
    check(roles, passes=1)
    with pytest.raises(UserError, match=r"passes = 2, but .* trained for 1 \(strides \[4\]\)"):
        check(roles)


def test_passes_without_an_interpolator_are_refused():
    roles = roles_of("tiny")
    del roles["interpolator"]
    check(roles, passes=0)
    with pytest.raises(UserError, match="passes = 1, but no stage has the role of interpolator"):
        check(roles, passes=1)


def test_a_role_that_the_request_does_not_use_need_not_be_trained_for_it():
    objective = preset("tiny").stage("image").objective.model_copy(update={"text_dropout": 0.0})
    roles = roles_of("tiny", first_frame={"objective": objective})
    check(roles, inputs=Inputs(has_first_frame=True))
    with pytest.raises(UserError, match="starts from the empty text, but the stage 'image'"):
        check(roles)
    guided = PLAIN.model_copy(update={"interpolation_guidance": Guidance(text=2.0)})
    objective = preset("tiny").stage("interpolator").objective
    untrained = {"objective": objective.model_copy(update={"text_dropout": 0.0})}
    roles = roles_of("tiny", interpolator=untrained)
    check(roles, passes=0, sampling=guided)
    with pytest.raises(UserError, match="starts from the empty text, but the stage 'interpol"):
        check(roles, sampling=guided)


def test_noise_that_an_upscaler_was_never_told_of_is_refused():
    for name, most in (("tiny", 150), ("text_to_video", 350)):
        asked = PLAIN.model_copy(update={"upscale_noise_timestep": most - 1})
        check(roles_of(name), sampling=asked)
        asked = PLAIN.model_copy(update={"upscale_noise_timestep": most})
        with pytest.raises(UserError, match=f"upscale_noise_timestep = {most}, .* below level"):
            check(roles_of(name), sampling=asked)
