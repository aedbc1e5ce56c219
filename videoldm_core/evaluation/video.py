"""Proofs of the video stages; see proofs.py."""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import Given, KeyFrames, LowResolution, mark_known
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.evaluation.comparison import Claim
from videoldm_core.evaluation.measuring import (
    Evidence,
    Series,
    best_guess,
    clean_key_frames,
    clean_low_resolution,
    error,
    levels,
    noised,
    over_seeds,
)
from videoldm_core.evaluation.quality import flicker, psnr
from videoldm_core.models.denoiser import Denoiser, load_denoiser, predict
from videoldm_core.models.image import load_vae
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.models.video_unet import VideoUNet
from videoldm_core.records import Record


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
        model = load_denoiser(evidence.parts).to(evidence.device)
        nets = {
            "with temporal layers": model.net,
            "image model (alpha = 1)": VideoUNet(model.net.unet),
        }

        def losses(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in nets}
            condition = model.condition(batch.text, batch.told)
            for _, _, noisy, timesteps, target in levels(model, batch, rng):
                for name, net in nets.items():
                    prediction = predict(net, noisy, timesteps, condition, Given())
                    found[name].append(error(prediction, target))
            return {name: torch.stack(values).mean(dim=0) for name, values in found.items()}

        return over_seeds(evidence, losses)


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
        model = load_denoiser(evidence.parts).to(evidence.device)
        names = ("masked", "1 frame", "2 frames")

        def losses(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in names}
            condition = model.condition(batch.text, batch.told)
            for _, clean, noisy, timesteps, target in levels(model, batch, rng):
                for count, name in enumerate(names):
                    known = (torch.arange(clean.shape[1]) < count).expand(len(clean), -1)
                    given = mark_known(clean, known)
                    prediction = predict(model.net, noisy, timesteps, condition, given)
                    found[name].append(error(prediction[:, 2:], target[:, 2:]))
            return {name: torch.stack(values).mean(dim=0) for name, values in found.items()}

        return over_seeds(evidence, losses)


class UsesKeyFrames(Record):
    """The interpolator: its best guess of the middle latents from almost pure noise."""

    kind: Literal["uses_key_frames"] = "uses_key_frames"

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
        """Squared error of the predicted clean latents.

        What the noise leaves of the frames to predict helps the baselines too: each takes from it
        what brings it nearest to the truth.
        """
        model, kind = load_denoiser(evidence.parts).to(evidence.device), evidence.given
        assert isinstance(kind, KeyFrames), "refused when the table was made"

        def errors(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            clean = model.diffused_of(batch.clip).float()
            frames, every = clean.shape[1], kind.every
            keys = list(range(0, frames, every))
            middle = [t for t in range(frames) if t not in keys]
            given = clean_key_frames(kind, model, clean)
            noisy, timesteps = noised(model, clean, rng.normal(tuple(clean.shape[1:])).to(clean))
            lines = {
                "nearest key latent": clean[:, _nearest(keys, frames)],
                "linear interpolation": _linear(clean, every),
            }
            guesses = {
                "interpolator": best_guess(model, noisy, timesteps, batch, given),
                "masked": best_guess(model, noisy, timesteps, batch, given.without_context()),
            }
            found = {name: error(g[:, middle], clean[:, middle]) for name, g in guesses.items()}
            for name, guess in lines.items():
                remaining = error(guess[:, middle], clean[:, middle])
                found[name] = _after_noisy(remaining, model.schedule, timesteps)
            return found

        return over_seeds(evidence, errors)


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
        image = load_vae(evidence.inherited["vae"]).to(evidence.device)
        tuned = load_vae(evidence.parts["vae"]).to(evidence.device)
        temporal = temporal_decoder_for(tuned, seed=0)
        temporal.load(evidence.parts["temporal_decoder"])
        decoders = {
            "video decoder": VideoDecoder(tuned, temporal.to(evidence.device)).eval(),
            "image decoder": VideoDecoder(image),
        }
        collected: dict[str, list[Tensor]] = {}
        for batch in evidence.clips():
            frames = rearrange(batch.clip, "b t c h w -> (b t) c h w")
            latents = image.encode(frames).latent_dist.mean.float()
            latents = rearrange(latents, "(b t) c h w -> b t c h w", b=len(batch.clip))
            for name, decoder in decoders.items():
                decoded = decoder(latents).float()
                collected.setdefault(f"{name}, flicker", []).append(
                    flicker(decoded, batch.clip).cpu()
                )
                collected.setdefault(f"{name}, PSNR", []).append(psnr(decoded, batch.clip).cpu())
        return {name: torch.cat(values)[None] for name, values in collected.items()}


class SteadierUpscaling(Record):
    """The video upscaler: flicker and best guess, against the image upscaler frame by frame."""

    kind: Literal["steadier_upscaling"] = "steadier_upscaling"

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
        model, kind = load_denoiser(evidence.parts).to(evidence.device), evidence.given
        assert isinstance(kind, LowResolution), "refused when the table was made"
        image = VideoUNet(model.net.unet)
        alone = Denoiser(image, model.schedule, model.scale, model.own_vae, model.tokens)

        def quality(batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
            given = clean_low_resolution(kind, model, batch.clip)
            clean = given.to_diffused(model.diffused_of(batch.clip).float())
            noisy, timesteps = noised(model, clean, model.noise_for(batch.clip, rng))
            found = {}
            for name, denoiser in (("video upscaler", model), ("image upscaler", alone)):
                guess = best_guess(denoiser, noisy, timesteps, batch, given)
                guess = model.clip_of(guess).float()
                found[f"{name}, flicker"] = flicker(guess, batch.clip)
                found[f"{name}, PSNR"] = psnr(guess, batch.clip)
            return found

        return over_seeds(evidence, quality)


def _nearest(keys: list[int], frames: int) -> list[int]:
    """For every frame the number of the nearest given one."""
    return [min(keys, key=lambda key: abs(key - t)) for t in range(frames)]


def _linear(clean: Tensor, every: int) -> Tensor:
    frames = torch.arange(clean.shape[1], device=clean.device)
    weight = (frames % every / every).view(1, -1, 1, 1, 1)
    before = frames // every * every
    after = (before + every).clamp(max=clean.shape[1] - 1)
    return (1 - weight) * clean[:, before] + weight * clean[:, after]


def _after_noisy(remaining: Tensor, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Least error, (b), of a guess x' that takes a share of z = alpha x + sigma eps.

        x' + g (z - alpha x')  with g = alpha e / (alpha^2 e + sigma^2)  has e sigma^2 / (...)

    Args:
        remaining: e, the error of x' alone.
    """
    alpha, sigma = schedule.alpha(timesteps).flatten(), schedule.sigma(timesteps).flatten()
    return remaining * sigma**2 / (alpha**2 * remaining + sigma**2)
