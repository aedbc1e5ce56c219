"""The guidance of the upscaler is a setting, and guides as diffusers' own upscaling does."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline
from torch import Tensor

from tests.videoldm_core.sampling.fakes import all_of, fake_cascade, frames_from, latents, net_of
from tests.videoldm_core.single_files import unet_like, vae_like
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.diffusion.conditioning import LowResolution
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.models.video_unet import VideoUNet
from videoldm_core.sampling.clip_sampler import Drawing, Prompt, RoleModel, Texts

LEVELS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
NOISE_LEVEL, SIDE = 20, 16


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# In few steps ours begin at another level than diffusers' where "leading" begins too low.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("scale", "steps", "spacing"),
    [(9.0, 1, "trailing"), (9.0, 20, "leading"), (1.0, 5, "trailing")],
)
def test_an_upscaled_frame_is_that_of_diffusers_pipeline(scale, steps, spacing):
    unet = unet_like("x4").eval()
    settings: dict[str, Any] = LEVELS | {
        "prediction_type": "v_prediction",
        "timestep_spacing": spacing,
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }
    pipeline = StableDiffusionUpscalePipeline(
        vae=vae_like("x4").eval(),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        low_res_scheduler=DDPMScheduler(**LEVELS),
        scheduler=DDIMScheduler(**settings),
    )
    pipeline.set_progress_bar_config(disable=True)
    width = unet.config.cross_attention_dim
    text, empty = values(1, 5, width, seed=1), values(1, 5, width, seed=2)
    low, noise = values(1, 3, SIDE, SIDE, seed=3).clamp(-1, 1), values(1, 4, SIDE, SIDE, seed=4)
    with torch.no_grad():
        expected = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=empty,
            image=low,
            latents=noise.clone(),
            noise_level=NOISE_LEVEL,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images

    model = Denoiser(VideoUNet(unet, None), NoiseSchedule(settings), 1.0)
    kind, config = LowResolution(factor=4), SamplingConfig(upscale_guidance=scale)
    blur = values(*low.shape, seed=7)
    given = kind.degrade(
        low[None], torch.tensor([NOISE_LEVEL]), blur[None], model.schedule, size=(SIDE, SIDE)
    )
    prompt = Prompt(texts=Texts(prompt=text, empty=empty), latent_size=(4, SIDE, SIDE), seed=0)
    found = Drawing(prompt, config)(
        RoleModel(denoiser=model, frames=1, given=kind),
        noise[None],
        given,
        generators=[torch.Generator()],
        steps=steps,
        guidance=config.guidance_of("upscaler")[1],
    )[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("scale", "clips"), [(1.0, 1), (9.0, 2)])
def test_a_guided_upscaler_predicts_with_and_without_the_text_in_one_batch(scale, clips):
    cascade = fake_cascade()
    all_of(frames_from(cascade, latents(0, 1), upscale_guidance=scale))
    assert {len(call["noisy"]) for call in net_of(cascade.upscaler).calls} == {clips}
