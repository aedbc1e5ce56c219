"""The denoising objective: what moves, what it is given, and what it is measured against."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    FirstFrames,
    KeyFrames,
    LowResolution,
    Nothing,
)
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.models.denoiser import load_denoiser, predict
from videoldm_core.models.image import UNetConfig
from videoldm_core.models.temporal_layers import load_temporal_config
from videoldm_core.objectives.denoising import Denoising, DenoisingTask, ScheduleConfig
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Turn, unfreeze_only

NULL_TEXT = torch.full((4, 8), 7.0)
UPSCALER = UNetConfig(
    in_channels=6,
    out_channels=3,
    widths=(16, 32),
    attention=(False, False),
    layers_per_block=1,
    text=8,
    groups=8,
    told_noise_level=True,
)


def task_for(
    config: Denoising,
    parts: dict[str, Path],
    *,
    trains: tuple[str, ...] = ("temporal",),
    strides: int = 1,
    crop: int | None = None,
) -> DenoisingTask:
    return DenoisingTask(
        config,
        parts=parts,
        trains=trains,
        frames=3,
        strides=strides,
        crop=crop,
        null_text=NULL_TEXT,
        optimizer=OptimizerConfig(lr=1e-2),
        seed=0,
    )


def turn_of(batch: Batch, step: int = 0) -> Turn:
    return Turn(step=step, rng=SampleRng(0, "denoiser", batch.sample_ids))


def step(task: DenoisingTask, batch: Batch, steps: int = 2) -> None:
    """Two steps: the branches start at zero, so that what is before them moves in the second."""
    (player,) = task.players
    engine = TorchEngine(
        player.module, list(player.trainable.values()), player.optimizer, bf16=False
    )
    unfreeze_only(player, task.players)
    for i in range(steps):
        loss, _ = task.loss(engine, batch, turn_of(batch, i))
        engine.backward(loss)
        engine.step()


def moved(task: DenoisingTask, before: dict[str, Tensor]) -> set[str]:
    after = task.model.net.state_dict()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def weights(task: DenoisingTask) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in task.model.net.state_dict().items()}


@pytest.mark.parametrize("given", [Nothing(), FirstFrames(weights=(0, 0.5, 0.5)), KeyFrames()])
def test_only_temporal_weights_move_when_they_alone_train(
    given: AnyGiven, image_model: dict[str, Path], random_batch: Callable[..., Batch]
):
    task = task_for(Denoising(alpha="scalar", given=given), image_model)
    before = weights(task)
    step(task, random_batch((2, 3, 4, 8, 8)))
    changed = moved(task, before)
    assert changed
    assert all(name.startswith("temporal.") for name in changed)
    branches = {name for name in before if name.endswith(("conv2.weight", "attn_self.to_out.bias"))}
    assert {name for name in branches if name.startswith("temporal.")} <= changed


def test_an_interpolator_learns_from_the_level_of_the_noise_on_its_key_frames(
    image_model: dict[str, Path], random_batch: Callable[..., Batch], tmp_path: Path
):
    given = KeyFrames(every=2, dropout=0.0, max_noise_timestep=250)
    task = task_for(Denoising(alpha="scalar", given=given), image_model)
    before = weights(task)
    batch = random_batch((2, 3, 4, 8, 8))
    step(task, batch)
    assert "temporal.context_noise.linear.weight" in moved(task, before)
    task.save(tmp_path)
    model = load_denoiser(image_model | {"temporal": tmp_path / "temporal"})
    levels = torch.tensor([0, 250])
    clean = given.give(
        batch.clip, given.mask(3).expand(2, -1), levels, torch.zeros(1), model.schedule
    )
    told = replace(clean, context_noise=levels.flip(0))
    timesteps = torch.tensor([500, 500])
    predictions = [predict(model.net, batch.clip, timesteps, batch.text, g) for g in (clean, told)]
    assert not torch.equal(*predictions)


def test_the_unet_trains_too_when_asked(
    image_model: dict[str, Path], random_batch: Callable[..., Batch]
):
    task = task_for(Denoising(alpha="scalar"), image_model, trains=("unet", "temporal"))
    before = weights(task)
    step(task, random_batch((2, 3, 4, 8, 8)))
    changed = moved(task, before)
    assert "unet.conv_in.weight" in changed
    assert any(name.startswith("temporal.") for name in changed)


def test_a_new_image_model_trains_whole_and_is_loaded_as_it_was_saved(
    tmp_path: Path, small_unet: UNetConfig, random_batch: Callable[..., Batch]
):
    schedule = ScheduleConfig(predicts="v_prediction", timesteps=100)
    task = task_for(Denoising(unet=small_unet, schedule=schedule), {}, trains=("unet",))
    before = weights(task)
    step(task, random_batch((2, 1, 4, 8, 8)))
    assert "unet.conv_in.weight" in moved(task, before)
    names = task.save(tmp_path)
    assert sorted(names) == ["scheduler", "unet"]
    loaded = load_denoiser({name: tmp_path / name for name in names})
    assert loaded.net.temporal is None
    assert loaded.schedule.predicts == "v_prediction"
    assert loaded.schedule.timesteps == 100
    for name, tensor in loaded.net.state_dict().items():
        assert torch.equal(tensor, task.model.net.state_dict()[name])


def test_a_saved_phi_is_loaded_over_its_image_model(
    tmp_path: Path, image_model: dict[str, Path], random_batch: Callable[..., Batch]
):
    task = task_for(Denoising(alpha="scalar", given=FirstFrames()), image_model, strides=2)
    step(task, random_batch((2, 3, 4, 8, 8)))
    assert task.save(tmp_path) == ["temporal"]
    assert load_temporal_config(tmp_path / "temporal").context_channels == 5
    loaded = load_denoiser(image_model | {"temporal": tmp_path / "temporal"})
    assert loaded.told_pass
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in loaded.net.state_dict().items():
        assert torch.equal(tensor, task.model.net.state_dict()[name])


@pytest.mark.parametrize(("alpha", "frames"), [("scalar", None), ("per_frame", 7)])
def test_phi_has_what_the_stage_needs_and_no_more(alpha, frames):
    phi = Denoising(alpha=alpha).temporal_config(frames=7, channels=4, strides=1)
    assert phi is not None
    assert (phi.frames_in_alpha, phi.context_channels, phi.labels) == (frames, 0, 0)
    given = Denoising(alpha=alpha, given=KeyFrames())
    phi = given.temporal_config(frames=7, channels=4, strides=2)
    assert phi is not None
    assert (phi.context_channels, phi.labels) == (5, 2)
    assert Denoising().temporal_config(frames=1, channels=4, strides=1) is None


class Listening:
    """A network that remembers what it is asked."""

    def __init__(self, task: DenoisingTask) -> None:
        self.module, self.calls = task.model.net, []

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor, **given) -> Tensor:
        self.calls.append({"noisy": noisy, "timesteps": timesteps, "text": text, **given})
        return torch.zeros_like(noisy[:, :, : self.module.unet.config.out_channels])


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, "caption"), (1.0, "nothing")])
def test_dropped_texts_become_the_empty_text(dropout, expected, image_model, random_batch):
    task, batch = (
        task_for(Denoising(text_dropout=dropout), image_model),
        random_batch((6, 1, 4, 8, 8)),
    )
    net = Listening(task)
    task.heldout(net, batch, turn_of(batch))
    texts = batch.text if expected == "caption" else NULL_TEXT.expand(6, -1, -1)
    assert torch.equal(net.calls[0]["text"], texts)


def test_texts_are_dropped_clip_by_clip(image_model, random_batch):
    task, batch = task_for(Denoising(text_dropout=0.5), image_model), random_batch((32, 1, 4, 2, 2))
    net = Listening(task)
    task.heldout(net, batch, turn_of(batch))
    dropped = [torch.equal(text, NULL_TEXT) for text in net.calls[0]["text"]]
    assert 6 < sum(dropped) < 26


def test_the_loss_is_the_error_of_the_target_over_all_frames(image_model, random_batch):
    task = task_for(Denoising(given=KeyFrames(), alpha="scalar", text_dropout=0), image_model)
    batch = random_batch((3, 5, 4, 8, 8))
    net = Listening(task)
    losses = task.heldout(net, batch, turn_of(batch))["loss"]
    noisy, timesteps = net.calls[0]["noisy"], net.calls[0]["timesteps"]
    schedule, clean = task.model.schedule, batch.clip * task.model.scale
    alpha, sigma = schedule.alpha(timesteps), schedule.sigma(timesteps)
    noise = (noisy - alpha * clean) / sigma
    velocity = alpha * noise - sigma * clean
    assert losses.shape == (3,)
    assert torch.allclose(losses, velocity.square().mean(dim=(1, 2, 3, 4)), rtol=1e-3)


def test_latents_are_scaled_before_they_are_noised_and_given(image_model, random_batch):
    task = task_for(Denoising(given=FirstFrames(weights=(0, 1, 0)), alpha="scalar"), image_model)
    batch = random_batch((2, 3, 4, 8, 8))
    net = Listening(task)
    task.heldout(net, batch, turn_of(batch))
    assert task.model.scale == pytest.approx(0.18215)
    context = net.calls[0]["context"]
    assert torch.equal(context[:, 0, :4], batch.clip[:, 0] * task.model.scale)


def test_losses_of_clips_do_not_depend_on_the_split_of_the_batch(image_model, random_batch):
    task = task_for(Denoising(given=FirstFrames(), alpha="scalar"), image_model)
    batch = random_batch((4, 3, 4, 8, 8))
    net = Listening(task)
    whole = task.heldout(net, batch, turn_of(batch))["loss"]
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = Batch(
            clip=batch.clip[rows],
            text=batch.text[rows],
            stride_index=batch.stride_index[rows],
            sample_ids=batch.sample_ids[rows],
        )
        parts.append(task.heldout(net, part, turn_of(part))["loss"])
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(("strides", "told"), [(1, False), (2, True)])
def test_only_a_model_of_several_strides_is_told_the_stride(
    strides, told, image_model, random_batch
):
    task = task_for(Denoising(alpha="scalar"), image_model, strides=strides)
    batch = random_batch((4, 3, 4, 8, 8))
    net = Listening(task)
    task.heldout(net, batch, turn_of(batch))
    label = net.calls[0]["label"]
    assert label.tolist() == [0, 1, 0, 1] if told else label is None


def test_an_upscaler_sees_the_low_resolution_beside_the_noise_and_its_level(random_batch):
    config = Denoising(
        given=LowResolution(factor=2, max_noise_timestep=9, detail_scale=2.0),
        unet=UPSCALER,
        schedule=ScheduleConfig(),
    )
    task = task_for(config, {}, trains=("unet",), crop=8)
    batch = random_batch((2, 1, 3, 16, 24))
    net = Listening(task)
    task.heldout(net, batch, turn_of(batch))
    assert net.calls[0]["noisy"].shape == (2, 1, 6, 8, 8)
    assert (net.calls[0]["noise_level"] < 9).all()
    before = weights(task)
    step(task, batch, steps=1)
    assert any(name.startswith("unet.class_embedding") for name in moved(task, before))


def test_an_upscaler_with_a_detail_scale_learns_the_scaled_difference_to_the_enlarged_clip(
    random_batch,
):
    low = LowResolution(factor=2, max_noise_timestep=9, detail_scale=4.0)
    schedule = ScheduleConfig(predicts="v_prediction")
    task = task_for(Denoising(given=low, unet=UPSCALER, schedule=schedule), {}, trains=("unet",))
    batch = random_batch((2, 1, 3, 8, 12))
    net = Listening(task)
    losses = task.heldout(net, batch, turn_of(batch))["loss"]
    frames = batch.clip[:, 0]
    enlarged = F.interpolate(F.avg_pool2d(frames, 2), size=(8, 12), mode="bilinear")
    detail = 4 * (frames - enlarged)
    timesteps, noisy = net.calls[0]["timesteps"], net.calls[0]["noisy"][:, 0, :3]
    alpha, sigma = (
        level(timesteps)[:, 0] for level in (task.model.schedule.alpha, task.model.schedule.sigma)
    )
    velocity = alpha * (noisy - alpha * detail) / sigma - sigma * detail
    assert torch.allclose(losses, velocity.square().mean(dim=(1, 2, 3)), rtol=1e-3)
