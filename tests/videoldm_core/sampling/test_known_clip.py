"""Samplers with a denoiser that knows the clip: what is left of noise, offset or clipping shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from tests.videoldm_core.sampling.fakes import SCHEDULES
from videoldm_core.cascade.stage import preset
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.sampling.samplers import SAMPLERS, sample

CLIP = 3 * torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def knowing(schedule: NoiseSchedule):
    """The prediction of a denoiser that knows the clip, at levels between whole ones too."""
    every = torch.arange(schedule.timesteps)
    ratios = (schedule.sigma(every).double() / schedule.alpha(every).double()).flatten().numpy()

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        if not timesteps.is_floating_point():
            alpha, sigma = schedule.alpha(timesteps), schedule.sigma(timesteps)
        else:
            ratio = np.interp(timesteps.item(), np.arange(len(ratios)), ratios)
            alpha = torch.tensor(1 / (1 + ratio**2) ** 0.5)
            sigma = ratio * alpha
        noise = (noisy - alpha * CLIP) / sigma
        return noise if schedule.predicts == "epsilon" else alpha * noise - sigma * CLIP

    return predict


def drawn_knowing(schedule: NoiseSchedule, sampler, steps: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(CLIP.shape, generator=generator)
    return sample(
        knowing(schedule), noise, schedule, sampler=sampler, steps=steps, generators=[generator]
    )


@pytest.mark.parametrize("steps", [1, 2, 6, 7, 20, 30, 50])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_denoiser_that_knows_the_clip_gives_it_back(sampler, name, steps):
    """No noise is left and nothing is clipped, also where steps do not divide the levels."""
    found = drawn_knowing(SCHEDULES[name].build(), sampler, steps)
    # From noise alone, which solvers take for 4096 times the clip, one step rounds away more.
    is_far = "zero" in name and steps == 1
    torch.testing.assert_close(found, CLIP, atol=2e-3 if is_far else 1e-5, rtol=0)


def own_schedules() -> dict[str, NoiseSchedule]:
    """Of every stage of a preset that brings one."""
    found = {}
    for name in ("tiny", "driving"):
        for stage in preset(name).stages:
            config = getattr(stage.objective, "schedule", None)
            if config is not None:
                found[f"{name}, {stage.name}"] = config.build()
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_presets_own_schedules_end_without_noise(sampler):
    assert len(own_schedules()) == 4
    for schedule in own_schedules().values():
        found = drawn_knowing(schedule, sampler)
        torch.testing.assert_close(found, CLIP, atol=1e-3, rtol=0)


STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAVED = {
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "stochastic dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "karras dpm++": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "karras euler": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "clipping ddim": (DDIMScheduler, {"thresholding": True, "set_alpha_to_one": False}),
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_saved_with_another_scheduler_is_sampled_like_any(sampler, saved, tmp_path: Path):
    """What folders say of their own sampler neither clips latents nor makes ours stochastic."""
    kind, settings = SAVED[saved]
    kind(**STABLE_DIFFUSION, **settings).save_pretrained(tmp_path)
    schedule = NoiseSchedule.load(tmp_path)
    first, again = (drawn_knowing(schedule, sampler) for _ in range(2))
    # Stable Diffusion's DDIM ends at level 0, with a little noise.
    torch.testing.assert_close(first, CLIP, atol=0.15 if sampler == "ddim" else 1e-4, rtol=0)
    assert torch.equal(first, again)
    spacing = {"timestep_spacing": schedule.config["timestep_spacing"]}
    plain = {"steps_offset": schedule.config["steps_offset"], **STABLE_DIFFUSION, **spacing}
    assert torch.equal(first, drawn_knowing(NoiseSchedule(plain), sampler))


def test_levels_between_whole_ones_reach_the_model_as_they_are():
    config = {**STABLE_DIFFUSION, "timestep_spacing": "linspace"}
    asked = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(timesteps)
        return torch.zeros_like(noisy)

    generators = [torch.Generator()]
    sample(predict, CLIP, NoiseSchedule(config), sampler="euler", steps=5, generators=generators)
    assert [level.item() for level in asked] == [999, 749.25, 499.5, 249.75, 0]
    assert [level.is_floating_point() for level in asked] == [False, True, True, True, False]


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++", "euler", "ddim"])
def test_noise_that_a_sampler_adds_is_drawn_from_the_given_generators(sampler, monkeypatch):
    kind, given = SAMPLERS[sampler], []
    step = kind.step

    def watched(self, *arguments, **options):
        given.append(options["generator"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(kind, "step", watched)
    schedule = SCHEDULES["v"].build()
    generators = [torch.Generator()]
    sample(knowing(schedule), CLIP, schedule, sampler=sampler, steps=3, generators=generators)
    assert given == [generators] * 3
