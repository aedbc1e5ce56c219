"""Where temporal layers stand in a diffusers UNet or decoder; reads modules, changes nothing."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel

from videoldm_core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place after a spatial layer."""

    name: str  # key of the temporal layer, e.g. "down_0_resnet_1"
    channels: int  # of the spatial layer's output
    level: int  # how often the resolution was halved before it
    heads: int = 0  # attention heads of a transformer place; 0 at a ResBlock


def resnet_name(block: str, i: int) -> str:
    """Key of the temporal layer after ResBlock `i` of a block such as "down_0" or "mid"."""
    return f"{block}_resnet_{i}"


def transformer_name(block: str, i: int, k: int) -> str:
    """Key of the temporal layer after transformer block `k` of attention `i`."""
    return f"{block}_attention_{i}_{k}"


def attentions_of(block: object) -> list:
    """The spatial transformers of a UNet block; empty for a block without attention."""
    return [a for a in (getattr(block, "attentions", None) or []) if a is not None]


def unet_places(unet: UNet2DConditionModel) -> list[Place]:
    """All places in a UNet: after every ResBlock and every transformer block (§3.1).

    Raises:
        UserError: a UNet with parts that the walk does not know (Stable Diffusion XL, GLIGEN ...).
    """
    _check_known(unet)
    levels = len(unet.down_blocks)
    blocks = [(f"down_{i}", block, i) for i, block in enumerate(unet.down_blocks)]
    if unet.mid_block is not None:
        blocks.append(("mid", unet.mid_block, levels - 1))
    blocks += [(f"up_{i}", block, levels - 1 - i) for i, block in enumerate(unet.up_blocks)]
    return [place for name, block, level in blocks for place in _block_places(name, block, level)]


def decoder_places(vae: AutoencoderKL) -> list[Place]:
    """All places in an image decoder: after every ResBlock (§3.1.1)."""
    decoder = vae.decoder
    blocks = [("mid", decoder.mid_block)]
    blocks += [(f"up_{i}", block) for i, block in enumerate(decoder.up_blocks)]
    return [
        Place(name=resnet_name(name, i), channels=resnet.out_channels, level=0)
        for name, block in blocks
        for i, resnet in enumerate(block.resnets)
    ]


def _block_places(name: str, block: object, level: int) -> list[Place]:
    places = [
        Place(name=resnet_name(name, i), channels=resnet.out_channels, level=level)
        for i, resnet in enumerate(block.resnets)  # type: ignore[attr-defined]
    ]
    for i, transformer in enumerate(attentions_of(block)):
        for k, inner in enumerate(transformer.transformer_blocks):
            places.append(
                Place(
                    name=transformer_name(name, i, k),
                    channels=inner.dim,
                    level=level,
                    heads=inner.attn1.heads,
                )
            )
    return places


def _check_known(unet: UNet2DConditionModel) -> None:
    config = unet.config
    unknown = {
        "addition_embed_type": config.addition_embed_type,
        "encoder_hid_dim_type": config.encoder_hid_dim_type,
        "time_embedding_act_fn": config.time_embedding_act_fn,
        "dual_cross_attention": config.dual_cross_attention or None,
        "class_embeddings_concat": config.class_embeddings_concat or None,
        "center_input_sample": config.center_input_sample or None,
    }
    found = [f"{key}={value!r}" for key, value in unknown.items() if value is not None]
    if found:
        raise UserError(
            f"The image UNet has {', '.join(found)}, which the video walk does not know; "
            "use a Stable Diffusion 1.x, 2.x or x4-upscaler UNet."
        )
