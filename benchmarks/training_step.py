"""One training step: temporal layers alone (the image model frozen) against all of it.

    python benchmarks/training_step.py --rounds 7

On an accelerator at Stable Diffusion 2.1 size with 8 frames of 40x64 latents in bf16; elsewhere the
same UNet with a quarter of the channels and fewer latents, in float32, and it says so. FLOPs are
counted, forward and backward, by PyTorch's own counter; the two steps take turns.
"""

import argparse
import platform
import statistics
import sys
import time

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.training.engine import OptimizerConfig, TorchEngine

FULL = {"widths": (320, 640, 1280, 1280), "text": 1024, "frames": 8, "size": (40, 64)}
SMALL = {"widths": (80, 160, 320, 320), "text": 256, "frames": 8, "size": (16, 24)}
STEPS = ("temporal layers alone", "everything")


class Step:
    """A model with an optimizer, and a batch to take steps on."""

    def __init__(self, shape: dict, device: torch.device, *, trains_all: bool) -> None:
        torch.manual_seed(0)
        with device:
            heads = tuple(max(1, width // 64) for width in shape["widths"])
            unet = UNet2DConditionModel(
                block_out_channels=shape["widths"],
                cross_attention_dim=shape["text"],
                attention_head_dim=heads,
                use_linear_projection=True,
                norm_num_groups=16,
            ).requires_grad_(trains_all)
            phi = temporal_layers_for(unet, TemporalConfig(), seed=0).to(device)
            self.noisy = torch.randn(1, shape["frames"], 4, *shape["size"])
            self.text = torch.randn(1, 77, shape["text"])
            self.timesteps = torch.tensor([500])
        net = VideoUNet(unet, phi)
        trainable = [p for p in net.parameters() if p.requires_grad]
        bf16 = device.type == "cuda"
        self.engine = TorchEngine(net, trainable, OptimizerConfig(), bf16)

    def take(self) -> None:
        """One step on the same batch."""
        prediction = self.engine(self.noisy, self.timesteps, self.text)
        self.engine.backward((prediction.float() - self.noisy).square().mean())
        self.engine.step()
        if self.noisy.is_cuda:
            torch.cuda.synchronize()

    def flops(self) -> int:
        """Of one step, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self.take()
        return counter.get_total_flops()


def report(flops: dict[str, int], seconds: dict[str, list[float]]) -> str:
    """A line per step, and their ratio as the median over rounds."""
    lines = []
    for label, count in flops.items():
        median = statistics.median(seconds[label])
        rate = count / median / 1e12
        lines.append(
            f"{label:22} {median * 1e3:8.1f} ms {count / 1e9:9.1f} GFLOP {rate:8.2f} TFLOP/s"
        )
    alone, everything = STEPS
    ratios = [b / a for a, b in zip(seconds[alone], seconds[everything], strict=True)]
    time_ratio, flop_ratio = statistics.median(ratios), flops[everything] / flops[alone]
    lines.append(f"everything / alone: {time_ratio:.2f} in time, {flop_ratio:.2f} in FLOPs")
    return "\n".join(lines)


def main() -> None:
    """Builds both, then takes turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = FULL if device.type == "cuda" else SMALL
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    what = "Stable Diffusion 2.1 size" if shape is FULL else "a small size, no accelerator here"
    sys.stdout.write(f"{name}, torch {torch.__version__}, {what}: {shape}\n")
    steps = {label: Step(shape, device, trains_all=label == "everything") for label in STEPS}
    flops = {label: step.flops() for label, step in steps.items()}
    seconds: dict[str, list[float]] = {label: [] for label in STEPS}
    for done in range(rounds):
        for label, step in steps.items():
            started = time.perf_counter()
            step.take()
            seconds[label].append(time.perf_counter() - started)
        sys.stderr.write(f"\rround {done + 1}/{rounds}")
    sys.stderr.write("\n")
    sys.stdout.write(report(flops, seconds) + "\n")


if __name__ == "__main__":
    main()
