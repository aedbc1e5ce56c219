"""One training job as a file: the launcher writes it, `python -m videoldm_core.train` reads it."""

import hashlib
import json
from pathlib import Path

import torch
from pydantic import Field

from videoldm_core.cascade.stage import Stage, VideoFormat
from videoldm_core.data.index import contents_digest
from videoldm_core.errors import UserError
from videoldm_core.records import Record, load_record
from videoldm_core.system.machine import Precision, ZeroStage

FORMAT = 2  # of training: raised when the same job draws or learns something else


class Job(Record):
    """A stage of a cascade on this data, on these processes."""

    stage: Stage
    video: VideoFormat
    parts: dict[str, Path] = {}  # inherited weights by part
    parents: dict[str, str] = {}  # stage name -> digest of its stage.json
    latents: Path | None = None  # store folders
    pixels: Path | None = None
    text_tower: Path
    out: Path  # the stage's folder
    seed: int = Field(default=0, ge=0)
    precision: Precision = "fp32"
    zero_stage: ZeroStage = 2
    checkpoint_every: int = Field(default=100, ge=1)  # steps
    evaluate_every: int = Field(default=100, ge=1)  # steps

    @property
    def store(self) -> Path:
        """The store this stage reads.

        Raises:
            UserError: the job names none.
        """
        path = self.latents if self.stage.reads == "latents" else self.pixels
        if path is None:
            raise UserError(
                f"Stage {self.stage.name!r} reads {self.stage.reads}, but the job names no "
                f"{self.stage.reads} store; encode the videos first."
            )
        return path

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision in which networks run beside training; clips and noise stay float32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def draws(self) -> int:
        """Seed of all that training draws: clips and their order, noise, its levels, dropout.

        Each stage has its own. With the run's seed alone a predictor would see the clips, in the
        same order and under the same noise, that the temporal layers it starts from saw.
        """
        text = f"{self.seed}/{self.stage.name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())

    def fingerprint(self) -> str:
        """Identity of all that decides the weights; processes and micro batches do not.

        The clips that the store has now are part of it, and `FORMAT`: no checkpoint is resumed by
        other code than its own.

        Raises:
            ShardError: the store was never published.
        """
        decides = self.model_dump(mode="json", include={"video", "parents", "seed", "precision"})
        decides["format"] = FORMAT
        decides["stage"] = self.stage.identity()
        decides["store"] = contents_digest(self.store)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def load_job(path: Path) -> Job:
    """Reads a job file.

    Raises:
        UserError: it is missing, is not JSON or names an unknown key.
    """
    return load_record(Job, path, what="job file")
