"""The image autoencoder's objective."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from videoldm_core.data.loader import Batch
from videoldm_core.metrics.quality import psnr
from videoldm_core.models.image import AutoencoderConfig, latent_scale, load_vae
from videoldm_core.objectives.autoencoding import Autoencoding, AutoencodingTask
from videoldm_core.randomness import SampleRng
from videoldm_core.training.engine import OptimizerConfig, TorchEngine
from videoldm_core.training.players import Turn

NETWORK = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4)


@pytest.fixture
def task() -> AutoencodingTask:
    return AutoencodingTask(
        Autoencoding(network=NETWORK, kl_weight=1e-6), optimizer=OptimizerConfig(lr=5e-3), seed=0
    )


def turn_of(batch: Batch) -> Turn:
    return Turn(step=0, rng=SampleRng(0, "autoencoder", batch.sample_ids))


def test_every_weight_trains_and_reconstructions_get_better(
    task: AutoencodingTask, random_batch: Callable[..., Batch]
):
    (player,) = task.players
    before = {name: t.clone() for name, t in task.vae.state_dict().items()}
    engine = TorchEngine(player.module, list(player.trainable.values()), player.optimizer, False)
    batch = random_batch((4, 1, 3, 16, 16))
    smooth = batch.clip.mean(dim=(3, 4), keepdim=True).expand_as(batch.clip) * 8
    batch = Batch(
        clip=smooth.clamp(-1, 1),
        text=batch.text,
        stride_index=batch.stride_index,
        sample_ids=batch.sample_ids,
    )
    losses = []
    for _ in range(12):
        loss, metrics = task.loss(engine, batch, turn_of(batch))
        engine.backward(loss)
        engine.step()
        losses.append(metrics["reconstruction"])
    assert losses[-1] < 0.7 * losses[0]
    unmoved = [n for n, t in task.vae.state_dict().items() if torch.equal(t, before[n])]
    assert unmoved == []


def test_the_loss_is_both_errors_and_the_weighted_divergence(
    task: AutoencodingTask, random_batch: Callable[..., Batch]
):
    batch = random_batch((2, 2, 3, 16, 16))
    net = task.players[0].module
    loss, metrics = task.loss(net, batch, turn_of(batch))
    frames = batch.clip.flatten(0, 1)
    posterior = task.vae.encode(frames).latent_dist
    noise = turn_of(batch).rng.normal((2, 4, 8, 8)).flatten(0, 1)
    error = task.vae.decode(posterior.mean + posterior.std * noise).sample - frames
    expected = error.abs().mean() + error.square().mean()
    assert metrics["reconstruction"] == pytest.approx(expected.item(), rel=1e-5)
    divergence = 1e-6 * posterior.kl().mean()
    assert loss.item() == pytest.approx((expected + divergence).item(), rel=1e-6)


def test_heldout_clips_are_measured_one_by_one(
    task: AutoencodingTask, random_batch: Callable[..., Batch]
):
    batch = random_batch((3, 2, 3, 16, 16))
    found = task.heldout(task.players[0].module, batch, turn_of(batch))["psnr"]
    posterior = task.vae.encode(batch.clip.flatten(0, 1)).latent_dist
    noise = turn_of(batch).rng.normal((2, 4, 8, 8)).flatten(0, 1)
    decoded = task.vae.decode(posterior.mean + posterior.std * noise).sample
    expected = psnr(decoded, batch.clip.flatten(0, 1)).view(3, 2).mean(dim=1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_finishing_scales_training_latents_to_deviation_1(
    task: AutoencodingTask, random_batch: Callable[..., Batch], tmp_path: Path
):
    batches = [random_batch((4, 1, 3, 16, 16), seed=seed) for seed in range(3)]
    task.finish(iter(batches))
    task.save(tmp_path)
    scale, vae = latent_scale(tmp_path / "vae"), load_vae(tmp_path / "vae")
    with torch.no_grad():
        latents = [vae.encode(batch.clip.flatten(0, 1)).latent_dist.mean for batch in batches]
    assert (torch.cat(latents) * scale).std().item() == pytest.approx(1, rel=1e-4)
    assert scale != pytest.approx(0.18215)


def test_a_saved_autoencoder_is_loaded_to_the_bit(task: AutoencodingTask, tmp_path: Path):
    assert task.save(tmp_path) == ["vae"]
    loaded = load_vae(tmp_path / "vae").state_dict()
    assert all(torch.equal(t, loaded[name]) for name, t in task.vae.state_dict().items())


def test_start_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = AutoencodingTask(Autoencoding(network=NETWORK), optimizer=OptimizerConfig(), seed=5)
    torch.manual_seed(2)
    two = AutoencodingTask(Autoencoding(network=NETWORK), optimizer=OptimizerConfig(), seed=5)
    other = AutoencodingTask(Autoencoding(network=NETWORK), optimizer=OptimizerConfig(), seed=6)
    name = "decoder.conv_in.weight"
    assert torch.equal(one.vae.state_dict()[name], two.vae.state_dict()[name])
    assert not torch.equal(one.vae.state_dict()[name], other.vae.state_dict()[name])
