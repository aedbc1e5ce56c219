"""Noise on what a model is given has levels of the model's own schedule."""

import pytest
import torch

from videoldm_core.diffusion.conditioning import KeyFrames, LowResolution
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.objectives.denoising import Denoising, DenoisingTask, check_noise
from videoldm_core.training.optimizer import OptimizerConfig


@pytest.mark.parametrize(
    ("given", "most"),
    [(KeyFrames(max_noise_timestep=1000), 999), (LowResolution(max_noise_timestep=1001), 1000)],
)
def test_noise_on_what_is_given_of_levels_that_a_schedule_lacks_is_refused(
    image_model, given, most
):
    """Levels of key frames are drawn up to the highest, of a low resolution below it."""
    with pytest.raises(UserError, match=rf"timestep = {most + 1}, .* 1000 levels; .* most {most}"):
        DenoisingTask(
            Denoising(alpha="scalar", given=given),
            parts=image_model,
            trains=("temporal",),
            frames=5,
            strides=1,
            crop=None,
            null_text=torch.zeros(4, 8),
            optimizer=OptimizerConfig(),
            seed=0,
        )
    fitting = given.model_copy(update={"max_noise_timestep": most})
    schedule = NoiseSchedule.load(image_model["scheduler"])
    assert check_noise(fitting, schedule) is None, "no sentence is raised"
