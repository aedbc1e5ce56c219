"""What a stage is given besides noise, time and text, in training and sampling alike.

A given is drawn from a clean training clip by calling it with the clip as it is diffused and as it
is stored (for the latent upscaler: latents and frames; for all others these differ by a factor at
most). While sampling, earlier frames or a low-resolution video take the clip's place in
`mark_known` and `LowResolution.degrade`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from einops import rearrange
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.records import Record, Share, Weight


@dataclass(frozen=True, kw_only=True)
class Given:
    """The tensors a denoiser is given; None where a stage is not given such a thing."""

    context: Tensor | None = None  # c_S = (m * z, m), b t c+1 h w (§3.2)
    known: Tensor | None = None  # m, b t: which frames are given
    context_noise: Tensor | None = None  # timestep of the noise on the given frames, b
    low_resolution: Tensor | None = None  # noisy, at the size of the frames, b t c h w (§3.4)
    noise_level: Tensor | None = None  # timestep of its noise, b
    base: Tensor | None = None  # what the clip is diffused as a difference to, b t c h w
    detail_scale: float = 1.0  # what that difference is multiplied by

    def to_diffused(self, clip: Tensor) -> Tensor:
        """The clip as noise is added to it."""
        return clip if self.base is None else (clip - self.base) * self.detail_scale

    def from_diffused(self, diffused: Tensor) -> Tensor:
        """The clip that `to_diffused` maps to `diffused`."""
        return diffused if self.base is None else self.base + diffused / self.detail_scale

    def without_context(self) -> "Given":
        """The same with every frame masked: no learned token is needed for "nothing" (§3.2)."""
        if self.context is None or self.known is None:
            return self
        return replace(
            self, context=torch.zeros_like(self.context), known=torch.zeros_like(self.known)
        )


class Nothing(Record):
    """Noise, time and text only: image and key-frame models (§3.1)."""

    kind: Literal["nothing"] = "nothing"

    def context_channels(self, channels: int) -> int:
        """Channels of c_S for frames of `channels` channels."""
        return 0

    def __call__(
        self,
        clip: Tensor,
        rng: SampleRng,
        schedule: NoiseSchedule,
        *,
        stored: Tensor | None = None,
    ) -> Given:
        """What is given of a clip b t c h w: nothing."""
        return Given()


class FirstFrames(Record):
    """The first 0, 1 or 2 frames: the prediction model (§3.2, Eq. 3)."""

    kind: Literal["first_frames"] = "first_frames"
    # p_S, the weights of S = 0, 1, 2 given frames. The paper does not print them.
    weights: tuple[Weight, Weight, Weight] = (1 / 3, 1 / 3, 1 / 3)

    @field_validator("weights")
    @classmethod
    def _gives_something(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not sum(weights):
            raise ValueError("no number of given frames has a weight; expected one above 0")
        return weights

    def context_channels(self, channels: int) -> int:
        """Channels of c_S for frames of `channels` channels."""
        return channels + 1

    def __call__(
        self,
        clip: Tensor,
        rng: SampleRng,
        schedule: NoiseSchedule,
        *,
        stored: Tensor | None = None,
    ) -> Given:
        """Gives the first S frames of each clip b t c h w, S drawn per clip."""
        count = rng.choice(self.weights)
        return mark_known(clip, torch.arange(clip.shape[1])[None] < count[:, None])


class KeyFrames(Record):
    """The first and last of five frames: the interpolation model (§3.3)."""

    kind: Literal["key_frames"] = "key_frames"
    # Distance of the given frames; every - 1 frames are predicted between two.
    every: int = Field(default=4, ge=2)
    # Share of clips that are given nothing, for context guidance.
    dropout: Share = 0.1
    # Noise of a level up to this timestep is put on the given frames, and the temporal layers are
    # told the level; 0: none. The paper's text-to-video interpolator has 250: frames that another
    # model made are never as clean as those of the videos.
    max_noise_timestep: int = Field(default=0, ge=0)

    def context_channels(self, channels: int) -> int:
        """Channels of c_S for frames of `channels` channels."""
        return channels + 1

    def mask(self, frames: int) -> Tensor:
        """m for a window: 1 0 0 0 1 for five frames."""
        return torch.arange(frames) % self.every == 0

    def __call__(
        self,
        clip: Tensor,
        rng: SampleRng,
        schedule: NoiseSchedule,
        *,
        stored: Tensor | None = None,
    ) -> Given:
        """Gives every `every`-th frame of each clip b t c h w."""
        kept = rng.uniform() >= self.dropout
        known = self.mask(clip.shape[1])[None] & kept[:, None]
        if not self.max_noise_timestep:
            return mark_known(clip, known)
        level = rng.integers(0, self.max_noise_timestep + 1)
        return self.give(clip, known, level, rng.normal(tuple(clip.shape[1:])), schedule)

    def give(
        self, clip: Tensor, known: Tensor, level: Tensor, noise: Tensor, schedule: NoiseSchedule
    ) -> Given:
        """c_S of frames b t c h w with noise of `level` (b) on them, if this model is told of it.

        Args:
            known: m, b t.
            noise: like `clip`.
        """
        if not self.max_noise_timestep:
            return mark_known(clip, known)
        level = level.to(clip.device)
        given = mark_known(schedule.add_noise(clip, noise.to(clip), level), known)
        return replace(given, context_noise=level)


class LowResolution(Record):
    """A noisy low-resolution version, frame by frame: the upscalers (§3.4, Eq. 5)."""

    kind: Literal["low_resolution"] = "low_resolution"
    factor: int = Field(default=4, ge=1)
    max_noise_timestep: int = Field(default=350, ge=1)  # tau_gamma is drawn below this
    # None: the frames are diffused (the paper). A number: their difference to the enlarged low
    # resolution, times this. Deviation: a model that is small and briefly trained then starts as
    # bilinear enlargement, and only learns detail.
    detail_scale: float | None = None

    def context_channels(self, channels: int) -> int:
        """Channels of c_S for frames of `channels` channels."""
        return 0

    def __call__(
        self,
        clip: Tensor,
        rng: SampleRng,
        schedule: NoiseSchedule,
        *,
        stored: Tensor | None = None,
    ) -> Given:
        """Gives each stored clip shrunk by `factor`, with noise of a level drawn per clip.

        Args:
            stored: the clip's frames, where `clip` is latents of them.
        """
        low = shrink(clip if stored is None else stored, self.factor)
        level = rng.integers(0, self.max_noise_timestep)
        noise = rng.normal(tuple(low.shape[1:]))
        return self.degrade(low, level, noise, schedule, size=tuple(clip.shape[-2:]))

    def degrade(
        self,
        low: Tensor,
        level: Tensor,
        noise: Tensor,
        schedule: NoiseSchedule,
        *,
        size: tuple[int, ...],
    ) -> Given:
        """c_gamma = alpha x_low + sigma eps, brought to the size of what is diffused (Eq. 5).

        Args:
            low: b t c h/f w/f.
            level: tau_gamma per clip, (b); the model is told it, so that sampling may choose it.
            noise: like `low`.
            size: (height, width) of what is diffused: of the frames, or of their latents.
        """
        noisy = schedule.add_noise(low, noise.to(low), level.to(low.device))
        return Given(
            low_resolution=enlarge(noisy, size),
            noise_level=level.to(low.device),
            base=None if self.detail_scale is None else enlarge(low, size),
            detail_scale=self.detail_scale or 1.0,
        )


AnyGiven = Annotated[Nothing | FirstFrames | KeyFrames | LowResolution, Field(discriminator="kind")]


def mark_known(clip: Tensor, known: Tensor) -> Given:
    """c_S = (m * z, m) of frames b t c h w and m (b t): known frames or zeros, and mask (§3.2)."""
    m = known.to(clip)[:, :, None, None, None]
    mask = m.expand(-1, -1, 1, *clip.shape[-2:])
    return Given(context=torch.cat([m * clip, mask], dim=2), known=known.to(clip.device))


def shrink(clip: Tensor, factor: int) -> Tensor:
    """b t c h w shrunk by averaging factor x factor pixels, as area resizing does."""
    frames = F.avg_pool2d(rearrange(clip, "b t c h w -> (b t) c h w"), factor)
    return rearrange(frames, "(b t) c h w -> b t c h w", t=clip.shape[1])


def enlarge(clip: Tensor, size: tuple[int, ...]) -> Tensor:
    """b t c h w enlarged bilinearly to `size` (height, width)."""
    if tuple(clip.shape[-2:]) == size:
        return clip
    frames = rearrange(clip, "b t c h w -> (b t) c h w")
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b t c h w", t=clip.shape[1])
