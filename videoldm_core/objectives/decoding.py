"""Fine-tuning the decoder on video, with a patch-wise temporal critic (§3.1.1)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.metrics.quality import flicker, psnr
from videoldm_core.models.discriminator import CriticConfig, PatchDiscriminator3D
from videoldm_core.models.image import load_vae
from videoldm_core.models.perceptual import NO_BACKBONE, PerceptualConfig, load_perceptual
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.objectives.adversarial import Adversary
from videoldm_core.objectives.task import Parts, device_of
from videoldm_core.records import Record
from videoldm_core.training.engine import OptimizerConfig
from videoldm_core.training.players import Player, Turn, trainable_parameters


class TemporalDecoding(Record):
    """Reconstruction of video from frozen latents + hinge loss of a 3D patch critic (§3.1.1)."""

    kind: Literal["temporal_decoding"] = "temporal_decoding"
    critic: CriticConfig = CriticConfig()
    critic_weight: float = 0.5
    critic_starts_at: int = 0  # first step of the adversarial term; the decoder settles before
    temporal_weight: float = 0.0  # of the absolute error of the change in time
    perceptual: PerceptualConfig | None = None  # of every frame (method: LPIPS); None: pixels alone


class DecodingTask:
    """Trains a video decoder and its critic in turn; the encoder is frozen and its latents are the
    input.
    """

    def __init__(
        self,
        config: TemporalDecoding,
        *,
        parts: Parts,
        optimizer: OptimizerConfig,
        seed: int,
        checkpointing: bool = False,
    ) -> None:
        self.config = config
        self.vae = load_vae(parts["vae"])
        self.temporal = temporal_decoder_for(self.vae, seed=seed)
        self.vae.requires_grad_(False)
        self.perceptual = load_perceptual(config.perceptual, checkpointing=checkpointing)
        self.frozen: list[nn.Module] = [self.vae]
        if self.perceptual is not None:
            self.frozen.append(self.perceptual)
        self.remark = NO_BACKBONE if self.perceptual is None else ""
        decoder = VideoDecoder(self.vae, self.temporal, checkpointing=checkpointing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = PatchDiscriminator3D(config.critic)
        self._against = Adversary(
            self.critic,
            weight=config.critic_weight,
            starts_at=config.critic_starts_at,
            optimizer=optimizer,
        )
        self.players = [
            Player(
                name="decoder",
                module=decoder,
                # post_quant_conv belongs to the latents' side and stays as the image decoder has
                # it.
                trainable=trainable_parameters(decoder, [decoder.decoder, self.temporal]),
                loss=self.decoder_loss,
                optimizer=optimizer,
            ),
            *self._against.players,
        ]

    def decoder_loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction, plus the critic's opinion once it has started."""
        video = batch.clip.to(device_of(net))
        decoded = net(self._encode(video)).float()
        loss, error, numbers = self._against.loss(
            decoded, video, lambda made: self._reconstruction(made, video).mean(), batch, turn
        )
        return loss, {"loss": error, **numbers}

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """PSNR in dB and flicker per held-out clip, (b)."""
        video = batch.clip.to(device_of(net))
        decoded = net(self._encode(video)).float()
        return {"psnr": psnr(decoded, video), "flicker": flicker(decoded, video)}

    def finish(self, batches: Iterator[Batch]) -> None:
        """Nothing follows from the trained weights."""

    def save(self, folder: Path) -> list[str]:
        """Writes the autoencoder with the tuned decoder, and the temporal layers beside it."""
        self.vae.save_pretrained(folder / "vae")
        self.temporal.save(folder / "temporal_decoder")
        return ["vae", "temporal_decoder"]

    def _encode(self, video: Tensor) -> Tensor:
        """Frozen latents, unscaled, b t c h w."""
        with torch.no_grad():
            latents = self.vae.encode(rearrange(video, "b t c h w -> (b t) c h w")).latent_dist.mean
        return rearrange(latents, "(b t) c h w -> b t c h w", t=video.shape[1])

    def _reconstruction(self, decoded: Tensor, video: Tensor) -> Tensor:
        """Error of the frames, and of their change in time, per clip (b)."""
        error = decoded - video
        change = error.diff(dim=1)
        over = (1, 2, 3, 4)
        frames = error.abs().mean(over) + error.square().mean(over)
        loss = frames + self.config.temporal_weight * change.abs().mean(over)
        if self.perceptual is None:
            return loss
        distance = self.perceptual(decoded.flatten(0, 1), video.flatten(0, 1))
        return loss + self.perceptual.weight * distance.view(len(video), -1).mean(1)
