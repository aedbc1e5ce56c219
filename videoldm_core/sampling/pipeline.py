"""The cascade run forward: key frames, interpolation passes, decoding, upscaling (§3, §4.1).

Pulled from its end: a portion of frames asks for the latents it shows, these for the windows that
make them, these for the latents of the pass below, down to the key frames. Nothing is made before
it is asked for, and little is kept, so that memory does not grow with the length of the video.
All that is random belongs to the number of a call, window or portion, and windows always run in the
same groups: a part of the video is the same to the bit, whatever was asked for before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.diffusion.conditioning import Given
from videoldm_core.errors import UserError
from videoldm_core.models.video_decoder import VideoDecoder
from videoldm_core.sampling.clip_sampler import Drawing, RoleModel, check_finite
from videoldm_core.sampling.decoding import Frames
from videoldm_core.sampling.interpolation import Interpolation, Latents, Progress
from videoldm_core.sampling.key_frames import KeyFrameCalls


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """The models of one release, loaded; None where a role is left out."""

    first_frame: RoleModel | None
    key_frames: RoleModel
    interpolator: RoleModel | None
    decoder: VideoDecoder
    shrinks: int  # how many times smaller than decoded frames, per side, latents are
    upscaler: RoleModel | None

    @property
    def vocabularies(self) -> list[Vocabulary | None]:
        """What each model is told by tokens."""
        roles = (self.first_frame, self.key_frames, self.interpolator, self.upscaler)
        return [role.denoiser.vocabulary for role in roles if role is not None]


def frames_of(  # noqa: PLR0913 - what a video depends on
    cascade: Cascade,
    drawing: Drawing,
    *,
    key_frames: int,
    passes: int,
    folder: Path,
    first: Callable[[], Tensor] | None,
    progress: Progress,
) -> Frames:
    """The video as frames that are made when they are asked for.

    Args:
        key_frames: how many, before `passes` interpolation passes: N, then every (N - 1) + 1 ...
        folder: where key frames are kept; only of the same request.
        first: gives the first frame, 1 c h w; None: the key-frame model makes it.

    Raises:
        UserError: the cascade has no model for what is asked.
    """
    latents: Latents = KeyFrameCalls(
        drawing, cascade.key_frames, key_frames, folder=folder, first=first, progress=progress
    )
    if passes and cascade.interpolator is None:
        raise UserError(
            f"passes = {passes}, but no stage has the role of interpolator; set passes to 0."
        )
    for which in range(passes):
        assert cascade.interpolator is not None, "refused above"
        latents = Interpolation(
            drawing, cascade.interpolator, latents, which=which, progress=progress
        )
    return Frames(
        drawing,
        latents,
        decoder=cascade.decoder,
        shrinks=cascade.shrinks,
        scale=cascade.key_frames.denoiser.scale,
        upscaler=cascade.upscaler,
    )


def first_latent(drawing: Drawing, role: RoleModel, progress: Progress) -> Tensor:
    """The first frame from the image model, 1 c h w; the same in every future."""
    rng = drawing.rng("first frame", [0], is_shared=True)
    progress("first frame", 0, 1)
    noise = rng.normal((1, *drawing.prompt.latent_size)).to(drawing.device)
    config = drawing.config
    first = drawing(
        role,
        noise,
        Given(),
        generators=rng.generators,
        steps=config.steps,
        guidance=config.guidance,
    )[0]
    check_finite(first, "the first frame")
    progress("first frame", 1, 1)
    return first
