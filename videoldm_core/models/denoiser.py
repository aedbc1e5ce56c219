"""What denoises: a network, its noise schedule, what it diffuses, and what it is told."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn

from videoldm_core.cascade.annotations import GivenBox, Vocabulary
from videoldm_core.diffusion.conditioning import Given
from videoldm_core.diffusion.labels_boxes import Told, told_of_request
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import ConditionTokens, load_tokens
from videoldm_core.models.image import (
    encoded_mean,
    latent_scale,
    load_unet,
    load_vae,
    shrinking,
)
from videoldm_core.models.parts import Parts
from videoldm_core.models.temporal_layers import load_temporal_config
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for


class Denoiser(nn.Module):
    """A video UNet with the noise schedule it was trained with, and what it diffuses.

    Args:
        scale: what stored latents are multiplied by; 1 for a model that diffuses pixels.
        own_vae: of a model that reads frames and diffuses their latents (the latent upscaler),
            frozen; None: it diffuses what the store holds.
        encodes_in_bfloat16: under autocast, as the stores of such a run are encoded.
        tokens: of what it is told beside the text; None: nothing.
    """

    def __init__(
        self,
        net: VideoUNet,
        schedule: NoiseSchedule,
        scale: float,
        own_vae: AutoencoderKL | None = None,
        tokens: ConditionTokens | None = None,
        *,
        encodes_in_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.schedule, self.scale, self.own_vae = net, schedule, scale, own_vae
        self.tokens, self.encodes_in_bfloat16 = tokens, encodes_in_bfloat16

    @property
    def told_pass(self) -> bool:
        """Whether the temporal layers are told which stride the frames are apart (§3.3)."""
        return self.net.temporal is not None and self.net.temporal.label is not None

    @property
    def channels(self) -> int:
        """Channels of what is denoised."""
        return self.net.unet.config.out_channels

    @property
    def shrinks(self) -> int:
        """How many times smaller than the clip, per side, what is diffused of it is."""
        return 1 if self.own_vae is None else shrinking(self.own_vae)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The labels and boxes it is told; None: neither."""
        return None if self.tokens is None else self.tokens.vocabulary

    def condition(self, text: Tensor, told: Told | None = None) -> Tensor:
        """What the cross-attentions read, b l' d: a text b l d and the tokens of what is told.

        Without `told` all is unknown: together with the empty text, what guidance starts from.
        """
        return text if self.tokens is None else self.tokens.condition(text, told)

    def asked_condition(
        self, text: Tensor, labels: Mapping[str, str], boxes: Sequence[GivenBox] | None = None
    ) -> Tensor:
        """The condition b l' d of a request: what this model is not told of it is ignored.

        Args:
            text: b l d.
            labels: name -> value; those not named are unknown.
            boxes: None: it is not said where things are; empty: there are none.

        Raises:
            UserError: a word is unknown, with the nearest known one, or there are too many boxes.
        """
        if self.tokens is None:
            return text
        return self.condition(text, told_of_request(self.tokens.vocabulary, labels, boxes))

    @torch.no_grad()
    def diffused_of(self, clip: Tensor) -> Tensor:
        """What is diffused of a clip b t c h w of the stage's store, of about deviation 1."""
        if self.own_vae is None:
            return clip * self.scale
        encoded = encoded_mean(self.own_vae, clip, in_bfloat16=self.encodes_in_bfloat16)
        return encoded * self.scale

    def noise_for(self, clip: Tensor, rng: SampleRng) -> Tensor:
        """Noise of the shape that is diffused of a clip b t c h w."""
        height, width = (side // self.shrinks for side in clip.shape[-2:])
        return rng.normal((clip.shape[1], self.channels, height, width)).to(clip)

    @torch.no_grad()
    def clip_of(self, diffused: Tensor) -> Tensor:
        """The clip b t c h w that `diffused_of` maps to `diffused`."""
        if self.own_vae is None:
            return diffused / self.scale
        latents = rearrange(diffused, "b t c h w -> (b t) c h w") / self.scale
        frames = torch.cat([self.own_vae.decode(z).sample for z in latents.split(1)])
        return rearrange(frames, "(b t) c h w -> b t c h w", t=diffused.shape[1])


def predict(  # noqa: PLR0913 - what a prediction depends on
    net: Any,
    noisy: Tensor,
    timesteps: Tensor,
    text: Tensor,
    given: Given,
    label: Tensor | None = None,
    *,
    temporal_text: Tensor | None = None,
    told: Told | None = None,
) -> Tensor:
    """The network's prediction for z_tau (b t c h w), in float32; training and sampling both call
    this.

    Args:
        text: b l d; all that `Denoiser.condition` gives, unless `told` is given too.
        temporal_text: what the temporal layers read, b l d; None: the same text (§4.3).
        told: for a network that makes the tokens itself, as it must where they are trained.
    """
    tokens = {} if told is None else {"labels": told.labels, "boxes": told.boxes}
    if given.low_resolution is not None:
        noisy = torch.cat([noisy, given.low_resolution], dim=2)
    return net(
        noisy,
        timesteps,
        text,
        context=given.context,
        context_noise=given.context_noise,
        label=label,
        noise_level=given.noise_level,
        temporal_text=temporal_text,
        **tokens,
    ).float()


def load_denoiser(parts: Parts, *, unet: UNet2DConditionModel | None = None) -> Denoiser:
    """The denoiser that published parts describe.

    Args:
        unet: the image model, where it is loaded already; None: the one among the parts.
    """
    unet = load_unet(parts["unet"]) if unet is None else unet
    temporal = None
    if "temporal" in parts:
        temporal = temporal_layers_for(unet, load_temporal_config(parts["temporal"]), seed=0)
        temporal.load(parts["temporal"])
    net = VideoUNet(unet, temporal).eval().requires_grad_(False)
    tokens = inherited_tokens(parts, unet)
    return Denoiser(net, NoiseSchedule.load(parts["scheduler"]), *diffused_by(parts), tokens)


def inherited_tokens(parts: Parts, unet: UNet2DConditionModel) -> ConditionTokens | None:
    """The tokens among the parts, frozen; None: there are none."""
    if "tokens" not in parts:
        return None
    return load_tokens(parts["tokens"], unet).eval().requires_grad_(False)


def diffused_by(parts: Parts) -> tuple[float, AutoencoderKL | None]:
    """Scale and own autoencoder of a model with these parts."""
    if "own_vae" in parts:
        return latent_scale(parts["own_vae"]), load_vae(parts["own_vae"]).requires_grad_(False)
    return (latent_scale(parts["vae"]) if "vae" in parts else 1.0), None


def check_text(unet: UNet2DConditionModel, null_text: Tensor) -> None:
    """Refuses a network that reads text of another size than the stores hold."""
    reads, given = unet.config.cross_attention_dim, null_text.shape[-1]
    if reads != given:
        raise UserError(
            f"The image model reads text embeddings of {reads} values, the text tower of this run "
            f"gives {given}; choose a text tower that the model was trained with (text.kind)."
        )
