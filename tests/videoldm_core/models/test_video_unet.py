"""The walk against diffusers' own forward, and phi against diffusers' own temporal layers."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel

from videoldm_core.models.places import unet_places
from videoldm_core.models.temporal_layers import TemporalConfig, TemporalLayers, count_parameters
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for

SD1 = dict(
    block_out_channels=(32, 64, 64, 64),
    cross_attention_dim=24,
    attention_head_dim=8,
    norm_num_groups=8,
)
SD2 = dict(SD1, attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
X4 = dict(
    SD1,
    in_channels=7,
    num_class_embeds=20,
    only_cross_attention=(True, True, True, False),
    use_linear_projection=True,
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
)
PIXEL = dict(
    block_out_channels=(16, 32),
    in_channels=6,
    out_channels=3,
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=("DownBlock2D",) * 2,
    up_block_types=("UpBlock2D",) * 2,
    mid_block_type="UNetMidBlock2D",
    class_embed_type="timestep",
    cross_attention_dim=24,
)
GEOMETRIES = {"sd1": SD1, "sd2": SD2, "x4": X4, "pixel": PIXEL}


def image_unet(geometry: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**GEOMETRIES[geometry]).eval()


def inputs(unet: UNet2DConditionModel, *, frames: int = 3, size: tuple[int, int] = (16, 24)):
    g = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, frames, unet.config.in_channels, *size, generator=g)
    text = torch.randn(2, 5, 24, generator=g)
    has_level = unet.config.num_class_embeds or unet.config.class_embed_type
    level = torch.tensor([3, 11]) if has_level else None
    return noisy, torch.tensor([7, 900]), text, level


def images_one_by_one(unet: UNet2DConditionModel, noisy, timesteps, text, level):
    frames = [unet(x, timesteps, text, class_labels=level).sample for x in noisy.unbind(dim=1)]
    return torch.stack(frames, dim=1)


def disturbed(layers: TemporalLayers) -> TemporalLayers:
    """Layers in which no branch is zero any more."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.05)
    return layers


@pytest.mark.parametrize("size", [(16, 24), (20, 28), (9, 13)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_walk_without_temporal_layers_is_diffusers_forward_to_the_bit(geometry, size):
    unet = image_unet(geometry)
    noisy, timesteps, text, level = inputs(unet, size=size)
    with torch.no_grad():
        walked = VideoUNet(unet)(noisy, timesteps, text, noise_level=level)
        flat = unet(
            noisy.flatten(0, 1),
            timesteps.repeat_interleave(3),
            text.repeat_interleave(3, 0),
            class_labels=None if level is None else level.repeat_interleave(3),
        ).sample
    assert torch.equal(walked.flatten(0, 1), flat)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_untrained_video_model_is_the_image_model_of_every_frame(geometry):
    unet = image_unet(geometry)
    phi = temporal_layers_for(unet, TemporalConfig(context_channels=5, labels=2), seed=0)
    noisy, timesteps, text, level = inputs(unet)
    context = torch.randn(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        video = VideoUNet(unet, phi)(
            noisy, timesteps, text, context=context, label=torch.tensor([0, 1]), noise_level=level
        )
        images = images_one_by_one(unet, noisy, timesteps, text, level)
    assert (video - images).abs().max() < 1e-5


def test_alpha_one_is_exactly_the_image_model_whatever_the_temporal_weights():
    unet = image_unet("sd2")
    phi = disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0))
    noisy, timesteps, text, _ = inputs(unet)
    with torch.no_grad():
        disturbed_video = VideoUNet(unet, phi)(noisy, timesteps, text)
        for layer in phi.layers.values():
            layer.mixer.logit.fill_(float("inf"))
        video, images = (
            VideoUNet(unet, phi)(noisy, timesteps, text),
            VideoUNet(unet)(noisy, timesteps, text),
        )
    assert torch.equal(video, images)
    assert not torch.allclose(disturbed_video, images, atol=1e-3)


def test_every_frame_of_a_video_sees_every_other_and_videos_never_mix():
    unet = image_unet("sd1")
    model = VideoUNet(unet, disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0)))
    noisy, timesteps, text, _ = inputs(unet, frames=4)
    changed = noisy.clone()
    changed[0, 1] += 1
    with torch.no_grad():
        difference = (model(changed, timesteps, text) - model(noisy, timesteps, text)).abs()
    per_frame = difference.amax(dim=(2, 3, 4))
    assert (per_frame[0] > 1e-5).all()
    assert (per_frame[1] == 0).all()


