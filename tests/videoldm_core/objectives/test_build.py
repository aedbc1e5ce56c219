"""A job's precision is that in which its tasks encode frames, as its stores are encoded."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from videoldm_core.cascade.stage import preset
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.jobs.job import Job
from videoldm_core.models.image import load_vae
from videoldm_core.objectives.build import build_task
from videoldm_core.objectives.decoding import DecodingTask
from videoldm_core.objectives.denoising import DenoisingTask
from videoldm_core.training.train_module import Turn

Precision = Literal["fp32", "bf16"]
TINY = preset("tiny")
NULL_TEXT = torch.zeros(4, 8)


def job_of(stage: str, parts: dict[str, Path], precision: Precision) -> Job:
    return Job(
        stage=TINY.stage(stage),
        video=TINY.video,
        parts=parts,
        text_tower=Path("text_tower"),
        out=Path("out"),
        precision=precision,
    )


def latents_of(vae: Path, clip: Tensor, precision: Precision) -> Tensor:
    """Posterior means of frames b t 3 H W, b t c h w."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        frames = [load_vae(vae).encode(frames).latent_dist.mean for frames in clip]
    return torch.stack(frames).float()


class Listening:
    """A decoder that remembers the latents it is given."""

    def __init__(self, task: DecodingTask) -> None:
        self.module, self.latents = task.players[0].module, []

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.latents.append(latents)
        return self.module(latents)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_decoder_learns_from_latents_encoded_in_the_precision_of_the_job(
    precision: Precision, image_model, random_batch
):
    task = build_task(job_of("decoder", image_model, precision), NULL_TEXT)
    assert isinstance(task, DecodingTask)
    batch, net = random_batch((2, 3, 3, 16, 16)), Listening(task)
    turn = Turn(step=0, rng=SampleRng(0, "decoder", batch.sample_ids))
    task.decoder_loss(net, batch, turn)
    task.heldout(net, batch, turn)
    expected = latents_of(image_model["vae"], batch.clip, precision)
    assert all(torch.equal(latents, expected) for latents in net.latents)
    assert len(net.latents) == 2
    other = latents_of(image_model["vae"], batch.clip, "bf16" if precision == "fp32" else "fp32")
    assert not torch.equal(expected, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_denoiser_with_its_own_autoencoder_encodes_in_the_precision_of_the_job(
    precision: Precision, image_model, random_batch
):
    parts = {"unet": image_model["unet"], "scheduler": image_model["scheduler"]}
    task = build_task(
        job_of("temporal", parts | {"own_vae": image_model["vae"]}, precision), NULL_TEXT
    )
    assert isinstance(task, DenoisingTask)
    clip = random_batch((2, 3, 3, 16, 16)).clip
    expected = latents_of(image_model["vae"], clip, precision) * task.model.scale
    assert torch.equal(task.model.diffused_of(clip), expected)
