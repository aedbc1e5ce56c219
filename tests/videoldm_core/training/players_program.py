"""Run by the launcher on two processes: trains the same players under every ZeRO stage and saves
the results.

Its argument is a JSON file: the folder of weights, then requests, each the arguments of `run`, or
of `poisoned` where it has that key.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import distributed

from videoldm_core.cascade.annotations import Box, LabelKind, Vocabulary
from videoldm_core.cascade.stage import Stage, preset
from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import FirstFrames
from videoldm_core.diffusion.labels_boxes import told_of
from videoldm_core.errors import UserError
from videoldm_core.jobs.job import Job
from videoldm_core.models.discriminator import CriticConfig
from videoldm_core.models.image import UNetConfig
from videoldm_core.objectives.decoding import DecodingTask, TemporalDecoding
from videoldm_core.objectives.denoising import Denoising, DenoisingTask, ScheduleConfig
from videoldm_core.training import actions
from videoldm_core.training.checkpoints import latest_checkpoint, save_checkpoint
from videoldm_core.training.engine import full_tensors, join_processes, leave_processes
from videoldm_core.training.loop import Action, train
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.start import start_players
from videoldm_core.training.task import Task
from videoldm_core.training.train_module import Turn

GLOBAL_BATCH = 4
HELDOUT = 1000  # number of a batch that no step sees
WORDS = Vocabulary(
    labels=(LabelKind(name="time", values=("day", "night")),), box_classes=("car",), max_boxes=2
)
CARS = (Box("car", 0.0, 0.5, 0.25, 1.0), Box("car", 0.5, 0.5, 0.75, 0.75))


def denoising_task(folder: Path, *, checkpointing: bool = False) -> DenoisingTask:
    """A predictor over a tiny frozen UNet."""
    unet = UNetConfig(
        widths=(16, 32), attention=(True, True), layers_per_block=1, heads=2, text=8, groups=8
    )
    if not (folder / "unet").exists():
        unet.build(0).save_pretrained(folder / "unet")
        ScheduleConfig(predicts="v_prediction").build().save(folder / "scheduler")
    return DenoisingTask(
        Denoising(alpha="scalar", given=FirstFrames()),
        parts={"unet": folder / "unet", "scheduler": folder / "scheduler"},
        trains=("temporal",),
        frames=3,
        strides=2,
        crop=None,
        null_text=torch.zeros(4, 8),
        optimizer=OptimizerConfig(lr=1e-3),
        seed=0,
        checkpointing=checkpointing,
    )


def telling_task(folder: Path, *, checkpointing: bool = False) -> DenoisingTask:
    """A new image model that is told labels and boxes; its tokens train with it."""
    unet = UNetConfig(
        widths=(16, 32), attention=(True, True), layers_per_block=1, heads=2, text=8, groups=8
    )
    config = Denoising(unet=unet, schedule=ScheduleConfig(), tokens=WORDS, label_dropout=0.3)
    return DenoisingTask(
        config,
        parts={},
        trains=("unet", "tokens"),
        frames=3,
        strides=1,
        crop=None,
        null_text=torch.zeros(4, 8),
        optimizer=OptimizerConfig(lr=1e-3),
        seed=0,
        checkpointing=checkpointing,
    )


def decoding_task(folder: Path, *, checkpointing: bool = False) -> DecodingTask:
    """A decoder and its critic, which starts in the second step."""
    if not (folder / "vae").exists():
        torch.manual_seed(0)
        AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
        ).save_pretrained(folder / "vae")
    return DecodingTask(
        TemporalDecoding(
            critic=CriticConfig(width=8, layers=2), critic_starts_at=1, temporal_weight=1.0
        ),
        parts={"vae": folder / "vae"},
        optimizer=OptimizerConfig(lr=1e-3),
        seed=0,
        checkpointing=checkpointing,
    )


def batches(shape: tuple[int, ...], rank: int, world: int, start: int):
    """The share of one process; the same global batches for any number of processes."""
    share = GLOBAL_BATCH // world
    step = start
    while True:
        g = torch.Generator().manual_seed(step)
        clip = torch.randn(GLOBAL_BATCH, *shape, generator=g).clamp(-1, 1)
        text = torch.randn(GLOBAL_BATCH, 4, 8, generator=g)
        mine = slice(rank * share, (rank + 1) * share)
        ids = torch.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
        said = [({"time": ("day", "night")[i % 2]}, CARS[: i % 3]) for i in ids[mine].tolist()]
        yield Batch(
            clip=clip[mine],
            text=text[mine],
            stride_index=ids[mine] % 2,
            sample_ids=ids[mine],
            told=told_of(WORDS, said),
        )
        step += 1


def job_of(out: Path, stage: dict[str, Any], **more: Any) -> Job:
    """What `start_players` is told; the stage's objective and data are not asked for."""
    row = preset("tiny").stage("temporal").model_dump()
    changed = Stage.model_validate(row | {"batch": GLOBAL_BATCH, "ema": 0.9} | stage)
    video = preset("tiny").video
    return Job(stage=changed, video=video, latents=out, text_tower=out, out=out, **more)


