"""The frozen encoder that makes latents: an image model's own, or a small one in its place."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.folders import load_module

Encoder = AutoencoderKL | AutoencoderTiny


def load_frozen_encoder(folder: Path, *, device: str = "cpu") -> Encoder:
    """The autoencoder in a diffusers `vae` folder, in evaluation mode, channels last.

    Raises:
        UserError: the folder holds neither AutoencoderKL nor AutoencoderTiny, or its weights do not
            fit; names the file and the key.
    """
    vae = load_module(folder, AutoencoderKL, AutoencoderTiny)
    vae.requires_grad_(False)
    return vae.to(device, memory_format=torch.channels_last)


def save_in_place_of(vae: AutoencoderKL, tiny_folder: Path, to: Path) -> None:
    """Writes the AutoencoderTiny of `tiny_folder` so that its encoder gives what `vae`'s gives.

    Tiny autoencoders were distilled on scaled latents, stores hold unscaled ones: the ratio of the
    two scales is multiplied into the last convolution, so that nobody downstream has to know.

    Raises:
        UserError: it is no AutoencoderTiny, or its latents have another shape than those of `vae`.
    """
    tiny = load_frozen_encoder(tiny_folder)
    if not isinstance(tiny, AutoencoderTiny):
        raise UserError(
            f"{str(tiny_folder)!r} holds an AutoencoderKL, expected an AutoencoderTiny (TAESD); "
            "leave encoder= out to encode with the image model's own."
        )
    shrinks = 2 ** sum(
        1 for layer in tiny.encoder.modules() if getattr(layer, "stride", 1) == (2, 2)
    )
    found = (tiny.config.latent_channels, shrinks)
    wanted = (vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1))
    if found != wanted:
        raise UserError(
            f"{str(tiny_folder)!r} gives latents of {found[0]} channels, {found[1]} times smaller; "
            f"the image model's have {wanted[0]} and are {wanted[1]} times smaller: name the tiny "
            "autoencoder that was distilled from it."
        )
    ratio = tiny.config.scaling_factor / vae.config.scaling_factor
    last = tiny.encoder.layers[-1]
    last.weight.mul_(ratio)
    if last.bias is not None:
        last.bias.mul_(ratio)
    tiny.register_to_config(scaling_factor=vae.config.scaling_factor)
    tiny.save_pretrained(to)
