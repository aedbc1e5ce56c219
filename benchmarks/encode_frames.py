"""Frames per second through the frozen encoder: diffusers' own call against ours.

    python -m benchmarks.encode_frames --rounds 3

Stable Diffusion's autoencoder (83.7 M parameters, random weights). On a CPU at 256x256 px: what a
user would write first (float32, one frame per call, on all cores), the same in bf16, ours as a
launched process runs it (encoding/latents.py: bf16 autocast, channels last, one thread per
clip, memory that is kept), variants of ours, and TAESD's architecture, which is another encoder.
Goal: 6 times the first line where the CPU multiplies bf16 matrices in hardware tiles (AMX). On an
accelerator at 512x512 px, bf16, in batches, also compiled; goal 300 frames/s on an H200.

The share of the limit is the encoder's FLOPs per second over those of a matrix multiplication in
bf16 (float32), measured in the same rounds. The memory allocator's settings hold for the whole
process: --plain-malloc measures without them.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing
from preprocessing.encoding.latents import encode_frames, encode_side_by_side
from videoldm_core.models.image import AutoencoderConfig
from videoldm_core.system.machine import usable_cores

GOAL_CPU, GOAL_H200 = 6.0, 300.0
CLIPS = 2  # side by side on a CPU


class Way(NamedTuple):
    """A way to encode the same frames."""

    encode: Callable[[], object]
    frames: int  # per call
    limit: str  # the matrix multiplication that bounds it
    tiny: bool = False


def as_users_write_it(
    vae: AutoencoderKL, frames: np.ndarray, dtype: torch.dtype
) -> Callable[[], object]:
    """Frame by frame, as diffusers' documentation shows it."""
    vae = copy.deepcopy(vae).to(dtype)

    @torch.no_grad()
    def encode() -> None:
        for frame in torch.from_numpy(frames):
            pixels = (frame.permute(2, 0, 1)[None].to(vae.device) / 127.5 - 1).to(dtype)
            vae.encode(pixels).latent_dist.mode().cpu()

    return encode


def on_cpu(vae: AutoencoderKL, taesd: AutoencoderTiny, frames: np.ndarray) -> dict[str, Way]:
    """Every way on a CPU; each sees the same clips of `frames`."""
    count = len(frames)
    ours = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    tiny = taesd.to(memory_format=torch.channels_last)
    clips = np.array_split(frames, CLIPS)

    def side_by_side(encoder: AutoencoderKL | AutoencoderTiny, bf16: bool) -> Way:
        def encode() -> None:
            list(encode_side_by_side(encoder, clips, in_bfloat16=bf16))

        limit = "bf16" if bf16 else "float32"
        return Way(encode, count, limit, isinstance(encoder, AutoencoderTiny))

    def together(encoder: AutoencoderKL, batch: int) -> Way:
        def encode() -> None:
            encode_frames(encoder, frames, batch=batch, in_bfloat16=True)

        return Way(encode, count, "bf16")

    return {
        "diffusers, float32": Way(as_users_write_it(vae, frames, torch.float32), count, "float32"),
        "diffusers, bf16": Way(as_users_write_it(vae, frames, torch.bfloat16), count, "bf16"),
        "ours, bf16": side_by_side(ours, True),
        "ours, float32": side_by_side(ours, False),
        "ours, bf16, all threads per frame": together(ours, 1),
        "ours, bf16, all threads per clip": together(ours, count),
        "ours, bf16, not channels last": side_by_side(vae, True),
        "TAESD's size, ours, bf16": side_by_side(tiny, True),
    }


def on_accelerator(
    vae: AutoencoderKL, frames: np.ndarray, batches: tuple[int, ...]
) -> dict[str, Way]:
    """Every way on an accelerator."""
    ours = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    compiled = copy.deepcopy(ours)
    compiled.encoder.compile(dynamic=False)
    ways = {
        "diffusers, float32": Way(as_users_write_it(vae, frames[:8], torch.float32), 8, "float32"),
        "diffusers, bf16": Way(as_users_write_it(vae, frames[:8], torch.bfloat16), 8, "bf16"),
    }
    for batch in batches:
        for name, encoder in (("ours", ours), ("ours, compiled", compiled)):
            ways[f"{name}, bf16, batches of {batch}"] = Way(
                lambda encoder=encoder, batch=batch: encode_frames(
                    encoder, frames, batch=batch, in_bfloat16=True
                ),
                len(frames),
                "bf16",
            )
    return ways


def flops_per_frame(vae: AutoencoderKL | AutoencoderTiny, side: int) -> float:
    """FLOPs of encoding one frame, counted without computing it."""
    shapes = copy.deepcopy(vae).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes.encode(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops())


def measured(ways: dict[str, Way], where: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds per frame of each way, and per FLOP of the matrices."""
    calls: dict[str, Callable[[], object]] = {name: way.encode for name, way in ways.items()}
    counts: dict[str, float] = {name: way.frames for name, way in ways.items()}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        calls[name], counts[name] = timing.matrix_product(where, dtype)
    seconds = timing.take_turns(calls, where, rounds=rounds)
    return {name: [s / counts[name] for s in taken] for name, taken in seconds.items()}


def main() -> None:
    """Takes turns and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, help="per round; default 4, on accelerators 64")
    parser.add_argument("--plain-malloc", action="store_true", help="glibc's default settings")
    chosen = parser.parse_args()
    if not chosen.plain_malloc:
        timing.as_launched()
    torch.set_num_threads(usable_cores())  # for every way alike; clips side by side take one each
    where = timing.device()
    side = 512 if where.type == "cuda" else 256
    count = chosen.frames or (64 if where.type == "cuda" else 4)
    frames = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    vae = AutoencoderConfig().build(0).eval().requires_grad_(False).to(where)
    taesd = AutoencoderTiny().eval().requires_grad_(False)
    allocator = "glibc's own settings" if chosen.plain_malloc else "memory is kept"
    sys.stdout.write(f"{timing.machine(where)}; {count} frames of {side}x{side} px; {allocator}\n")
    if where.type == "cuda":
        ways = on_accelerator(vae, frames, (8, 32))
    else:
        ways = on_cpu(vae, taesd, frames)
    flops = {tiny: flops_per_frame(taesd if tiny else vae, side) for tiny in (False, True)}
    seconds = measured(ways, where, chosen.rounds)
    for name, way in ways.items():
        share = flops[way.tiny] * timing.ratio(seconds[way.limit], seconds[name])
        sys.stdout.write(
            f"{name:36} {1 / timing.median(seconds[name]):8.2f} frames/s  "
            f"{share:4.0%} of the {way.limit} limit  "
            f"{timing.span_of_ratio(seconds['diffusers, float32'], seconds[name])} x the first\n"
        )
    limit = timing.ratio(seconds["float32"], seconds["bf16"])
    sys.stdout.write(f"matrices: bf16 is {limit:.2f} times as fast as float32 on this machine\n")
    goal = f"{GOAL_H200:.0f} frames/s" if where.type == "cuda" else f"{GOAL_CPU:.0f} x with AMX"
    sys.stdout.write(f"goal of the line 'ours, bf16': {goal}\n")


if __name__ == "__main__":
    main()
