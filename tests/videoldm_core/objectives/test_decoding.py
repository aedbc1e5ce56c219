"""The decoder's objective: who moves in whose turn, and how much the critic counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.models.discriminator import CriticConfig, hinge_loss
from videoldm_core.models.image import load_vae
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.objectives.adversarial import adaptive_weight
from videoldm_core.objectives.decoding import DecodingTask, TemporalDecoding
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Turn, unfreeze_only

SHAPE = (2, 3, 3, 16, 16)


def task_for(image_model: dict[str, Path], **settings) -> DecodingTask:
    task = DecodingTask(
        TemporalDecoding(critic=CriticConfig(width=8, layers=2), **settings),
        parts=image_model,
        optimizer=OptimizerConfig(lr=1e-2),
        seed=0,
    )
    for player in task.players:
        player.engine = TorchEngine(
            player.module, list(player.trainable.values()), player.optimizer, bf16=False
        )
    return task


def play(task: DecodingTask, name: str, batch: Batch, step: int = 0) -> dict[str, float]:
    player = next(player for player in task.players if player.name == name)
    unfreeze_only(player, task.players)
    turn = Turn(step=step, rng=SampleRng(0, name, batch.sample_ids))
    loss, metrics = player.loss(player.engine, batch, turn)
    player.engine.backward(loss)
    player.engine.step()
    return {name: value.item() for name, value in metrics.items()}


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}


def test_the_encoder_and_both_quant_convolutions_stay_as_they_are_to_the_bit(
    image_model: dict[str, Path], random_batch: Callable[..., Batch]
):
    task = task_for(image_model)
    vae, temporal = state(task.vae), state(task.temporal)
    for step in range(3):
        batch = random_batch(SHAPE, seed=step)
        play(task, "decoder", batch, step)
        play(task, "critic", batch, step)
    changed = moved(task.vae, vae)
    assert "decoder.conv_in.weight" in changed
    assert all(name.startswith("decoder.") for name in changed)
    assert "last.weight" in moved(task.temporal, temporal)


def test_the_critic_is_untouched_in_the_decoders_turn(image_model, random_batch):
    task = task_for(image_model)
    critic = state(task.critic)
    play(task, "decoder", random_batch(SHAPE))
    assert moved(task.critic, critic) == set()
    assert all(p.grad is None for p in task.critic.parameters())


def test_the_decoder_is_untouched_in_the_critics_turn(image_model, random_batch):
    task, batch = task_for(image_model), random_batch(SHAPE)
    play(task, "decoder", batch)
    vae, temporal, critic = state(task.vae), state(task.temporal), state(task.critic)
    play(task, "critic", batch)
    assert moved(task.vae, vae) | moved(task.temporal, temporal) == set()
    assert all(p.grad is None for p in task.players[0].trainable.values())
    assert "score.weight" in moved(task.critic, critic)


def test_the_critic_judges_the_real_clip_and_what_the_decoder_just_made(image_model, random_batch):
    task, batch = task_for(image_model), random_batch(SHAPE)
    with torch.no_grad():
        latents = task.vae.encode(batch.clip.flatten(0, 1)).latent_dist.mean
        fake, _ = task.players[0].module(latents.unflatten(0, SHAPE[:2]))
        expected = hinge_loss(task.critic(batch.clip), task.critic(fake)).item()
    play(task, "decoder", batch)
    assert play(task, "critic", batch)["critic"] == pytest.approx(expected, rel=1e-4)


def test_the_critic_is_silent_before_it_starts(image_model, random_batch):
    task, batch = task_for(image_model, critic_starts_at=2), random_batch(SHAPE)
    assert next(p for p in task.players if p.name == "critic").starts_at == 2
    assert "opinion" not in play(task, "decoder", batch, step=1)
    assert "opinion" in play(task, "decoder", batch, step=2)


def gradients(task: DecodingTask, batch: Batch, step: int = 0) -> list[Tensor]:
    player = task.players[0]
    unfreeze_only(player, task.players)
    turn = Turn(step=step, rng=SampleRng(0, "decoder", batch.sample_ids))
    loss, _ = task.decoder_loss(player.engine, batch, turn)
    return list(torch.autograd.grad(loss, list(player.trainable.values())))


def by_last_layer(task: DecodingTask, values: Tensor) -> Tensor:
    """Norm of the gradient of each clip's value (b) by the last layer's weights, by autograd."""
    weights = task.temporal.last.weight
    each = [torch.autograd.grad(value, weights, retain_graph=True)[0] for value in values]
    return torch.stack([gradient.norm() for gradient in each])


def test_gradients_are_those_of_error_and_opinion_weighed_at_the_last_layer(
    image_model, random_batch
):
    """The two-step differentiation equals plain autograd of error + weight * opinion, with the
    weight of Esser 2021, Eq. 7, per clip.
    """
    task = task_for(image_model, critic_weight=0.5, temporal_weight=2.0)
    batch = random_batch(SHAPE)
    found = gradients(task, batch)

    with torch.no_grad():
        latents = task.vae.encode(batch.clip.flatten(0, 1)).latent_dist.mean
    decoded, _ = task.players[0].module(latents.unflatten(0, SHAPE[:2]))
    error = decoded - batch.clip
    over = (1, 2, 3, 4)
    reconstruction = (
        error.abs().mean(over)
        + error.square().mean(over)
        + 2.0 * (error[:, 1:] - error[:, :-1]).abs().mean(over)
    )
    opinion = -task.critic(decoded).mean(dim=(1, 2, 3))
    weight = by_last_layer(task, reconstruction) / (by_last_layer(task, opinion) + 1e-4)
    assert 0.1 < weight.min() < weight.max() < 1e3
    loss = (reconstruction + 0.5 * weight.detach() * opinion).mean()
    expected = torch.autograd.grad(loss, list(task.players[0].trainable.values()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-3)


def test_the_critics_gradient_is_brought_to_the_size_of_the_errors():
    by_error = torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    by_critic = torch.tensor([[0.5, 0.0], [0.0, 10.0]])
    assert adaptive_weight(by_error, by_critic).tolist() == pytest.approx([6.0, 0.5], rel=1e-3)


def test_a_critic_without_opinion_does_not_get_infinite_weight():
    weight = adaptive_weight(torch.full((1, 4), 1e6), torch.zeros(1, 4))
    assert weight.tolist() == [1e4]


def test_heldout_clips_are_measured_one_by_one(image_model, random_batch):
    task, batch = task_for(image_model), random_batch(SHAPE)
    turn = Turn(step=0, rng=SampleRng(0, "heldout", batch.sample_ids))
    with torch.no_grad():
        found = task.heldout(task.players[0].module, batch, turn)
    assert found["psnr"].shape == found["flicker"].shape == (2,)


def test_what_is_saved_decodes_alike(image_model, random_batch, tmp_path: Path):
    task = task_for(image_model)
    play(task, "decoder", random_batch(SHAPE))
    assert sorted(task.save(tmp_path)) == ["temporal_decoder", "vae"]
    vae = load_vae(tmp_path / "vae")
    temporal = temporal_decoder_for(vae, seed=9)
    temporal.load(tmp_path / "temporal_decoder")
    latents = torch.randn(1, 3, 4, 8, 8)
    with torch.no_grad():
        found = VideoDecoder(vae, temporal).eval()(latents)
        expected, _ = task.players[0].module.eval()(latents)
    assert torch.equal(found, expected)


def test_a_saved_autoencoder_is_the_given_one_but_for_its_decoder(
    image_model, random_batch, tmp_path
):
    """In the file too: what other stages' latents mean must not change by a bit."""
    task = task_for(image_model)
    play(task, "decoder", random_batch(SHAPE))
    task.save(tmp_path)
    saved, given = load_vae(tmp_path / "vae"), load_vae(image_model["vae"])
    changed = moved(saved, state(given))
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert saved.config["scaling_factor"] == given.config["scaling_factor"]