def test_frames_are_told_apart_by_their_index():
    unet = image_unet("sd1")
    model = VideoUNet(unet, disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0)))
    noisy, timesteps, text, _ = inputs(unet, frames=4)
    with torch.no_grad():
        forward = model(noisy, timesteps, text)
        backward = model(noisy.flip(1), timesteps, text).flip(1)
    assert not torch.allclose(forward, backward, atol=1e-4)


def test_context_label_and_temporal_text_reach_the_output():
    unet = image_unet("sd1")
    config = TemporalConfig(context_channels=5, labels=2)
    model = VideoUNet(unet, disturbed(temporal_layers_for(unet, config, seed=0)))
    noisy, timesteps, text, _ = inputs(unet)
    context = torch.randn(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(3))
    label = torch.tensor([0, 1])
    with torch.no_grad():
        base = model(noisy, timesteps, text, context=context, label=label)
        for other in (
            model(noisy, timesteps, text, context=context.flip(0), label=label),
            model(noisy, timesteps, text, context=context, label=1 - label),
            model(noisy, timesteps, text, temporal_text=text.flip(0), context=context, label=label),
        ):
            assert not torch.allclose(base, other, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_phi_gets_gradients_and_checkpointing_keeps_them(checkpointing):
    unet = image_unet("sd2").requires_grad_(False)
    phi = disturbed(temporal_layers_for(unet, TemporalConfig(context_channels=5), seed=0))
    noisy, timesteps, text, _ = inputs(unet)
    context = torch.randn(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(3))
    model = VideoUNet(unet, phi, checkpointing=checkpointing)
    model(noisy, timesteps, text, context=context).square().mean().backward()
    assert all(p.grad is None for p in unet.parameters())
    lacking = [name for name, p in phi.named_parameters() if p.grad is None or not p.grad.any()]
    assert lacking == []


def test_the_unet_is_never_modified():
    unet = image_unet("sd1")
    keys, processors = set(unet.state_dict()), set(unet.attn_processors)
    VideoUNet(unet, temporal_layers_for(unet, TemporalConfig(), seed=0))
    assert set(unet.state_dict()) == keys
    assert set(unet.attn_processors) == processors


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
        given = TemporalLayers(
            places, TemporalConfig(context_channels=5), embedding=1280, text=context_size
        )
    assert sum(1 for place in places if place.heads) == 16
    assert len(places) == 38
    assert count_parameters(phi) == expected
    assert 0 < count_parameters(given) - expected < 800_000


def test_phi_equals_the_layers_of_diffusers_video_model():
    torch.manual_seed(0)
    config = dict(
        block_out_channels=(32, 64, 64, 64), cross_attention_dim=24, num_attention_heads=2
    )
    theirs = UNetSpatioTemporalConditionModel(
        in_channels=4,
        out_channels=4,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        **config,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        # Ours has no embedding of added times; theirs must add nothing.
        theirs.add_embedding.linear_2.weight.zero_()
        theirs.add_embedding.linear_2.bias.zero_()
    ours = UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64),
        cross_attention_dim=24,
        attention_head_dim=2,
        use_linear_projection=True,
        norm_num_groups=32,
    ).eval()
    phi = temporal_layers_for(ours, TemporalConfig(), seed=0)
    copy_from_diffusers(theirs, ours, phi)
    noisy, timesteps, text, _ = inputs(ours, frames=5)
    timesteps = torch.tensor([40, 40])
    with torch.no_grad():
        mine = VideoUNet(ours, phi)(noisy, timesteps, text)
        reference = theirs(
            noisy, torch.tensor(40), text, added_time_ids=torch.zeros(2, 3), return_dict=False
        )[0]
    assert (mine - reference).abs().max() < 1e-5


