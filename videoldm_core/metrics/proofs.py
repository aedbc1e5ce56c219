"""What each kind of stage must prove, and how it is measured; a stage row names its proof.

Every proof measures the published weights as sampling would load them, with fixed noise of several seeds. A
proof sees some of the held-out clips (each process has its share) and returns series of (seeds, clips).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from videoldm_core.conditioning import (
    Given,
    KeyFrames,
    LowResolution,
    enlarge,
    mark_known,
    shrink,
)
from videoldm_core.data.loader import Batch
from videoldm_core.metrics.quality import flicker, psnr
from videoldm_core.metrics.worth import Claim
from videoldm_core.models.image import load_vae
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.models.video_unet import VideoUNet
from videoldm_core.objectives.denoising import Denoiser, load_denoiser, predict
from videoldm_core.objectives.task import Parts
from videoldm_core.randomness import SampleRng
from videoldm_core.records import Record

SEEDS = (101, 102, 103)
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels, as shares of the schedule's timesteps
Series = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a proof may look at."""

    parts: Parts  # of the published stage, inherited ones included
    inherited: Parts  # what it started from
    heldout: list[Batch]  # this process's share of the held-out clips
    training: list[Batch]  # a few training batches, for what a baseline must fit


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
        vae = load_vae(evidence.parts["vae"])
        collected: dict[str, list[Tensor]] = {}
        for batch in evidence.heldout:
            frames = batch.clip[:, 0]
            latents = vae.encode(frames).latent_dist.mean
            mean = frames.mean(dim=(2, 3), keepdim=True).expand_as(frames)
            small = _same_compression(frames, latents)
            for name, decoded in (
                ("autoencoder", vae.decode(latents).sample),
                ("mean colour", mean),
                ("bilinear, same compression", small),
            ):
                collected.setdefault(name, []).append(psnr(decoded, frames))
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
        model = load_denoiser(evidence.parts)
        latents = torch.cat([b.clip for b in evidence.training]) * model.scale
        mean = latents.mean(dim=(0, 1, 3, 4)).view(1, 1, -1, 1, 1)
        variance = latents.var(dim=(0, 1, 3, 4)).view(1, 1, -1, 1, 1)

        def losses(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            found = {}
            for level, clean, noisy, timesteps, target in _levels(model, batch, rng):
                alpha, sigma = model.schedule.alpha(timesteps), model.schedule.sigma(timesteps)
                gain = alpha * variance / (alpha**2 * variance + sigma**2)
                guess = mean + gain * (noisy - alpha * mean)
                linear = model.schedule.target(guess, (noisy - alpha * guess) / sigma, timesteps)
                mine = predict(model.net, noisy, timesteps, batch.text, Given())
                found[f"image model {level}"] = _error(mine, target)
                found[f"Wiener {level}"] = _error(linear, target)
            return found

        return _over_seeds(evidence.heldout, losses)


class BeatsImageModel(Record):
    """The key-frame model: denoising loss on clips, against the same image model without phi."""

    kind: Literal["beats_image_model"] = "beats_image_model"

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Frames together are easier than frames alone."""
        return (
            Claim(
                metric="denoising loss on clips",
                unit="",
                higher_is_better=False,
                value="with temporal layers",
                beats=("image model (alpha = 1)",),
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """Mean loss over the levels, same clips and noise."""
        model = load_denoiser(evidence.parts)
        nets = {
            "with temporal layers": model.net,
            "image model (alpha = 1)": VideoUNet(model.net.unet),
        }

        def losses(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in nets}
            for _, _, noisy, timesteps, target in _levels(model, batch, rng):
                for name, net in nets.items():
                    prediction = predict(net, noisy, timesteps, batch.text, Given())
                    found[name].append(_error(prediction, target))
            return {name: torch.stack(values).mean(dim=0) for name, values in found.items()}

        return _over_seeds(evidence.heldout, losses)


class UsesFirstFrames(Record):
    """The predictor: denoising loss on the frames to predict, given 0, 1 and 2 frames."""

    kind: Literal["uses_first_frames"] = "uses_first_frames"

    @property
    def claims(self) -> tuple[Claim, ...]:
        """One frame says more than none, and two (which carry motion) more than one."""
        metric = "denoising loss on predicted frames"
        return (
            Claim(
                metric=f"{metric}, 1 given",
                unit="",
                higher_is_better=False,
                value="1 frame",
                beats=("masked",),
            ),
            Claim(
                metric=f"{metric}, 2 given",
                unit="",
                higher_is_better=False,
                value="2 frames",
                beats=("masked", "1 frame"),
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """Mean loss over the levels, on the frames that are predicted in every case."""
        model = load_denoiser(evidence.parts)
        names = ("masked", "1 frame", "2 frames")

        def losses(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in names}
            for _, clean, noisy, timesteps, target in _levels(model, batch, rng):
                for count, name in enumerate(names):
                    known = (torch.arange(clean.shape[1]) < count).expand(len(clean), -1)
                    given = mark_known(clean, known)
                    prediction = predict(model.net, noisy, timesteps, batch.text, given)
                    found[name].append(_error(prediction[:, 2:], target[:, 2:]))
            return {name: torch.stack(values).mean(dim=0) for name, values in found.items()}

        return _over_seeds(evidence.heldout, losses)


class UsesKeyFrames(Record):
    """The interpolator: its best guess of the middle latents from pure noise."""

    kind: Literal["uses_key_frames"] = "uses_key_frames"
    given: KeyFrames = KeyFrames()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Better than not looking at the key frames, and than repeating the nearest one."""
        return (
            Claim(
                metric="error of the middle latents, best guess",
                unit="",
                higher_is_better=False,
                value="interpolator",
                beats=("masked", "nearest key latent"),
                beside=("linear interpolation",),
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """Squared error of the predicted clean latents at the highest noise."""
        model = load_denoiser(evidence.parts)

        def errors(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            clean = batch.clip * model.scale
            mask = self.given.mask(clean.shape[1])
            given = mark_known(clean, mask.expand(len(clean), -1))
            noise = rng.normal(tuple(clean.shape[1:]))
            guesses = {
                "interpolator": _best_guess(model, noise, batch, given),
                "masked": _best_guess(model, noise, batch, given.without_context()),
                "nearest key latent": clean[:, _nearest(mask)],
                "linear interpolation": _linear(clean, self.given.every),
            }
            return {name: _error(g[:, ~mask], clean[:, ~mask]) for name, g in guesses.items()}

        return _over_seeds(evidence.heldout, errors)


class SteadierDecoding(Record):
    """The video decoder: flicker against the real clip, at no loss of PSNR."""

    kind: Literal["steadier_decoding"] = "steadier_decoding"
    psnr_slack: float = 0.2  # dB

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Less flicker than the image decoder frame by frame; PSNR lower by at most the slack."""
        return (
            Claim(
                metric="flicker",
                unit="grey levels",
                higher_is_better=False,
                value="video decoder, flicker",
                beats=("image decoder, flicker",),
            ),
            Claim(
                metric="PSNR",
                unit="dB",
                higher_is_better=True,
                value="video decoder, PSNR",
                beats=("image decoder, PSNR",),
                slack=self.psnr_slack,
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """Both decoders on the frozen encoder's latents; no randomness, hence one seed."""
        image = load_vae(evidence.inherited["vae"])
        tuned = load_vae(evidence.parts["vae"])
        temporal = temporal_decoder_for(tuned, seed=0)
        temporal.load(evidence.parts["temporal_decoder"])
        decoders = {
            "video decoder": VideoDecoder(tuned, temporal).eval(),
            "image decoder": VideoDecoder(image),
        }
        collected: dict[str, list[Tensor]] = {}
        for batch in evidence.heldout:
            frames = rearrange(batch.clip, "b t c h w -> (b t) c h w")
            latents = image.encode(frames).latent_dist.mean
            latents = rearrange(latents, "(b t) c h w -> b t c h w", b=len(batch.clip))
            for name, decoder in decoders.items():
                decoded = decoder(latents)
                collected.setdefault(f"{name}, flicker", []).append(flicker(decoded, batch.clip))
                collected.setdefault(f"{name}, PSNR", []).append(psnr(decoded, batch.clip))
        return {name: torch.cat(values)[None] for name, values in collected.items()}


class BeatsBilinear(Record):
    """The image upscaler: its best guess from pure noise, at full size."""

    kind: Literal["beats_bilinear"] = "beats_bilinear"
    given: LowResolution = LowResolution()

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
        model = load_denoiser(evidence.parts)

        def quality(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            given = _clean_low_resolution(self.given, model, batch.clip)
            noise = rng.normal(tuple(batch.clip.shape[1:]))
            bilinear = enlarge(shrink(batch.clip, self.given.factor), self.given.factor)
            return {
                "image upscaler": psnr(_best_guess(model, noise, batch, given), batch.clip),
                "bilinear": psnr(bilinear, batch.clip),
            }

        return _over_seeds(evidence.heldout, quality)


class SteadierUpscaling(Record):
    """The video upscaler: flicker and best guess, against the image upscaler frame by frame."""

    kind: Literal["steadier_upscaling"] = "steadier_upscaling"
    given: LowResolution = LowResolution()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Steadier and closer than the same upscaler without temporal layers."""
        return (
            Claim(
                metric="flicker of the best guess",
                unit="grey levels",
                higher_is_better=False,
                value="video upscaler, flicker",
                beats=("image upscaler, flicker",),
            ),
            Claim(
                metric="PSNR of the best guess",
                unit="dB",
                higher_is_better=True,
                value="video upscaler, PSNR",
                beats=("image upscaler, PSNR",),
            ),
        )

    def measure(self, evidence: Evidence) -> Series:
        """Same clips and noise, independent per frame, for both."""
        model = load_denoiser(evidence.parts)
        alone = Denoiser(VideoUNet(model.net.unet), model.schedule, model.scale)

        def quality(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            given = _clean_low_resolution(self.given, model, batch.clip)
            noise = rng.normal(tuple(batch.clip.shape[1:]))
            found = {}
            for name, denoiser in (("video upscaler", model), ("image upscaler", alone)):
                guess = _best_guess(denoiser, noise, batch, given)
                found[f"{name}, flicker"] = flicker(guess, batch.clip)
                found[f"{name}, PSNR"] = psnr(guess, batch.clip)
            return found

        return _over_seeds(evidence.heldout, quality)


AnyProof = Annotated[
    ReconstructsFrames
    | BeatsLinearDenoiser
    | BeatsImageModel
    | UsesFirstFrames
    | UsesKeyFrames
    | SteadierDecoding
    | BeatsBilinear
    | SteadierUpscaling,
    Field(discriminator="kind"),
]


def _over_seeds(batches: list[Batch], measure: Any) -> Series:
    """Runs `measure(batch, rng)` for every seed and batch; (seeds, clips) per name."""
    rows: dict[str, list[Tensor]] = {}
    for seed in SEEDS:
        columns: dict[str, list[Tensor]] = {}
        for batch in batches:
            rng = SampleRng(seed, "worth", batch.sample_ids)
            for name, values in measure(batch, rng).items():
                columns.setdefault(name, []).append(values.float())
        for name, column in columns.items():
            rows.setdefault(name, []).append(torch.cat(column))
    return {name: torch.stack(values) for name, values in rows.items()}


def _levels(
    model: Denoiser, batch: Batch, rng: SampleRng
) -> Iterator[tuple[float, Tensor, Tensor, Tensor, Tensor]]:
    """(level, clean, noisy, timesteps, target) for every noise level, with noise of its own."""
    clean = batch.clip * model.scale
    for level in LEVELS:
        timesteps = torch.full((len(clean),), int(level * model.schedule.timesteps))
        noise = rng.normal(tuple(clean.shape[1:]))
        noisy = model.schedule.add_noise(clean, noise, timesteps)
        yield level, clean, noisy, timesteps, model.schedule.target(clean, noise, timesteps)


def _best_guess(model: Denoiser, noise: Tensor, batch: Batch, given: Given) -> Tensor:
    """The clean clip predicted from noise alone, at the highest level."""
    timesteps = torch.full((len(noise),), model.schedule.timesteps - 1)
    label = batch.stride_index if model.told_pass else None
    prediction = predict(model.net, noise, timesteps, batch.text, given, label)
    return given.from_diffused(model.schedule.clean_from(prediction, noise, timesteps))


def _clean_low_resolution(given: LowResolution, model: Denoiser, clip: Tensor) -> Given:
    low = shrink(clip, given.factor)
    level = torch.zeros(len(clip), dtype=torch.long)
    return given.degrade(low, level, torch.zeros_like(low), model.schedule)


def _error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().flatten(1).mean(dim=1)


def _nearest(mask: Tensor) -> Tensor:
    """For every frame the index of the nearest given one."""
    keys = mask.nonzero().flatten()
    return keys[(torch.arange(len(mask))[:, None] - keys[None]).abs().argmin(dim=1)]


def _linear(clean: Tensor, every: int) -> Tensor:
    weight = (torch.arange(clean.shape[1]) % every / every).view(1, -1, 1, 1, 1)
    before = torch.arange(clean.shape[1]) // every * every
    after = (before + every).clamp(max=clean.shape[1] - 1)
    return (1 - weight) * clean[:, before] + weight * clean[:, after]


def _same_compression(frames: Tensor, latents: Tensor) -> Tensor:
    """Frames shrunk to as many values as the latents have, and enlarged again, both bilinearly."""
    ratio = (latents[0].numel() / frames[0].numel()) ** 0.5
    height, width = frames.shape[-2:]
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    small = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear")
