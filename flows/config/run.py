"""One run as data: which preset, which videos, where, with what changes.

Knows no network and starts nothing.

A run file is YAML; `key=value` overrides win over it; both are validated into `RunConfig` before
anything runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

from flows.config.paths import user_path
from preprocessing.video.decoding_limits import MOST_CPU_HOURS
from videoldm_core.cascade.annotations import GivenBox
from videoldm_core.records import Record
from videoldm_core.system.machine import Precision, ZeroStage

if TYPE_CHECKING:
    pass

LONGEST_FILM_S = 3600.0
UserPath = Annotated[Path, BeforeValidator(user_path)]


class WorldConfig(Record):
    """The driving world that is filmed when the user brings no videos."""

    videos: int = Field(default=36, ge=1)  # how many files
    seconds: float = Field(default=8.0, gt=0, le=LONGEST_FILM_S)  # length of each


class SampleConfig(Record):
    """The video that is sampled when every stage is trained."""

    prompt: str = "we catch up with a blue car by day, pines by the road, a city ahead"
    key_frames: int = Field(default=5, ge=2)  # before the interpolation passes
    passes: int = Field(default=2, ge=0, le=2)  # of the interpolator
    labels: dict[str, str] = {}  # name -> value, where the preset has labels
    boxes: tuple[GivenBox, ...] | None = None  # [{"class": "car", "box": [x0, y0, x1, y1]}, ...]
    # Height, width before upscaling, px; None: as trained.
    size: tuple[PositiveInt, PositiveInt] | None = None
    first_frame: UserPath | None = None  # png or jpg that the video goes on from
    futures: int = Field(default=1, ge=1)  # videos that share the first frame
    # Fine-tune of the image model: diffusers folder or single file.
    backbone: UserPath | None = None
    loras: tuple[UserPath, ...] = ()  # LoRA files added to the backbone
    seed: int = 0
    sampling: dict[str, Any] = {}  # changed fields of the core's SamplingConfig


class RunConfig(Record):
    """This run on this machine; the method itself is the preset's stage table."""

    preset: str
    # Of the experiment and the registered models.
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    out: UserPath  # every file of the run is below
    videos: UserPath | None = None  # folder of the user's videos; None films the driving world
    # Models that the user brings, by stage: a diffusers folder, a single file, or hub:OWNER/NAME.
    pretrained: dict[str, str] = {}
    without: tuple[str, ...] = ()  # stages of the preset that are left out, with their roles
    world: WorldConfig = WorldConfig()
    # Of processor time, that decoding one video may take; longer ones are set aside.
    decode_cpu_hours: float = Field(default=MOST_CPU_HOURS, gt=0, le=1000)
    seed: int = Field(default=0, ge=0)
    processes: int = Field(default=1, ge=1)  # training processes of one stage
    zero_stage: ZeroStage = 2
    precision: Precision = "fp32"
    checkpoint_every: int = Field(default=100, ge=1)  # steps
    evaluate_every: int = Field(default=200, ge=1)  # steps
    concurrent_stages: int = Field(default=1, ge=1)  # that train, encode or sample at a time
    tracking_uri: str | None = None  # MLflow server; None means a SQLite file in the run's folder
    video: dict[str, Any] = {}  # changed fields of the preset's video format
    text: dict[str, Any] = {}  # changed fields of the preset's text; another kind replaces it
    pixel_text: dict[str, Any] = {}  # in place of the preset's text of pixel shards
    stages: dict[str, dict[str, Any]] = {}  # stage name -> changed fields of its row
    sample: SampleConfig = SampleConfig()
    serving: dict[str, Any] = {}  # changed fields of the release's RequestLimits
    # Money, for the report.
    price_per_process_hour: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def stage_folder(self, stage: str) -> Path:
        """Where one stage's job, log, journal and weights are."""
        return self.out / "stages" / stage

    @property
    def sampled_video(self) -> Path:
        """The video that the run ends with; the first of several futures."""
        return self.out / ("video.mp4" if self.sample.futures == 1 else "video-1.mp4")
