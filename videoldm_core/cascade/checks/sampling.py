"""What a sample asks of the models, held against what their stages train them for.

On the rows of the stage table alone: a run that could not be sampled at its end is refused before
its first stage trains.
"""

from collections.abc import Mapping
from typing import TypeVar

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.checks.trained_states import Inputs, check_states
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.cascade.stage import Stage
from videoldm_core.diffusion.conditioning import KeyFrames, LowResolution
from videoldm_core.errors import UserError

G = TypeVar("G", KeyFrames, LowResolution)


def check_asked(
    roles: Mapping[str, Stage],
    *,
    passes: int,
    inputs: Inputs,
    sampling: SamplingConfig,
    vocabularies: Mapping[str, Vocabulary | None],
) -> None:
    """Refuses what the models of these roles are not trained for.

    Args:
        roles: the stage of every role that is filled.
        passes: interpolation passes.
        vocabularies: what the model of each role is told by tokens.

    Raises:
        UserError: names the stage, and what to change.
    """
    _check_strides(roles)
    _check_passes(roles, passes)
    idle = {"first_frame"} if inputs.has_first_frame else set()
    idle |= set() if passes else {"interpolator"}
    used = {role: stage for role, stage in roles.items() if role not in idle}
    check_states(used, vocabularies, inputs, sampling)
    _check_noise_levels(roles, passes, sampling)


def _given(roles: Mapping[str, Stage], role: str, kind: type[G]) -> G | None:
    given = roles[role].given if role in roles else None
    return given if isinstance(given, kind) else None


def _check_strides(roles: Mapping[str, Stage]) -> None:
    """Key frames are as far apart as the first pass takes them to be (§3.3)."""
    for role, stage in roles.items():
        if role != "interpolator" and len(stage.strides) > 1:
            raise UserError(
                f"roles.{role} = {stage.name!r} is trained at strides {list(stage.strides)} and "
                "told which; sampling asks it for one: leave one stride in its row."
            )
    keys = _given(roles, "interpolator", KeyFrames)
    if keys is None:
        return
    apart, coarse = roles["key_frames"].strides[0], roles["interpolator"].strides[0]
    if apart != keys.every * coarse:
        raise UserError(
            f"roles.key_frames = {roles['key_frames'].name!r} makes key frames at stride {apart}, "
            f"but the first pass of {roles['interpolator'].name!r} is trained between frames "
            f"{keys.every * coarse} apart (every {keys.every}th at stride {coarse}): give the two "
            "rows strides that fit."
        )


def _check_passes(roles: Mapping[str, Stage], passes: int) -> None:
    if passes and "interpolator" not in roles:
        raise UserError(
            f"passes = {passes}, but no stage has the role of interpolator; set passes=0."
        )
    trained = len(roles["interpolator"].strides) if passes else 0
    if passes > trained:
        raise UserError(
            f"passes = {passes}, but the interpolator {roles['interpolator'].name!r} is trained "
            f"for {trained} (strides {list(roles['interpolator'].strides)}); ask for at most "
            f"{trained}."
        )


def _check_noise_levels(roles: Mapping[str, Stage], passes: int, sampling: SamplingConfig) -> None:
    level, low = sampling.upscale_noise_timestep, _given(roles, "upscaler", LowResolution)
    if low is not None and level >= low.max_noise_timestep:
        raise UserError(
            f"upscale_noise_timestep = {level}, but the upscaler is trained with noise below level "
            f"{low.max_noise_timestep} on the low resolution; choose one from 0 to "
            f"{low.max_noise_timestep - 1}."
        )
    level = sampling.interpolation_noise_timestep
    keys = _given(roles, "interpolator", KeyFrames) if passes else None
    if keys is not None and level > keys.max_noise_timestep:
        raise UserError(
            f"interpolation_noise_timestep = {level}, but the interpolator is trained with noise "
            f"up to level {keys.max_noise_timestep} on its given frames; choose one from 0 to "
            f"{keys.max_noise_timestep}."
        )
