"""How the cascade is sampled: steps, guidance, and the sizes in which the work is done."""

from typing import Self

from pydantic import Field, model_validator

from videoldm_core.records import Record
from videoldm_core.sampling.guidance import Guidance
from videoldm_core.sampling.samplers import SamplerName

MOST_STEPS = 1000


class SamplingConfig(Record):
    """How the cascade is sampled."""

    sampler: SamplerName = "ddim"
    # Of the image model and of the key-frame model, as is the guidance.
    steps: int = Field(default=50, ge=1, le=MOST_STEPS)
    guidance: Guidance = Guidance(text=7.5, context=1.5)
    # Frames of distance that temporal attention reaches in clips longer than the trained ones.
    temporal_reach: int = Field(default=8, ge=1)
    interpolation_steps: int = Field(default=50, ge=1, le=MOST_STEPS)
    # Exaggerated frames would differ from the given ones between them, once per window: pulsing.
    interpolation_guidance: Guidance = Guidance()
    # Noise put on the given frames, for interpolators that were trained to be told of it.
    interpolation_noise_timestep: int = Field(default=0, ge=0)
    upscale_steps: int = Field(default=20, ge=1, le=MOST_STEPS)
    # Text guidance of the upscaler; 1 is off, for one that is trained without texts. Stable
    # Diffusion's x4-upscaler is sampled with 9, in 75 steps: see the run file of text_to_video.
    upscale_guidance: float = Field(default=1.0, allow_inf_nan=False)
    # Noise put on the low resolution, which the upscaler is told.
    upscale_noise_timestep: int = Field(default=20, ge=0)
    # Share of the power of the upscaler's noise (of what it begins with, and of what is put on the
    # low resolution) that all frames have in common; 0: every frame has its own, as in training
    # (§2). Deviation: where it is above 0. What is made up then stays where it is from frame to
    # frame, but a model that has learned to tell noise by its changing takes it for signal.
    upscale_shared_noise: float = Field(default=0.0, ge=0, le=1)
    # Frames decoded and upscaled at once (§3.4): as many as these models were trained on.
    portion: int = Field(default=8, ge=1)
    # Frames at each end of a portion that its neighbour computes too. Deviation: the paper (§4.1)
    # upscales 8 frames at a time and mentions no overlap; with 2 of 8 it is twice the work.
    overlap: int = Field(default=2, ge=0)
    # Frames at a border over which portions fade into one another; the rest of the overlap is
    # dropped, as it lacks neighbours itself.
    blend: int = Field(default=2, ge=0)
    # Px per side of what is upscaled, or decoded, at once; None: whole frames.
    tile: int | None = Field(default=None, ge=8)  # of the upscaled frame
    decoder_tile: int | None = Field(default=None, ge=8)  # of the decoded frame
    # Px at each side of a tile that its neighbour computes too; the inner half fades, the outer is
    # dropped.
    tile_overlap: int = Field(default=64, ge=0)
    windows: int = Field(default=8, ge=1)  # interpolation windows per batch
    # Frames, rounded up to whole portions, after which an interrupted command need not start again.
    segment: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.portion <= 2 * self.overlap:
            raise ValueError(
                f"portion {self.portion} is all overlap ({self.overlap} frames at each end); "
                f"expected a portion of more than {2 * self.overlap}"
            )
        if self.blend > 2 * self.overlap:
            raise ValueError(
                f"blend {self.blend} needs an overlap of at least {-(-self.blend // 2)} (it is "
                f"{self.overlap})"
            )
        for name, side in (("tile", self.tile), ("decoder_tile", self.decoder_tile)):
            if side is not None and side <= 2 * self.tile_overlap:
                raise ValueError(
                    f"{name} {side} is all overlap (tile_overlap {self.tile_overlap} px at each "
                    f"side); expected more than {2 * self.tile_overlap}"
                )
        return self

    def guidance_of(self, role: str) -> tuple[str, Guidance]:
        """The setting that guides the model of a role, and its scales."""
        if role == "interpolator":
            return "interpolation_guidance", self.interpolation_guidance
        if role == "upscaler":
            return "upscale_guidance", Guidance(text=self.upscale_guidance)
        return "guidance", self.guidance

    @property
    def core(self) -> int:
        """Frames that a portion adds to the video."""
        return self.portion - 2 * self.overlap

    @property
    def portions_per_segment(self) -> int:
        """How many portions are written to one file."""
        return -(-self.segment // self.core)
