"""Binds a job's objective to its networks."""

from torch import Tensor

from videoldm_core.jobs.job import Job
from videoldm_core.objectives.autoencoding import Autoencoding, AutoencodingTask
from videoldm_core.objectives.decoding import DecodingTask
from videoldm_core.objectives.denoising import Denoising, DenoisingTask
from videoldm_core.objectives.pretrained import Brought, BroughtTask
from videoldm_core.training.task import Task


def build_task(job: Job, null_text: Tensor) -> Task:
    """The networks, players and losses of a job; the same job gives the same start values.

    Args:
        null_text: embedding of the empty text, l d.
    """
    stage = job.stage
    objective = stage.objective
    if isinstance(objective, Denoising):
        return DenoisingTask(
            objective,
            parts=job.parts,
            trains=stage.trains,
            frames=stage.frames,
            strides=len(stage.strides),
            crop=stage.crop,
            null_text=null_text,
            optimizer=stage.optimizer,
            seed=job.seed,
            checkpointing=stage.checkpointing,
            in_bfloat16=job.precision == "bf16",
        )
    if isinstance(objective, Autoencoding):
        return AutoencodingTask(
            objective,
            optimizer=stage.optimizer,
            seed=job.seed,
            checkpointing=stage.checkpointing,
        )
    if isinstance(objective, Brought):
        return BroughtTask(objective, null_text=null_text)
    return DecodingTask(
        objective,
        parts=job.parts,
        optimizer=stage.optimizer,
        seed=job.seed,
        checkpointing=stage.checkpointing,
        in_bfloat16=job.precision == "bf16",
    )