def copy_from_diffusers(theirs, ours, phi) -> None:
    """Copies an UNetSpatioTemporalConditionModel into an image UNet and phi, place by place."""
    plain = {
        k: v
        for k, v in theirs.state_dict().items()
        if "blocks" not in k.split(".")[0] and "mid_block" not in k and "add_embedding" not in k
    }
    ours.load_state_dict(plain, strict=False)
    blocks = [
        (f"down_{i}", a, b)
        for i, (a, b) in enumerate(zip(theirs.down_blocks, ours.down_blocks, strict=True))
    ]
    blocks += [("mid", theirs.mid_block, ours.mid_block)]
    blocks += [
        (f"up_{i}", a, b)
        for i, (a, b) in enumerate(zip(theirs.up_blocks, ours.up_blocks, strict=True))
    ]
    for name, a, b in blocks:
        for sampler in ("downsamplers", "upsamplers"):
            for x, y in zip(
                getattr(a, sampler, None) or (), getattr(b, sampler, None) or (), strict=True
            ):
                y.load_state_dict(x.state_dict())
        for j, (x, y) in enumerate(zip(a.resnets, b.resnets, strict=True)):
            y.load_state_dict(x.spatial_res_block.state_dict())
            y.norm1.eps = x.spatial_res_block.norm1.eps
            y.norm2.eps = x.spatial_res_block.norm2.eps
            copy_resblock(x, phi.layers[f"{name}_resnet_{j}"])
        for j, (x, y) in enumerate(
            zip(getattr(a, "attentions", ()), getattr(b, "attentions", None) or (), strict=True)
        ):
            y.load_state_dict(
                {k: v for k, v in x.state_dict().items() if not k.startswith("t")}
                | {k: v for k, v in x.state_dict().items() if k.startswith("transformer_blocks")}
            )
            copy_transformer(x, phi.layers[f"{name}_attention_{j}_0"])


def copy_resblock(theirs, ours) -> None:
    block = theirs.temporal_res_block
    for mine, other in (
        (ours.norm1, block.norm1),
        (ours.norm2, block.norm2),
        (ours.conv1, block.conv1),
        (ours.conv2, block.conv2),
        (ours.time, block.time_emb_proj),
    ):
        mine.load_state_dict(other.state_dict())
    ours.norm1.eps, ours.norm2.eps = block.norm1.eps, block.norm2.eps
    ours.mixer.logit.data.copy_(theirs.time_mixer.mix_factor)


def copy_transformer(theirs, ours) -> None:
    block = theirs.temporal_transformer_blocks[0]
    ours.position[0].load_state_dict(theirs.time_pos_embed.linear_1.state_dict())
    ours.position[2].load_state_dict(theirs.time_pos_embed.linear_2.state_dict())
    for mine, other in (
        (ours.norm_in, block.norm_in),
        (ours.norm_self, block.norm1),
        (ours.norm_text, block.norm2),
        (ours.norm_out, block.norm3),
        (ours.ff_in.proj_in, block.ff_in.net[0].proj),
        (ours.ff_in.proj_out, block.ff_in.net[2]),
        (ours.ff_out.proj_in, block.ff.net[0].proj),
        (ours.ff_out.proj_out, block.ff.net[2]),
    ):
        mine.load_state_dict(other.state_dict())
    for mine, other in ((ours.attn_self, block.attn1), (ours.attn_text, block.attn2)):
        for name in ("to_q", "to_k", "to_v"):
            getattr(mine, name).load_state_dict(getattr(other, name).state_dict())
        mine.to_out.load_state_dict(other.to_out[0].state_dict())
    ours.mixer.logit.data.copy_(theirs.time_mixer.mix_factor)
