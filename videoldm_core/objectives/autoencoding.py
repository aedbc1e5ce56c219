"""The image autoencoder, for those who bring none (stage 0; Rombach 2022)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation.quality import psnr
from videoldm_core.models.discriminator import CriticConfig, PatchDiscriminator2D
from videoldm_core.models.image import AutoencoderConfig
from videoldm_core.models.perceptual import NO_BACKBONE, PerceptualConfig, load_perceptual
from videoldm_core.objectives.adversarial import Adversary, Alone, Made
from videoldm_core.records import Record, Weight
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.task import device_of
from videoldm_core.training.train_module import Player, Turn, trainable_parameters


class Autoencoding(Record):
    """|x - D(E(x))| + squared error + LPIPS + KL(E(x) || N(0, 1)) + hinge loss of a patch critic.

    On single frames. Deviation: the squared error is not Rombach's; PSNR judges the stage too.
    """

    kind: Literal["autoencoding"] = "autoencoding"
    network: AutoencoderConfig = AutoencoderConfig()
    # Of the KL summed over a frame's latents, beside errors averaged over its values. Rombach 2022
    # sums those too: its 1e-6 at 256 x 256 px is 1e-6 / (3 * 256 * 256) = 5e-12 here.
    kl_weight: Weight = 1e-6
    perceptual: PerceptualConfig | None = None  # None: pixels alone
    critic: CriticConfig | None = None  # None: no adversarial term
    critic_weight: Weight = 0.5  # beside the adaptive weight
    critic_starts_at: int = Field(default=0, ge=0)  # first step of the adversarial term


class ReconstructingAutoencoder(nn.Module):
    """An autoencoder whose forward pass reconstructs, so that an engine can wrap it.

    Args:
        checkpointing: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(self, vae: AutoencoderKL, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.vae, self.checkpointing = vae, checkpointing
        if checkpointing:
            vae.enable_gradient_checkpointing()  # the encoder's; diffusers' own is not reentrant

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps frames n 3 H W in [-1, 1] and noise n c h w to a reconstruction.

        Returns the reconstruction, the KL (n), and what the last layer was given, n c H W.
        """
        posterior = self.vae.encode(frames).latent_dist
        latents = posterior.mean + posterior.std * noise
        seen = self._before_last(latents)
        return self.vae.decoder.conv_out(seen), posterior.kl(), seen

    def _before_last(self, latents: Tensor) -> Tensor:
        """The walk of diffusers' decoder up to its last layer."""
        decoder = self.vae.decoder
        h = decoder.conv_in(self.vae.post_quant_conv(latents))
        for block in (decoder.mid_block, *decoder.up_blocks):
            h = self._run(block, h)
        return self._run(lambda h: decoder.conv_act(decoder.conv_norm_out(h)), h)

    def _run(self, block: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, use_reentrant=False)
        return block(h)


class AutoencodingTask:
    """Trains an autoencoder on independent frames; see `Autoencoding`.

    Args:
        checkpointing: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        config: Autoencoding,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        checkpointing: bool = False,
    ) -> None:
        self.config = config
        self.vae = config.network.build(seed)
        self.perceptual = load_perceptual(config.perceptual, checkpointing=checkpointing)
        self.frozen: list[nn.Module] = [] if self.perceptual is None else [self.perceptual]
        self.remark = NO_BACKBONE if self.perceptual is None else ""
        self._against = _against(config, optimizer, seed)
        net = ReconstructingAutoencoder(self.vae, checkpointing=checkpointing)
        self._last = self.vae.decoder.conv_out
        self.players = [
            Player(
                name="autoencoder",
                module=net,
                trainable=trainable_parameters(net, [self.vae]),
                loss=self.loss,
                optimizer=optimizer,
            ),
            *self._against.players,
        ]

    def loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction error, weighted KL and the critic's opinion on one batch."""
        frames, decoded, kl, seen = self._reconstruct(net, batch, turn.rng)
        made = Made(samples=decoded.float(), layer=self._last, seen=seen)
        loss, reconstruction, numbers = self._against.loss(
            made, frames, lambda samples: self._error(samples, frames), batch, turn
        )
        divergence = self.config.kl_weight * kl.float().mean()
        numbers |= {"loss": reconstruction + divergence.detach(), "reconstruction": reconstruction}
        return loss + divergence, numbers

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """PSNR of each held-out clip in dB, (b)."""
        frames, decoded, *_ = self._reconstruct(net, batch, turn.rng)
        clips = batch.clip.shape[0]
        return {"psnr": psnr(decoded.float(), frames).view(clips, -1).mean(dim=1)}

    def finish(self, batches: Iterator[Batch]) -> None:
        """Sets the factor that brings latents of training frames to deviation 1 (Rombach 2022)."""
        device = device_of(self.vae)
        with torch.no_grad():
            latents = [
                self.vae.encode(b.clip.to(device).flatten(0, 1)).latent_dist.mean for b in batches
            ]
        self.vae.register_to_config(scaling_factor=1 / torch.cat(latents).std().item())

    def save(self, folder: Path) -> list[str]:
        """Writes vae/ as diffusers does."""
        self.vae.save_pretrained(folder / "vae")
        return ["vae"]

    def _error(self, made: Tensor, frames: Tensor) -> Tensor:
        """Mean error of reconstructed frames n 3 H W, a scalar."""
        error = made - frames
        pixels = error.abs().mean() + error.square().mean()
        if self.perceptual is None:
            return pixels
        return pixels + self.perceptual.weight * self.perceptual(made, frames).mean()

    def _reconstruct(self, net: Any, batch: Batch, rng: SampleRng) -> tuple[Tensor, ...]:
        """Frames n 3 H W, then what `ReconstructingAutoencoder` makes of them."""
        frames = rearrange(batch.clip, "b t c h w -> (b t) c h w").to(device_of(net))
        factor = 2 ** (len(self.config.network.widths) - 1)
        height, width = frames.shape[-2] // factor, frames.shape[-1] // factor
        shape = (batch.clip.shape[1], self.config.network.latent_channels, height, width)
        return frames, *net(frames, rng.normal(shape).flatten(0, 1).to(frames))


def _against(config: Autoencoding, optimizer: OptimizerConfig, seed: int) -> Alone | Adversary:
    if config.critic is None:
        return Alone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = PatchDiscriminator2D(config.critic)
    return Adversary(
        critic,
        weight=config.critic_weight,
        starts_at=config.critic_starts_at,
        optimizer=optimizer,
    )
