"""Samplers on normal data: its best denoiser is a formula, mean and variance are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.videoldm_core.sampling.fakes import SCHEDULES
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.diffusion.conditioning import Given, mark_known
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.records import parse_record
from videoldm_core.sampling.guidance import Guidance, guided_prediction
from videoldm_core.sampling.samplers import SAMPLERS, levels_of, sample

DEVIATION = 0.5
SHAPE = (1, 2, 4, 48, 64)


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


MANY_STEPS = [1, 6, 61, 103, 121, 201, 206, 217, 334, 501, 667, 999, 1000]


@pytest.mark.parametrize("steps", MANY_STEPS)
@pytest.mark.parametrize("name", [*SCHEDULES, "Stable Diffusion's"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_asks_for_so_many_levels_that_exist(sampler, name, steps):
    """Stable Diffusion's schedule begins each stretch one level later: 1000 steps end at 1000."""
    schedule = SCHEDULES.get(name, SCHEDULES["v"]).build()
    if name not in SCHEDULES:
        schedule = NoiseSchedule(schedule.config | {"steps_offset": 1, "set_alpha_to_one": False})
    levels = levels_of(sampler, schedule, steps, torch.device("cpu")).timesteps
    assert len(levels) == steps
    assert levels.max() <= 999
    assert levels.min() >= 0
    assert levels.tolist() == sorted(levels.tolist(), reverse=True)


@given(data=st.data(), count=st.integers(1, 1200))
@settings(max_examples=60, deadline=None)
def test_a_schedule_of_any_length_has_levels_for_any_number_of_steps(data, count):
    steps = data.draw(st.integers(1, count))
    schedule = NoiseSchedule(SCHEDULES["v"].build().config | {"num_train_timesteps": count})
    for sampler in SAMPLERS:
        levels = levels_of(sampler, schedule, steps, torch.device("cpu")).timesteps
        assert len(levels) == steps
        assert 0 <= levels.min() <= levels.max() < count


class GaussianModel(nn.Module):
    """Values of mean 1 when it sees a given frame, of mean 0 when it sees none."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, noisy, timesteps, text, *, context, **nothing_else):
        mean = context[:, :, -1].amax(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
        return best_prediction(self.schedule, noisy, timesteps, mean)


@pytest.mark.parametrize("scale", [1.0, 3.5])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_context_guidance_moves_the_mean_by_its_scale_and_keeps_the_variance(sampler, name, scale):
    """Of two normals of one variance, Eq. 4 makes the normal of the mean m0 + s (m1 - m0)."""
    schedule = SCHEDULES[name].build()
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

    found = drawn(schedule, predict, sampler=sampler)
    # Sampling begins with noise alone, though a last level may hold a little signal.
    missing = 0.0
    if "zero" not in name:
        missing = scale * DEVIATION * schedule.alpha(torch.tensor([980])).item()
    assert found.mean().item() == pytest.approx(scale, abs=0.06 + missing)
    assert found.std().item() == pytest.approx(DEVIATION, abs=0.035)


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
