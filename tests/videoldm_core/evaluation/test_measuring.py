"""The level of the best guess: as noisy as can be computed from, whatever a model predicts."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import Given, KeyFrames, LowResolution
from videoldm_core.evaluation import measuring
from videoldm_core.evaluation import video as video_proofs
from videoldm_core.evaluation.measuring import (
    LARGEST_GAIN,
    Evidence,
    best_guess,
    clean_key_frames,
    clean_low_resolution,
    guessing_level,
)
from videoldm_core.evaluation.video import UsesKeyFrames
from videoldm_core.models.denoiser import load_denoiser
from videoldm_core.models.image import latent_scale, load_unet
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_velocities_are_judged_at_the_last_level(zero_terminal_snr):
    config = ScheduleConfig(predicts="v_prediction", zero_terminal_snr=zero_terminal_snr)
    assert guessing_level(config.build()) == 999


def test_noise_is_judged_where_its_error_is_not_blown_up():
    schedule = ScheduleConfig(predicts="epsilon").build()
    level = guessing_level(schedule)
    gains = [
        (schedule.sigma(t) / schedule.alpha(t)).item()
        for t in (torch.tensor([level]), torch.tensor([level + 1]), torch.tensor([999]))
    ]
    assert gains[0] <= LARGEST_GAIN < gains[1]
    assert gains[2] > 14, "the last level of Stable Diffusion 1.x"


@pytest.mark.parametrize("strides", [0, 2])
def test_a_best_guess_is_asked_of_the_clips_text_and_of_the_stride_where_that_is_told(
    strides, image_model: dict[str, Path], random_batch, tmp_path: Path, monkeypatch
):
    unet = load_unet(image_model["unet"])
    temporal_layers_for(unet, TemporalConfig(labels=strides), seed=0).save(tmp_path)
    model, batch = (
        load_denoiser(image_model | {"temporal": tmp_path}),
        random_batch((2, 3, 4, 8, 8)),
    )
    asked = []

    def predict(net, noisy, timesteps, text, given, label=None):
        asked.append((net, text, label))
        return torch.zeros_like(noisy)

    monkeypatch.setattr(measuring, "predict", predict)
    timesteps = torch.tensor([700, 800])
    guess = best_guess(model, batch.clip, timesteps, batch, Given())
    assert torch.equal(guess, model.schedule.alpha(timesteps) * batch.clip)
    ((net, text, label),) = asked
    assert net is model.net
    assert torch.equal(text, batch.text)
    assert label.tolist() == [0, 1] if strides else label is None


def test_an_upscaler_is_judged_with_a_low_resolution_of_no_noise_and_told_so(
    image_model: dict[str, Path], random_batch
):
    model, clip = load_denoiser(image_model), random_batch((2, 1, 3, 8, 12)).clip
    given = clean_low_resolution(LowResolution(factor=2, detail_scale=8.0), model, clip)
    frames = F.avg_pool2d(clip[:, 0], 2)
    bilinear = F.interpolate(frames, size=(8, 12), mode="bilinear")[:, None]
    assert given.noise_level is not None
    assert given.noise_level.tolist() == [0, 0]
    assert given.low_resolution is not None
    assert torch.allclose(given.low_resolution, bilinear, rtol=1e-3, atol=1e-6)
    assert given.base is not None
    assert torch.equal(given.base, bilinear)


def test_an_interpolator_is_judged_with_key_frames_of_no_noise_and_told_so(
    image_model: dict[str, Path], random_batch
):
    model, clip = load_denoiser(image_model), random_batch((2, 5, 4, 8, 8)).clip
    given = clean_key_frames(KeyFrames(every=4, max_noise_timestep=250), model, clip)
    assert given.context_noise is not None
    assert given.context_noise.tolist() == [0, 0]
    assert given.context is not None
    assert torch.allclose(given.context[:, [0, 4], :4], clip[:, [0, 4]], rtol=1e-3, atol=1e-6)
    assert not given.context[:, 1:4].any()


def like_frames(batch: Batch, scale: float) -> Batch:
    """Latents of deviation 1 that stay nearly as they are, as those of a video do."""
    clip = (batch.clip[:, :1] + 0.3 * batch.clip) / scale
    return Batch(
        clip=clip, text=batch.text, stride_index=batch.stride_index, sample_ids=batch.sample_ids
    )


@torch.no_grad()
def test_an_epsilon_interpolator_whose_predictions_are_nearly_right_passes(
    image_model: dict[str, Path], random_batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a squared error of 0.003, as models of Stable Diffusion's size have at high noise."""
    schedule = ScheduleConfig(predicts="epsilon").build()
    schedule.save(tmp_path / "scheduler")
    phi = temporal_layers_for(
        load_unet(image_model["unet"]), TemporalConfig(context_channels=5), seed=0
    )
    phi.save(tmp_path / "temporal")
    parts = image_model | {n: tmp_path / n for n in ("scheduler", "temporal")}
    noises: list[torch.Tensor] = []

    def nearly(net, noisy, timesteps, text, given, label=None):
        wrong = 0.003**0.5 if given.known.any() else 0.5
        return noises[-1] + wrong * torch.randn_like(noisy)

    def keep(model, clean, noise, original=measuring.noised):
        noises.append(noise)
        return original(model, clean, noise)

    monkeypatch.setattr(measuring, "predict", nearly)
    monkeypatch.setattr(video_proofs, "noised", keep)
    batch = like_frames(random_batch((2, 5, 4, 8, 8)), latent_scale(image_model["vae"]))
    evidence = Evidence(
        parts=parts, inherited=parts, given=KeyFrames(), heldout=[batch], training=lambda: []
    )
    proof = UsesKeyFrames()
    series = proof.measure(evidence)
    (claim,) = proof.claims
    assert claim.judge("interpolator", series).passed
    assert series["interpolator"].mean() < 0.003 * LARGEST_GAIN**2 * 1.1


def test_a_baseline_takes_of_the_noisy_frames_what_helps_it_most():
    schedule = ScheduleConfig(predicts="epsilon").build()
    generator = torch.Generator().manual_seed(0)
    truth, wrong, noise = torch.randn(3, 200_000, generator=generator)
    guess, timesteps = truth + 0.6 * wrong, torch.tensor([guessing_level(schedule)])
    alpha, sigma = schedule.alpha(timesteps).item(), schedule.sigma(timesteps).item()
    noisy = alpha * truth + sigma * noise
    errors = [
        (guess + gain * (noisy - alpha * guess) - truth).square().mean().item()
        for gain in torch.linspace(0, 1, 101).tolist()
    ]
    found = video_proofs._after_noisy(torch.tensor([0.36]), schedule, timesteps).item()
    assert found == pytest.approx(min(errors), rel=0.02)
    assert found < 0.97 * 0.36
