"""Trains one stage: `python -m videoldm_core.train job.json`, on every launched process.

The same command resumes from the last complete checkpoint. When it ends well, stage.json is there.
"""

import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, distributed

from videoldm_core.data.loader import Batches
from videoldm_core.data.plan import Plan
from videoldm_core.evaluate import judge
from videoldm_core.evaluation.comparison import WorthRow
from videoldm_core.evaluation.previews import clips_shown, write_preview
from videoldm_core.jobs.clips import StageData
from videoldm_core.jobs.job import Job, load_job
from videoldm_core.jobs.published import (
    FILE,
    PublishedStage,
    describe_parts,
    read_published,
    write_published,
)
from videoldm_core.models.parts import Parts
from videoldm_core.objectives.build import build_task
from videoldm_core.system.command import is_one_of_several, run_command
from videoldm_core.system.files import disk_error, publish_folder
from videoldm_core.system.git import git_commit
from videoldm_core.system.journal import Journal
from videoldm_core.training import actions
from videoldm_core.training.checkpoints import latest_checkpoint, save_checkpoint
from videoldm_core.training.engine import join_processes, leave_processes
from videoldm_core.training.exchange import of_all_processes
from videoldm_core.training.loop import train, warmup_and_cooldown
from videoldm_core.training.start import release_players, start_players

PACKAGES = ("torch", "diffusers", "deepspeed", "webdataset")


def main() -> int:
    """The command; a user's error is one sentence on stderr and exit code 2."""
    return run_command(lambda: run(load_job(Path(sys.argv[1]))))


def run(job: Job) -> None:
    """Trains, judges and publishes the job's stage; does nothing when it is published already.

    Raises:
        UserError: the job cannot be done. The process group is left as it is then: processes that
            wait for this one notice only after the sentence is reported.
    """
    # Once: the store may be given other clips while this trains on those that it had.
    published, fingerprint = read_published(job.out), job.fingerprint()
    if published is not None and published.fingerprint == fingerprint:
        return
    # Another job takes the folder over: what it held is no longer published once weights change.
    (job.out / FILE).unlink(missing_ok=True)
    launched = is_one_of_several()
    if launched:
        join_processes()
    StageRun(job, fingerprint, rank=_rank(), world=_world()).run()
    if launched:
        distributed.destroy_process_group()


