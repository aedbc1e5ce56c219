"""The video decoder: an untouched image decoder walked with temporal ResBlocks in between (§3.1.1).

Before training it decodes each frame as the image decoder does. The encoder is not part of it: it
stays frozen so that the latents of every other stage keep their meaning.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoldm_core.models.sites import Place, decoder_places, resnet_name
from videoldm_core.models.temporal_blocks import TemporalResBlock, zeroed
from videoldm_core.models.weights import check_keys, read_tensors


class TemporalDecoderLayers(nn.Module):
    """The temporal layers of a decoder: a ResBlock per place, a convolution at the end."""

    def __init__(self, places: list[Place], *, groups: int, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                place.name: TemporalResBlock(
                    place.channels, embedding=None, groups=groups, eps=1e-6, logit=0.0
                )
                for place in places
            }
        )
        last = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.last = zeroed(last)
        nn.init.dirac_(last.weight)  # passes its input on unchanged before training

    def save(self, folder: Path) -> None:
        """Writes temporal_decoder.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, folder / "temporal_decoder.safetensors")

    def load(self, folder: Path) -> None:
        """Takes the weights of a saved decoder.

        Raises:
            UserError: names the first key that does not fit.
        """
        path = folder / "temporal_decoder.safetensors"
        tensors = read_tensors(path)
        check_keys(self.state_dict(), tensors, where=repr(str(path)))
        self.load_state_dict(tensors)


class VideoDecoder(nn.Module):
    """Latents to frames, with temporal layers between the image decoder's own.

    Args:
        vae: an image autoencoder; only its decoder (and post_quant_conv) is used.
        temporal: the temporal layers; None: the image decoder applied to each frame.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        temporal: TemporalDecoderLayers | None = None,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.temporal, self.checkpointing = temporal, checkpointing

    def forward(self, latents: Tensor) -> Tensor:
        """Maps unscaled latents b t c h w to frames b t 3 H W, about [-1, 1]."""
        h = self.before_time(latents)
        if self.temporal is not None:
            h = self.temporal.last(h)
        return rearrange(h, "b c t h w -> b t c h w")

    def before_time(self, latents: Tensor) -> Tensor:
        """What the last convolution over time is given: b 3 t H W."""
        frames = latents.shape[1]
        h = rearrange(latents, "b t c h w -> (b t) c h w")
        if self.post_quant_conv is not None:
            h = self.post_quant_conv(h)
        h = self.decoder.conv_in(h)
        h = self._mid(h, frames)
        for i, block in enumerate(self.decoder.up_blocks):
            for j, resnet in enumerate(block.resnets):
                h = self._resnet(resnet, resnet_name(f"up_{i}", j), h, frames)
            for upsampler in block.upsamplers or ():
                h = self._run(upsampler, h)
        return rearrange(self._run(self._to_frames, h), "(b t) c h w -> b c t h w", t=frames)

    def _mid(self, h: Tensor, frames: int) -> Tensor:
        block = self.decoder.mid_block
        h = self._resnet(block.resnets[0], resnet_name("mid", 0), h, frames)
        for j, (attention, resnet) in enumerate(
            zip(block.attentions, block.resnets[1:], strict=True)
        ):
            if attention is not None:
                h = self._run(attention, h)
            h = self._resnet(resnet, resnet_name("mid", j + 1), h, frames)
        return h

    def _resnet(self, resnet: nn.Module, name: str, h: Tensor, frames: int) -> Tensor:
        def block(h: Tensor) -> Tensor:
            h = resnet(h, None)
            return h if self.temporal is None else self.temporal.layers[name](h, frames)

        return self._run(block, h)

    def _to_frames(self, h: Tensor) -> Tensor:
        decoder = self.decoder
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))

    def _run(self, block: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            # Not reentrant: that drops gradients when a block's input needs none.
            return checkpoint(block, h, use_reentrant=False)
        return block(h)


def temporal_decoder_for(vae: AutoencoderKL, *, seed: int) -> TemporalDecoderLayers:
    """New temporal layers for every place in the decoder; they change nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TemporalDecoderLayers(
            decoder_places(vae),
            groups=vae.config.norm_num_groups,
            channels=vae.config.out_channels,
        )
