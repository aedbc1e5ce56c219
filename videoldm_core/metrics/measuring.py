"""How proofs measure: fixed noise of several seeds, fixed noise levels, and the best guess from
noise alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videoldm_core.conditioning import Given, KeyFrames, LowResolution, shrink
from videoldm_core.data.loader import Batch
from videoldm_core.objectives.denoiser import Denoiser, predict
from videoldm_core.objectives.task import Parts
from videoldm_core.randomness import SampleRng

SEEDS = (101, 102, 103)
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels, as shares of the schedule's timesteps
Series = dict[str, Tensor]  # (seeds, clips) by name


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a proof may look at."""

    parts: Parts  # of the published stage, inherited ones included
    inherited: Parts  # what it started from
    heldout: list[Batch]  # this process's share of the held-out clips
    training: Callable[[], list[Batch]]  # a few batches, for what a baseline must fit
    device: torch.device = torch.device("cpu")  # where the batches are, and networks are to be


def over_seeds(
    batches: list[Batch], measure: Callable[[Batch, SampleRng], dict[str, Tensor]]
) -> Series:
    """Runs `measure(batch, rng)` for every seed and batch; (seeds, clips) per name."""
    rows: dict[str, list[Tensor]] = {}
    for seed in SEEDS:
        columns: dict[str, list[Tensor]] = {}
        for batch in batches:
            rng = SampleRng(seed, "worth", batch.sample_ids)
            for name, values in measure(batch, rng).items():
                columns.setdefault(name, []).append(values.float().cpu())
        for name, column in columns.items():
            rows.setdefault(name, []).append(torch.cat(column))
    return {name: torch.stack(values) for name, values in rows.items()}


def levels(
    model: Denoiser, batch: Batch, rng: SampleRng
) -> Iterator[tuple[float, Tensor, Tensor, Tensor, Tensor]]:
    """(level, clean, noisy, timesteps, target) for every noise level, with noise of its own."""
    clean = model.diffused_of(batch.clip)
    for level in LEVELS:
        step = int(level * model.schedule.timesteps)
        timesteps = torch.full((len(clean),), step, device=clean.device)
        noise = rng.normal(tuple(clean.shape[1:])).to(clean)
        noisy = model.schedule.add_noise(clean, noise, timesteps)
        yield level, clean, noisy, timesteps, model.schedule.target(clean, noise, timesteps)


def best_guess(model: Denoiser, noise: Tensor, batch: Batch, given: Given) -> Tensor:
    """The clean clip predicted from noise alone, at the highest level."""
    last = model.schedule.timesteps - 1
    timesteps = torch.full((len(noise),), last, device=noise.device)
    label = batch.stride_index if model.told_pass else None
    condition = model.condition(batch.text, batch.told)
    prediction = predict(model.net, noise, timesteps, condition, given, label)
    return given.from_diffused(model.schedule.clean_from(prediction, noise, timesteps))


def clean_low_resolution(given: LowResolution, model: Denoiser, clip: Tensor) -> Given:
    """What an upscaler is given of a clip at noise level 0."""
    low = shrink(clip, given.factor)
    level = torch.zeros(len(clip), dtype=torch.long)
    height, width = (side // model.shrinks for side in clip.shape[-2:])
    noise = torch.zeros_like(low)
    return given.degrade(low, level, noise, model.schedule, size=(height, width))


def clean_key_frames(given: KeyFrames, model: Denoiser, clip: Tensor) -> Given:
    """What an interpolator is given of a diffused clip at noise level 0."""
    known = given.mask(clip.shape[1]).expand(len(clip), -1)
    level = torch.zeros(len(clip), dtype=torch.long)
    return given.give(clip, known, level, torch.zeros_like(clip), model.schedule)


def error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per clip, (b)."""
    return (prediction - target).square().flatten(1).mean(dim=1)
