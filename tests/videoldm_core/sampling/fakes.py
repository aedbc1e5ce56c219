"""A cascade whose models make known guesses, and remember what they were given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    FirstFrames,
    KeyFrames,
    LowResolution,
    Nothing,
    enlarge,
)
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling.clip_sampler import Drawing, Prompt, RoleModel, Texts
from videoldm_core.sampling.decoding import Frames
from videoldm_core.sampling.guidance import Guidance
from videoldm_core.sampling.pipeline import Cascade, frames_of

SIZE = (4, 2, 3)  # c h w of a latent
SCALE = 0.5
# DDIM's last step is then the model's clean guess itself.
SCHEDULE = NoiseSchedule(
    {
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }
)

# As presets have them.
SCHEDULES = {
    "epsilon": ScheduleConfig(predicts="epsilon"),
    "v": ScheduleConfig(predicts="v_prediction"),
    "v, zero terminal SNR": ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True),
}

Guess = Callable[[Tensor, dict[str, Any]], Tensor]


class Known(nn.Module):
    """Predicts v for a clean guess made from what it is given; remembers what that was."""

    def __init__(
        self,
        guess: Guess,
        *,
        channels: int = 4,
        told_pass: bool = False,
        alphas: int | None = None,
        remembers: bool = True,
    ) -> None:
        super().__init__()
        self.guess, self.remembers = guess, remembers
        self.calls: list[dict[str, Any]] = []
        config = SimpleNamespace(frames_in_alpha=alphas)
        self.temporal = SimpleNamespace(label=object() if told_pass else None, config=config)
        self.unet = SimpleNamespace(
            config=SimpleNamespace(out_channels=channels, block_out_channels=(8, 8))
        )
        self.reach: int | None = None

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, **given: Any) -> Tensor:
        if self.remembers:
            self.calls.append(given | {"noisy": noisy, "text": text, "reach": self.reach})
        clean = self.guess(noisy, given)
        noisy = noisy[:, :, : clean.shape[2]]
        alpha, sigma = SCHEDULE.alpha(timesteps), SCHEDULE.sigma(timesteps)
        return SCHEDULE.target(clean, (noisy - alpha * clean) / sigma, timesteps)


def starting(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    return torch.zeros_like(noisy)


def noise_dependent(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    return noisy


def counting_on(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    """Every frame is one more than the one before; the first is the given one."""
    first = given["context"][:, :1, :4]
    return first + torch.arange(noisy.shape[1]).view(1, -1, 1, 1, 1)


def on_the_line(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    """The line between the given frames, in quarters; far off at the given frames themselves."""
    first, last = given["context"][:, :1, :4], given["context"][:, -1:, :4]
    share = torch.arange(5).view(1, 5, 1, 1, 1) / 4
    line = (1 - share) * first + share * last
    line[:, [0, 4]] += 100
    return line


def enlarged(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    return noisy[:, :, 3:]


class FrameDecoder(nn.Module):
    """Twice the size, the first three channels / 64; notes the frames it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[float]] = []

    def forward(self, latents: Tensor) -> Tensor:
        self.calls.append(latents[0, :, 0, 0, 0].tolist())
        height, width = latents.shape[-2:]
        return enlarge(latents[:, :, :3], (2 * height, 2 * width)) / 64


def role(net: Known, given: AnyGiven, *, frames: int = 5, scale: float = SCALE) -> RoleModel:
    denoiser = Denoiser(net, SCHEDULE, scale)  # type: ignore[arg-type]
    return RoleModel(denoiser=denoiser, frames=frames, given=given)


def fake_cascade(*, remembers: bool = True) -> Cascade:
    """Key frames 0, 1, 2, ..., lines between them, frames of value / 32."""

    def known(guess: Guess, **options: Any) -> Known:
        return Known(guess, remembers=remembers, **options)

    low = LowResolution(factor=4)
    return Cascade(
        first_frame=role(known(starting), Nothing(), frames=1),
        key_frames=role(known(counting_on), FirstFrames()),
        interpolator=role(known(on_the_line, told_pass=True), KeyFrames()),
        decoder=FrameDecoder(),  # type: ignore[arg-type]
        shrinks=2,
        upscaler=role(known(enlarged, channels=3), low, scale=1.0),
    )


def net_of(one: RoleModel | None) -> Any:
    assert one is not None
    return one.denoiser.net


def guessing(one: RoleModel | None, guess: Guess) -> None:
    net_of(one).guess = guess


def drawing(*, seed: int = 0, future: int = 1, precision: Any = "fp32", **config: Any) -> Drawing:
    prompt = Prompt(
        texts=Texts(prompt=torch.ones(1, 2, 8), empty=torch.zeros(1, 2, 8)),
        latent_size=SIZE,
        seed=seed,
        future=future,
    )
    few = {"steps": 2, "interpolation_steps": 2, "upscale_steps": 2, "guidance": Guidance()}
    settings = SamplingConfig(**{**few, "upscale_noise_timestep": 0, **config})
    return Drawing(prompt, settings, precision=precision)


def unheard(what: str, done: int, total: int) -> None:
    """Progress that nobody follows."""


def video(
    cascade: Cascade,
    folder: Path,
    *,
    key_frames: int = 3,
    passes: int = 1,
    first: Tensor | None = None,
    progress=unheard,
    seed: int = 0,
    future: int = 1,
    **config: Any,
) -> Frames:
    """The frames of a video; `first` is 0 where the cascade makes a first frame."""
    return frames_of(
        cascade,
        drawing(seed=seed, future=future, **config),
        key_frames=key_frames,
        passes=passes,
        folder=folder,
        first=lambda: latents(0.0) if first is None else first,
        progress=progress,
    )


def all_of(frames: Frames) -> Tensor:
    return torch.cat([frames.portion(number) for number in range(frames.portions)])


class Fixed:
    """Latents that are there already; notes what is read."""

    def __init__(self, frames: Tensor) -> None:
        self.frames, self.count = frames, len(frames)
        self.reads: list[tuple[int, int]] = []

    def read(self, low: int, high: int) -> Tensor:
        self.reads.append((low, high))
        return self.frames[low:high]


def frames_from(cascade: Cascade, given: Tensor, **config: Any) -> Frames:
    """Frames of given latents."""
    return Frames(
        drawing(**config),
        Fixed(given),
        decoder=cascade.decoder,
        shrinks=cascade.shrinks,
        scale=SCALE,
        upscaler=cascade.upscaler,
    )


def with_low_resolution(cascade: Cascade, given: LowResolution) -> Cascade:
    assert cascade.upscaler is not None
    return replace(cascade, upscaler=replace(cascade.upscaler, given=given))


def latents(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SIZE).clone()


def random_latents(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def levels(frames: Tensor) -> list[float]:
    return frames.flatten(1).mean(dim=1).tolist()
