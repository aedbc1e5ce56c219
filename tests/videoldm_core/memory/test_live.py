"""The memory of a step: exact on networks counted by hand, close to a real process's peak."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoldm_core.memory.live import activation_bytes, forward_bytes
from videoldm_core.memory.state import held_memory
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_of_shape

ROOT = Path(__file__).resolve().parents[3]
FLOAT32 = 4
ROWS, WIDTH = 1000, 50
ONE = ROWS * WIDTH * FLOAT32  # bytes of one activation

# A process that trains, and says by how many bytes its peak grew.
PROGRAM = """
from pathlib import Path
import torch
from tests.videoldm_core.memory.test_live import measured_model
from videoldm_core.training.ema import Ema
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig

def peak():  # not getrusage: a child's begins with what its parent held when it forked
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

small = torch.nn.Conv2d(8, 8, 3, padding=1)  # what is loaded at first use is not training's
small(torch.zeros(1, 8, 9, 9)).sum().backward()
before = peak()
model, inputs = measured_model("cpu")
trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
engine = TorchEngine(model, list(trainable.values()), OptimizerConfig(), False)
average = Ema(trainable, 0.99)
for step in range(2):
    engine.backward(engine(**inputs).square().mean())
    engine.step()
    average.update(step + 1)
print(peak() - before)
"""


class Chain(nn.Module):
    """Square after square: each keeps its input for the backward pass."""

    def __init__(self, squares: int, *, recomputed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH))
        self.squares, self.recomputed = squares, recomputed

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.weight
        if self.recomputed:
            return checkpoint(self._chain, h, use_reentrant=False)
        return self._chain(h)

    def _chain(self, h: Tensor) -> Tensor:
        for _ in range(self.squares):
            h = h.square()
        return h


def measured_model(device: str):
    """A video UNet with a frozen image model, and what it is given."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            block_out_channels=(64, 128, 256, 256), cross_attention_dim=64, attention_head_dim=4
        ).requires_grad_(False)
        phi = temporal_layers_of_shape(unet, TemporalConfig())
        inputs = {
            "noisy": torch.zeros(1, 4, 4, 24, 32),
            "timesteps": torch.zeros(1, dtype=torch.long),
            "text": torch.zeros(1, 8, 64),
        }
    return VideoUNet(unet, phi), inputs


def peak_of(module: nn.Module, *, in_bfloat16: bool = False) -> int:
    inputs = {"x": torch.empty(ROWS, WIDTH, device="meta")}
    return activation_bytes(module, inputs, lambda out: out.float().sum(), in_bfloat16=in_bfloat16)


def test_recomputed_blocks_are_counted_under_autocast_as_an_accelerator_computes_them():
    """What is recomputed has the types of what was computed first, else PyTorch refuses it."""
    steps = {}
    for checkpointing in (False, True):
        net, inputs = measured_model("meta")
        net.checkpointing = checkpointing
        steps[checkpointing] = activation_bytes(
            net, inputs, lambda out: out.float().square().mean(), in_bfloat16=True
        )
    assert 0 < steps[True] < 0.6 * steps[False]


def test_every_activation_that_the_backward_pass_needs_counts_once():
    with torch.device("meta"):
        three, six = Chain(3, recomputed=False), Chain(6, recomputed=False)
    assert peak_of(six) - peak_of(three) == 3 * ONE


def test_gradients_weights_and_inputs_are_not_activations():
    with torch.device("meta"):
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
    inputs = {"input": torch.empty(ROWS, WIDTH, device="meta")}
    trained = activation_bytes(layer, inputs, lambda out: out.sum(), in_bfloat16=False)
    # The output, its sum and the gradient of that sum: nothing as large as the weight beside them.
    assert ONE <= trained < ONE + WIDTH * WIDTH * FLOAT32


def test_recomputing_keeps_less_and_is_counted_as_it_falls():
    with torch.device("meta"):
        kept, recomputed = Chain(8, recomputed=False), Chain(8, recomputed=True)
        twice = nn.Sequential(Chain(8, recomputed=True), Chain(8, recomputed=True))
    assert peak_of(recomputed) <= peak_of(kept) + ONE
    inputs = {"input": torch.empty(ROWS, WIDTH, device="meta")}
    both = activation_bytes(twice, inputs, lambda out: out.sum(), in_bfloat16=False)
    assert both < 1.5 * peak_of(kept)


def test_autocast_to_bfloat16_takes_less():
    def layers() -> nn.Module:
        with torch.device("meta"):
            return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(8)])

    inputs = {"input": torch.empty(ROWS, WIDTH, device="meta")}
    full, half = (
        activation_bytes(layers(), inputs, lambda out: out.float().sum(), in_bfloat16=bf16)
        for bf16 in (False, True)
    )
    assert half < 0.75 * full


def test_bfloat16_norms_count_as_an_accelerator_runs_them_in_float32():
    def layers() -> nn.Module:
        with torch.device("meta"):
            norms = [nn.LayerNorm(WIDTH) if i % 2 else nn.Linear(WIDTH, WIDTH) for i in range(8)]
            return nn.Sequential(*norms)

    inputs = {"input": torch.empty(ROWS, WIDTH, device="meta")}
    taken = activation_bytes(layers(), inputs, lambda out: out.float().sum(), in_bfloat16=True)
    # Kept of each pair: the input in bfloat16, the norm's in float32, and what it is made from.
    assert taken > 4 * (ONE / 2 + ONE)
    seen: list[torch.dtype] = []
    watched = nn.Sequential(nn.GroupNorm(5, WIDTH, device="meta"), Seen(seen))
    forward_bytes(watched, inputs, in_bfloat16=True)
    assert seen == [torch.float32]


class Seen(nn.Module):
    def __init__(self, types: list[torch.dtype]) -> None:
        super().__init__()
        self.types = types

    def forward(self, x: Tensor) -> Tensor:
        self.types.append(x.dtype)
        return x


def test_a_forward_pass_alone_keeps_nothing_for_a_backward_pass():
    inputs = {"x": torch.empty(ROWS, WIDTH, device="meta")}
    with torch.device("meta"):
        chains = Chain(3, recomputed=False), Chain(8, recomputed=False)
    # What the squares begin with, which the caller holds, and the input and output of one.
    assert [forward_bytes(c, inputs, in_bfloat16=False) for c in chains] == [3 * ONE, 3 * ONE]


def test_the_estimate_is_within_a_quarter_of_a_real_process_peak():
    model, inputs = measured_model("meta")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    step = activation_bytes(model, inputs, lambda out: out.square().mean(), in_bfloat16=False)
    held = held_memory(frozen, trained, zero_stage=0, processes=1, precision="fp32").total
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert step > 0.2 * held
    assert int(run.stdout) == pytest.approx(held + step, rel=0.25)
