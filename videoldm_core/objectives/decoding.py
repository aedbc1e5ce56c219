"""Fine-tuning the decoder on video, with a patch-wise temporal critic (§3.1.1)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.evaluation.quality import flicker, psnr
from videoldm_core.models.discriminator import CriticConfig, PatchDiscriminator3D
from videoldm_core.models.image import encoded_mean, load_vae
from videoldm_core.models.parts import Parts
from videoldm_core.models.perceptual import NO_BACKBONE, PerceptualConfig, load_perceptual
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.objectives.adversarial import Adversary, Made
from videoldm_core.records import Record, Weight
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.task import device_of
from videoldm_core.training.train_module import Player, Turn, trainable_parameters


class TemporalDecoding(Record):
    """Reconstruction of video from frozen latents + hinge loss of a 3D patch critic (§3.1.1)."""

    kind: Literal["temporal_decoding"] = "temporal_decoding"
    critic: CriticConfig = CriticConfig()
    critic_weight: Weight = 0.5
    # First step of the adversarial term; the decoder settles before.
    critic_starts_at: int = Field(default=0, ge=0)
    # Of the absolute error of the change in time. Deviation: where it is above 0; a decoder that is
    # briefly trained, before a critic is of use, learns steadiness from it.
    temporal_weight: Weight = 0.0
    perceptual: PerceptualConfig | None = None  # of every frame (method: LPIPS); None: pixels alone


class TrainedDecoder(VideoDecoder):
    """A video decoder whose forward pass also returns what its last layer was given."""

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Maps unscaled latents b t c h w to frames b t 3 H W and the layer's input b 3 t H W."""
        assert self.temporal is not None, "what trains has temporal layers"
        seen = self.before_time(latents)
        return self.temporal.last(seen).transpose(1, 2), seen


class DecodingTask:
    """Trains a video decoder and its critic in turn; the frozen encoder's latents are the input.

    Args:
        in_bfloat16: encode under autocast, as the stores of such a run are encoded.
    """

    def __init__(
        self,
        config: TemporalDecoding,
        *,
        parts: Parts,
        optimizer: OptimizerConfig,
        seed: int,
        checkpointing: bool = False,
        in_bfloat16: bool = False,
    ) -> None:
        self.config, self._in_bfloat16 = config, in_bfloat16
        self.vae = load_vae(parts["vae"])
        self.temporal = temporal_decoder_for(self.vae, seed=seed)
        self.vae.requires_grad_(False)
        self.perceptual = load_perceptual(config.perceptual, checkpointing=checkpointing)
        self.frozen: list[nn.Module] = [self.vae]
        if self.perceptual is not None:
            self.frozen.append(self.perceptual)
        self.remark = NO_BACKBONE if self.perceptual is None else ""
        decoder = TrainedDecoder(self.vae, self.temporal, checkpointing=checkpointing)
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

    def decoder_loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, plus the critic's opinion once it has started."""
        video = batch.clip.to(device_of(net))
        decoded, seen = net(self._encode(video))
        made = Made(samples=decoded.float(), layer=self.temporal.last, seen=seen)
        loss, error, numbers = self._against.loss(
            made, video, lambda frames: self._reconstruction(frames, video).mean(), batch, turn
        )
        return loss, {"loss": error, **numbers}

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """PSNR in dB and flicker per held-out clip, (b)."""
        video = batch.clip.to(device_of(net))
        decoded = net(self._encode(video))[0].float()
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
        return encoded_mean(self.vae, video, in_bfloat16=self._in_bfloat16)

    def _reconstruction(self, decoded: Tensor, video: Tensor) -> Tensor:
        """Error of the frames, and of their change in time, per clip (b).

        Deviation: the squared error beside the absolute one, for PSNR judges the stage too.
        """
        error = decoded - video
        change = error.diff(dim=1)
        over = (1, 2, 3, 4)
        frames = error.abs().mean(over) + error.square().mean(over)
        loss = frames + self.config.temporal_weight * change.abs().mean(over)
        if self.perceptual is None:
            return loss
        distance = self.perceptual(decoded.flatten(0, 1), video.flatten(0, 1))
        return loss + self.perceptual.weight * distance.view(len(video), -1).mean(1)
