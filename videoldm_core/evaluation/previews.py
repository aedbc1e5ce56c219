"""A picture of what a trained stage makes of held-out clips, for the people who look at a run.

Rows are clips, columns are frames. What a stage makes comes below what it is compared with.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from videoldm_core.cascade.stage import Stage
from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    FirstFrames,
    Given,
    KeyFrames,
    LowResolution,
    mark_known,
)
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation.measuring import clean_key_frames, clean_low_resolution
from videoldm_core.jobs.job import Job
from videoldm_core.models.denoiser import Denoiser, load_denoiser
from videoldm_core.models.image import load_vae
from videoldm_core.models.parts import Parts
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.objectives.autoencoding import Autoencoding
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.objectives.pretrained import Brought
from videoldm_core.sampling.guidance import Guidance, guided_prediction
from videoldm_core.sampling.samplers import sample

CLIPS = 3
STEPS = 15
UPSCALING_STEPS = 2  # so much is given that few steps show what a stage has learned
CELL_WIDTH_PX = 160


def clips_shown(stage: Stage) -> int:
    """How many clips a picture shows; of whole upscaled frames one, for what it takes."""
    return 1 if stage.full_size else CLIPS


@torch.no_grad()
def write_preview(
    job: Job, parts: Parts, clips: Iterable[Batch], null_text: Tensor, path: Path
) -> None:
    """Writes a PNG of what the stage with these parts makes of clips, each a batch of its own.

    Args:
        null_text: embedding of the empty text, l d; its device is where networks run.
    """
    device = null_text.device
    with job.autocast(device):
        make = _maker(job, parts, null_text)
        shown = [make(clip.to(device)) for clip in clips]
    if job.stage.frames == 1:
        rows = [torch.cat(row) for row in zip(*shown, strict=True)]
    else:
        rows = [row for clip in shown for row in clip]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(rows).save(path)


def _maker(job: Job, parts: Parts, null_text: Tensor) -> Callable[[Batch], list[Tensor]]:
    """What makes the rows (t 3 H W each) that are shown of a batch of one clip."""
    objective, given, device = job.stage.objective, job.stage.given, null_text.device
    if isinstance(objective, Denoising) or job.stage.upscales:
        model = load_denoiser(parts).to(device)
        decoder = VideoDecoder(load_vae(parts["vae"]).to(device)) if "vae" in parts else None
        return lambda clip: _denoised(model, given, decoder, clip, null_text)
    if isinstance(objective, Autoencoding | Brought):
        vae = load_vae(parts["vae"]).to(device)
        return lambda clip: [clip.clip[0], vae(clip.clip[0]).sample.float()]
    return _decoding(job.parts, parts, device)


def picture(rows: list[Tensor]) -> Image.Image:
    """Rows of frames (n 3 H W) in [-1, 1], one below the other."""
    return Image.fromarray(pixels_of(rows).numpy())


def pixels_of(rows: list[Tensor]) -> Tensor:
    """Pixels of `picture`, uint8 h w 3 on the CPU."""
    height, width = rows[0].shape[-2:]
    size = (round(height * CELL_WIDTH_PX / width), CELL_WIDTH_PX)
    strips = []
    for row in rows:
        cells = interpolate(row, size=size, mode="bilinear", antialias=True)
        strips.append(rearrange(cells, "n c h w -> h (n w) c"))
    return ((torch.cat(strips).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _denoised(
    model: Denoiser,
    kind: AnyGiven,
    decoder: VideoDecoder | None,
    batch: Batch,
    null_text: Tensor,
) -> list[Tensor]:
    clip = model.diffused_of(batch.clip).float()
    given = _given(kind, model, clip, batch.clip)
    rng = SampleRng(0, "preview", batch.sample_ids)
    made = given.from_diffused(
        sample(
            lambda noisy, timesteps: guided_prediction(
                model,
                noisy,
                timesteps,
                text=model.condition(batch.text, batch.told),
                null_text=model.condition(null_text.expand_as(batch.text)),
                given=given,
                guidance=Guidance(),
                label=batch.stride_index if model.told_pass else None,
            ),
            rng.normal(tuple(clip.shape[1:])).to(clip),
            model.schedule,
            sampler="ddim",
            steps=STEPS if given.low_resolution is None else UPSCALING_STEPS,
            generators=SampleRng(0, "preview, sampler", batch.sample_ids).generators,
        )
    )
    shown = [clip, made] if given.base is None else [clip, given.base, made]
    return [_as_frames(model.clip_of(video), decoder)[0].float() for video in shown]


def _given(kind: AnyGiven, model: Denoiser, clip: Tensor, stored: Tensor) -> Given:
    """One frame for a predictor, the key frames for an interpolator, no noise for an upscaler."""
    if isinstance(kind, FirstFrames):
        return mark_known(clip, (torch.arange(clip.shape[1]) < 1).expand(len(clip), -1))
    if isinstance(kind, KeyFrames):
        return clean_key_frames(kind, model, clip)
    if isinstance(kind, LowResolution):
        return clean_low_resolution(kind, model, stored)
    return Given()


def _as_frames(video: Tensor, decoder: VideoDecoder | None) -> Tensor:
    """b t 3 H W of pixels, or of latents by the image decoder, a frame at a time."""
    if decoder is None:
        return video
    return torch.cat([decoder(frame) for frame in video.split(1, dim=1)], dim=1)


def _decoding(
    inherited: Parts, parts: Parts, device: torch.device
) -> Callable[[Batch], list[Tensor]]:
    image, tuned = (load_vae(p["vae"]).to(device) for p in (inherited, parts))
    temporal = temporal_decoder_for(tuned, seed=0)
    temporal.load(parts["temporal_decoder"])
    decoders = VideoDecoder(image), VideoDecoder(tuned, temporal.to(device)).eval()

    def decoded(batch: Batch) -> list[Tensor]:
        latents = image.encode(batch.clip[0]).latent_dist.mean.float()[None]
        return [batch.clip[0], *(decoder(latents)[0].float() for decoder in decoders)]

    return decoded
