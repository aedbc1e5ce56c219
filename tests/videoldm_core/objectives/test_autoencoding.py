"""The image autoencoder's objective."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation.quality import psnr
from videoldm_core.models.discriminator import CriticConfig, hinge_loss
from videoldm_core.models.image import AutoencoderConfig, latent_scale, load_vae
from videoldm_core.objectives.autoencoding import Autoencoding, AutoencodingTask
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Turn, unfreeze_only

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
        losses.append(metrics["reconstruction"].item())
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
    assert metrics["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)
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


def test_without_critic_and_backbone_the_loss_is_pixels_and_divergence_to_the_bit(
    task: AutoencodingTask, random_batch: Callable[..., Batch]
):
    batch = random_batch((3, 1, 3, 16, 16))
    (player,) = task.players
    loss, _ = task.loss(player.module, batch, turn_of(batch))
    found = torch.autograd.grad(loss, list(player.trainable.values()))
    frames = batch.clip.flatten(0, 1)
    noise = turn_of(batch).rng.normal((1, 4, 8, 8)).flatten(0, 1)
    decoded, kl, _ = player.module(frames, noise)
    error = decoded - frames
    plain = error.abs().mean() + error.square().mean() + 1e-6 * kl.mean()
    assert torch.equal(loss, plain)
    for one, other in zip(
        found, torch.autograd.grad(plain, list(player.trainable.values())), strict=True
    ):
        assert torch.equal(one, other)
    assert "pixels alone" in task.remark


class Brightness(nn.Module):
    """A distance that is easily written out, in the place of LPIPS."""

    weight = 3.0

    def forward(self, frames: Tensor, target: Tensor) -> Tensor:
        return (frames.mean((1, 2, 3)) - target.mean((1, 2, 3))).abs()


def test_the_perceptual_distance_is_added_with_its_weight(
    task: AutoencodingTask, random_batch: Callable[..., Batch]
):
    batch = random_batch((2, 2, 3, 16, 16))
    net, frames = task.players[0].module, batch.clip.flatten(0, 1)
    noise = turn_of(batch).rng.normal((2, 4, 8, 8)).flatten(0, 1)
    distance = Brightness()(net(frames, noise)[0], frames).mean().item()
    pixels, of_pixels = task.loss(net, batch, turn_of(batch))
    task.perceptual = Brightness()  # type: ignore[assignment]
    both, of_both = task.loss(net, batch, turn_of(batch))
    assert distance > 0.01
    assert (both - pixels).item() == pytest.approx(3 * distance, rel=1e-3)
    added = of_both["reconstruction"] - of_pixels["reconstruction"]
    assert added.item() == pytest.approx(3 * distance, rel=1e-3)


def adversarial(**settings) -> AutoencodingTask:
    config = Autoencoding(network=NETWORK, critic=CriticConfig(width=8, layers=2), **settings)
    return AutoencodingTask(config, optimizer=OptimizerConfig(lr=1e-3), seed=0)


def test_gradients_are_those_of_error_divergence_and_weighted_opinion(random_batch):
    task, batch = adversarial(kl_weight=1e-4, critic_weight=0.5), random_batch((2, 2, 3, 16, 16))
    player, critic = task.players
    unfreeze_only(player, task.players)
    loss, numbers = task.loss(player.module, batch, turn_of(batch))
    found = torch.autograd.grad(loss, list(player.trainable.values()))

    frames = batch.clip.flatten(0, 1)
    noise = turn_of(batch).rng.normal((2, 4, 8, 8)).flatten(0, 1)
    decoded, kl, _ = player.module(frames, noise)
    error = (decoded - frames).abs().mean((1, 2, 3)) + (decoded - frames).square().mean((1, 2, 3))
    opinion = -critic.module(decoded).mean((1, 2))
    norms = []
    for values in (error, opinion):
        last = task.vae.decoder.conv_out.weight
        each = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in values]
        norms.append(torch.stack(each))
    weight = norms[0] / (norms[1] + 1e-4)  # Esser 2021, Eq. 7, per frame
    plain = (error + 0.5 * weight.detach() * opinion).mean() + 1e-4 * kl.mean()
    for one, other in zip(
        found, torch.autograd.grad(plain, list(player.trainable.values())), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-3)
    assert numbers["loss"].item() == pytest.approx(
        (error.mean() + 1e-4 * kl.mean()).item(), rel=1e-4
    )
    assert numbers["opinion"].item() == pytest.approx(opinion.mean().item(), rel=1e-4)


def test_the_critic_learns_from_the_frames_of_the_autoencoders_own_turn(random_batch):
    task, batch = adversarial(), random_batch((2, 2, 3, 16, 16))
    player, critic = task.players
    task.loss(player.module, batch, turn_of(batch))
    loss, numbers = critic.loss(critic.module, batch, turn_of(batch))
    frames = batch.clip.flatten(0, 1)
    noise = turn_of(batch).rng.normal((2, 4, 8, 8)).flatten(0, 1)
    decoded, *_ = player.module(frames, noise)
    expected = hinge_loss(critic.module(frames), critic.module(decoded))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(numbers["critic"], loss.detach())


def test_what_trains_reconstructs_as_the_autoencoder_does(task: AutoencodingTask, random_batch):
    frames = random_batch((3, 1, 3, 16, 16)).clip.flatten(0, 1)
    with torch.no_grad():
        posterior = task.vae.encode(frames).latent_dist
        found, *_ = task.players[0].module(frames, torch.zeros_like(posterior.mean))
        assert torch.equal(found, task.vae.decode(posterior.mean).sample)


def test_the_critic_is_silent_before_it_starts(random_batch):
    task, batch = adversarial(critic_starts_at=1), random_batch((2, 1, 3, 16, 16))
    player, critic = task.players
    assert (player.starts_at, critic.starts_at) == (0, 1)
    assert "opinion" not in task.loss(player.module, batch, turn_of(batch))[1]
    later = Turn(step=1, rng=turn_of(batch).rng)
    assert "opinion" in task.loss(player.module, batch, later)[1]


def test_recomputing_activations_changes_no_gradient(random_batch):
    batch, gradients = random_batch((2, 1, 3, 16, 16)), []
    for checkpointing in (False, True):
        config = Autoencoding(network=NETWORK)
        task = AutoencodingTask(
            config, optimizer=OptimizerConfig(), seed=0, checkpointing=checkpointing
        )
        (player,) = task.players
        loss, _ = task.loss(player.module.train(), batch, turn_of(batch))
        gradients.append(torch.autograd.grad(loss, list(player.trainable.values())))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert task.vae.encoder.gradient_checkpointing
