"""Samples videos with a whole cascade: `python -m videoldm_core.generate request.json`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from videoldm_core.diffusion.conditioning import KeyFrames
from videoldm_core.diffusion.labels_boxes import check_request
from videoldm_core.errors import UserError
from videoldm_core.memory.state import Precision
from videoldm_core.models.image import load_vae, shrinking
from videoldm_core.models.pretrained.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.text.encoder import TextTower
from videoldm_core.models.text.source import pixel_tower
from videoldm_core.records import load_record
from videoldm_core.sampling.clip_sampler import Drawing, Prompt, RoleModel, Texts
from videoldm_core.sampling.first_frame import encode_picture, read_picture
from videoldm_core.sampling.interpolation import Progress
from videoldm_core.sampling.loading import Release, load_cascade, predicted_by, read_release
from videoldm_core.sampling.pipeline import Cascade, first_latent, frames_of
from videoldm_core.sampling.request import Request, check, identity
from videoldm_core.sampling.resume import end, folder_of, write_video
from videoldm_core.system.command import run_command
from videoldm_core.system.files import write_bytes_atomically
from videoldm_core.system.journal import Journal


@dataclass(frozen=True, kw_only=True)
class Models:
    """What videos are made with, loaded: for any number of requests of the same models."""

    release: Release
    device: torch.device
    precision: Precision
    cascade: Cascade
    tower: TextTower
    pixel_tower: TextTower | None  # of the upscaler; None: the same
    personal_tower: TextTower | None  # of the backbone; None: there is none
    remark: str = ""  # what of the files that were given was not used; no full stop


def main() -> int:
    """The command; a user's error is one sentence on stderr and exit code 2."""
    return run_command(
        lambda: generate(load_record(Request, Path(sys.argv[1]), what="request file"))
    )


def generate(request: Request) -> None:
    """Writes the request's videos and their previews.

    An interrupted call, made again with the same request, goes on after the last finished segment
    and gives the same bytes.

    Raises:
        UserError: a stage is missing or unusable, the request asks for what the models cannot do,
            or the disk cannot be written to.
    """
    make(request, load_models(request))


def load_models(request: Request) -> Models:
    """Loads what `request` names, and nothing when it asks for what the models cannot do.

    Raises:
        UserError: see `generate`.
    """
    release = read_release(request.roles, request.stages)
    check(request, release)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    personal = personal_tower = None
    if request.backbone is not None:
        # A folder says what its model predicts; of a single file, who takes it for a fine-tune of
        # the release's image model says so.
        predicts = None if request.backbone.is_dir() else predicted_by(release)
        personal = load_image_model(request.backbone, loras=request.loras, predicts=predicts)
    cascade = load_cascade(release, device, precision=request.precision, personal=personal)
    if request.backbone is not None:
        personal_tower = load_text_tower(request.backbone, loras=request.loras)
    of_pixels = pixel_tower(request.text_tower)
    return Models(
        release=release,
        device=device,
        precision=request.precision,
        cascade=cascade,
        tower=TextTower.load(request.text_tower),
        pixel_tower=TextTower.load(of_pixels) if of_pixels != request.text_tower else None,
        personal_tower=personal_tower,
        remark="" if personal is None else "; ".join(personal.remarks),
    )


def make(
    request: Request, models: Models, *, keep_going: Callable[[], None] = lambda: None
) -> None:
    """`generate` with models that are loaded: those of `request`, maybe for another one of the
    same precision.

    Args:
        keep_going: is called between denoising steps; what it raises ends the making.

    Raises:
        UserError: the request asks for what the models cannot do, or the disk cannot be written to.
    """
    assert request.precision == models.precision, f"models are loaded for {models.precision}"
    release, cascade = models.release, models.cascade
    check(request, release)
    prompt = _prompt(request, models)
    folder = folder_of(request.out, identity(request, release, models.device))
    journal = cache(lambda: Journal(request.out.with_suffix(".journal.jsonl")))
    if models.remark:
        journal().write(remark=models.remark)

    def progress(what: str, done: int, total: int) -> None:
        journal().write(what=what, done=done, total=total)

    def drawing(future: int) -> Drawing:
        return Drawing(
            replace(prompt, future=future),
            request.sampling,
            precision=request.precision,
            keep_going=keep_going,
        )

    videos = {
        out: frames_of(
            cascade,
            drawing(future),
            key_frames=request.key_frames,
            passes=request.passes,
            folder=folder / f"future-{future}",
            first=_first(request, release, cascade, drawing(1), folder, progress),
            progress=progress,
        )
        for future, out in enumerate(request.videos, start=1)
    }
    fps = frame_rate(release, request.passes)
    for future, (out, frames) in enumerate(videos.items(), start=1):
        write_video(frames, out, folder=folder / f"future-{future}", fps=fps, progress=progress)
    end(request.out)


