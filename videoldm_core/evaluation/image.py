"""Proofs of the image stages; see proofs.py."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import Given, LowResolution, enlarge, shrink
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation.comparison import Claim
from videoldm_core.evaluation.measuring import (
    LEVELS,
    Evidence,
    Series,
    best_guess,
    clean_low_resolution,
    error,
    levels,
    noised,
    over_seeds,
)
from videoldm_core.evaluation.quality import psnr
from videoldm_core.models.denoiser import load_denoiser, predict
from videoldm_core.models.image import load_vae
from videoldm_core.records import Record


class ReconstructsFrames(Record):
    """The autoencoder: PSNR of reconstructions."""

    kind: Literal["reconstructs_frames"] = "reconstructs_frames"

    @property
    def claims(self) -> tuple[Claim, ...]:
        """More than a mean colour, and more than small pictures of the same number of values."""
        return (
            Claim(
                metric="PSNR of reconstructions",
                unit="dB",
                higher_is_better=True,
                value="autoencoder",
                beats=("mean colour", "bilinear, same compression"),
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """Reconstructions by posterior means; no randomness, hence one seed."""
        vae = load_vae(evidence.parts["vae"]).to(evidence.device)
        collected: dict[str, list[Tensor]] = {}
        for batch in evidence.clips():
            frames = batch.clip[:, 0]
            latents = vae.encode(frames).latent_dist.mean
            mean = frames.mean(dim=(2, 3), keepdim=True).expand_as(frames)
            small = _same_compression(frames, latents)
            for name, decoded in (
                ("autoencoder", vae.decode(latents).sample.float()),
                ("mean colour", mean),
                ("bilinear, same compression", small),
            ):
                collected.setdefault(name, []).append(psnr(decoded, frames).cpu())
        return {name: torch.cat(values)[None] for name, values in collected.items()}


class BeatsLinearDenoiser(Record):
    """The image model: denoising loss at each noise level."""

    kind: Literal["beats_linear_denoiser"] = "beats_linear_denoiser"

    @property
    def claims(self) -> tuple[Claim, ...]:
        """At every level better than the best linear denoiser."""
        return tuple(
            Claim(
                metric=f"denoising loss at {level:.0%} noise",
                unit="",
                higher_is_better=False,
                value=f"image model {level}",
                beats=(f"Wiener {level}",),
            )
            for level in LEVELS
        )

    def measure(self, evidence: Evidence) -> Series:
        """Loss of the model and of per-channel Wiener scaling fitted to training latents."""
        model = load_denoiser(evidence.parts).to(evidence.device)
        latents = torch.cat([b.clip for b in evidence.training()]).to(evidence.device) * model.scale
        mean = latents.mean(dim=(0, 1, 3, 4)).view(1, 1, -1, 1, 1)
        variance = latents.var(dim=(0, 1, 3, 4)).view(1, 1, -1, 1, 1)

        def losses(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            found, condition = {}, model.condition(batch.text, batch.told)
            for level, _, noisy, timesteps, target in levels(model, batch, rng):
                alpha, sigma = model.schedule.alpha(timesteps), model.schedule.sigma(timesteps)
                gain = alpha * variance / (alpha**2 * variance + sigma**2)
                guess = mean + gain * (noisy - alpha * mean)
                linear = model.schedule.target(guess, (noisy - alpha * guess) / sigma, timesteps)
                mine = predict(model.net, noisy, timesteps, condition, Given())
                found[f"image model {level}"] = error(mine, target)
                found[f"Wiener {level}"] = error(linear, target)
            return found

        return over_seeds(evidence, losses)


class BeatsBilinear(Record):
    """The image upscaler: its best guess from almost pure noise, at full size."""

    kind: Literal["beats_bilinear"] = "beats_bilinear"

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Sharper than bilinear enlargement."""
        return (
            Claim(
                metric="PSNR of the best guess",
                unit="dB",
                higher_is_better=True,
                value="image upscaler",
                beats=("bilinear",),
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """From the clean low resolution (noise level 0)."""
        model, kind = load_denoiser(evidence.parts).to(evidence.device), evidence.given
        assert isinstance(kind, LowResolution), "refused when the table was made"

        def quality(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            given = clean_low_resolution(kind, model, batch.clip)
            clean = given.to_diffused(model.diffused_of(batch.clip).float())
            noisy, timesteps = noised(model, clean, model.noise_for(batch.clip, rng))
            guess = model.clip_of(best_guess(model, noisy, timesteps, batch, given)).float()
            low = shrink(batch.clip, kind.factor)
            bilinear = enlarge(low, tuple(batch.clip.shape[-2:]))
            return {
                "image upscaler": psnr(guess, batch.clip),
                "bilinear": psnr(bilinear, batch.clip),
            }

        return over_seeds(evidence, quality)


def _same_compression(frames: Tensor, latents: Tensor) -> Tensor:
    """Frames shrunk to as many values as the latents have, and enlarged again, both bilinearly."""
    ratio = (latents[0].numel() / frames[0].numel()) ** 0.5
    height, width = frames.shape[-2:]
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    small = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear")
