"""Image models: diffusers modules, built from a config or loaded from a folder, never modified."""

from pathlib import Path
from typing import Annotated

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn

from videoldm_core.models.pretrained.described import MOST_LEVELS, scale_of
from videoldm_core.models.pretrained.folders import load_module, read_config
from videoldm_core.records import Record

ENCODED_PX = 8 * 512 * 512  # of frames that are encoded at once
NARROW_LOG_VARIANCE = -6.0
# The last matrix of diffusers' residual blocks and of each branch of its transformer blocks.
LAST_OF_BRANCH = ("conv2.weight", "to_out.0.weight", "ff.net.2.weight")


Channels = Annotated[int, Field(ge=1, le=65_536)]
Widths = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=MOST_LEVELS)]
Levels = Annotated[tuple[bool, ...], Field(min_length=1, max_length=MOST_LEVELS)]
Layers = Annotated[int, Field(ge=1, le=50)]


class AutoencoderConfig(Record):
    """A KL autoencoder for those who bring none; height and width shrink by 2^(levels - 1)."""

    widths: Widths = (128, 256, 512, 512)  # channels per level
    latent_channels: Channels = 4
    layers_per_block: Layers = 2
    groups: Channels = 32  # of the group norms

    def build(self, seed: int) -> AutoencoderKL:
        """A new autoencoder; its weights depend on `seed` alone."""
        levels = len(self.widths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = AutoencoderKL(
                block_out_channels=self.widths,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                latent_channels=self.latent_channels,
                layers_per_block=self.layers_per_block,
                norm_num_groups=self.groups,
            )
            _start_latents(vae, self.latent_channels)
        return vae


class UNetConfig(Record):
    """An image denoiser for those who bring none."""

    in_channels: Channels = 4
    out_channels: Channels = 4
    widths: Widths = (320, 640, 1280, 1280)  # channels per level
    # Levels with a spatial transformer.
    attention: Levels = (True, True, True, False)
    layers_per_block: Layers = 2
    heads: Channels = 8
    text: Channels = 768  # size of a text embedding
    groups: Channels = 32
    told_noise_level: bool = False  # upscalers: the noise of the low resolution, embedded like time

    def build(self, seed: int) -> UNet2DConditionModel:
        """A new UNet; its weights depend on `seed` alone."""
        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention)]
        middle = "UNetMidBlock2DCrossAttn" if any(self.attention) else "UNetMidBlock2D"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(
                in_channels=self.in_channels,
                out_channels=self.out_channels,
                block_out_channels=self.widths,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                mid_block_type=middle,
                layers_per_block=self.layers_per_block,
                attention_head_dim=self.heads,
                cross_attention_dim=self.text,
                norm_num_groups=self.groups,
                class_embed_type="timestep" if self.told_noise_level else None,
            )
        _start_residual_branches(unet)
        return unet


def _start_residual_branches(unet: UNet2DConditionModel) -> None:
    """Each residual branch starts as nothing (Rombach 2022's code; diffusers' modules do not)."""
    for name, parameter in unet.named_parameters():
        if name.endswith(LAST_OF_BRANCH):
            nn.init.zeros_(parameter)


def _start_latents(vae: AutoencoderKL, channels: int) -> None:
    """Start values with which every latent channel carries something from the first step.

    PyTorch's own are a third of the variance that convolutions before a SiLU need, and leave one
    latent channel of four dead: 23.9 instead of 25.7 dB after the same 40 seconds of training.
    """
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        nn.init.orthogonal_(layer.weight)
    # The posterior starts narrow: otherwise the decoder first learns to see through noise of
    # deviation 1, which takes longer than all the rest.
    nn.init.constant_(vae.quant_conv.bias[channels:], NARROW_LOG_VARIANCE)


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet in a diffusers `unet/` folder.

    Raises:
        UserError: there is none, or its weights do not fit; names the file and the key.
    """
    return load_module(folder, UNet2DConditionModel)


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder in a diffusers `vae/` folder.

    Raises:
        UserError: there is none, or its weights do not fit; names the file and the key.
    """
    return load_module(folder, AutoencoderKL)


def latent_scale(vae_folder: Path) -> float:
    """What latents of this autoencoder are multiplied by so that their deviation is about 1.

    Raises:
        UserError: the folder holds none, or says no scale above 0.
    """
    _, config = read_config(vae_folder, AutoencoderKL)
    return scale_of(config)


@torch.no_grad()
def encoded_mean(vae: AutoencoderKL, clip: Tensor, *, in_bfloat16: bool) -> Tensor:
    """Posterior means of a clip's frames, unscaled: b t 3 H W to b t c h w, float32.

    Deviation: Rombach 2022 draws latents from the posterior; its deviation is far below theirs, and
    means make the same latents every time. Stores keep them in float16.

    Frames of one clip at a time, and of large ones fewer, so that what is computed together does
    not depend on how a batch was split, nor memory on how many clips it has.

    Args:
        in_bfloat16: under autocast, as stores are encoded in such a run.
    """
    at_once = max(1, ENCODED_PX // (clip.shape[-2] * clip.shape[-1]))
    with torch.autocast(clip.device.type, torch.bfloat16, enabled=in_bfloat16):
        encoded = [
            torch.cat([vae.encode(some).latent_dist.mean for some in frames.split(at_once)])
            for frames in clip
        ]
    return torch.stack(encoded).float()


def shrinking(vae: AutoencoderKL) -> int:
    """How many times smaller than frames, per side, the latents of this autoencoder are."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
