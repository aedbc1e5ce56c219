"""Our walk over an image UNet with phi, against diffusers' own video model with the same weights.

    python -m benchmarks.walk --rounds 9

On an accelerator at Stable Diffusion 2.1 size, 8 frames of 40x64 latents, bf16 autocast, eager and
compiled; elsewhere with a fifth of the channels and fewer latents in float32, and it says so. A
training step is forward and backward with the image model frozen. Text of 77 tokens is Stable
Diffusion's, of 1 token Stable Video Diffusion's: diffusers projects the text anew for every
position of a frame, so the second is the harder comparison. FLOPs are PyTorch's own count.
"""

import argparse
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing
from benchmarks.diffusers_video import both_models
from videoldm_core.models.video_unet import VideoUNet
from videoldm_core.training.train_module import trainable_parameters


class Size(NamedTuple):
    """Of the models and of what they are given."""

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    text: int
    frames: int
    latents: tuple[int, int]


Inputs = tuple[Tensor, Tensor, Tensor]  # of VideoUNet: noisy latents, times, text

FULL = Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, 8, (40, 64))
SMALL = Size((64, 128, 256, 256), (1, 2, 4, 4), 256, 8, (16, 24))
TOKENS = (77, 1)


def models(size: Size, where: torch.device) -> dict[str, nn.Module]:
    """Theirs and ours with one set of weights; the image model is frozen in both."""
    torch.manual_seed(0)
    both = both_models(size.widths, text=size.text, heads=size.heads)
    theirs, ours = (model.to(where) for model in both)
    assert isinstance(ours, VideoUNet), "ours is the second"
    assert ours.temporal is not None, "built with phi"
    trainable_parameters(ours, [ours.temporal])
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("temporal" in name or ".time_" in name)
    chosen = {"diffusers": theirs, "ours": ours}
    if where.type == "cuda":
        for name, model in list(chosen.items()):
            chosen[f"{name}, compiled"] = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return chosen


def inputs(size: Size, tokens: int, where: torch.device) -> Inputs:
    """Noisy latents 1 t 4 h w, a diffusion time and text 1 l d."""
    with where:
        noisy = torch.randn(1, size.frames, 4, *size.latents)
        return noisy, torch.tensor([500]), torch.randn(1, tokens, size.text)


def forward(model: nn.Module, given: Inputs) -> Tensor:
    """A prediction; bf16 autocast on an accelerator alone."""
    kind = given[0].device.type
    with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        return model(*given)


def step(model: nn.Module, given: Inputs) -> None:
    """Forward and backward, and the gradients forgotten."""
    kind = given[0].device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        out = model(*given)
    out.float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def flops_of(call: Any, model: nn.Module, given: Inputs) -> float:
    """FLOPs of one call."""
    with FlopCounterMode(display=False) as counter:
        call(model, given)
    return float(counter.get_total_flops())


def compare(
    what: str, call: Any, chosen: dict[str, nn.Module], given: Inputs, rounds: int
) -> list[str]:
    """Lines on one comparison: time, FLOPs and how many times faster than diffusers."""
    where = given[0].device
    counted = {name: flops_of(call, chosen[name], given) for name in ("diffusers", "ours")}
    calls = {name: lambda model=model: call(model, given) for name, model in chosen.items()}
    seconds = timing.take_turns(calls, where, rounds=rounds, warmup=2)
    lines = [what]
    for name, taken in seconds.items():
        rival = name.replace("ours", "diffusers")
        versus = timing.span_of_ratio(seconds[rival], taken)
        gflop = counted[name.partition(",")[0]] / 1e9
        lines.append(
            f"  {name:22} {timing.median(taken) * 1e3:9.1f} ms {gflop:9.1f} GFLOP"
            f"   {versus} x {rival}"
        )
    return lines


def main() -> None:
    """Checks that both compute the same, then takes turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    timing.as_launched()
    where = timing.device()
    size = FULL if where.type == "cuda" else SMALL
    what = "Stable Diffusion 2.1 size, bf16" if size is FULL else "a small size, float32"
    sys.stdout.write(f"{timing.machine(where)}\n{what}: {size}\n")
    chosen = models(size, where)
    for tokens in TOKENS:
        given = inputs(size, tokens, where)
        found, reference = (forward(chosen[name], given).float() for name in ("ours", "diffusers"))
        error = (found - reference).abs().max() / reference.abs().max()
        sys.stdout.write(f"{tokens} tokens of text; largest relative difference {error:.1e}\n")
        for name, call in (("forward", forward), ("training step", step)):
            lines = compare(f" {name}", call, chosen, given, rounds)
            sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
