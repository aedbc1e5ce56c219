"""diffusers' own video model with the same weights as ours: what phi is held against.

Used by the equality test of the temporal layers and by walk.py.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from videoldm_core.models.temporal_blocks import TemporalResBlock, TemporalTransformer
from videoldm_core.models.temporal_layers import TemporalConfig, TemporalLayers
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for

TIMES = 3  # numbers that diffusers' model embeds beside the diffusion time
TIME_WIDTH = 8


class TheirVideoUNet(nn.Module):
    """UNetSpatioTemporalConditionModel, called as VideoUNet is; one diffusion time for all videos.

    Its embedding of added times, which ours has not, adds nothing.
    """

    def __init__(self, widths: tuple[int, ...], *, text: int, heads: Any) -> None:
        super().__init__()
        self.unet = UNetSpatioTemporalConditionModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=widths,
            cross_attention_dim=text,
            num_attention_heads=heads,
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=TIMES * TIME_WIDTH,
        )
        for parameter in self.unet.add_embedding.parameters():
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Maps noisy latents b t c h w and text b l d to a prediction b t c h w."""
        times = noisy.new_zeros(len(noisy), TIMES)
        return self.unet(noisy, timesteps[0], text, added_time_ids=times, return_dict=False)[0]


def both_models(
    widths: tuple[int, ...], *, text: int, heads: Any
) -> tuple[TheirVideoUNet, VideoUNet]:
    """diffusers' video model with random weights none of which is zero, and ours with the same.

    Args:
        widths: channels per level, multiples of 32.
        text: size of a text embedding.
        heads: of attention, one number or one per level.
    """
    theirs = TheirVideoUNet(widths, text=text, heads=heads)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "add_embedding" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    unet = UNet2DConditionModel(
        block_out_channels=widths,
        cross_attention_dim=text,
        attention_head_dim=heads,
        use_linear_projection=True,
        norm_num_groups=32,
    )
    phi = temporal_layers_for(unet, TemporalConfig(), seed=0)
    copy_from_diffusers(theirs.unet, unet, phi)
    return theirs, VideoUNet(unet, phi)


def copy_from_diffusers(theirs: Any, ours: UNet2DConditionModel, phi: TemporalLayers) -> None:
    """Copies a UNetSpatioTemporalConditionModel into an image UNet and phi, place by place."""
    for name in ("time_embedding", "conv_in", "conv_norm_out", "conv_out"):
        getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
    for name, a, b in _blocks(theirs, ours):
        for kind in ("downsamplers", "upsamplers"):
            for x, y in _pairs(a, b, kind):
                y.load_state_dict(x.state_dict())
        for j, (x, y) in enumerate(_pairs(a, b, "resnets")):
            _copy_spatial(x.spatial_res_block, y)
            _copy_resblock(x, phi.layers[f"{name}_resnet_{j}"])
        for j, (x, y) in enumerate(_pairs(a, b, "attentions")):
            spatial = {k: v for k, v in x.state_dict().items() if not _is_temporal(k)}
            y.load_state_dict(spatial)
            _copy_transformer(x, phi.layers[f"{name}_attention_{j}_0"])


def _blocks(theirs: Any, ours: Any) -> list[tuple[str, Any, Any]]:
    blocks = [("mid", theirs.mid_block, ours.mid_block)]
    for kind in ("down", "up"):
        for i, (a, b) in enumerate(_pairs(theirs, ours, f"{kind}_blocks")):
            blocks.append((f"{kind}_{i}", a, b))
    return blocks


def _pairs(theirs: Any, ours: Any, name: str) -> list[tuple[Any, Any]]:
    both = (getattr(model, name, None) or () for model in (theirs, ours))
    return list(zip(*both, strict=True))


def _is_temporal(key: str) -> bool:
    return key.startswith(("temporal_transformer_blocks", "time_"))


def _copy_spatial(theirs: Any, ours: Any) -> None:
    ours.load_state_dict(theirs.state_dict())
    ours.norm1.eps, ours.norm2.eps = theirs.norm1.eps, theirs.norm2.eps


def _copy_resblock(theirs: Any, ours: nn.Module) -> None:
    assert isinstance(ours, TemporalResBlock)
    block = theirs.temporal_res_block
    for mine, other in (
        (ours.norm1, block.norm1),
        (ours.norm2, block.norm2),
        (ours.conv1, block.conv1),
        (ours.conv2, block.conv2),
        (ours.time, block.time_emb_proj),
    ):
        assert mine is not None, "a UNet's ResBlock is told the diffusion time"
        mine.load_state_dict(other.state_dict())
    ours.norm1.eps, ours.norm2.eps = block.norm1.eps, block.norm2.eps
    ours.mixer.logit.data.copy_(theirs.time_mixer.mix_factor)


def _copy_transformer(theirs: Any, ours: nn.Module) -> None:
    assert isinstance(ours, TemporalTransformer)
    assert ours.norm_text is not None, "copied with its text"
    assert ours.attn_text is not None, "copied with its text"
    block = theirs.temporal_transformer_blocks[0]
    for mine, other in (
        (ours.position[0], theirs.time_pos_embed.linear_1),
        (ours.position[2], theirs.time_pos_embed.linear_2),
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
