"""START HERE: the cascade as a table, one row per stage; a preset is a table with its numbers.

A row says which section of the paper it is, what it minimises, what it is given, where its weights
start, which of them move, and which frames it sees. Nothing else in the project knows a stage by
name.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.diffusion.conditioning import AnyGiven, LowResolution, Nothing
from videoldm_core.errors import UserError
from videoldm_core.evaluation.comparisons import AnyProof
from videoldm_core.models.text.source import AnyText
from videoldm_core.objectives.autoencoding import Autoencoding
from videoldm_core.objectives.decoding import TemporalDecoding
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.objectives.pretrained import Brought
from videoldm_core.records import Decay, Record, nearest
from videoldm_core.system.files import digest_for_json
from videoldm_core.training.optimizer import OptimizerConfig

AnyObjective = Annotated[
    Autoencoding | Denoising | TemporalDecoding | Brought, Field(discriminator="kind")
]

# Of a row: how its work fits a machine. It may change between two attempts at the same weights.
FITTING = {"micro_batch", "checkpointing", "compile"}


class VideoFormat(Record):
    """What every video is brought to before anything is learned from it."""

    # Frames per second of a store; strides count in these.
    fps: float = Field(gt=0, allow_inf_nan=False)
    height: int = Field(ge=1)  # of the base resolution, px
    width: int = Field(ge=1)
    upscale: int = Field(default=4, ge=1)  # pixel shards hold height * upscale x width * upscale
    clip_seconds: float = Field(gt=0, allow_inf_nan=False)  # longest clip of a store
    # Of videos that are truly interlaced; with none, both fields stay in one picture.
    deinterlace: Literal["bwdif", "yadif", "none"] = "bwdif"


class Stage(Record):
    """One model of the cascade: trained, or brought by the user.

    A stage sees only motion that its videos have: a window at stride s of F frames per second needs
    a video of F / s, else its frames would repeat and the model would learn to stand still. So in a
    store of 30, key frames come from videos of 10 too, and interpolation from those of 30 (§4.1).
    Nothing turns this off; single frames come from every video. Deviation: the coarse pass of an
    interpolator may see unevenly spaced frames of slower videos, where the paper takes 30-fps ones.
    """

    name: str
    paper: str  # section and equation it comes from
    objective: AnyObjective
    proves: AnyProof  # what it must beat on held-out clips
    starts_from: tuple[str, ...]  # stages whose weights it inherits; later ones override earlier
    # Parts whose weights move: vae, unet, tokens, temporal, temporal_decoder.
    trains: tuple[str, ...]
    reads: Literal["latents", "pixels"]
    full_size: bool = False  # reads pixels at the upscaled size
    frames: int = Field(ge=1)  # per clip
    # Store frames per clip frame; several: drawn equally often.
    strides: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    crop: int | None = Field(default=None, ge=1)  # side of training patches, px
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: int = Field(ge=1)  # clips per step, over all processes
    micro_batch: int | None = Field(default=None, ge=1)  # clips per process at once; None: all
    checkpointing: bool = False  # recompute activations in the backward pass, to hold fewer
    compile: bool = False  # torch.compile of what trains, once per shape
    # Watched while training, and what the stage is judged on.
    heldout_clips: int = Field(default=32, ge=1)
    steps: int = Field(ge=0)  # 0: what is brought is not trained
    warmup: int = Field(default=0, ge=0)  # steps in which the learning rate rises from 0
    cooldown: int = Field(default=0, ge=0)  # last steps, in which it falls to 0
    ema: Decay = 0.9999  # of the published average

    @property
    def given(self) -> AnyGiven:
        """What its model is given besides noise, time and text."""
        objective = self.objective
        return objective.given if isinstance(objective, Denoising | Brought) else Nothing()

    @property
    def upscales(self) -> bool:
        """Whether it makes frames of a low resolution; its texts are those of pixel shards."""
        return isinstance(self.given, LowResolution)

    def sees_boxes_only(self, told: Vocabulary | None) -> bool:
        """Whether the stage, told of its clips by tokens of `told`, sees only frames with boxes."""
        return told is not None and bool(told.box_classes) and self.frames == 1

    def identity(self) -> dict[str, Any]:
        """The row as JSON, as far as it decides the weights: files by their content.

        Raises:
            UserError: a file that the row names is not there.
        """
        decides = self.model_dump(exclude=FITTING | {"paper"})
        return json.loads(json.dumps(decides, default=digest_for_json))


class Roles(Record):
    """Which stage makes what when the cascade is sampled (§4.1)."""

    first_frame: str | None = None  # an image model; None: the key-frame model makes all frames
    key_frames: str  # given the frames before (predictor), or nothing: then all in one call
    interpolator: str | None = None
    decoder: str
    upscaler: str | None = None  # None: decoded frames are the video


class Preset(Record):
    """A cascade: the stages, and the video they are made for."""

    name: str
    video: VideoFormat
    text: AnyText
    # Of the texts in pixel shards, which upscalers alone read: an x4-upscaler was trained with
    # Stable Diffusion 2's tower, beside whichever image model it stands. None: `text`.
    pixel_text: AnyText | None = None
    # What NAME.json beside a video may say; a stage's `tokens` are what its model is told of it.
    labels: tuple[LabelKind, ...] = ()
    box_classes: tuple[str, ...] = ()
    stages: tuple[Stage, ...]
    roles: Roles

    @model_validator(mode="after")
    def _has_a_stage_per_role(self) -> Self:
        names = [row.name for row in self.stages]
        for role, stage in self.roles.model_dump(exclude_none=True).items():
            if stage not in names:
                raise ValueError(f"roles.{role} = {stage!r} is no stage; {nearest(stage, names)}")
        return self

    @property
    def vocabulary(self) -> Vocabulary:
        """All labels and classes of boxes that videos may come with."""
        return Vocabulary(labels=self.labels, box_classes=self.box_classes)

    def stage(self, name: str) -> Stage:
        """The row called `name`.

        Raises:
            UserError: there is none; names the nearest.
        """
        for row in self.stages:
            if row.name == name:
                return row
        raise UserError(
            f"Unknown stage {name!r}; {nearest(name, [row.name for row in self.stages])}"
        )


def preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UserError: there is none; names the nearest.
    """
    from videoldm_core.cascade.presets.driving import DRIVING
    from videoldm_core.cascade.presets.driving_scenarios import DRIVING_SCENARIOS
    from videoldm_core.cascade.presets.text_to_video import TEXT_TO_VIDEO
    from videoldm_core.cascade.presets.tiny import TINY

    presets = {p.name: p for p in (TINY, DRIVING, DRIVING_SCENARIOS, TEXT_TO_VIDEO)}
    if name not in presets:
        raise UserError(f"Unknown preset {name!r}; {nearest(name, list(presets))}")
    return presets[name]
