"""phi against the temporal layers of diffusers' own video model, with copied weights."""

import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel

from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for


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
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 5, 4, 16, 24, generator=generator)
    text = torch.randn(2, 5, 24, generator=generator)
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
