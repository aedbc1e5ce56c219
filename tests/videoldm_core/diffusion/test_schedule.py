"""Formulas of the diffusion process, and the schedule on disk."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.objectives.denoising import ScheduleConfig

Predicts = Literal["epsilon", "v_prediction"]
SCHEDULES = {
    predicts: ScheduleConfig(predicts=predicts).build() for predicts in ("epsilon", "v_prediction")
}


def pair(seed: int, shape: tuple[int, ...] = (2, 3, 4, 2, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_signal_and_noise_power_sum_to_one_at_every_level():
    schedule, every = SCHEDULES["epsilon"], torch.arange(1000)
    power = schedule.alpha(every) ** 2 + schedule.sigma(every) ** 2
    assert torch.allclose(power, torch.ones_like(power), atol=1e-6)
    assert (schedule.alpha(every).flatten().diff() < 0).all()


@settings(max_examples=60, deadline=None)
@given(
    predicts=st.sampled_from(sorted(SCHEDULES)),
    timesteps=st.lists(st.integers(0, 999), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_the_clean_clip_follows_from_the_target(predicts, timesteps, seed):
    schedule, levels = SCHEDULES[predicts], torch.tensor(timesteps)
    clean, noise = pair(seed)
    noisy = schedule.add_noise(clean, noise, levels)
    target = schedule.target(clean, noise, levels)
    assert torch.allclose(schedule.clean_from(target, noisy, levels), clean, atol=1e-4)


def test_a_target_is_the_noise_or_the_velocity():
    clean, noise = pair(0)
    levels = torch.tensor([10, 900])
    assert torch.equal(SCHEDULES["epsilon"].target(clean, noise, levels), noise)
    schedule = SCHEDULES["v_prediction"]
    velocity = schedule.alpha(levels) * noise - schedule.sigma(levels) * clean
    assert torch.equal(schedule.target(clean, noise, levels), velocity)


def test_all_frames_of_a_video_have_its_level():
    schedule, levels = SCHEDULES["epsilon"], torch.tensor([0, 999])
    clean, noise = pair(1)
    noisy = schedule.add_noise(clean, noise, levels)
    assert torch.allclose(noisy[0], clean[0], atol=0.2)
    assert torch.allclose(noisy[1], noise[1], atol=0.4)


def test_scaled_linear_is_what_compvis_calls_linear():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(dim=0).sqrt().float()
    found = SCHEDULES["epsilon"].alpha(torch.arange(1000)).flatten()
    assert torch.allclose(found, expected, atol=1e-6)


def test_with_zero_terminal_snr_the_last_level_is_noise_alone():
    schedule = ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True).build()
    clean, noise = pair(2)
    last = torch.full((2,), schedule.timesteps - 1)
    assert torch.allclose(schedule.add_noise(clean, noise, last), noise, atol=1e-3)
    target = schedule.target(clean, noise, last)
    assert torch.allclose(schedule.clean_from(target, noise, last), clean, atol=1e-3)


@pytest.mark.parametrize("predicts", sorted(SCHEDULES))
def test_a_saved_schedule_is_read_by_us_and_by_diffusers(predicts: Predicts, tmp_path: Path):
    schedule = ScheduleConfig(timesteps=50, predicts=predicts, beta_end=0.02).build()
    schedule.save(tmp_path)
    found = NoiseSchedule.load(tmp_path)
    every = torch.arange(50)
    assert found.predicts == predicts
    assert found.timesteps == 50
    assert torch.equal(found.alpha(every), schedule.alpha(every))
    theirs = DDPMScheduler.from_pretrained(tmp_path, local_files_only=True)
    assert torch.allclose(theirs.alphas_cumprod.sqrt(), found.alpha(every).flatten(), atol=1e-6)


def test_what_a_model_predicts_comes_from_its_own_schedule(tmp_path: Path):
    (tmp_path / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "PNDMScheduler", "beta_schedule": "linear", "beta_end": 0.02})
    )
    found = NoiseSchedule.load(tmp_path)
    assert found.predicts == "epsilon"
    expected = (1 - torch.linspace(0.0001, 0.02, 1000)).cumprod(dim=0).sqrt()
    assert torch.allclose(found.alpha(torch.arange(1000)).flatten(), expected, atol=1e-5)


def test_another_prediction_is_refused_by_name():
    with pytest.raises(UserError, match=r"predicts 'sample'; expected .*epsilon.* v_prediction"):
        NoiseSchedule({"prediction_type": "sample"})


def test_a_folder_without_schedule_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"No noise schedule in .*nowhere.*scheduler_config.json"):
        NoiseSchedule.load(tmp_path / "nowhere")


LINEAR = {"beta_schedule": "linear"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "says no noise levels: it has neither beta_schedule nor trained_betas"),
        ({"prediction_type": "epsilon", "beta_end": 0.02}, "says no noise levels"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid': Input should be 'linear'"),
        (LINEAR | {"beta_end": "much"}, "beta_end = 'much': .* valid number"),
        (LINEAR | {"beta_end": 2.0}, "beta_end = 2.0: .* less than 1"),
        (LINEAR | {"num_train_timesteps": 0}, "num_train_timesteps = 0"),
        (LINEAR | {"num_train_timesteps": [1]}, "num_train_timesteps = "),
        (LINEAR | {"timestep_spacing": "wide"}, "timestep_spacing = 'wide'"),
        ({"trained_betas": [0.1, 0.2]}, "has 2 trained_betas for num_train_timesteps = 1000"),
        ([], "No noise schedule in"),
        (None, "No noise schedule in"),
    ],
)
def test_a_schedule_that_says_nothing_or_nonsense_is_one_sentence(config, sentence, tmp_path: Path):
    text = "{" if config is None else json.dumps(config)
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        NoiseSchedule.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_what_a_saved_schedule_says_of_other_samplers_is_left_out(tmp_path: Path):
    saved = LINEAR | {"algorithm_type": "sde-dpmsolver++", "clip_sample": True, "solver_order": 3}
    found = NoiseSchedule(saved)
    assert not {"algorithm_type", "solver_order"} & found.config.keys()
    assert found.config["clip_sample"] is False
    assert (found.config["steps_offset"], found.config["set_alpha_to_one"]) == (1, False)
    found.save(tmp_path)
    assert NoiseSchedule.load(tmp_path).config == found.config
