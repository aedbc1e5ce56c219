"""The clips a stage trains on and is judged by; one process's share of them."""

from collections.abc import Iterator

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.stage import Stage
from videoldm_core.data.loader import Batch, read_batch
from videoldm_core.data.plan import BoxedFrames, Windows
from videoldm_core.data.store import open_store
from videoldm_core.jobs.job import Job
from videoldm_core.models.condition_tokens import load_vocabulary
from videoldm_core.objectives.denoising import Denoising

CALIBRATION_BATCHES = 4
MOST_CALIBRATION_CLIPS = 64  # all of them are in memory at once


class StageData:
    """The store of a job, cut into the windows of its stage."""

    def __init__(self, job: Job, *, rank: int, world: int) -> None:
        self._job, self._rank, self._world = job, rank, world
        self.store = open_store(job.store)
        self.vocabulary = vocabulary_of(job)

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Size to which frames of a pixel store are averaged down; None: as stored."""
        stage, video = self._job.stage, self._job.video
        if stage.reads == "latents" or stage.full_size:
            return None
        return video.height, video.width

    def windows(self, split: str) -> Windows:
        """Every window of the stage in one split; if it is told boxes, every frame with some."""
        stage = self._job.stage
        if stage.sees_boxes_only(self.vocabulary):
            return BoxedFrames(self.store, split=split)
        return Windows(self.store, frames=stage.frames, strides=stage.strides, split=split)

    def heldout(self, clips: int) -> list[Batch]:
        """This process's share of evenly spaced held-out windows; every process has as many."""
        windows = self.windows("heldout")
        numbers = windows.evenly_spaced(clips)
        share = max(1, len(numbers) // self._world)
        mine = [numbers[(self._rank * share + i) % len(numbers)] for i in range(share)]
        return list(self._read(windows, mine, first_id=self._rank * share))

    def first_heldout(self, clips: int) -> Iterator[Batch]:
        """Evenly spaced held-out windows one by one, the same for every process."""
        windows = self.windows("heldout")
        return self._read(windows, windows.evenly_spaced(clips), first_id=0, at_once=1)

    def training_clips(self) -> Iterator[Batch]:
        """A few evenly spaced training windows, the same for every process."""
        windows = self.windows("train")
        count = min(CALIBRATION_BATCHES * self._job.stage.batch, MOST_CALIBRATION_CLIPS)
        return self._read(windows, windows.evenly_spaced(count), first_id=0)

    def _read(
        self, windows: Windows, numbers: list[int], *, first_id: int, at_once: int | None = None
    ) -> Iterator[Batch]:
        """Batches of windows, none read before it is asked for.

        Args:
            at_once: windows per batch; None: `clips_at_once`.
        """
        size = at_once or clips_at_once(self._job.stage, self._world)
        for i in range(0, len(numbers), size):
            yield read_batch(
                self.store,
                windows,
                numbers[i : i + size],
                first_id=first_id + i,
                resize_to=self.frame_size,
                vocabulary=self.vocabulary,
            )


def clips_at_once(stage: Stage, world: int) -> int:
    """How many clips a process judges at once: as many as it trains on.

    Of whole upscaled frames one: a stage that reads them trains on patches, or not at all.
    """
    return 1 if stage.full_size else stage.micro_batch or max(1, stage.batch // world)


def vocabulary_of(job: Job) -> Vocabulary | None:
    """What the job's model is told by tokens: its own, or those it inherits; None: nothing."""
    objective = job.stage.objective
    if not isinstance(objective, Denoising):
        return None
    if objective.tokens is not None:
        return objective.tokens
    return load_vocabulary(job.parts["tokens"]) if "tokens" in job.parts else None
