"""Training steps of the temporal layers at Stable Diffusion 2.1's size, as the training command
takes them, and what they hold in memory against what `videoldm doctor` expects.

    python -m benchmarks.full_size_step --steps 2

The stage `temporal` of the preset text_to_video with one clip per step: 8 frames of 40x64 latents,
866 M frozen parameters in bfloat16, 656 M trained ones in float32 with AdamW and their average,
activations recomputed. Weights and clips are random, so that it says nothing of quality. It takes
16 GiB of memory and 4 GB of disk, also without an accelerator: there a step takes a minute or so.
"""

import argparse
import itertools
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks import timing
from flows.config.load import load_run
from flows.config.stage_table import table_of
from videoldm_core.cascade.stage import Preset
from videoldm_core.data.loader import Batch
from videoldm_core.jobs.job import Job
from videoldm_core.memory.stages import StageMemory, expected_memory
from videoldm_core.objectives.build import build_task
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.training.loop import train
from videoldm_core.training.start import start_players

STAGE = "temporal"
TOKENS = 77
CHANGES = (
    "processes=1",
    "without=[image_upscaler, upscaler]",
    f"stages.{STAGE}.batch=1",
    f"stages.{STAGE}.micro_batch=1",
    f"stages.{STAGE}.checkpointing=true",
)


def write_image_model(folder: Path) -> None:
    """An image model of Stable Diffusion 2.1's shape with random weights, as a diffusers folder."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    ScheduleConfig(predicts="v_prediction").build().save(folder / "scheduler")
    # Of the autoencoder the memory estimate asks for the shape alone.
    (folder / "vae").mkdir()
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
        )
    vae.save_config(folder / "vae")


def job_of(table: Preset, folder: Path) -> Job:
    """What the training command is told; no store is read."""
    return Job(
        stage=table.stage(STAGE),
        video=table.video,
        parts={"unet": folder / "unet", "scheduler": folder / "scheduler"},
        latents=folder,
        text_tower=folder,
        out=folder,
        precision="bf16",
    )


def random_batch(table: Preset, step: int) -> Batch:
    """A clip of the stage's size, as the loader would give it."""
    generator = torch.Generator().manual_seed(step)
    size = (table.video.height // 8, table.video.width // 8)
    return Batch(
        clip=torch.randn(1, table.stage(STAGE).frames, 4, *size, generator=generator),
        text=torch.randn(1, TOKENS, 1024, generator=generator),
        stride_index=torch.zeros(1, dtype=torch.long),
        sample_ids=torch.tensor([step]),
    )


def take_steps(table: Preset, folder: Path, steps: int, where: torch.device) -> list[str]:
    """Trains as the training command does; a line per step."""
    job, lines = job_of(table, folder), []
    task = build_task(job, torch.zeros(TOKENS, 1024))
    start_players(job, task, None, device=where, world=1)
    began = time.perf_counter()

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal began
        timing.settle(where)
        now = time.perf_counter()
        lines.append(f"step {step}: loss {metrics['loss']:.4f}, {now - began:.1f} s")
        sys.stderr.write(lines[-1] + "\n")
        began = now

    train(
        task.players,
        (random_batch(table, step) for step in itertools.count()),
        start=0,
        steps=steps,
        seed=0,
        rate=lambda step: 1.0,
        after_step=[report],
    )
    return lines


def peak_bytes(where: torch.device) -> int:
    """Most memory that was held: of the accelerator, or of this process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_reserved(where)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def expectation(table: Preset) -> StageMemory:
    """What `videoldm doctor` would say of the stage on one process."""
    rows = expected_memory(table, processes=1, precision="bf16")
    return next(row for row in rows if row.stage == STAGE)


def main() -> None:
    """Takes the steps and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2)
    steps = parser.parse_args().steps
    timing.as_launched()
    where = timing.device()
    sys.stdout.write(f"{timing.machine(where)}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image_model(folder)
        changes = [f"pretrained.image_model={folder}", *CHANGES]
        table = table_of(load_run("text_to_video", changes))
        before = 0 if where.type == "cuda" else peak_bytes(where)
        lines = take_steps(table, folder, steps, where)
        row = expectation(table)
    peak, expected = peak_bytes(where), row.state[0] + row.activations
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(
        f"{row.frozen / 1e6:.0f} M frozen, {row.trained / 1e6:.0f} M trained\n"
        f"peak {peak / 2**30:.2f} GiB (before building the stage {before / 2**30:.2f}); expected "
        f"{row.state[0] / 2**30:.2f} held + {row.activations / 2**30:.2f} of a step = "
        f"{expected / 2**30:.2f} GiB: {peak / expected:.2f} times\n"
    )


if __name__ == "__main__":
    main()
