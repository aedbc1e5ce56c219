"""The latent upscaler: reads frames, diffuses their latents, is given the low resolution (§3.4)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import LowResolution
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation.image import BeatsBilinear
from videoldm_core.evaluation.measuring import Evidence
from videoldm_core.evaluation.video import SteadierUpscaling
from videoldm_core.models.denoiser import load_denoiser
from videoldm_core.models.image import AutoencoderConfig, UNetConfig
from videoldm_core.objectives.denoising import Denoising, DenoisingTask, ScheduleConfig
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Turn

LOW = LowResolution(factor=4, max_noise_timestep=350)
SIDE = 32  # px of a clip; latents are a quarter of it, as is the low resolution


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An x4-upscaler's parts in small: 4 latent and 3 colour channels in, latents out."""
    folder = tmp_path_factory.mktemp("upscaler")
    vae = AutoencoderConfig(widths=(8, 8, 16), layers_per_block=1, groups=4).build(0)
    vae.register_to_config(scaling_factor=0.5)
    vae.save_pretrained(folder / "own_vae")
    UNetConfig(
        in_channels=7,
        widths=(16, 32),
        attention=(False, True),
        layers_per_block=1,
        heads=2,
        text=8,
        groups=8,
        told_noise_level=True,
    ).build(0).save_pretrained(folder / "unet")
    ScheduleConfig(predicts="v_prediction").build().save(folder / "scheduler")
    return {name: folder / name for name in ("unet", "own_vae", "scheduler")}


def task_of(parts: dict[str, Path], *, crop: int | None = None) -> DenoisingTask:
    return DenoisingTask(
        Denoising(alpha="scalar", given=LOW),
        parts=parts,
        trains=("temporal",),
        frames=3,
        strides=1,
        crop=crop,
        null_text=torch.zeros(4, 8),
        optimizer=OptimizerConfig(lr=1e-2),
        seed=0,
    )


def test_what_is_diffused_is_the_scaled_latents_of_the_frames(parts, random_batch):
    model = load_denoiser(parts)
    clip = random_batch((2, 3, 3, SIDE, SIDE)).clip
    latents = model.diffused_of(clip)
    assert latents.shape == (2, 3, 4, SIDE // 4, SIDE // 4)
    assert model.shrinks == 4
    alone = model.own_vae.encode(clip[1, 2:]).latent_dist.mean * 0.5  # type: ignore[union-attr]
    assert torch.allclose(latents[1, 2:], alone, atol=1e-5)
    frames = model.own_vae.decode(latents[1, 2:] / 0.5).sample  # type: ignore[union-attr]
    assert torch.allclose(model.clip_of(latents)[1, 2:], frames, atol=1e-5)


def test_the_low_resolution_is_that_of_the_frames_at_the_size_of_the_latents(
    parts, random_batch: Callable[..., Batch]
):
    model, clip = load_denoiser(parts), random_batch((2, 3, 3, SIDE, SIDE)).clip
    rng = SampleRng(0, "denoiser", torch.arange(2))
    given = LOW(model.diffused_of(clip), rng, model.schedule, stored=clip)
    assert given.low_resolution is not None
    assert given.low_resolution.shape == (2, 3, 3, SIDE // 4, SIDE // 4)


@pytest.mark.parametrize("crop", [None, 16])
def test_only_temporal_layers_learn_and_the_autoencoder_stays_as_it_is(parts, random_batch, crop):
    task = task_of(parts, crop=crop)
    (player,) = task.players
    own = task.model.own_vae.state_dict()  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in own.items()}
    assert all(name.startswith("temporal.") for name in player.trainable)
    engine = TorchEngine(
        player.module, list(player.trainable.values()), player.optimizer, bf16=False
    )
    batch = random_batch((2, 3, 3, SIDE, SIDE))
    for step in range(2):
        turn = Turn(step=step, rng=SampleRng(0, "denoiser", batch.sample_ids))
        loss, _ = task.loss(engine, batch, turn)
        engine.backward(loss)
        engine.step()
    after = task.model.own_vae.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_its_proofs_measure_decoded_frames(parts, random_batch, tmp_path: Path):
    task = task_of(parts)
    task.save(tmp_path)
    own = parts | {"temporal": tmp_path / "temporal"}
    batch = random_batch((2, 3, 3, SIDE, SIDE))
    evidence = Evidence(
        parts=own,
        inherited=parts,
        given=LOW,
        heldout=[batch],
        training=lambda: [batch],
        device=torch.device("cpu"),
    )
    images = BeatsBilinear().measure(evidence)
    videos = SteadierUpscaling().measure(evidence)
    for series in (*images.values(), *videos.values()):
        assert series.shape == (3, 2)
        assert series.isfinite().all()
    assert torch.allclose(videos["video upscaler, PSNR"], videos["image upscaler, PSNR"], atol=1e-3)
