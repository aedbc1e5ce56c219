"""The decoder walk against diffusers' image decoder and its temporal decoder."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from videoldm_core.models.discriminator import (
    CriticConfig,
    PatchDiscriminator2D,
    PatchDiscriminator3D,
    hinge_loss,
)
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for

SHAPE = dict(
    block_out_channels=(32, 64),
    down_block_types=("DownEncoderBlock2D",) * 2,
    latent_channels=4,
    layers_per_block=2,
)


def autoencoder(**more) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        **SHAPE, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=32, **more
    ).eval()


def test_the_walk_without_temporal_layers_is_the_image_decoder_to_the_bit():
    vae = autoencoder()
    latents = torch.randn(2, 3, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        walked = VideoDecoder(vae)(latents)
        images = vae.decode(latents.flatten(0, 1)).sample
    assert torch.equal(walked.flatten(0, 1), images)


def test_an_untrained_video_decoder_is_the_image_decoder():
    vae = autoencoder()
    latents = torch.randn(2, 3, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        video = VideoDecoder(vae, temporal_decoder_for(vae, seed=0))(latents)
        images = VideoDecoder(vae)(latents)
    assert (video - images).abs().max() < 1e-6


def test_the_trained_layers_equal_diffusers_temporal_decoder():
    theirs = AutoencoderKLTemporalDecoder(**SHAPE).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    vae = autoencoder(use_post_quant_conv=False)
    temporal = temporal_decoder_for(vae, seed=0)
    source, image = theirs.decoder, vae.decoder
    for name in ("conv_in", "conv_norm_out", "conv_out"):
        getattr(image, name).load_state_dict(getattr(source, name).state_dict())
    pairs = [("mid", source.mid_block, image.mid_block)]
    pairs += [
        (f"up_{i}", a, b)
        for i, (a, b) in enumerate(zip(source.up_blocks, image.up_blocks, strict=True))
    ]
    for name, a, b in pairs:
        for x, y in zip(
            getattr(a, "upsamplers", None) or (), getattr(b, "upsamplers", None) or (), strict=True
        ):
            y.load_state_dict(x.state_dict())
        for x, y in zip(getattr(a, "attentions", ()), getattr(b, "attentions", ()), strict=True):
            y.load_state_dict(x.state_dict())
        for j, (x, y) in enumerate(zip(a.resnets, b.resnets, strict=True)):
            y.load_state_dict(x.spatial_res_block.state_dict())
            layer = temporal.layers[f"{name}_resnet_{j}"]
            inner = x.temporal_res_block
            for part in ("norm1", "norm2", "conv1", "conv2"):
                getattr(layer, part).load_state_dict(getattr(inner, part).state_dict())
            layer.norm1.eps, layer.norm2.eps = inner.norm1.eps, inner.norm2.eps
            # Their decoder counts alpha from the temporal side.
            layer.mixer.logit.data.copy_(-x.time_mixer.mix_factor)
    temporal.last.load_state_dict(source.time_conv_out.state_dict())
    latents = torch.randn(2, 5, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine = VideoDecoder(vae, temporal)(latents)
        reference = theirs.decode(latents.flatten(0, 1), num_frames=5).sample
    assert (mine.flatten(0, 1) - reference).abs().max() < 1e-5


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        vae = autoencoder()
        decoder = VideoDecoder(vae, temporal_decoder_for(vae, seed=0), checkpointing=checkpointing)
        decoder.requires_grad_(False)
        assert decoder.temporal is not None
        decoder.temporal.requires_grad_(True)
        latents = torch.randn(2, 3, 4, 6, 10, generator=torch.Generator().manual_seed(1))
        decoder(latents).square().mean().backward()
        gradients.append([p.grad for p in decoder.temporal.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def values_kept(decoder: VideoDecoder, latents: torch.Tensor) -> int:
    """How many values a forward pass keeps for the backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), id):
        decoder(latents)
    return sum(sizes)


def test_a_checkpointed_decoder_keeps_fewer_activations():
    kept = []
    for checkpointing in (False, True):
        vae = autoencoder()
        decoder = VideoDecoder(vae, temporal_decoder_for(vae, seed=0), checkpointing=checkpointing)
        kept.append(values_kept(decoder, torch.randn(1, 2, 4, 16, 16)))
    assert kept[1] < kept[0] / 4


def test_a_saved_temporal_decoder_comes_back_whole(tmp_path):
    vae = autoencoder()
    temporal = temporal_decoder_for(vae, seed=0)
    temporal.save(tmp_path)
    other = temporal_decoder_for(vae, seed=1)
    other.load(tmp_path)
    for a, b in zip(temporal.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_critic_scores_patches_over_space_and_time():
    critic = PatchDiscriminator3D(CriticConfig(width=8, layers=2))
    video = torch.randn(2, 4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    scores = critic(video)
    assert scores.shape == (2, 4, 6, 10)
    changed = video.clone()
    changed[0, 2] += 1
    moved = (critic(changed) - scores).abs().amax(dim=(1, 2, 3))
    assert moved[0] > 0
    assert moved[1] == 0


def test_the_critic_of_frames_scores_each_frames_patches_alone():
    critic = PatchDiscriminator2D(CriticConfig(width=8, layers=2))
    frames = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    scores = critic(frames)
    assert scores.shape == (2, 6, 10)
    changed = frames.clone()
    changed[0] += torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(1))
    moved = (critic(changed) - scores).abs().amax(dim=(1, 2))
    assert moved[0] > 0
    assert moved[1] == 0


@pytest.mark.parametrize(("layers", "side"), [(2, 34), (3, 70)])
def test_a_score_sees_a_patch_of_the_usual_size(layers: int, side: int):
    critic = PatchDiscriminator2D(CriticConfig(width=4, layers=layers))
    for number, layer in enumerate(critic.body):
        if isinstance(layer, torch.nn.GroupNorm):  # its statistics are of the whole frame
            critic.body[number] = torch.nn.Identity()
    frames = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    frames.requires_grad_()
    scores = critic(frames)
    scores[0, scores.shape[1] // 2, scores.shape[2] // 2].backward()
    assert frames.grad is not None
    rows = frames.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == side


def test_the_hinge_loss_stops_at_confident_scores():
    confident = torch.tensor([2.0, 3.0])
    assert hinge_loss(confident, -confident) == 0
    assert hinge_loss(-confident, confident) == 0.5 * (3.5 + 3.5)
