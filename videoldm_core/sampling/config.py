"""How the cascade is sampled: steps, guidance, and the sizes in which the work is done."""

from typing import Self

from pydantic import Field, model_validator

from videoldm_core.records import Record
from videoldm_core.sampling.guidance import Guidance
from videoldm_core.sampling.samplers import SamplerName


class SamplingConfig(Record):
    """How the cascade is sampled."""

    sampler: SamplerName = "ddim"
    steps: int = 50  # of the image model and the key-frame model
    guidance: Guidance = Guidance(text=7.5, context=1.5)  # of the same two
    # Frames of distance that temporal attention reaches in clips longer than the trained ones.
    temporal_reach: int = Field(default=8, ge=1)
    interpolation_steps: int = 50
    # Exaggerated frames would differ from the given ones between them, once per window: pulsing.
    interpolation_guidance: Guidance = Guidance()
    # Noise put on the given frames, for interpolators that were trained to be told of it.
    interpolation_noise_timestep: int = Field(default=0, ge=0)
    upscale_steps: int = 20
    upscale_noise_timestep: int = 20  # noise put on the low resolution, which the upscaler is told
    portion: int = Field(default=8, ge=1)  # frames decoded and upscaled at a time (§3.4)
    overlap: int = Field(default=2, ge=0)  # frames beyond each side of a portion computed with it
    # Frames at a border over which portions fade into one another; the rest of the overlap is
    # dropped, as it lacks neighbours itself.
    blend: int = Field(default=2, ge=0)
    tile: int | None = Field(default=None, ge=8)  # side, px of the upscaled frame; None: whole
    decoder_tile: int | None = Field(default=None, ge=8)  # side, px of the decoded frame
    # Px beyond each side of a tile computed with it; the inner half fades, the outer is dropped.
    tile_overlap: int = Field(default=64, ge=0)
    windows: int = Field(default=8, ge=1)  # interpolation windows per batch
    # Frames, rounded up to whole portions, after which an interrupted command need not start again.
    segment: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.blend > min(2 * self.overlap, self.portion):
            raise ValueError(
                f"blend {self.blend} needs an overlap of at least {-(-self.blend // 2)} (it is "
                f"{self.overlap}) and a portion of at least {self.blend} (it is {self.portion})"
            )
        return self

    @property
    def portions_per_segment(self) -> int:
        """How many portions are written to one file."""
        return -(-self.segment // self.portion)