def test_each_micro_batch_is_judged_by_what_was_made_of_it(image_model, random_batch):
    """The decoder's turn ends before the critic's begins; the critic then sees every part again."""
    task = task_for(image_model)
    first, second = random_batch(SHAPE), random_batch(SHAPE, first_id=2, seed=1)
    decoder, critic = task.players
    unfreeze_only(decoder, task.players)
    expected = []
    for batch in (first, second):
        with torch.no_grad():
            latents = task.vae.encode(batch.clip.flatten(0, 1)).latent_dist.mean
            fake, _ = decoder.module(latents.unflatten(0, SHAPE[:2]))
            expected.append(hinge_loss(task.critic(batch.clip), task.critic(fake)).item())
        decoder.loss(decoder.engine, batch, turn_of(batch, "decoder"))
    found = [critic.loss(critic.engine, b, turn_of(b, "critic"))[0].item() for b in (first, second)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=1e-4)


def turn_of(batch: Batch, name: str) -> Turn:
    return Turn(step=0, rng=SampleRng(0, name, batch.sample_ids))


def test_without_a_backbone_it_is_said_that_pixels_alone_judge(image_model):
    assert task_for(image_model).remark == (
        "no perceptual backbone given: reconstruction is judged by pixels alone"
    )


def test_the_perceptual_distance_counts_per_clip_with_its_weight(image_model, random_batch):
    task, batch = task_for(image_model), random_batch((2, 3, 3, 16, 16))
    made = random_batch((2, 3, 3, 16, 16), seed=5).clip
    pixels = task._reconstruction(made, batch.clip)

    class Brightness(nn.Module):
        weight = 3.0

        def forward(self, frames: Tensor, target: Tensor) -> Tensor:
            return (frames.mean((1, 2, 3)) - target.mean((1, 2, 3))).abs()

    task.perceptual = Brightness()  # type: ignore[assignment]
    expected = (made.mean((2, 3, 4)) - batch.clip.mean((2, 3, 4))).abs().mean(1)
    assert torch.allclose(task._reconstruction(made, batch.clip) - pixels, 3 * expected, atol=1e-6)
