"""How long a video takes: key frames, decoding and upscaling, and how near each is to the limit.

    python -m benchmarks.sampling --rounds 3

On an accelerator in bf16, eager and compiled, random weights: 8 key frames of 320x512 px (40x64
latents) with Stable Diffusion 2.1's UNet and phi, 50 DDIM steps with text guidance; 8 frames
decoded by Stable Diffusion's decoder with phi; 8 frames upscaled to 1280x2048 px by the
x4-upscaler's UNet with phi, 20 steps, and decoded. Elsewhere all is small, in float32 and with few
steps, and it says so: those times say nothing about the real size. The share of the limit is FLOPs
per second over those of a matrix multiplication of the same type, measured in the same rounds.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing
from videoldm_core.diffusion.conditioning import Given, LowResolution
from videoldm_core.models.image import AutoencoderConfig
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.objectives.denoising import Denoiser, ScheduleConfig
from videoldm_core.sampling.guidance import Guidance, guided_prediction
from videoldm_core.sampling.samplers import sample


class Size(NamedTuple):
    """Of the networks and of what they make."""

    widths: tuple[int, ...]  # of the image UNet
    upscaler_widths: tuple[int, ...]
    vae_widths: tuple[int, ...]
    text: int
    frames: int
    latents: tuple[int, int]  # of the key frames
    steps: int
    upscale_steps: int


FULL = Size(
    (320, 640, 1280, 1280), (256, 512, 512, 1024), (128, 256, 512, 512), 1024, 8, (40, 64), 50, 20
)
SMALL = Size((64, 128, 256, 256), (64, 64, 64, 128), (32, 64, 64, 64), 64, 4, (8, 16), 4, 2)
LATENT_SHRINKS = 8
TOKENS = 77
GUIDED, UNGUIDED = Guidance(text=7.5), Guidance()


class Sampler(nn.Module):
    """A denoiser with its prompt; called with noise b t c h w, returns what it denoises to."""

    def __init__(self, model: Denoiser, size: Size, steps: int, guidance: Guidance) -> None:
        super().__init__()
        self.model, self.steps, self.guidance = model, steps, guidance
        self.text, self.null_text = torch.randn(2, 1, TOKENS, size.text).unbind()

    def forward(self, noise: Tensor, given: Given) -> Tensor:
        """DDIM from `noise`."""

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return guided_prediction(
                self.model,
                noisy,
                timesteps,
                text=self.text.to(noise),
                null_text=self.null_text.to(noise),
                given=given,
                guidance=self.guidance,
            )

        return sample(
            predict, noise, self.model.schedule, sampler="ddim", steps=self.steps, generators=[]
        )


def image_model(size: Size, where: torch.device) -> Denoiser:
    """Stable Diffusion 2.1's layout with phi."""
    with where:
        unet = UNet2DConditionModel(
            block_out_channels=size.widths,
            cross_attention_dim=size.text,
            attention_head_dim=tuple(max(1, width // 64) for width in size.widths),
            use_linear_projection=True,
        )
    return Denoiser(_with_phi(unet, where), ScheduleConfig().build(), 1.0)


def upscaler(size: Size, where: torch.device) -> Denoiser:
    """The x4-upscaler's layout with phi, and its own autoencoder."""
    with where:
        unet = UNet2DConditionModel(
            in_channels=7,
            block_out_channels=size.upscaler_widths,
            cross_attention_dim=size.text,
            attention_head_dim=8,
            use_linear_projection=True,
            num_class_embeds=1000,
            only_cross_attention=(True, True, True, False),
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        )
    own_vae = AutoencoderConfig(widths=size.vae_widths[:3]).build(0).to(where)
    schedule = ScheduleConfig(predicts="v_prediction").build()
    return Denoiser(_with_phi(unet, where), schedule, 1.0, own_vae)


def _with_phi(unet: UNet2DConditionModel, where: torch.device) -> VideoUNet:
    return VideoUNet(unet, temporal_layers_for(unet, TemporalConfig(), seed=0).to(where))


def calls(size: Size, where: torch.device, *, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """What is measured, by name; in bf16 on an accelerator."""
    image, large = image_model(size, where).eval(), upscaler(size, where).eval()
    vae: AutoencoderKL = AutoencoderConfig(widths=size.vae_widths).build(0).to(where).eval()
    decoder = VideoDecoder(vae, temporal_decoder_for(vae, seed=0).to(where)).eval()
    assert large.own_vae is not None, "a latent upscaler"
    if compiled:
        for module in (image.net, large.net, decoder, large.own_vae.decoder):
            module.compile(dynamic=False)
    height, width = (side * LATENT_SHRINKS for side in size.latents)
    with where:
        noise = torch.randn(1, size.frames, 4, *size.latents)
        low = torch.randn(1, size.frames, 3, height, width)
        fine_noise = torch.randn(1, size.frames, 4, height, width)
        level = torch.tensor([20])
    given = LowResolution().degrade(
        low, level, torch.randn_like(low), large.schedule, size=(height, width)
    )
    keys = Sampler(image, size, size.steps, GUIDED)
    fine = Sampler(large, size, size.upscale_steps, UNGUIDED)
    named: dict[str, Callable[[], Tensor]] = {
        f"key frames, {size.steps} steps, guided": lambda: keys(noise, Given()),
        "decoding": lambda: decoder(noise),
        f"upscaling, {size.upscale_steps} steps": lambda: large.clip_of(fine(fine_noise, given)),
    }
    return {
        name + (", compiled" if compiled else ""): _without_gradients(call, where)
        for name, call in named.items()
    }


def _without_gradients(call: Callable[[], Tensor], where: torch.device) -> Callable[[], Tensor]:
    def run() -> Tensor:
        in_bf16 = where.type == "cuda"
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=in_bf16):
            return call()

    return run


def main() -> None:
    """Takes turns and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    timing.as_launched()
    where = timing.device()
    on_accelerator = where.type == "cuda"
    size, dtype = (FULL, torch.bfloat16) if on_accelerator else (SMALL, torch.float32)
    what = "full size, bf16" if on_accelerator else "a small size, float32"
    sys.stdout.write(f"{timing.machine(where)}\n{what}: {size}\n")
    torch.manual_seed(0)
    timed = calls(size, where, compiled=False)
    flops = {}
    for name, call in timed.items():
        with FlopCounterMode(display=False) as counter:
            call()
        flops[name] = counter.get_total_flops()
    if on_accelerator:
        timed |= calls(size, where, compiled=True)
    multiply, matrix_flops = timing.matrix_product(where, dtype)
    seconds = timing.take_turns({**timed, "matrices": multiply}, where, rounds=rounds)
    for name in timed:
        taken, count = seconds[name], flops[name.removesuffix(", compiled")]
        share = count / matrix_flops * timing.ratio(seconds["matrices"], taken)
        sys.stdout.write(
            f"{name:40} {timing.median(taken):8.2f} s  "
            f"{size.frames / timing.median(taken):7.2f} frames/s  {count / 1e12:9.3f} TFLOP  "
            f"{share:4.0%} of the limit\n"
        )
    rate = matrix_flops / timing.median(seconds["matrices"]) / 1e12
    sys.stdout.write(f"{'the limit: multiplying matrices':40} {rate:8.2f} TFLOP/s\n")


if __name__ == "__main__":
    main()
