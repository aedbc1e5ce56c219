"""The video UNet: a walk over an untouched diffusers UNet, temporal layers in between (§3.1).

With no temporal layers, or with alpha = 1, the walk is the image model frame by frame, to the bit.
"""

from dataclasses import dataclass

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoldm_core.models.sites import attentions_of, resnet_name, transformer_name, unet_places
from videoldm_core.models.temporal_blocks import band
from videoldm_core.models.temporal_layers import TemporalConfig, TemporalLayers, initialised


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """What every layer of one forward pass may look at."""

    frames: int
    embedding: Tensor  # (b t) e: diffusion time and noise level, for the spatial layers
    temporal_embedding: Tensor  # (b t) e: the same plus the label, for the temporal layers
    text: Tensor  # (b t) l d for the spatial layers
    temporal_text: Tensor  # b l d for the temporal layers
    maps: list[Tensor] | None  # c_S per level, finest first
    mask: Tensor | None  # t t: which frames see which


class VideoUNet(nn.Module):
    """An image UNet (theta) and the temporal layers (phi) between its own.

    Args:
        unet: a diffusers UNet; never modified.
        temporal: phi; None: the image model applied to each frame.
        reach: largest frame distance of temporal attention; None: all frames (§4.2).
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        temporal: TemporalLayers | None = None,
        *,
        reach: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        unet_places(unet)  # refuses a UNet that the walk does not know
        self.unet, self.temporal = unet, temporal
        self.reach, self.checkpointing = reach, checkpointing

    def forward(  # noqa: PLR0913 - what a prediction depends on
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        *,
        temporal_text: Tensor | None = None,
        context: Tensor | None = None,
        context_noise: Tensor | None = None,
        label: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """Predicts epsilon or v, as the image model was trained to.

        Args:
            noisy: z_tau, b t c h w; channels that the image model itself takes beside its latents
                (a low-resolution video) are already concatenated.
            timesteps: one tau per video, (b).
            text: for the spatial layers, b l d.
            temporal_text: for the temporal layers; None: the same (§4.3: DreamBooth differs).
            context: c_S = (m * z, m), b t c+1 h w (§3.2).
            context_noise: timestep of the noise on the frames of c_S, (b) (§3.3).
            label: what the temporal layers are told beside time, (b) (interpolator: which pass).
            noise_level: class label of the image model, (b) (upscaler: noise of low resolution).

        Returns:
            b t c h w.
        """
        frames = noisy.shape[1]
        x = rearrange(noisy, "b t c h w -> (b t) c h w")
        given = self._conditions(
            x, frames, timesteps, text, temporal_text, context, context_noise, label, noise_level
        )
        h = self.unet.conv_in(x)
        h, skips = self._down(h, given)
        if self.unet.mid_block is not None:
            h = self._mid(h, given)
        h = self._up(h, skips, given)
        if self.unet.conv_norm_out:
            h = self.unet.conv_act(self.unet.conv_norm_out(h))
        out = rearrange(self.unet.conv_out(h), "(b t) c h w -> b t c h w", t=frames)
        phi = self.temporal
        if phi is not None and phi.shortcut is not None and context is not None:
            out = phi.shortcut(out, context, given.temporal_embedding)
        return out

    def _conditions(  # noqa: PLR0913 - the arguments of forward, in its order
        self,
        x: Tensor,
        frames: int,
        timesteps: Tensor,
        text: Tensor,
        temporal_text: Tensor | None,
        context: Tensor | None,
        context_noise: Tensor | None,
        label: Tensor | None,
        noise_level: Tensor | None,
    ) -> _Conditions:
        unet, phi = self.unet, self.temporal
        # One value per video, t fastest in the batch: repeat_interleave, never repeat.
        embedding = unet.time_embedding(
            unet.get_time_embed(sample=x, timestep=timesteps.repeat_interleave(frames))
        )
        levels = None if noise_level is None else noise_level.repeat_interleave(frames)
        class_embedding = unet.get_class_embed(sample=x, class_labels=levels)
        if class_embedding is not None:
            embedding = embedding + class_embedding
        temporal_embedding = embedding
        if phi is not None and phi.label is not None and label is not None:
            temporal_embedding = embedding + phi.label(label).repeat_interleave(frames, dim=0)
        if phi is not None and phi.context_noise is not None and context_noise is not None:
            told = phi.context_noise(context_noise).repeat_interleave(frames, dim=0)
            temporal_embedding = temporal_embedding + told
        maps = None
        if phi is not None and phi.pyramid is not None and context is not None:
            maps = phi.pyramid(rearrange(context, "b t c h w -> (b t) c h w"))
        return _Conditions(
            frames=frames,
            embedding=embedding,
            temporal_embedding=temporal_embedding,
            text=text.repeat_interleave(frames, dim=0),
            temporal_text=text if temporal_text is None else temporal_text,
            maps=maps,
            mask=band(frames, self.reach, x.device),
        )

    def _down(self, h: Tensor, given: _Conditions) -> tuple[Tensor, list[Tensor]]:
        skips = [h]
        for i, block in enumerate(self.unet.down_blocks):
            for j, resnet in enumerate(block.resnets):
                h = self._resnet(resnet, resnet_name(f"down_{i}", j), h, given)
                for attention in attentions_of(block)[j : j + 1]:
                    h = self._transformer(attention, f"down_{i}", j, h, given)
                skips.append(h)
            for downsampler in block.downsamplers or ():
                h = downsampler(h)
                skips.append(h)
        return h, skips

    def _mid(self, h: Tensor, given: _Conditions) -> Tensor:
        block = self.unet.mid_block
        h = self._resnet(block.resnets[0], resnet_name("mid", 0), h, given)
        attentions = attentions_of(block)
        for j, resnet in enumerate(block.resnets[1:]):
            for attention in attentions[j : j + 1]:
                h = self._transformer(attention, "mid", j, h, given)
            h = self._resnet(resnet, resnet_name("mid", j + 1), h, given)
        return h

    def _up(self, h: Tensor, skips: list[Tensor], given: _Conditions) -> Tensor:
        for i, block in enumerate(self.unet.up_blocks):
            for j, resnet in enumerate(block.resnets):
                h = torch.cat([h, skips.pop()], dim=1)
                h = self._resnet(resnet, resnet_name(f"up_{i}", j), h, given)
                for attention in attentions_of(block)[j : j + 1]:
                    h = self._transformer(attention, f"up_{i}", j, h, given)
            for upsampler in block.upsamplers or ():
                # Odd sizes: doubling would miss the size of the skip that follows.
                h = upsampler(h, skips[-1].shape[-2:])
        return h

    def _resnet(self, resnet: nn.Module, name: str, h: Tensor, given: _Conditions) -> Tensor:
        def block(h: Tensor) -> Tensor:
            h = resnet(h, given.embedding)
            if self.temporal is None:
                return h
            maps, level = given.maps, self.temporal.levels[name]
            return self.temporal.layers[name](
                h,
                given.frames,
                given.temporal_embedding,
                None if maps is None else maps[level],
            )

        return self._run(block, h)

    def _transformer(
        self, attention: Transformer2DModel, block: str, j: int, h: Tensor, given: _Conditions
    ) -> Tensor:
        """A Transformer2DModel opened at its blocks: the temporal one comes before proj_out."""
        residual = h
        height, width = h.shape[-2:]
        h = attention.norm(h)
        if attention.use_linear_projection:
            h = attention.proj_in(rearrange(h, "n c h w -> n (h w) c"))
        else:
            h = rearrange(attention.proj_in(h), "n c h w -> n (h w) c")
        for k, inner in enumerate(attention.transformer_blocks):
            h = self._tokens(inner, transformer_name(block, j, k), h, given)
        # Contiguous, as diffusers has it: another memory layout takes other kernels, with other
        # rounding.
        if attention.use_linear_projection:
            h = _as_image(attention.proj_out(h), height, width).contiguous()
        else:
            h = attention.proj_out(_as_image(h, height, width).contiguous())
        return h + residual

    def _tokens(self, inner: nn.Module, name: str, h: Tensor, given: _Conditions) -> Tensor:
        def block(h: Tensor) -> Tensor:
            h = inner(h, encoder_hidden_states=given.text)
            if self.temporal is None:
                return h
            return self.temporal.layers[name](h, given.frames, given.temporal_text, given.mask)

        return self._run(block, h)

    def _run(self, block, h: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            # Reentrant checkpointing silently drops the gradients of a mostly frozen model.
            return checkpoint(block, h, use_reentrant=False)
        return block(h)


def _as_image(tokens: Tensor, height: int, width: int) -> Tensor:
    return rearrange(tokens, "n (h w) c -> n c h w", h=height, w=width)


def temporal_layers_for(
    unet: UNet2DConditionModel, config: TemporalConfig, *, seed: int
) -> TemporalLayers:
    """New temporal layers for every place in `unet`; at first they change nothing."""
    return initialised(temporal_layers_of_shape(unet, config), seed)


def temporal_layers_of_shape(unet: UNet2DConditionModel, config: TemporalConfig) -> TemporalLayers:
    """Layers for every place in `unet` whose start values are PyTorch's own; also on meta."""
    return TemporalLayers(
        unet_places(unet),
        config,
        embedding=unet.time_embedding.linear_2.out_features,
        text=unet.config.cross_attention_dim,
        groups=unet.config.norm_num_groups,
        eps=unet.config.norm_eps,
    )
