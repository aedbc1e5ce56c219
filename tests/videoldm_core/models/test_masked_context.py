"""What is masked says nothing, whatever the frames hold, in the network and before it (§3.2)."""

import pytest
import torch
from torch import Tensor

from videoldm_core.diffusion.conditioning import FirstFrames, Given, KeyFrames, mark_known
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.models.image import UNetConfig
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig

SHAPE = (2, 3, 4, 8, 8)


@pytest.fixture
def clips() -> tuple[Tensor, Tensor]:
    """A quiet clip, and one of another content and a thousand times as loud."""
    quiet, loud = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4))
    return quiet, 1e3 * loud


@pytest.fixture
def model() -> VideoUNet:
    """One whose layers all do something with what is given."""
    unet = UNetConfig(
        widths=(16, 32), attention=(True, True), layers_per_block=1, heads=2, text=8, groups=8
    ).build(0)
    config = TemporalConfig(context_channels=5, context_reach=2, told_context_noise=True)
    phi = temporal_layers_for(unet, config, seed=0)
    generator = torch.Generator().manual_seed(2)
    for parameter in phi.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return VideoUNet(unet, phi)


@torch.no_grad()
def predicted(model: VideoUNet, given: Given) -> Tensor:
    """With the same level told of the given frames, whether there are any or not."""
    noisy = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    numbers, text = torch.tensor([9, 900]), torch.ones(2, 4, 8)
    return model(noisy, numbers, text, context=given.context, context_noise=numbers)


@pytest.mark.parametrize(
    "nobody",
    [FirstFrames(weights=(1.0, 0.0, 0.0)), KeyFrames(every=2, dropout=1.0, max_noise_timestep=250)],
    ids=["first frames", "noisy key frames"],
)
def test_a_mask_of_zeros_is_the_unconditional_model(nobody, model, clips):
    schedule = ScheduleConfig().build()
    somebody = mark_known(clips[0], torch.tensor([[True, False, False]] * 2))
    blind = predicted(model, somebody.without_context())
    for clip in clips:
        masked = nobody(clip, SampleRng(0, "test", torch.arange(2)), schedule)
        assert torch.equal(predicted(model, masked), blind)
    assert not torch.allclose(predicted(model, somebody), blind, atol=1e-3)


def test_of_several_frames_only_the_marked_ones_say_something(model, clips):
    known = torch.tensor([[True, False, False]] * 2)
    mixed = torch.cat([clips[0][:, :1], clips[1][:, 1:]], dim=1)
    quiet, loud, other = (
        predicted(model, mark_known(clip, known)) for clip in (clips[0], mixed, clips[1])
    )
    assert torch.equal(quiet, loud)
    assert not torch.allclose(quiet, other, atol=1e-3)
