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
from torch import Tensor

from videoldm_core.diffusion import NoiseSchedule

SamplerName = Literal["ddim", "ddpm", "dpm++", "euler", "unipc"]
SAMPLERS: dict[SamplerName, Any] = {
    "ddim": DDIMScheduler,  # the paper's, deterministic
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}

MULTISTEP = ("dpm++", "unipc")

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
        predict: epsilon or v for a noisy clip, as the schedule's model predicts it.
        generators: of the noise that stochastic samplers add, one per clip, so that no clip
            depends on its neighbours; DDIM adds none.
    """
    scheduler = SAMPLERS[sampler].from_config(schedule.config, **_spacing(sampler, schedule))
    scheduler.set_timesteps(steps, device=noise.device)
    options = {} if sampler in MULTISTEP else {"generator": generators}
    clip = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(clip, timestep)
        level = torch.full((len(noise),), int(timestep), device=noise.device)
        clip = scheduler.step(predict(scaled, level), timestep, clip, **options).prev_sample
    return clip


def _spacing(sampler: SamplerName, schedule: NoiseSchedule) -> dict[str, str]:
    # With "leading" these two would start from level 750 of 1000 at 250 steps (950 at 50), though
    # what they are given is noise alone.
    leading = schedule.config["timestep_spacing"] == "leading"
    return {"timestep_spacing": "linspace"} if leading and sampler in MULTISTEP else {}
