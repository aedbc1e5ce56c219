"""Proofs of the image stages: their baselines are the best of their kind, and computed right."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import LowResolution, enlarge, shrink
from videoldm_core.evaluation.image import (
    BeatsBilinear,
    BeatsLinearDenoiser,
    ReconstructsFrames,
)
from videoldm_core.evaluation.measuring import LEVELS, SEEDS, Evidence
from videoldm_core.evaluation.quality import psnr
from videoldm_core.models.image import UNetConfig, latent_scale, load_vae
from videoldm_core.objectives.denoising import ScheduleConfig

MEANS, DEVIATIONS = (0.5, -1.0, 0.0, 2.0), (1.0, 0.5, 2.0, 0.1)


@pytest.fixture
def gaussian(image_model: dict[str, Path]) -> Callable[[int], Batch]:
    """Latents that are independent normal values, each channel with its own mean and deviation."""
    scale = latent_scale(image_model["vae"])

    def make(seed: int) -> Batch:
        noise = torch.randn(8, 1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        shape = (1, 1, 4, 1, 1)
        clip = torch.tensor(MEANS).view(shape) + torch.tensor(DEVIATIONS).view(shape) * noise
        return Batch(
            clip=clip / scale,
            text=torch.zeros(8, 4, 8),
            stride_index=torch.zeros(8, dtype=torch.long),
            sample_ids=torch.arange(8) + 8 * seed,
        )

    return make


@torch.no_grad()
def test_the_linear_baseline_is_the_best_there_is_for_gaussian_latents(image_model, gaussian):
    evidence = Evidence(
        parts=image_model,
        inherited={},
        heldout=[gaussian(100)],
        training=lambda: [gaussian(seed) for seed in range(4)],
    )
    series = BeatsLinearDenoiser().measure(evidence)
    schedule = ScheduleConfig(predicts="v_prediction").build()
    variance = torch.tensor(DEVIATIONS).square()
    for level in LEVELS:
        timestep = torch.tensor([int(level * 1000)])
        signal = schedule.alpha(timestep).item() ** 2
        noise = schedule.sigma(timestep).item() ** 2
        # The posterior variance of x, in units of v: v^ - v = (x - x^) / sigma.
        best = (variance * noise / (signal * variance + noise)).mean().item() / noise
        found = series[f"Wiener {level}"]
        assert found.shape == (len(SEEDS), 8)
        assert found.mean().item() == pytest.approx(best, rel=0.05)


@torch.no_grad()
def test_a_new_image_model_does_not_beat_the_linear_denoiser(image_model, gaussian):
    evidence = Evidence(
        parts=image_model, inherited={}, heldout=[gaussian(1)], training=lambda: [gaussian(2)]
    )
    proof = BeatsLinearDenoiser()
    series = proof.measure(evidence)
    rows = [claim.judge("image", series) for claim in proof.claims]
    assert [row.passed for row in rows] == [False] * len(LEVELS)


@torch.no_grad()
def test_reconstructions_are_compared_with_as_many_values_as_the_latents_have(
    image_model, random_batch
):
    batch = random_batch((3, 1, 3, 16, 24))
    evidence = Evidence(parts=image_model, inherited={}, heldout=[batch], training=lambda: [])
    series = ReconstructsFrames().measure(evidence)
    frames = batch.clip[:, 0]
    # 4 x 8 x 12 latent values = 3 colours of 9 x 14 pixels, nearly.
    small = F.interpolate(frames, size=(9, 14), mode="bilinear", antialias=True)
    expected = psnr(F.interpolate(small, size=(16, 24), mode="bilinear"), frames)
    assert torch.allclose(series["bilinear, same compression"][0], expected)
    mean = psnr(frames.mean(dim=(2, 3), keepdim=True).expand_as(frames), frames)
    assert torch.allclose(series["mean colour"][0], mean)
    vae = load_vae(image_model["vae"])
    decoded = vae.decode(vae.encode(frames).latent_dist.mean).sample
    assert torch.allclose(series["autoencoder"][0], psnr(decoded, frames), atol=1e-4)


@torch.no_grad()
def test_a_new_autoencoder_proves_nothing(image_model, random_batch):
    batch = random_batch((2, 1, 3, 16, 24))
    evidence = Evidence(parts=image_model, inherited={}, heldout=[batch], training=lambda: [])
    (claim,) = ReconstructsFrames().claims
    assert not claim.judge("autoencoder", ReconstructsFrames().measure(evidence)).passed


@pytest.fixture
def upscaler(tmp_path: Path) -> dict[str, Path]:
    """An image upscaler whose last layer is zero: it predicts no detail."""
    unet = UNetConfig(
        in_channels=6,
        out_channels=3,
        widths=(16, 32),
        attention=(False, False),
        layers_per_block=1,
        text=8,
        groups=8,
        told_noise_level=True,
    ).build(0)
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    unet.save_pretrained(tmp_path / "unet")
    ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True).build().save(
        tmp_path / "scheduler"
    )
    return {"unet": tmp_path / "unet", "scheduler": tmp_path / "scheduler"}


@torch.no_grad()
def test_an_upscaler_of_no_detail_is_exactly_bilinear_and_does_not_pass(upscaler, random_batch):
    batch = random_batch((2, 1, 3, 16, 24))
    evidence = Evidence(
        parts=upscaler,
        inherited={},
        given=LowResolution(factor=4, detail_scale=8.0),
        heldout=[batch],
        training=lambda: [],
    )
    proof = BeatsBilinear()
    series = proof.measure(evidence)
    bilinear = psnr(enlarge(shrink(batch.clip, 4), tuple(batch.clip.shape[-2:])), batch.clip)
    assert torch.allclose(series["bilinear"], bilinear.expand(len(SEEDS), -1))
    assert torch.allclose(series["image upscaler"], series["bilinear"], atol=1e-3)
