"""How long a video becomes, from the rows of the models that make it."""

from collections.abc import Mapping

from videoldm_core.cascade.stage import Stage
from videoldm_core.diffusion.conditioning import FirstFrames, KeyFrames


def frame_count(roles: Mapping[str, Stage], *, key_frames: int, passes: int) -> int:
    """Frames of a video: N key frames, and every (N - 1) + 1 after each interpolation pass (§3.3).

    Args:
        roles: the stage of every role that is filled.
    """
    given = roles["interpolator"].given if passes and "interpolator" in roles else None
    every = given.every if isinstance(given, KeyFrames) else 1
    return every**passes * (key_frames - 1) + 1


def is_made_by_calls(roles: Mapping[str, Stage]) -> bool:
    """Whether key frames are made some at a time, so that memory does not grow with their number:
    the key-frame model goes on from frames before (§3.2).
    """
    return isinstance(roles["key_frames"].given, FirstFrames)
