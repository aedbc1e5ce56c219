"""One training step: temporal layers alone (the image model frozen) against all of it, with and
without checkpointing, in float32 and bf16.

    python -m benchmarks.training_step --rounds 7

On an accelerator at Stable Diffusion 2.1 size with 8 frames of 40x64 latents; elsewhere the same
UNet with a quarter of the channels and fewer latents, and it says so. Goal: all of it takes 1.25
times what the temporal layers alone take (the FLOPs of the small size allow 1.28). FLOPs are
counted, forward and backward, by PyTorch's own counter. MFU is trained FLOPs (recomputation not
counted) per second over the rate of a bf16 (float32) matrix multiplication, measured in the same
rounds.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig


class Shape(NamedTuple):
    """Of the UNet and of what it is given."""

    widths: tuple[int, ...]
    text: int
    frames: int
    latents: tuple[int, int]


class Way(NamedTuple):
    """One way to take a step."""

    trains_all: bool
    bf16: bool
    checkpointing: bool = False

    def __str__(self) -> str:
        what = "everything" if self.trains_all else "temporal layers alone"
        recomputed = ", checkpointed" if self.checkpointing else ""
        return f"{what}, {'bf16' if self.bf16 else 'float32'}{recomputed}"


FULL = Shape((320, 640, 1280, 1280), 1024, 8, (40, 64))
SMALL = Shape((80, 160, 320, 320), 1024, 8, (16, 24))
ALONE = Way(trains_all=False, bf16=False)
WAYS = (
    ALONE,
    Way(trains_all=True, bf16=False),
    Way(trains_all=False, bf16=False, checkpointing=True),
    Way(trains_all=False, bf16=True),
    Way(trains_all=True, bf16=True),
    Way(trains_all=False, bf16=True, checkpointing=True),
)


def video_unet(
    shape: Shape, where: torch.device, *, trains_all: bool, checkpointing: bool = False
) -> VideoUNet:
    """Stable Diffusion 2.1's layout with these widths, and phi."""
    torch.manual_seed(0)
    with where:
        unet = UNet2DConditionModel(
            block_out_channels=shape.widths,
            cross_attention_dim=shape.text,
            attention_head_dim=tuple(max(1, width // 64) for width in shape.widths),
            use_linear_projection=True,
            norm_num_groups=16,
        ).requires_grad_(trains_all)
    phi = temporal_layers_for(unet, TemporalConfig(), seed=0).to(where)
    return VideoUNet(unet, phi, checkpointing=checkpointing)


class Step:
    """A model with an optimizer, and a batch to take steps on."""

    def __init__(self, shape: Shape, where: torch.device, way: Way) -> None:
        net = video_unet(shape, where, trains_all=way.trains_all, checkpointing=way.checkpointing)
        with where:
            self.noisy = torch.randn(1, shape.frames, 4, *shape.latents)
            self.text = torch.randn(1, 77, shape.text)
            self.timesteps = torch.tensor([500])
        trainable = [p for p in net.parameters() if p.requires_grad]
        self.engine = TorchEngine(net, trainable, OptimizerConfig(), way.bf16)

    def __call__(self) -> None:
        prediction = self.engine(self.noisy, self.timesteps, self.text)
        self.engine.backward((prediction.float() - self.noisy).square().mean())
        self.engine.step()

    def flops(self) -> float:
        """Of one step, forward and backward, recomputation included."""
        with FlopCounterMode(display=False) as counter:
            self()
        return float(counter.get_total_flops())


def report(
    way: Way, flops: float, seconds: dict[str, list[float]], matrix_flops: dict[str, float]
) -> str:
    """A line: time, rate, MFU, and times faster than temporal layers alone in float32."""
    taken = seconds[str(way)]
    matrices = "matrices, bf16" if way.bf16 else "matrices, float32"
    share = flops / matrix_flops[matrices] * timing.ratio(seconds[matrices], taken)
    rate = flops / timing.median(taken) / 1e12
    return (
        f"{way!s:46} {timing.median(taken) * 1e3:9.1f} ms {flops / 1e9:9.1f} GFLOP "
        f"{rate:8.2f} TFLOP/s  MFU {share:4.0%}  "
        f"{timing.span_of_ratio(taken, seconds[str(ALONE)])} x the first's time"
    )


def main() -> None:
    """Builds all, then takes turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    timing.as_launched()
    where = timing.device()
    shape = FULL if where.type == "cuda" else SMALL
    size = "Stable Diffusion 2.1 size" if shape is FULL else "a small size, no accelerator here"
    sys.stdout.write(f"{timing.machine(where)}, {size}: {shape}\n")
    steps = {way: Step(shape, where, way) for way in WAYS}
    flops = {way: step.flops() for way, step in steps.items()}
    trained = {way: flops[way._replace(checkpointing=False)] for way in WAYS}
    calls: dict[str, Callable[[], object]] = {str(way): step for way, step in steps.items()}
    matrix_flops = {}
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        call, count = timing.matrix_product(where, dtype)
        calls[f"matrices, {name}"], matrix_flops[f"matrices, {name}"] = call, count
    seconds = timing.take_turns(calls, where, rounds=rounds)
    for name, count in matrix_flops.items():
        rate = count / timing.median(seconds[name]) / 1e12
        sys.stdout.write(f"{name:46} {rate:8.2f} TFLOP/s\n")
    for way in WAYS:
        sys.stdout.write(report(way, trained[way], seconds, matrix_flops) + "\n")


if __name__ == "__main__":
    main()
