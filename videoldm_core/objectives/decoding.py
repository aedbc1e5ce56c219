"""Fine-tuning the decoder on video, with a patch-wise temporal critic (§3.1.1)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from videoldm_core.data.loader import Batch
from videoldm_core.metrics.quality import flicker, psnr
from videoldm_core.models.discriminator import CriticConfig, PatchDiscriminator3D, hinge_loss
from videoldm_core.models.image import load_vae
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
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
    temporal_weight: float = 0.0  # of the squared error of the temporal gradient


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
    ) -> None:
        self.config = config
        self.vae = load_vae(parts["vae"])
        self.temporal = temporal_decoder_for(self.vae, seed=seed)
        self.vae.requires_grad_(False)
        decoder = VideoDecoder(self.vae, self.temporal)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = PatchDiscriminator3D(config.critic)
        self._decoded: Tensor | None = None
        self.critic = critic
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
            Player(
                name="critic",
                module=critic,
                trainable=trainable_parameters(critic, [critic]),
                loss=self.critic_loss,
                optimizer=optimizer,
                starts_at=config.critic_starts_at,
            ),
        ]

    def decoder_loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction, plus the critic's opinion once it has started.

        The losses are differentiated at the decoded frames first, and the decoder then by the sum
        of those
        gradients: DeepSpeed allows one backward pass through an engine's output, and the adaptive
        weight
        needs the two gradients apart.
        """
        video = batch.clip.to(device_of(net))
        decoded = net(self._encode(video)).float()
        frames = decoded.detach().requires_grad_()
        self._decoded = decoded.detach()
        loss = self._reconstruction(frames, video)
        (gradient,) = torch.autograd.grad(loss.sum(), frames)
        metrics = {"loss": loss.mean().item()}
        if turn.step >= self.config.critic_starts_at:
            opinion = -self.critic(frames).float().mean(dim=(1, 2, 3))
            (by_critic,) = torch.autograd.grad(opinion.sum(), frames)
            weight = self.config.critic_weight * adaptive_weight(gradient, by_critic)
            gradient = gradient + weight[:, None, None, None, None] * by_critic
            metrics["opinion"] = opinion.mean().item()
        return (decoded * gradient).sum() / len(video), metrics

    def critic_loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, float]]:
        """Hinge loss on the real clip and on what the decoder made of it in its own turn."""
        assert self._decoded is not None, "the decoder plays before its critic"
        video = batch.clip.to(device_of(net))
        real, fake = net(torch.cat([video, self._decoded])).float().chunk(2)
        loss = hinge_loss(real, fake)
        return loss, {"critic": loss.item()}

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
        """Absolute + squared error of the frames and of their change in time, per clip (b)."""
        error = decoded - video
        change = error.diff(dim=1)
        over = (1, 2, 3, 4)
        frames = error.abs().mean(over) + error.square().mean(over)
        return frames + self.config.temporal_weight * change.abs().mean(over)


def adaptive_weight(by_error: Tensor, by_critic: Tensor) -> Tensor:
    """How much the critic counts per clip: |grad of the error| / |grad of the opinion|, (b).

    Deviation: the gradients are taken at the decoded frames, per clip, not at the last layer's
    weights
    over the batch (Esser 2021, Eq. 7). The ratio says the same, needs no weight that ZeRO-3 has
    partitioned, and is the same however a batch is split over processes.

    Args:
        by_error, by_critic: gradients at the decoded frames, b t c h w.
    """
    ratio = by_error.flatten(1).norm(dim=1) / (by_critic.flatten(1).norm(dim=1) + 1e-4)
    return ratio.clamp(max=1e4)
