"""How proofs measure: fixed noise, fixed levels of it, and best guesses from almost noise alone."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    Given,
    KeyFrames,
    LowResolution,
    Nothing,
    shrink,
)
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.models.denoiser import Denoiser, predict
from videoldm_core.models.parts import Parts

SEEDS = (101, 102, 103)
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels, as shares of the schedule's timesteps
LARGEST_GAIN = 2.0  # of a prediction's error when a clean clip is computed from it
Series = dict[str, Tensor]  # (seeds, clips) by name


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a proof may look at."""

    parts: Parts  # of the published stage, inherited ones included
    inherited: Parts  # what it started from
    given: AnyGiven = Nothing()  # what its model is given
    heldout: Iterable[Batch]  # this process's share of the held-out clips, as many as fit at once
    training: Callable[[], Iterable[Batch]]  # a few batches, for what a baseline must fit
    device: torch.device = torch.device("cpu")  # where networks are to run

    def clips(self) -> Iterator[Batch]:
        """The held-out batches, one after the other on the device."""
        return (batch.to(self.device) for batch in self.heldout)


def over_seeds(
    evidence: Evidence, measure: Callable[[Batch, SampleRng], dict[str, Tensor]]
) -> Series:
    """Runs `measure(batch, rng)` for every seed and held-out batch; (seeds, clips) per name."""
    rows: dict[str, list[Tensor]] = {}
    for seed in SEEDS:
        columns: dict[str, list[Tensor]] = {}
        for batch in evidence.clips():
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
    clean = model.diffused_of(batch.clip).float()
    for level in LEVELS:
        step = int(level * model.schedule.timesteps)
        timesteps = torch.full((len(clean),), step, device=clean.device)
        noise = rng.normal(tuple(clean.shape[1:])).to(clean)
        noisy = model.schedule.add_noise(clean, noise, timesteps)
        yield level, clean, noisy, timesteps, model.schedule.target(clean, noise, timesteps)


def guessing_level(schedule: NoiseSchedule) -> int:
    """The noisiest timestep from which a clean clip can be computed.

    An error of v comes into it times sigma <= 1: that is the last timestep. An error of epsilon
    comes into it times sigma / alpha, which is 15 at the last timestep of Stable Diffusion 1.x and
    would drown what the model knows: theirs is the noisiest with a gain of `LARGEST_GAIN`.
    """
    timesteps = torch.arange(schedule.timesteps)
    gain = schedule.sigma(timesteps)
    if schedule.predicts == "epsilon":
        gain = gain / schedule.alpha(timesteps)
    return max(t for t, g in enumerate(gain.flatten().tolist()) if g <= LARGEST_GAIN)


def noised(model: Denoiser, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(z, tau) of what is diffused: b t c h w with the noise of `guessing_level`, and it (b)."""
    level = guessing_level(model.schedule)
    timesteps = torch.full((len(clean),), level, device=clean.device)
    return model.schedule.add_noise(clean, noise, timesteps), timesteps


def best_guess(
    model: Denoiser, noisy: Tensor, timesteps: Tensor, batch: Batch, given: Given
) -> Tensor:
    """The clean clip b t c h w that one prediction for `noised` clips stands for."""
    label = batch.stride_index if model.told_pass else None
    condition = model.condition(batch.text, batch.told)
    prediction = predict(model.net, noisy, timesteps, condition, given, label)
    return given.from_diffused(model.schedule.clean_from(prediction, noisy, timesteps))


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
