"""From noise to a clip with any of diffusers' schedulers; knows no guidance and no cascade."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from videoldm_core.diffusion.schedule import NoiseSchedule


class Ddim(DDIMScheduler):
    """Deterministic DDIM (Song 2021, Eq. 12), whose every step ends where the next one begins.

    diffusers' own steps by a fixed number of levels; where the number of steps does not divide
    theirs, it falls short of the clean clip.
    """

    def step(self, prediction: Tensor, timestep: Tensor, clip: Tensor, **unused: Any) -> Any:  # type: ignore[override]
        """The clip at the next of `timesteps`; after the last of them, the clean one."""
        power = self.alphas_cumprod[timestep].item()
        alpha, sigma = power**0.5, (1 - power) ** 0.5
        if self.config["prediction_type"] == "epsilon":
            clean, noise = (clip - sigma * prediction) / alpha, prediction
        else:
            clean, noise = alpha * clip - sigma * prediction, alpha * prediction + sigma * clip
        later = self.timesteps[self.timesteps < timestep]
        power = (self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod).item()
        return DDIMSchedulerOutput(prev_sample=power**0.5 * clean + (1 - power) ** 0.5 * noise)


SamplerName = Literal["ddim", "ddpm", "dpm++", "euler", "unipc"]
SAMPLERS: dict[SamplerName, Any] = {
    "ddim": Ddim,  # the paper's, deterministic
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}
WITHOUT_GENERATOR = ("unipc",)  # its step knows no such argument

# Share of the levels at which sampling begins at the latest, as what is given is noise alone.
BEGINS_ABOVE = 0.94

# (noisy clip, timesteps (b)) -> prediction, both b t c h w
Predict = Callable[[Tensor, Tensor], Tensor]


def sample(
    predict: Predict,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    sampler: SamplerName,
    steps: int,
    generators: list[torch.Generator],
) -> Tensor:
    """Denoises `noise` b t c h w into a clean clip.

    Args:
        steps: 1 to the schedule's number of levels.
        predict: epsilon or v for a noisy clip, as the schedule's model predicts it; levels lie
            between whole ones where a sampler's do.
        generators: of the noise that stochastic samplers add, one per clip, so that no clip
            depends on its neighbours; DDIM adds none.
    """
    scheduler = levels_of(sampler, schedule, steps, noise.device)
    options = {} if sampler in WITHOUT_GENERATOR else {"generator": generators}
    clip = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(clip, timestep)
        level = timestep if timestep % 1 else timestep.long()
        prediction = predict(scaled, level.expand(len(noise)))
        clip = scheduler.step(prediction, timestep, clip, **options).prev_sample
    return clip


def levels_of(
    sampler: SamplerName, schedule: NoiseSchedule, steps: int, device: torch.device
) -> Any:
    """The scheduler with its levels set, in the first spacing that fits: the model's own may not.

    "leading" asks for levels 666, 333 and 0 in three steps, and for level 1000 of 1000 in a
    thousand; "trailing" rounds its way to a level below 0 in 61 steps and others.
    """
    for spacing in (schedule.config["timestep_spacing"], "trailing", "linspace"):
        scheduler = SAMPLERS[sampler].from_config(schedule.config, timestep_spacing=spacing)
        scheduler.set_timesteps(steps, device=device)
        if _fits(scheduler.timesteps, steps, schedule.timesteps):
            return scheduler
    raise AssertionError(f"one of the three spacings gives {steps} of {schedule.timesteps} levels")


def _fits(levels: Tensor, steps: int, count: int) -> bool:
    """Whether levels are as many as asked, fall within [0, count), and begin near the noisiest."""
    if len(levels) != steps or levels[-1] < 0 or levels[0] > count - 1:
        return False
    falls = bool((levels.diff() < 0).all())
    return falls and bool(levels[0] >= BEGINS_ABOVE * (count - 1))
