"""Image models' tensors under the names that their authors' single files have."""

import re

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding": "label_emb",
}
VAE = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}


def in_the_authors_layout(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's tensors under CompVis' names."""
    per_level = unet.config.layers_per_block + 1

    def renamed(name: str) -> str:
        for ours, theirs in OUTSIDE.items():
            if name.startswith(f"{ours}."):
                return theirs + name.removeprefix(ours)
        side, rest = re.fullmatch(r"(down_blocks|mid_block|up_blocks)\.(.+)", name).groups()
        level, rest = (0, rest) if side == "mid_block" else (int(rest[0]), rest[2:])
        kind, index, inner = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", rest).groups()
        if kind == "resnets":
            inner = re.sub(r"^\w+", lambda found: RESNET[found[0]], inner)
        place = level * per_level + int(index)
        if side == "mid_block":
            return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{inner}"
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.0.{inner.replace('conv', 'op')}"
        if kind == "upsamplers":
            has_attention = "CrossAttn" in unet.config.up_block_types[level]
            return f"output_blocks.{(level + 1) * per_level - 1}.{1 + has_attention}.{inner}"
        blocks = f"input_blocks.{1 + place}" if side == "down_blocks" else f"output_blocks.{place}"
        return f"{blocks}.{0 if kind == 'resnets' else 1}.{inner}"

    named = {renamed(name): tensor for name, tensor in unet.state_dict().items()}
    return {f"model.diffusion_model.{name}": tensor for name, tensor in named.items()}


def vae_in_the_authors_layout(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The autoencoder's tensors under CompVis' names; attention there is 1x1 convolutions."""
    levels = len(vae.config.block_out_channels)

    def renamed(name: str) -> str:
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        name = name.replace("resnets", "block")
        name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
        for ours, theirs in VAE.items():
            name = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, name)
        return name

    named = {renamed(name): tensor for name, tensor in vae.state_dict().items()}
    for name, tensor in named.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            named[name] = tensor[:, :, None, None]
    return {f"first_stage_model.{name}": tensor.contiguous() for name, tensor in named.items()}
