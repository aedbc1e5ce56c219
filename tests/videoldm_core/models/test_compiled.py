"""torch.compile sees both walks as one graph each: nothing in them falls back to plain Python.

With the backend that only traces (forward and backward), since generating code for a CPU takes
minutes; the graph is what an accelerator's backend is given.
"""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for


def disturbed(module: nn.Module) -> nn.Module:
    """Layers in which no branch is zero any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return module


def results(call: Callable[[], Tensor], layers: nn.Module) -> list[Tensor]:
    """What a call returns, and the gradients of `layers`."""
    out = call()
    out.square().mean().backward()
    gradients = [p.grad.clone() for p in layers.parameters() if p.grad is not None]
    assert len(gradients) == len(list(layers.parameters()))
    layers.zero_grad()
    return [out.detach(), *gradients]


def assert_compiles_to_the_same(
    module: nn.Module, call: Callable[[], Tensor], layers: nn.Module
) -> None:
    expected = results(call, layers)
    torch.compiler.reset()
    try:
        module.compile(backend="aot_eager", dynamic=False, fullgraph=True)
        found = results(call, layers)
    finally:
        torch.compiler.reset()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_walk_over_a_unet_is_one_graph_also_when_it_recomputes():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
    ).requires_grad_(False)
    config = TemporalConfig(context_channels=5, labels=2, told_context_noise=True)
    phi = disturbed(temporal_layers_for(unet, config, seed=0))
    net = VideoUNet(unet, phi, checkpointing=True)  # type: ignore[arg-type]
    noisy, context = torch.randn(2, 3, 4, 4, 8), torch.randn(2, 3, 5, 4, 8)
    times, text = torch.tensor([3, 500]), torch.randn(2, 5, 8)
    told = {"label": torch.tensor([0, 1]), "context_noise": torch.tensor([0, 100])}
    assert_compiles_to_the_same(net, lambda: net(noisy, times, text, context=context, **told), phi)


def test_the_walk_over_a_decoder_is_one_graph():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).requires_grad_(False)
    layers = disturbed(temporal_decoder_for(vae, seed=0))
    decoder = VideoDecoder(vae, layers, checkpointing=True)  # type: ignore[arg-type]
    latents = torch.randn(1, 3, 4, 4, 8)
    assert_compiles_to_the_same(decoder, lambda: decoder(latents), layers)
