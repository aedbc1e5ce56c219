"""Image models for those who bring none: what their start values are worth."""

import pytest
import torch

from videoldm_core.errors import UserError
from videoldm_core.models.image import AutoencoderConfig, UNetConfig, load_unet, load_vae

AUTOENCODER = AutoencoderConfig(widths=(8, 16, 32), layers_per_block=1, groups=4)
UNET = UNetConfig(
    widths=(16, 32), attention=(False, True), layers_per_block=1, heads=2, text=8, groups=8
)


def test_every_latent_channel_of_a_new_autoencoder_carries_something():
    frames = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = AUTOENCODER.build(0)
    with torch.no_grad():
        posterior = vae.encode(frames).latent_dist
        decoded = vae.decode(posterior.mean).sample
        spread = posterior.mean.std(dim=(0, 2, 3))
        assert spread.min() > 0.1
        assert spread.min() > 0.2 * spread.max()
        for channel in range(4):
            moved = posterior.mean.clone()
            moved[:, channel] += 1
            assert (vae.decode(moved).sample - decoded).square().mean().sqrt() > 0.01
    assert posterior.std.mean() < 0.2 * spread.min(), "noise would drown what the encoder says"


def test_residual_branches_of_a_new_unet_add_nothing():
    unet = UNET.build(0)
    generator = torch.Generator().manual_seed(0)
    h, embedding = torch.randn(2, 16, 8, 8, generator=generator), torch.randn(2, 64)
    with torch.no_grad():
        block = unet.down_blocks[0].resnets[0]
        bias = block.conv2.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(block(h, embedding), h + bias)
    for name, parameter in unet.named_parameters():
        if name.endswith(("conv2.weight", "to_out.0.weight", "ff.net.2.weight")):
            assert not parameter.any(), name


@pytest.mark.parametrize("config", [AUTOENCODER, UNET])
def test_the_weights_depend_on_the_seed_alone(config):
    torch.manual_seed(1)
    one = config.build(0).state_dict()
    torch.manual_seed(2)
    same, other = config.build(0).state_dict(), config.build(3).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("load", [load_unet, load_vae])
def test_a_folder_without_a_model_is_named(load, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        load(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    AUTOENCODER.build(0).save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=str(tmp_path / "vae")):
        load_vae(tmp_path / "vae")
