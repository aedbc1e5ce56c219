"""Frames upscaled and decoded in tiles: one video in the making, borders that do not show."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Size, Tensor, nn

from tests.videoldm_core.sampling.fakes import (
    SCHEDULE as FAKE_SCHEDULE,
)
from tests.videoldm_core.sampling.fakes import (
    Fixed,
    Known,
    drawing,
    fake_cascade,
    frames_from,
    guessing,
    net_of,
    random_latents,
)
from videoldm_core.diffusion.conditioning import LowResolution
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.models.image import AutoencoderConfig, UNetConfig
from videoldm_core.models.video_decoder import VideoDecoder
from videoldm_core.models.video_unet import VideoUNet
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling.clip_sampler import RoleModel
from videoldm_core.sampling.decoding import Frames, decode_in_tiles

SCHEDULE = ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True).build()
LOW = (12, 40)  # px of a decoded frame
SIDE = 64  # px of a tile of the upscaled one, 48 x 160
SHRINKING = 2  # of the network: tiles begin at even pixels


def network() -> VideoUNet:
    """A small pixel upscaler without attention, in which every convolution does something."""
    config = UNetConfig(
        in_channels=6,
        out_channels=3,
        widths=(8, 16),
        attention=(False, False),
        layers_per_block=1,
        text=8,
        groups=4,
        told_noise_level=True,
    )
    unet = config.build(0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in unet.named_parameters():
        if "conv2.weight" in name:
            parameter.data.normal_(0, 0.06, generator=generator)
    return VideoUNet(unet).eval().requires_grad_(False)


def without_group_norms(net: VideoUNet) -> VideoUNet:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return net


def reach(net: VideoUNet) -> int:
    """How far, in pixels, a prediction moves when one pixel does."""

    def predicted(noisy: Tensor) -> Tensor:
        level = torch.tensor([20])
        return net(noisy, torch.tensor([500]), torch.zeros(1, 2, 8), noise_level=level)

    noisy = torch.randn(1, 1, 6, 8, 160, generator=torch.Generator().manual_seed(0))
    touched = noisy.clone()
    touched[..., 80] += 1
    moved = (predicted(noisy) - predicted(touched)).abs().amax(dim=(0, 1, 2, 3)) > 0
    places = moved.nonzero().flatten()
    return int((places - 80).abs().max())


def upscaled(net: VideoUNet, **config) -> Tensor:
    role = RoleModel(denoiser=Denoiser(net, SCHEDULE, 1.0), frames=2, given=LowResolution(factor=4))
    low = torch.rand(1, 2, 3, *LOW, generator=torch.Generator().manual_seed(1)) * 2 - 1
    frames = Frames(
        drawing(upscale_steps=3, **config),
        Fixed(random_latents(2)),
        decoder=fake_cascade().decoder,
        shrinks=2,
        scale=1.0,
        upscaler=role,
    )
    return frames._upscaled(role, low, first=0)


def test_tiles_equal_the_whole_where_half_the_overlap_covers_all_that_convolutions_see():
    """To rounding without group norms, whose statistics are a tile's, not the frame's."""
    net = without_group_norms(network())
    seen = reach(net)
    assert 10 < seen < 40
    whole = upscaled(net)
    overlap = 2 * (seen + SHRINKING)
    enough = upscaled(net, tile=2 * overlap + 16, tile_overlap=overlap)
    none = upscaled(net, tile=SIDE, tile_overlap=0)
    torch.testing.assert_close(enough, whole, atol=1e-3, rtol=0)
    assert (none - whole).abs().max() > 0.05


def test_group_norms_leave_a_small_difference_that_overlap_reduces():
    net = network()
    whole = upscaled(net)
    cut, blended = (
        (upscaled(net, tile=tile, tile_overlap=overlap) - whole).square().mean().sqrt()
        for tile, overlap in ((SIDE, 0), (2 * SIDE, 48))
    )
    assert blended < cut / 2
    assert blended < 0.05 * whole.std()


def test_tiles_share_noise_by_position_and_every_step():
    """Frames of a model that looks at one pixel are the same, tiled or not."""
    cascade = fake_cascade()
    guessing(cascade.upscaler, lambda noisy, given: 0.3 * noisy[:, :, :3] + 0.7 * noisy[:, :, 3:])
    given = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    config = {"upscale_noise_timestep": 40, "upscale_steps": 4}
    whole = frames_from(cascade, given, **config).portion(0)
    calls = net_of(cascade.upscaler).calls
    assert {tuple(call["noisy"].shape[-2:]) for call in calls} == {(32, 48)}
    calls.clear()
    tiled = frames_from(cascade, given, **config, tile=16, tile_overlap=4).portion(0)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert len(calls) == 4 * 3 * 5, "steps, rows, columns"
    assert {tuple(call["noisy"].shape[-2:]) for call in calls} == {(16, 16)}


@pytest.fixture
def own_vae() -> AutoencoderKL:
    """Of a latent upscaler: frames are 4 times larger than its latents."""
    vae = AutoencoderConfig(widths=(8, 8, 8), layers_per_block=1, groups=4).build(0)
    return vae.eval().requires_grad_(False)


def latents_decoded(vae: AutoencoderKL, monkeypatch, **config) -> tuple[Tensor, list[Size]]:
    """Two frames 64x96 of a latent upscaler, and the sizes of what its autoencoder decoded."""
    seen: list[Size] = []
    decode = AutoencoderKL.decode

    def watched(self, latents: Tensor, **options):
        seen.append(latents.shape[-2:])
        return decode(self, latents, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", watched)
        model = Denoiser(Known(own_latents), FAKE_SCHEDULE, 0.5, vae)  # type: ignore[arg-type]
        frames = Frames(
            drawing(**config),
            Fixed(torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(2))),
            decoder=fake_cascade().decoder,
            shrinks=2,
            scale=1.0,
            upscaler=RoleModel(denoiser=model, frames=2, given=LowResolution(factor=4)),
        )
        return frames.portion(0), seen


def own_latents(noisy: Tensor, given: dict) -> Tensor:
    return 0.5 * noisy[:, :, :4]


def test_an_upscalers_own_autoencoder_decodes_no_more_than_a_tile(own_vae, monkeypatch):
    whole, seen = latents_decoded(own_vae, monkeypatch)
    assert whole.shape == (2, 3, 64, 96)
    assert set(seen) == {(16, 24)}
    tiled, seen = latents_decoded(own_vae, monkeypatch, tile=32, tile_overlap=8)
    assert set(seen) == {(8, 8)}
    assert len(seen) == 2 * 3 * 5, "frames, rows, columns"
    cut, _ = latents_decoded(own_vae, monkeypatch, tile=16, tile_overlap=0)
    assert (tiled - whole).square().mean() < (cut - whole).square().mean() / 2


def test_the_weights_of_decoded_tiles_sum_to_one():
    given = torch.zeros(2, 4, 15, 21)
    ones = decode_in_tiles(
        lambda part: torch.ones(len(part), 3, 2 * part.shape[-2], 2 * part.shape[-1]),
        given,
        side=16,
        overlap=5,
        factor=2,
    )
    torch.testing.assert_close(ones, torch.ones(2, 3, 30, 42))


@pytest.mark.parametrize(("tile", "overlap", "is_near"), [(24, 8, True), (8, 0, False)])
def test_frames_are_decoded_in_tiles_where_the_config_says_so(tile, overlap, is_near: bool):
    """Group norms and attention over the frame leave a difference, smaller than without overlap."""
    vae = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0)
    generator = torch.Generator().manual_seed(4)
    given = torch.randn(2, 4, 12, 16, generator=generator)

    def decoded(**config) -> Tensor:
        frames = Frames(
            drawing(**config),
            Fixed(given),
            decoder=VideoDecoder(vae).eval(),
            shrinks=2,
            scale=1.0,
            upscaler=None,
        )
        return frames.portion(0)

    whole = decoded()
    tiled = decoded(decoder_tile=tile, tile_overlap=overlap)
    assert tiled.shape == whole.shape == (2, 3, 24, 32)
    error = (tiled - whole).square().mean().sqrt() / whole.std()
    assert bool(error < 0.2) is is_near, error
