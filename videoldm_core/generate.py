"""Samples a video with a whole cascade: `python -m videoldm_core.generate request.json`."""

import sys
from pathlib import Path

import torch
from pydantic import Field

from videoldm_core.conditioning import AnyGiven, KeyFrames, LowResolution
from videoldm_core.errors import UserError
from videoldm_core.models.image import load_vae
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.objectives.denoising import Denoising, load_denoiser
from videoldm_core.records import Record, load_record
from videoldm_core.sampling.long import Cascade, Prompt, Sampling, SamplingConfig
from videoldm_core.sampling.video_file import VideoFile
from videoldm_core.training.journal import Journal
from videoldm_core.training.published import PublishedStage, part_paths, read_published

ROLES = ("image", "predictor", "interpolator", "decoder", "upscaler")


class Request(Record):
    """One video."""

    stages: dict[str, Path]  # stage name -> its folder; needs all of ROLES
    text_tower: Path
    prompt: str
    key_frames: int = Field(default=8, ge=2)
    passes: int = Field(default=2, ge=0, le=2)  # interpolation passes
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    out: Path  # the mp4; a gif and a journal appear beside it


def main() -> int:
    """The command; a user's error is one sentence on stderr and exit code 2."""
    try:
        generate(load_record(Request, Path(sys.argv[1]), what="request file"))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def generate(request: Request) -> None:
    """Writes request.out and its preview.

    Raises:
        UserError: a stage is missing or unusable, or the disk cannot be written to.
    """
    from videoldm_core.models.text import TextTower

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cascade, published = load_cascade(request.stages, device)
    tower = TextTower.load(request.text_tower)
    text, null_text = tower.encode([request.prompt, ""]).to(device).chunk(2)
    vae = load_vae(part_paths(request.stages["decoder"])["vae"])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    video = published["image"].video
    prompt = Prompt(
        text=text,
        null_text=null_text,
        latent_size=(cascade.image.channels, video.height // factor, video.width // factor),
        seed=request.seed,
    )
    journal = Journal(request.out.with_suffix(".journal.jsonl"))

    def progress(what: str, done: int, total: int) -> None:
        journal.write(what=what, done=done, total=total)

    sampling = Sampling(cascade, prompt, request.sampling, progress)
    with VideoFile(request.out, fps=video.fps) as file:
        for frames in sampling.video(request.key_frames, request.passes):
            file.write(frames)


def load_cascade(
    folders: dict[str, Path], device: torch.device
) -> tuple[Cascade, dict[str, PublishedStage]]:
    """Loads the models of every role.

    Raises:
        UserError: names the first role that is not there or not trained.
    """
    published: dict[str, PublishedStage] = {}
    for role in ROLES:
        found = read_published(folders[role]) if role in folders else None
        if found is None:
            where = f"not published in {str(folders[role])!r}" if role in folders else "not named"
            raise UserError(
                f"Sampling needs a trained {role!r} stage, which is {where}. Train it first."
            )
        published[role] = found
    parts = {role: part_paths(folders[role]) for role in ROLES}
    vae = load_vae(parts["decoder"]["vae"])
    temporal = temporal_decoder_for(vae, seed=0)
    temporal.load(parts["decoder"]["temporal_decoder"])
    between, low = (_given(published[role]) for role in ("interpolator", "upscaler"))
    assert isinstance(between, KeyFrames), "an interpolator is given key frames"
    assert isinstance(low, LowResolution), "an upscaler is given a low resolution"
    cascade = Cascade(
        image=load_denoiser(parts["image"]).to(device),
        predictor=load_denoiser(parts["predictor"]).to(device),
        interpolator=load_denoiser(parts["interpolator"]).to(device),
        decoder=VideoDecoder(vae, temporal).eval().to(device),
        upscaler=load_denoiser(parts["upscaler"]).to(device),
        key_frames=published["predictor"].stage.frames,
        every=between.every,
        low_resolution=low,
    )
    return cascade, published


def _given(published: PublishedStage) -> AnyGiven:
    objective = published.stage.objective
    assert isinstance(objective, Denoising), f"{published.stage.name} denoises"
    return objective.given


if __name__ == "__main__":
    sys.exit(main())
