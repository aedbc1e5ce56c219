"""The denoising objective of Eq. 1-3 and 5, for images and videos, latents and pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import AnyGiven, KeyFrames, LowResolution, Nothing
from videoldm_core.diffusion.labels_boxes import Told
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import ConditionedUNet, condition_tokens_for
from videoldm_core.models.denoiser import (
    Denoiser,
    check_text,
    diffused_by,
    inherited_tokens,
    predict,
)
from videoldm_core.models.image import UNetConfig, load_unet
from videoldm_core.models.parts import Parts
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.records import Record, Share
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.task import device_of
from videoldm_core.training.train_module import Player, Turn, trainable_parameters


class ScheduleConfig(Record):
    """The noise schedule of a new image model; an existing one brings its own."""

    timesteps: int = Field(default=1000, ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    predicts: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False  # the last level is noise alone (Lin 2023)

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        if self.zero_terminal_snr and self.predicts == "epsilon":
            raise ValueError(
                "predicts epsilon with zero_terminal_snr: of noise alone epsilon says nothing of "
                "the clip; expected predicts v_prediction, or zero_terminal_snr false"
            )
        return self

    def build(self) -> NoiseSchedule:
        """The schedule as diffusers describes it."""
        return NoiseSchedule(
            {
                "num_train_timesteps": self.timesteps,
                "beta_schedule": self.beta_schedule,
                "beta_start": self.beta_start,
                "beta_end": self.beta_end,
                "prediction_type": self.predicts,
                "rescale_betas_zero_snr": self.zero_terminal_snr,
                "timestep_spacing": "trailing" if self.zero_terminal_snr else "leading",
                "steps_offset": 0,
                # The last step ends at the clean clip. Stable Diffusion's ends at level 0, whose
                # noise of 0.029 is invisible in latents, but 3.7 grey levels of grain in pixels.
                "set_alpha_to_one": True,
            }
        )


class Denoising(Record):
    """E || y - f(z_tau; c_S, c, tau) ||^2 over all frames (Eq. 1-3, 5)."""

    kind: Literal["denoising"] = "denoising"
    given: AnyGiven = Nothing()
    # How alpha is laid out in new temporal layers; None: no temporal layers, an image model.
    alpha: Literal["scalar", "per_frame"] | None = None
    context_reach: int = Field(default=0, ge=0)  # see TemporalConfig
    text_dropout: Share = 0.1  # share of clips that are given the empty text, for guidance
    # Share of clips of which a label is unknown: every label by a draw of its own, all boxes of a
    # clip by another, none of them bound to the text's. So any may be left out of a request; what
    # guidance starts from, where nothing is known, comes as often as the product of the shares.
    # The paper (§4.1) drops its labels at random and does not say how often.
    label_dropout: Share = 0.1
    # Tokens of labels and boxes that this stage adds; None: the inherited ones, if there are any.
    tokens: Vocabulary | None = None
    unet: UNetConfig | None = None  # a new image model; None: the inherited one
    schedule: ScheduleConfig | None = None  # with a new image model

    def temporal_config(self, *, frames: int, channels: int, strides: int) -> TemporalConfig | None:
        """What phi is made of for clips of `frames` frames of `channels` at `strides` strides."""
        if self.alpha is None:
            return None
        return TemporalConfig(
            frames_in_alpha=frames if self.alpha == "per_frame" else None,
            context_channels=self.given.context_channels(channels),
            context_reach=self.context_reach,
            labels=strides if strides > 1 else 0,
            told_context_noise=isinstance(self.given, KeyFrames)
            and self.given.max_noise_timestep > 0,
        )


def check_noise(given: AnyGiven, schedule: NoiseSchedule) -> None:
    """Refuses noise on what is given of levels that the schedule does not have.

    Raises:
        UserError: names both numbers.
    """
    if isinstance(given, KeyFrames):
        most = schedule.timesteps - 1  # it is drawn up to this level
    elif isinstance(given, LowResolution):
        most = schedule.timesteps  # below it
    else:
        return
    if given.max_noise_timestep > most:
        raise UserError(
            f"given.max_noise_timestep = {given.max_noise_timestep}, but the model's noise "
            f"schedule has {schedule.timesteps} levels; choose at most {most}."
        )


class DenoisingTask:
    """Trains a denoiser; see `Denoising`.

    Args:
        config: the objective of the stage.
        parts: inherited weights; `unet` and `scheduler` unless the config makes new ones.
        trains: parts whose weights move.
        frames, strides: of the stage's clips.
        crop: side of the square patches it is trained on, in pixels; None: whole frames (§3.4).
        null_text: embedding of the empty text, l d.
        in_bfloat16: a model with an autoencoder of its own encodes under autocast.
    """

    def __init__(  # noqa: PLR0913 - one call site, in stage order
        self,
        config: Denoising,
        *,
        parts: Parts,
        trains: tuple[str, ...],
        frames: int,
        strides: int,
        crop: int | None,
        null_text: Tensor,
        optimizer: OptimizerConfig,
        seed: int,
        checkpointing: bool = False,
        in_bfloat16: bool = False,
    ) -> None:
        self.config, self.trains, self.crop, self.null_text = config, trains, crop, null_text
        unet = config.unet.build(seed) if config.unet else load_unet(parts["unet"])
        check_text(unet, null_text)
        schedule = (
            config.schedule.build() if config.schedule else NoiseSchedule.load(parts["scheduler"])
        )
        check_noise(config.given, schedule)
        phi = config.temporal_config(
            frames=frames, channels=unet.config.out_channels, strides=strides
        )
        temporal = temporal_layers_for(unet, phi, seed=seed) if phi else None
        if temporal is not None and "temporal" in parts:
            temporal.load(parts["temporal"])
        tokens = inherited_tokens(parts, unet)
        if config.tokens is not None:
            tokens = condition_tokens_for(unet, config.tokens, seed=seed)
            if "tokens" in parts:
                tokens.load(parts["tokens"])
        video = VideoUNet(unet, temporal, checkpointing=checkpointing)
        self.model = Denoiser(
            video, schedule, *diffused_by(parts), tokens, encodes_in_bfloat16=in_bfloat16
        )
        self.frozen, self.remark = [self.model], ""
        modules = {"unet": unet, "tokens": tokens, "temporal": temporal}
        moving = [m for name in trains if (m := modules.get(name)) is not None]
        net = video if tokens is None else ConditionedUNet(video, tokens)
        self.players = [
            Player(
                name="denoiser",
                module=net,
                trainable=trainable_parameters(net, moving),
                loss=self.loss,
                optimizer=optimizer,
            )
        ]

    def loss(self, net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 1-3 and 5 on one batch."""
        loss = self._errors(net, batch, turn.rng).mean()
        return loss, {"loss": loss.detach()}

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """The same loss per held-out clip, (b)."""
        return {"loss": self._errors(net, batch, turn.rng)}

    def finish(self, batches: Iterator[Batch]) -> None:
        """Nothing follows from the trained weights."""

    def save(self, folder: Path) -> list[str]:
        """Writes the parts that moved; a new image model comes with its noise schedule."""
        net, written = self.model.net, []
        if "unet" in self.trains:
            net.unet.save_pretrained(folder / "unet")
            self.model.schedule.save(folder / "scheduler")
            written += ["unet", "scheduler"]
        if net.temporal is not None:
            net.temporal.save(folder / "temporal")
            written.append("temporal")
        if self.model.tokens is not None and "tokens" in self.trains:
            self.model.tokens.save(folder / "tokens")
            written.append("tokens")
        return written

    def _errors(self, net: Any, batch: Batch, rng: SampleRng) -> Tensor:
        device, schedule = device_of(net), self.model.schedule
        stored = batch.clip.to(device)
        if self.crop is not None:
            stored = random_patches(stored, self.crop, rng)
        clip = self.model.diffused_of(stored)
        timesteps = rng.integers(0, schedule.timesteps).to(device)
        noise = rng.normal(tuple(clip.shape[1:])).to(device)
        given = self.config.given(clip, rng, schedule, stored=stored)
        clean = given.to_diffused(clip)
        dropped = (rng.uniform() < self.config.text_dropout).to(device)
        text = torch.where(dropped[:, None, None], self.null_text.to(device), batch.text.to(device))
        prediction = predict(
            net,
            schedule.add_noise(clean, noise, timesteps),
            timesteps,
            text,
            given,
            batch.stride_index.to(device) if self.model.told_pass else None,
            told=self._told(batch, rng, device),
        )
        target = schedule.target(clean, noise, timesteps)
        return (prediction - target).square().mean(dim=(1, 2, 3, 4))

    def _told(self, batch: Batch, rng: SampleRng, device: torch.device) -> Told | None:
        """Labels and boxes after dropout; drawn last, so that the other draws are as without."""
        if self.model.tokens is None:
            return None
        assert batch.told is not None, "a model with tokens is told of every clip"
        told = batch.told.to(device)
        draws = [rng.uniform() for _ in range(told.labels.shape[1] + 1)]
        unknown = (torch.stack(draws, dim=1) < self.config.label_dropout).to(device)
        return told.without(unknown[:, :-1], unknown[:, -1])


def random_patches(clip: Tensor, side: int, rng: SampleRng) -> Tensor:
    """One side x side patch per clip b t c h w, the same for all its frames (§3.4)."""
    height, width = clip.shape[-2:]
    tops = rng.integers(0, height - side + 1)
    lefts = rng.integers(0, width - side + 1)
    return torch.stack(
        [
            video[..., top : top + side, left : left + side]
            for video, top, left in zip(clip, tops, lefts, strict=True)
        ]
    )
