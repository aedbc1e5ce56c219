"""phi against the temporal layers of diffusers' own video model, with copied weights."""

import pytest
import torch

from benchmarks.diffusers_video import both_models


@pytest.mark.parametrize("videos", [1, 2])
def test_phi_equals_the_layers_of_diffusers_video_model(videos):
    torch.manual_seed(0)
    theirs, ours = both_models((32, 64, 64, 64), text=24, heads=2)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(videos, 5, 4, 16, 24, generator=generator)
    text = torch.randn(videos, 5, 24, generator=generator)
    timesteps = torch.full((videos,), 40)
    with torch.no_grad():
        mine = ours.eval()(noisy, timesteps, text)
        reference = theirs.eval()(noisy, timesteps, text)
    assert (mine - reference).abs().max() < 1e-5


def test_phi_has_the_gradients_of_the_layers_of_diffusers_video_model():
    torch.manual_seed(0)
    theirs, ours = both_models((32, 64, 64, 64), text=24, heads=2)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 3, 4, 16, 24, generator=generator)
    text = torch.randn(2, 5, 24, generator=generator)
    timesteps = torch.tensor([40, 40])
    gradients = []
    for model, mixer in (
        (theirs, theirs.unet.mid_block.attentions[0].time_mixer.mix_factor),
        (ours, ours.temporal.layers["mid_attention_0_0"].mixer.logit),
    ):
        given = noisy.clone().requires_grad_()
        model(given, timesteps, text).square().mean().backward()
        gradients.append((given.grad, mixer.grad))
    for mine, reference in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-7)