class StageRun:
    """One process's part in training one stage."""

    def __init__(self, job: Job, fingerprint: str, *, rank: int, world: int) -> None:
        self.job, self.fingerprint, self.rank, self.world = job, fingerprint, rank, world
        self.started = time.time()
        self.device = _device()
        self.data = StageData(job, rank=rank, world=world)
        self.null_text = _null_text(job.text_tower)
        self.journal = Journal(job.out / "journal.jsonl") if rank == 0 else None
        self.checkpoints = job.out / "checkpoints" / fingerprint[:12]
        self.task = build_task(job, self.null_text)

    def run(self) -> None:
        """Goes from the last checkpoint to stage.json; what has no players is only published."""
        if self.task.players:
            self._train()
        else:
            self._tell_start(0)
        self._publish()

    def _train(self) -> None:
        stage = self.job.stage
        found = latest_checkpoint(self.checkpoints)
        start = found[1] if found else 0
        self._tell_start(start)
        plan = Plan(self.data.windows("train"), stage.batch, self.job.draws)
        with Batches(
            self.data.store,
            plan,
            rank=self.rank,
            world=self.world,
            start_step=start,
            resize_to=self.data.frame_size,
            vocabulary=self.data.vocabulary,
        ) as batches:
            start_players(self.job, self.task, found, device=self.device, world=self.world)
            train(
                self.task.players,
                batches,
                start=start,
                steps=stage.steps,
                seed=self.job.draws,
                rate=self._rate,
                after_step=self._actions(),
                micro_batch=stage.micro_batch,
            )

    def _tell_start(self, start: int) -> None:
        if self.journal is None:
            return
        remark = {"remark": self.task.remark} if self.task.remark else {}
        self.journal.write(total_steps=self.job.stage.steps, start=start, **remark)
        self.journal.sync()
        if remark:
            sys.stderr.write(f"{self.job.stage.name}: {self.task.remark}.\n")

    def _actions(self) -> list:
        job, last = self.job, self.job.stage.steps
        heldout = actions.watch_heldout(
            self.task, self.data.heldout(job.stage.heldout_clips), job.seed, self._write
        )
        after_step = [
            actions.stop_when_orphaned(),
            actions.report(job.stage.name, self.task.players, self.journal),
            actions.every(job.evaluate_every, heldout, last=last),
        ]
        after_step.append(actions.every(job.checkpoint_every, self._save_checkpoint, last=last))
        return after_step

    def _save_checkpoint(self, step: int, metrics: dict[str, float]) -> None:
        if self.journal:
            self.journal.sync()  # no checkpoint is beyond its journal
        save_checkpoint(self.checkpoints, self.task.players, step)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self.journal:
            self.journal.write(step=step, metrics=metrics)

    def _rate(self, step: int) -> float:
        stage = self.job.stage
        return warmup_and_cooldown(
            step, warmup=stage.warmup, cooldown=stage.cooldown, steps=stage.steps
        )

    def _publish(self) -> None:
        """Saves the averages as readers load them, judges what was saved, then publishes."""
        job = self.job
        weights = job.out / "weights"
        averages = {player.name: player.ema.full() for player in self.task.players}
        release_players(self.task)
        del self.task
        saved = self._save_weights(weights, averages) if self.rank == 0 else []
        names = json.loads(of_all_processes(json.dumps(saved).encode())[0])
        own = {name: weights / name for name in names}
        parts = {**job.parts, **own}
        worth = judge(job, parts, self.data, self.device)
        if self.rank == 0:
            self._show(parts)
            self._write_published(own, worth)
            shutil.rmtree(self.checkpoints.parent, ignore_errors=True)

    def _save_weights(self, weights: Path, averages: dict[str, dict[str, Tensor]]) -> list[str]:
        task = build_task(self.job, self.null_text)
        for player in task.players:
            for name, parameter in player.trainable.items():
                parameter.data.copy_(averages[player.name][name])
        task.finish(iter(self.data.training_clips()))
        part = weights.with_name(".weights.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(weights, ignore_errors=True)
            names = task.save(part)
            publish_folder(part, weights)
        except OSError as error:
            raise disk_error(weights, error) from error
        return names

    def _show(self, parts: Parts) -> None:
        """Writes the picture of held-out clips; a stage that was trained is published without it
        where it fails, and that is said.
        """
        job, name = self.job, "previews/heldout.png"
        clips = self.data.first_heldout(clips_shown(job.stage))
        null_text = self.null_text.to(self.device)
        try:
            write_preview(job, parts, clips, null_text, job.out / name)
        except Exception as error:  # whatever it is, it is a picture's
            reason = str(error).partition("\n")[0] or "no reason given"
            remark = f"no preview was made ({type(error).__name__}: {reason})"
            sys.stderr.write(f"{job.stage.name}: {remark}; the stage is published without it.\n")
            shown = {"remark": remark}
        else:
            shown = {"step": job.stage.steps, "image": name, "name": "held-out clips"}
        if self.journal:
            self.journal.write(**shown)

    def _write_published(self, own: dict[str, Path], worth: tuple[WorthRow, ...]) -> None:
        job = self.job
        finished = time.time()
        if self.journal:
            self.journal.sync()
        write_published(
            job.out,
            PublishedStage(
                stage=job.stage,
                video=job.video,
                seed=job.seed,
                fingerprint=self.fingerprint,
                parts=describe_parts(job.out, own, dict(job.parts)),
                parents=job.parents,
                data={job.stage.reads: self.data.store.identity.digest()},
                step=job.stage.steps,
                worth=worth,
                versions={name: version(name) for name in PACKAGES},
                commit=git_commit(),
                started=self.started,
                finished=finished,
                process_seconds=(finished - self.started) * self.world,
            ),
        )


def _null_text(folder: Path) -> Tensor:
    from videoldm_core.models.text.encoder import TextTower

    return TextTower.load(folder).encode([""])[0]


def _device() -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda")
    return torch.device("cpu")


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


if __name__ == "__main__":
    leave_processes(main())