def frame_rate(release: Release, passes: int) -> float:
    """Frames per second at which a video of so many interpolation passes has its true pace."""
    key = release.stages["key_frames"]
    fps = key.video.fps / max(key.stage.strides)
    if passes:
        given = release.given("interpolator")
        assert isinstance(given, KeyFrames), "checked when the release was read"
        fps *= given.every**passes
    return fps


def _prompt(request: Request, models: Models) -> Prompt:
    """What is asked for, by the run's own text tower, the upscaler's and the backbone's."""
    cascade, of_pixels, personal = models.cascade, None, None
    if models.personal_tower is not None:
        personal = _texts(models.personal_tower, request.prompt, cascade.key_frames)
    own = _texts(models.tower, request.prompt, cascade.key_frames)
    if models.pixel_tower is not None and cascade.upscaler is not None:
        of_pixels = _texts(models.pixel_tower, request.prompt, cascade.upscaler)
    factor, video = cascade.shrinks, models.release.stages["key_frames"].video
    height, width = request.size or (video.height, video.width)
    if min(height, width) < factor or height % factor or width % factor:
        raise UserError(
            f"size = [{height}, {width}] px is not made of whole latents; "
            f"give positive multiples of {factor}."
        )
    latent = (cascade.key_frames.denoiser.channels, height // factor, width // factor)
    check_request(cascade.vocabularies, request.labels, request.boxes)
    return Prompt(
        texts=own,
        of_pixels=of_pixels,
        personal=personal,
        labels=request.labels,
        boxes=request.boxes,
        latent_size=latent,
        seed=request.seed,
    )


def _texts(tower: TextTower, prompt: str, role: RoleModel) -> Texts:
    unet = role.denoiser.net.unet
    width = unet.config.cross_attention_dim
    if tower.dimension != width:
        raise UserError(
            f"A text tower gives {tower.dimension} values per token, but the models read {width}; "
            "use the one they were trained with, and a backbone of the same image model."
        )
    text, empty = tower.encode([prompt, ""]).to(unet.device).chunk(2)
    return Texts(prompt=text, empty=empty)


def _first(  # noqa: PLR0913 - one call site
    request: Request,
    release: Release,
    cascade: Cascade,
    drawing: Drawing,
    folder: Path,
    progress: Progress,
) -> Callable[[], Tensor] | None:
    """Gives the first frame's latent 1 c h w: the user's or the image model's; None: neither.

    What the image model makes is kept in `folder`, so that it is made once for all futures.
    """
    if request.first_frame is not None:
        vae = load_vae(release.parts("key_frames")["vae"])
        height, width = (side * shrinking(vae) for side in drawing.prompt.latent_size[1:])
        picture = read_picture(request.first_frame, height, width)
        latent = encode_picture(picture, vae, cascade.key_frames.denoiser.scale)
        return lambda: latent.to(drawing.device)
    role, path = cascade.first_frame, folder / "first.safetensors"
    if role is None:
        return None

    def kept() -> Tensor:
        if not path.exists():
            made = first_latent(drawing, role, progress)
            write_bytes_atomically(path, save({"frames": made.cpu().contiguous()}))
        return load_file(path)["frames"].to(drawing.device)

    return kept


if __name__ == "__main__":
    sys.exit(main())
