"""Samplers on normal data: its best denoiser is a formula, mean and variance are known."""

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
from torch import Tensor, nn

from videoldm_core.cascade import preset
from videoldm_core.conditioning import Given, mark_known
from videoldm_core.diffusion import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.objectives.denoiser import Denoiser
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.records import parse_record
from videoldm_core.sampling.config import SamplingConfig
from videoldm_core.sampling.guidance import Guidance, guided_prediction
from videoldm_core.sampling.samplers import SAMPLERS, sample

DEVIATION = 0.5
SHAPE = (1, 2, 4, 48, 64)

SCHEDULES = {
    "epsilon": ScheduleConfig(predicts="epsilon"),
    "v": ScheduleConfig(predicts="v_prediction"),
    "v, zero terminal SNR": ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True),
}


def best_prediction(schedule: NoiseSchedule, noisy: Tensor, timesteps: Tensor, mean: Tensor):
    """Of epsilon or v, for independent values of this mean and of DEVIATION."""
    alpha, sigma = schedule.alpha(timesteps), schedule.sigma(timesteps)
    power = DEVIATION**2
    gain = alpha * power / (alpha**2 * power + sigma**2)
    clean = mean + gain * (noisy - alpha * mean)
    return schedule.target(clean, (noisy - alpha * clean) / sigma, timesteps)


def drawn(schedule: NoiseSchedule, predict, *, sampler: str, steps: int = 100, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SHAPE, generator=generator)
    return sample(predict, noise, schedule, sampler=sampler, steps=steps, generators=[generator])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_normal_data_have_its_mean_and_deviation(sampler, name):
    schedule = SCHEDULES[name].build()
    mean = torch.tensor([1.0, -2.0, 0.0, 0.25]).view(1, 1, 4, 1, 1)

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return best_prediction(schedule, noisy, timesteps, mean)

    found = drawn(schedule, predict, sampler=sampler)
    # Sampling begins with noise alone, though a last level may hold a little signal.
    missing = DEVIATION * schedule.alpha(torch.tensor([980])).item()
    if "zero" in name:
        missing = 0.0
    error = (found.mean(dim=(0, 1, 3, 4)) - mean.flatten()).abs()
    assert (error < 0.015 + missing * mean.flatten().abs()).all()
    assert (found.std(dim=(0, 1, 3, 4)) - DEVIATION).abs().max() < 0.035


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20, 50, 250])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_begins_near_the_highest_level_whatever_the_number_of_steps(sampler, name, steps):
    asked: list[int] = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(int(timesteps))
        return torch.zeros_like(noisy)

    noise = torch.zeros(1, 1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    schedule = SCHEDULES[name].build()
    sample(predict, noise, schedule, sampler=sampler, steps=steps, generators=[generator])
    assert asked[0] >= 940
    assert len(asked) == steps


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


class GaussianModel(nn.Module):
    """Values of mean 1 when it sees a given frame, of mean 0 when it sees none."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, noisy, timesteps, text, *, context, **nothing_else):
        mean = context[:, :, -1].amax(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
        return best_prediction(self.schedule, noisy, timesteps, mean)


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.5])
def test_context_guidance_moves_the_mean_by_its_scale_and_keeps_the_variance(scale):
    """Of two normals of one variance, Eq. 4 makes the normal of the mean m0 + s (m1 - m0)."""
    schedule = SCHEDULES["v, zero terminal SNR"].build()
    model = Denoiser(GaussianModel(schedule), schedule, 1.0)  # type: ignore[arg-type]
    known = torch.tensor([[True, False]])
    text = torch.zeros(1, 1, 1)

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return guided_prediction(
            model,
            noisy,
            timesteps,
            text=text,
            null_text=text,
            given=mark_known(torch.zeros(SHAPE), known),
            guidance=Guidance(context=scale),
        )

    found = drawn(schedule, predict, sampler="ddim")
    assert found.mean().item() == pytest.approx(scale, abs=0.06)
    assert found.std().item() == pytest.approx(DEVIATION, abs=0.03)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_generator_gives_the_same_clip_and_another_noise_another(sampler):
    schedule = SCHEDULES["v"].build()

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return best_prediction(schedule, noisy, timesteps, torch.zeros(()))

    first, again, other = (
        drawn(schedule, predict, sampler=sampler, steps=5, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_ddim_is_deterministic_and_ddpm_is_not():
    schedule = SCHEDULES["v"].build()
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return best_prediction(schedule, noisy, timesteps, torch.zeros(()))

    for sampler, same in (("ddim", True), ("ddpm", False)):
        one, two = (
            sample(
                predict,
                noise,
                schedule,
                sampler=sampler,
                steps=5,
                generators=[torch.Generator().manual_seed(seed)],
            )
            for seed in (1, 2)
        )
        assert torch.equal(one, two) is same


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_is_asked_once_per_step_at_falling_levels_of_its_own_schedule(sampler):
    schedule, asked = SCHEDULES["v"].build(), []

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(timesteps.tolist())
        return best_prediction(schedule, noisy, timesteps, torch.zeros(()))

    drawn(schedule, predict, sampler=sampler, steps=10)
    levels = [level for (level,) in asked]
    assert len(levels) == 10
    assert levels == sorted(levels, reverse=True)
    assert levels[0] >= 890
    assert levels[-1] < 110


def test_an_unknown_sampler_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="sampler = 'dimm'.*'ddim'"):
        parse_record(SamplingConfig, {"sampler": "dimm"}, where="sample.sampling")


def test_without_context_a_model_is_given_none():
    assert Given().without_context().context is None
