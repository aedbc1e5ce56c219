"""DeepSpeed's engine against plain torch, in one process, on the same model and batch.

    python -m benchmarks.engines --rounds 5

Each engine has a copy of the same model: a video UNet whose image model is frozen. On an
accelerator at Stable Diffusion 2.1 size in bf16; elsewhere float32 and small, with as many frames
as make a step of a second or more on two cores: DeepSpeed's own work is a fixed part of a step, and
on a short one it would say nothing about training. Goal: at most 1.05 times the plain step.
"""

import argparse
import copy
import os
import sys

import torch
from torch import distributed

from benchmarks import timing
from benchmarks.training_step import FULL, SMALL, Shape, video_unet
from flows.launch.handed import HandedFile
from flows.launch.local import LOOPBACK
from videoldm_core.system.command import RENDEZVOUS
from videoldm_core.training.engine import (
    Engine,
    TorchEngine,
    deepspeed_engine,
    join_processes,
    leave_processes,
)
from videoldm_core.training.optimizer import OptimizerConfig

GOAL = 1.05
LONG_STEP_S = 1.0


def launched_alone() -> None:
    """What a launcher would say to the only process of a run."""
    os.environ |= LOOPBACK | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ[RENDEZVOUS] = f"file://{HandedFile('rendezvous').path}"


class Stepping:
    """An engine and the batch it takes steps on."""

    def __init__(self, engine: Engine, shape: Shape, where: torch.device) -> None:
        self.engine = engine
        with where:
            self.noisy = torch.randn(1, shape.frames, 4, *shape.latents)
            self.text = torch.randn(1, 77, shape.text)
            self.timesteps = torch.tensor([500])

    def __call__(self) -> None:
        prediction = self.engine(self.noisy, self.timesteps, self.text)
        self.engine.backward((prediction.float() - self.noisy).square().mean())
        self.engine.step()


def engines(shape: Shape, where: torch.device, zero_stages: list[int]) -> dict[str, Engine]:
    """Plain torch, and DeepSpeed in every ZeRO stage asked for, each with its own copy."""
    bf16 = where.type == "cuda"
    model = video_unet(shape, where, trains_all=False)
    found: dict[str, Engine] = {}
    for zero in [None, *zero_stages]:
        net = copy.deepcopy(model)
        trainable = [p for p in net.parameters() if p.requires_grad]
        if zero is None:
            found["torch"] = TorchEngine(net, trainable, OptimizerConfig(), bf16)
        else:
            found[f"DeepSpeed ZeRO-{zero}"] = deepspeed_engine(
                net,
                trainable,
                OptimizerConfig(),
                zero_stage=zero,
                micro_batch=1,
                accumulate=1,
                bf16=bf16,
            )
    return found


def main() -> None:
    """Takes turns and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, help="default: 8 on an accelerator, else 24")
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 2], help="ZeRO stages")
    chosen = parser.parse_args()
    timing.as_launched()
    launched_alone()
    join_processes()
    where = timing.device()
    shape = FULL if where.type == "cuda" else SMALL._replace(frames=24)
    if chosen.frames:
        shape = shape._replace(frames=chosen.frames)
    size = "Stable Diffusion 2.1 size, bf16" if where.type == "cuda" else "a small size, float32"
    sys.stdout.write(
        f"{timing.machine(where)}\none process, {distributed.get_backend()}; {size}: {shape}\n"
    )
    calls = {
        name: Stepping(engine, shape, where)
        for name, engine in engines(shape, where, chosen.zero).items()
    }
    seconds = timing.take_turns(calls, where, rounds=chosen.rounds, warmup=2)
    for name, taken in seconds.items():
        sys.stdout.write(
            f"{name:18} {timing.median(taken) * 1e3:9.1f} ms   "
            f"{timing.span_of_ratio(taken, seconds['torch'])} x torch (goal <= {GOAL})\n"
        )
    if timing.median(seconds["torch"]) < LONG_STEP_S and where.type == "cpu":
        sys.stdout.write(f"A step took less than {LONG_STEP_S} s: give more --frames.\n")
    leave_processes(0)


if __name__ == "__main__":
    main()
