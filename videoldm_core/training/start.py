"""Players made ready to train, from a checkpoint if there is one, and let go."""

import gc
from pathlib import Path

import torch
from torch import distributed

from videoldm_core.cascade.stage import Stage
from videoldm_core.errors import UserError
from videoldm_core.jobs.job import Job
from videoldm_core.models.weights import hold_frozen_in_bf16
from videoldm_core.training.checkpoints import load_optimizers, load_weights
from videoldm_core.training.ema import Ema
from videoldm_core.training.engine import Engine, TorchEngine, deepspeed_engine
from videoldm_core.training.task import Task
from videoldm_core.training.train_module import Player


def start_players(
    job: Job, task: Task, found: tuple[Path, int] | None, *, device: torch.device, world: int
) -> None:
    """Gives every player of `task` its engine and average, as they were at checkpoint `found`.

    Raises:
        UserError: the micro batch does not divide a process's share of the batch.
    """
    split = micro_batches_per_step(job.stage, world)
    if found:
        load_weights(found[0], task.players)
    for module in task.frozen:
        module.to(device)
    for player in task.players:
        player.module.to(device)
        if job.precision == "bf16":
            hold_frozen_in_bf16(player.module, player.trainable.values())
        player.engine = _engine(job, player, split, world)
        if job.stage.compile:
            # In place, so no name of a weight changes; fixed shapes make the faster kernels.
            player.engine.compile(compile_kwargs={"dynamic": False})
        player.ema = Ema(player.trainable, job.stage.ema)
    if found:
        load_optimizers(found[0], task.players, found[1])


def release_players(task: Task) -> None:
    """Lets go of all that training held: what comes after reads published weights, and has room.

    `task` has no players afterwards. Its caller lets go of it too. Of ZeRO-3 a process's share of
    the state stays: DeepSpeed (0.19) holds on to it.
    """
    for player in task.players:
        destroy = getattr(player.engine, "destroy", None)
        if destroy:  # DeepSpeed's: hooks hold on to it otherwise
            destroy()
    task.players.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def micro_batches_per_step(stage: Stage, world: int) -> int:
    """How many micro batches one process's share of a batch is.

    Raises:
        UserError: the share is not a whole number of micro batches.
    """
    share = stage.batch // world
    size = stage.micro_batch or share
    if share % size:
        fitting = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        raise UserError(
            f"Stage {stage.name!r}: micro_batch {size} does not divide the {share} clips that each "
            f"of {world} processes has of batch {stage.batch}; choose one of {fitting}."
        )
    return share // size


def _engine(job: Job, player: Player, split: int, world: int) -> Engine:
    trainable, bf16 = list(player.trainable.values()), job.precision == "bf16"
    if not distributed.is_initialized():
        return TorchEngine(player.module, trainable, player.optimizer, bf16, split)
    return deepspeed_engine(
        player.module,
        trainable,
        player.optimizer,
        zero_stage=job.zero_stage,
        micro_batch=job.stage.batch // world // split,
        accumulate=split,
        bf16=bf16,
    )
