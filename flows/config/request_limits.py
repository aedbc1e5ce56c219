"""Limits of one request to a served release: a setting, kept in the release."""

from typing import TYPE_CHECKING

from pydantic import Field

from videoldm_core.errors import UserError
from videoldm_core.records import Record, parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flows.config.run import RunConfig
    from videoldm_core.cascade.stage import Preset, Stage

LONGEST_S = 60.0  # of a video, where it is made in flat memory
LONGEST_CALL = 2  # times as many key frames as trained on, where all are made in one call


class RequestLimits(Record):
    """Limits of one request; more is refused in a sentence."""

    rows: int = Field(default=8, ge=1, le=10_000)  # videos
    prompt: int = Field(default=2000, ge=1, le=1_000_000)  # characters
    key_frames: int = Field(default=64, ge=2)  # of one video, before the interpolation passes
    frames: int = Field(default=1000, ge=1)  # of one video
    total_frames: int = Field(default=2000, ge=1)  # of all videos of the request
    seconds: float = Field(default=600.0, gt=0, le=1e6)  # from its arrival; then it is ended
    waiting: int = Field(default=4, ge=0, le=1000)  # requests that wait while one is made


def limits_of(run: "RunConfig", table: "Preset") -> RequestLimits:
    """The limits of the run's release: what `run.serving` says, and what follows from the preset.

    Raises:
        UserError: an unknown limit, or one that the release's own video exceeds.
    """
    filled = table.roles.model_dump(exclude_none=True)
    roles = {role: table.stage(name) for role, name in filled.items()}
    own = _needed(run, roles)
    values = _of_preset(own, roles, fps=table.video.fps, passes=run.sample.passes) | run.serving
    limits = parse_record(RequestLimits, values, where="serving")
    for name, needed in own.items():
        if needed > getattr(limits, name):
            raise UserError(
                f"serving.{name} = {getattr(limits, name)}, but the video that the release makes "
                f"by itself has {needed}; allow as many, or sample fewer key frames or passes."
            )
    return limits


def _needed(run: "RunConfig", roles: "Mapping[str, Stage]") -> dict[str, int]:
    """The share of every limit that the release's own video takes."""
    from videoldm_core.cascade.lengths import frame_count

    sample = run.sample
    frames = frame_count(roles, key_frames=sample.key_frames, passes=sample.passes)
    return {"key_frames": sample.key_frames, "frames": frames, "total_frames": frames}


def _of_preset(
    own: dict[str, int], roles: "Mapping[str, Stage]", *, fps: float, passes: int
) -> dict[str, int]:
    """A minute of video where memory does not grow with it; else twice what was trained on."""
    from videoldm_core.cascade.lengths import frame_count, is_made_by_calls

    if is_made_by_calls(roles):
        frames = max(own["frames"], round(LONGEST_S * fps))
        key_frames = max(own["key_frames"], frames)
    else:
        key_frames = max(own["key_frames"], LONGEST_CALL * roles["key_frames"].frames)
        frames = frame_count(roles, key_frames=key_frames, passes=passes)
    return {"key_frames": key_frames, "frames": frames, "total_frames": max(frames, own["frames"])}
