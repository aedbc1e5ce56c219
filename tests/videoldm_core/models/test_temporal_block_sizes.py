"""phi at the published sizes, and how far its attention reaches."""

import resource

import pytest
import torch
from diffusers import UNet2DConditionModel

from videoldm_core.models.sites import unet_places
from videoldm_core.models.temporal_blocks import (
    Attention,
    Mixer,
    TemporalTransformer,
    TimeConv,
    band,
)
from videoldm_core.models.temporal_layers import TemporalConfig, TemporalLayers, count_parameters
from videoldm_core.models.video_unet import VideoUNet


def disturbed(layer: torch.nn.Module) -> torch.nn.Module:
    """A layer in which no branch is zero any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return layer


@pytest.mark.parametrize(
    ("context_size", "linear", "heads", "expected"),
    [(768, False, 8, 649_687_078), (1024, True, (5, 10, 20, 20), 656_076_838)],
)
def test_phi_has_the_published_number_of_parameters(context_size, linear, heads, expected):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=context_size,
            use_linear_projection=linear,
            attention_head_dim=heads,
            block_out_channels=(320, 640, 1280, 1280),
        )
        places = unet_places(unet)
        phi = TemporalLayers(places, TemporalConfig(), embedding=1280, text=context_size)
        interpolator = TemporalConfig(context_channels=5, labels=2, told_context_noise=True)
        given = TemporalLayers(places, interpolator, embedding=1280, text=context_size)
    assert sum(1 for place in places if place.heads) == 16
    assert len(places) == 38
    assert count_parameters(phi) == expected
    assert 0 < count_parameters(given) - expected < 800_000


@pytest.mark.parametrize("reach", [1, 2])
def test_banded_attention_reaches_no_further_than_its_band(reach):
    """Convolutional in time (§4.2): a frame changes those at most `reach` away."""
    layer = disturbed(TemporalTransformer(32, heads=4, text=24))
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randn(9, 5, 32, generator=generator)
    text = torch.randn(1, 4, 24, generator=generator)
    changed = tokens.clone()
    changed[4] += torch.randn(5, 32, generator=generator)  # a layer norm undoes a constant
    mask = band(9, reach, tokens.device)
    with torch.no_grad():
        moved = (layer(changed, 9, text, mask) - layer(tokens, 9, text, mask)).abs()
        everywhere = (layer(changed, 9, text) - layer(tokens, 9, text)).abs()
    distance = (torch.arange(9) - 4).abs()
    per_frame = moved.amax(dim=(1, 2))
    assert (per_frame[distance > reach] == 0).all()
    assert (per_frame[distance <= reach] > 1e-5).all()
    assert (everywhere.amax(dim=(1, 2)) > 1e-5).all()


def test_many_positions_are_attended_to_in_parts_with_the_same_result(monkeypatch):
    layer = disturbed(TemporalTransformer(32, heads=4, text=24))
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randn(2 * 3, 7, 32, generator=generator)
    text = torch.randn(2, 4, 24, generator=generator)
    with torch.no_grad():
        at_once = layer(tokens, 3, text)
        monkeypatch.setattr(Attention, "MOST_AT_ONCE", 5)
        in_parts = layer(tokens, 3, text)
    torch.testing.assert_close(in_parts, at_once)


def test_a_convolution_over_time_is_the_one_in_three_dimensions():
    torch.manual_seed(0)
    layer = TimeConv(6)
    video = torch.randn(2, 5, 6, 4, 3, requires_grad=True)
    reference = torch.nn.Conv3d.forward(layer, video.transpose(1, 2)).transpose(1, 2)
    assert layer.weight.shape == (6, 6, 3, 1, 1)
    torch.testing.assert_close(layer(video), reference)
    (mine,) = torch.autograd.grad(layer(video).square().sum(), video)
    (theirs,) = torch.autograd.grad(reference.square().sum(), video)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("frames", [None, 3])
def test_mixing_is_the_weighted_sum_and_exactly_the_spatial_side_at_alpha_one(frames):
    torch.manual_seed(0)
    mixer = Mixer(frames)
    with torch.no_grad():
        mixer.logit.uniform_(-1, 1)
    spatial, change = torch.randn(2, 2, 3, 4, 5).unbind()
    alpha = torch.sigmoid(mixer.logit).view(-1, 1, 1)
    expected = alpha * spatial + (1 - alpha) * (spatial + change)
    torch.testing.assert_close(mixer(spatial, spatial + change), expected)
    torch.testing.assert_close(mixer.added(spatial, change), expected)
    with torch.no_grad():
        mixer.logit.fill_(float("inf"))
    assert torch.equal(mixer(spatial, change), spatial)
    assert torch.equal(mixer.added(spatial, change), spatial)


def test_the_x4_upscaler_takes_temporal_layers_at_its_published_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=7,
            block_out_channels=(256, 512, 512, 1024),
            cross_attention_dim=1024,
            attention_head_dim=8,
            use_linear_projection=True,
            num_class_embeds=1000,
            only_cross_attention=(True, True, True, False),
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        )
        phi = TemporalLayers(unet_places(unet), TemporalConfig(), embedding=1024, text=1024)
    assert round(count_parameters(unet) / 1e6, 1) == 473.4
    # The paper's upscaler has 449 M; where the other 11 M are is not known.
    assert round(count_parameters(phi) / 1e6, 1) == 437.9


@pytest.mark.slow
def test_a_forward_of_stable_diffusion_2_at_full_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024,
            use_linear_projection=True,
            attention_head_dim=(5, 10, 20, 20),
            block_out_channels=(320, 640, 1280, 1280),
        )
        phi = TemporalLayers(unet_places(unet), TemporalConfig(), embedding=1280, text=1024)
    model = VideoUNet(unet, phi).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02, generator=generator)
        noisy = torch.randn(1, 2, 4, 8, 8, generator=generator)
        text = torch.randn(1, 77, 1024, generator=generator)
        timesteps = torch.tensor([500])
        video = model(noisy, timesteps, text)
        images = VideoUNet(unet)(noisy, timesteps, text)
    assert video.shape == noisy.shape
    assert video.isfinite().all()
    assert not torch.allclose(video, images)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak_gib < 20


def test_an_alpha_near_one_still_lets_the_temporal_layer_learn_in_bfloat16():
    """In bf16 an alpha above 0.996 is 1, and 1 - alpha nothing."""
    mixer = Mixer(logit=8.0)
    spatial, change = torch.ones(1, 2, 3).bfloat16(), torch.ones(1, 2, 3).bfloat16()
    change.requires_grad_()
    mixer.added(spatial, change).float().sum().backward()
    assert change.grad is not None
    assert change.grad.min() > 0
    temporal = torch.zeros(1, 2, 3).bfloat16().requires_grad_()
    mixer(spatial, temporal).float().sum().backward()
    assert temporal.grad is not None
    assert temporal.grad.min() > 0


def test_alphas_per_frame_refuse_clips_of_another_length():
    mixer = Mixer(frames=3)
    with pytest.raises(AssertionError, match="3 alphas for clips of 1 frames"):
        mixer.added(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
