"""Small image models laid out as the published families."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from videoldm_core.models.image import AutoencoderConfig

SMALL = {"layers_per_block": 2, "norm_num_groups": 32}
FAMILIES = {
    "sd1": {"cross_attention_dim": 48, "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 40,
        "attention_head_dim": [1, 1, 2],
        "use_linear_projection": True,
        "block_out_channels": (64, 64, 128),
    },
    "x4": {
        "in_channels": 7,
        "cross_attention_dim": 128,
        "attention_head_dim": 8,
        "use_linear_projection": True,
        "num_class_embeds": 100,
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "only_cross_attention": (False, True, False),
    },
}


@pytest.fixture(scope="session")
def small_unet() -> Callable[[str], UNet2DConditionModel]:
    """small_unet("sd1"): a UNet laid out as that family's, with few channels."""

    def build(family: str) -> UNet2DConditionModel:
        shape = {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        }
        torch.manual_seed(0)
        return UNet2DConditionModel(**{**SMALL, **shape, **FAMILIES[family]}).eval()

    return build


@pytest.fixture(scope="session")
def small_vae() -> Callable[[], AutoencoderKL]:
    """small_vae(): an autoencoder with the four levels of Stable Diffusion's."""
    config = AutoencoderConfig(widths=(32, 32, 32, 64), layers_per_block=2, groups=32)
    return lambda: config.build(0)