def run(
    out: str,
    weights: Path,
    *,
    steps: int,
    watch: bool = False,
    stage: dict[str, Any] | None = None,
    **job: Any,
):
    """Trains all tasks for `steps` steps in all (going on from a checkpoint) and saves what
    results.

    Args:
        watch: measures held-out clips after each step, and saves the numbers.
        stage, job: what differs from the job of a whole batch in float32 under ZeRO-2.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    told = job_of(Path(out), stage or {}, **job)
    tasks = {
        "denoising": (denoising_task, (3, 4, 8, 12)),
        "telling": (telling_task, (3, 4, 8, 12)),
        "decoding": (decoding_task, (3, 3, 16, 24)),
    }
    for name, (make, shape) in tasks.items():
        task = make(weights, checkpointing=told.stage.checkpointing)
        folder, numbers = Path(out) / f"{name}_checkpoints", {}
        heldout = [next(batches(shape, rank(), world(), HELDOUT))]
        watching = [actions.watch_heldout(task, heldout, 0, numbers.__setitem__)] if watch else []
        result = trained(task, told, folder, shape, steps=steps, after_step=watching)
        if rank() == 0:
            save_file(result, Path(out) / f"{name}_{steps}.safetensors")
            (Path(out) / f"{name}_heldout.json").write_text(json.dumps(numbers))
        else:
            assert not result, "whole models are held by the first process alone"


def trained(
    task: Task,
    job: Job,
    folder: Path,
    shape: tuple[int, ...],
    *,
    steps: int,
    after_step: list[Action],
):
    """Weights and averages of all players after `steps` steps, whole, by name."""
    found = latest_checkpoint(folder)
    start = found[1] if found else 0
    start_players(job, task, found, device=torch.device("cpu"), world=world())
    train(
        task.players,
        batches(shape, rank(), world(), start),
        start=start,
        steps=steps,
        seed=0,
        rate=lambda step: 1.0,
        after_step=after_step,
        micro_batch=job.stage.micro_batch,
    )
    save_checkpoint(folder, task.players, steps)
    result = {}
    for player in task.players:
        result |= {f"{player.name}/{k}": t for k, t in full_tensors(player.trainable).items()}
        result |= {f"{player.name}/ema/{k}": t for k, t in player.ema.full().items()}
    return result


def poisoned(out: str, weights: Path, **job: Any) -> None:
    """Trains the denoiser; in the second step the gradient of the last process alone is NaN, though
    its loss is finite. Every process writes what it is told.
    """
    told = job_of(Path(out), {}, **job)
    task, folder = denoising_task(weights), Path(out) / "checkpoints"
    (player,) = task.players

    def loss(net: Any, batch: Batch, turn: Turn) -> tuple[torch.Tensor, dict[str, float]]:
        value, numbers = task.loss(net, batch, turn)
        if turn.step == 1 and rank() == world() - 1:
            value = value + (value - value.detach()).abs().sqrt()  # sqrt'(0) * 0
        return value, numbers

    player.loss = loss
    start_players(told, task, None, device=torch.device("cpu"), world=world())
    said = "nothing"
    try:
        train(
            task.players,
            batches((3, 4, 8, 12), rank(), world(), 0),
            start=0,
            steps=3,
            seed=0,
            rate=lambda step: 1.0,
            after_step=[
                actions.report("predictor", task.players, None),
                lambda step, _: save_checkpoint(folder, task.players, step),
            ],
        )
    except UserError as error:
        said = str(error)
    Path(out, f"said_{rank()}.txt").write_text(said)


def rank() -> int:
    """The number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


if __name__ == "__main__":
    join_processes()
    weights, *requests = json.loads(Path(sys.argv[1]).read_text())
    torch.use_deterministic_algorithms(True)
    for request in requests:  # one after the other in one start
        does = poisoned if request.pop("poisoned", False) else run
        does(weights=Path(weights), **request)
    distributed.barrier()
    distributed.destroy_process_group()
    leave_processes(0)
