"""The walk against diffusers' own forward, and phi against diffusers' own temporal layers."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from videoldm_core.models.temporal_blocks import TemporalResBlock, TemporalTransformer, zeroed
from videoldm_core.models.temporal_layers import TemporalConfig, TemporalLayers
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


def spread(model: VideoUNet) -> torch.Tensor:
    """How much every frame changes, (videos, frames), when the second of the first video does."""
    noisy, timesteps, text, _ = inputs(model.unet, frames=4)
    changed = noisy.clone()
    changed[0, 1] += 1
    with torch.no_grad():
        difference = (model(changed, timesteps, text) - model(noisy, timesteps, text)).abs()
    return difference.amax(dim=(2, 3, 4))


def test_attention_alone_lets_every_frame_see_every_other_and_videos_never_mix():
    unet = image_unet("sd1")
    phi = disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0))
    transformers = []
    for layer in phi.layers.values():
        if isinstance(layer, TemporalResBlock):  # its group norms and convolutions see frames too
            torch.nn.init.constant_(layer.mixer.logit, 1e4)
        elif isinstance(layer, TemporalTransformer):
            transformers.append(layer)
    found = spread(VideoUNet(unet, phi))
    assert (found[0] > 1e-5).all()
    assert (found[1] == 0).all()
    for layer in transformers:
        zeroed(layer.attn_self.to_out)
    found = spread(VideoUNet(unet, phi))
    assert (found[0] > 0).tolist() == [False, True, False, False], "nothing else tells frames"


def test_residual_blocks_let_frames_see_each_other_too():
    unet = image_unet("pixel")
    phi = disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0))
    noisy, timesteps, text, level = inputs(unet, frames=4)
    changed = noisy.clone()
    changed[0, 1] += 1
    model = VideoUNet(unet, phi)
    with torch.no_grad():
        outs = [model(x, timesteps, text, noise_level=level) for x in (changed, noisy)]
    per_frame = (outs[0] - outs[1]).abs().amax(dim=(2, 3, 4))
    assert (per_frame[0] > 0).all()
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


FULLEST = TemporalConfig(
    context_channels=5, context_reach=2, labels=2, told_context_noise=True, frames_in_alpha=3
)


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        TemporalConfig(context_channels=5),
        FULLEST,
        FULLEST.model_copy(update={"frames_in_alpha": None}),
    ],
    ids=["context", "all, alpha per frame", "all, one alpha"],
)
def test_only_phi_gets_gradients_and_all_of_it(config, checkpointing, in_bfloat16):
    unet = image_unet("sd2").requires_grad_(False)
    phi = disturbed(temporal_layers_for(unet, config, seed=0))
    noisy, timesteps, text, _ = inputs(unet)
    given = {"context": torch.randn(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(3))}
    if config.labels:
        given |= {"label": torch.tensor([0, 1]), "context_noise": torch.tensor([0, 250])}
    model = VideoUNet(unet, phi, checkpointing=checkpointing)
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
        out = model(noisy, timesteps, text, **given)
    out.float().square().mean().backward()
    assert all(p.grad is None for p in unet.parameters())
    lacking = [name for name, p in phi.named_parameters() if p.grad is None or not p.grad.any()]
    assert lacking == []
    for name in ("logit", "label"):
        parts = [p.grad for n, p in phi.named_parameters() if n.split(".")[-1] == name]
        assert all(grad.ne(0).all() for grad in parts if grad is not None), name


def test_the_unet_is_never_modified():
    unet = image_unet("sd1")
    keys, processors = set(unet.state_dict()), set(unet.attn_processors)
    VideoUNet(unet, temporal_layers_for(unet, TemporalConfig(), seed=0))
    assert set(unet.state_dict()) == keys
    assert set(unet.attn_processors) == processors


def test_a_shortcut_changes_nothing_at_first_and_can_copy_what_is_given():
    unet = image_unet("sd1")
    config = TemporalConfig(context_channels=5, context_reach=2)
    phi = temporal_layers_for(unet, config, seed=0)
    noisy, timesteps, text, _ = inputs(unet)
    context = torch.randn(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(3))
    model = VideoUNet(unet, phi)
    with torch.no_grad():
        before = model(noisy, timesteps, text, context=context)
        blind = model(noisy, timesteps, text)
        for channel in range(4):
            # shift by the frame before
            phi.shortcut.conv.weight[4 + channel, channel, 1] = 1 / phi.shortcut.GAIN
        copied = model(noisy, timesteps, text, context=context) - before
    assert torch.allclose(before, blind, atol=1e-6)
    assert torch.allclose(copied[:, 1:], context[:, :-1, :4], atol=1e-5)
    assert not copied[:, 0].any()


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        unet = image_unet("sd1").requires_grad_(False)
        phi = disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0))
        noisy, timesteps, text, _ = inputs(unet)
        model = VideoUNet(unet, phi, checkpointing=checkpointing)
        model(noisy, timesteps, text).square().mean().backward()
        gradients.append({name: p.grad for name, p in phi.named_parameters()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_the_order_of_videos_in_a_batch_does_not_matter():
    unet = image_unet("sd2")
    model = VideoUNet(unet, disturbed(temporal_layers_for(unet, TemporalConfig(), seed=0)))
    noisy, timesteps, text, _ = inputs(unet)
    with torch.no_grad():
        forward = model(noisy, timesteps, text)
        swapped = model(noisy.flip(0), timesteps.flip(0), text.flip(0)).flip(0)
    torch.testing.assert_close(forward, swapped)


def test_a_saved_phi_works_under_another_backbone_of_the_same_shape(tmp_path):
    """The DreamBooth experiment (§4.3): other image weights, the same temporal layers."""
    first = image_unet("sd1")
    phi = disturbed(temporal_layers_for(first, TemporalConfig(), seed=0))
    phi.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "temporal.json",
        "temporal.safetensors",
    ]
    torch.manual_seed(5)
    second = UNet2DConditionModel(**SD1).eval()
    again = temporal_layers_for(second, TemporalConfig(), seed=9)
    again.load(tmp_path)
    noisy, timesteps, text, _ = inputs(second)
    with torch.no_grad():
        loaded = VideoUNet(second, again)(noisy, timesteps, text)
        assert torch.equal(loaded, VideoUNet(second, phi)(noisy, timesteps, text))
        assert not torch.allclose(loaded, VideoUNet(second)(noisy, timesteps, text), atol=1e-3)
        assert not torch.allclose(loaded, VideoUNet(first, phi)(noisy, timesteps, text), atol=1e-3)
