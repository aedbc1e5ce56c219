"""Samples videos with a whole cascade: `python -m videoldm_core.generate request.json`."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save
from torch import Tensor

from videoldm_core.annotations import GivenBox
from videoldm_core.cascade import Roles
from videoldm_core.conditioning import FirstFrames, KeyFrames
from videoldm_core.errors import UserError
from videoldm_core.files import sha256_of_file, sha256_of_folder, write_bytes_atomically
from videoldm_core.models.image import load_vae, shrinking
from videoldm_core.models.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.text import TextTower
from videoldm_core.records import Record, load_record
from videoldm_core.sampling.config import SamplingConfig
from videoldm_core.sampling.drawing import Drawing, Prompt, Texts
from videoldm_core.sampling.first_frame import encode_picture, read_picture
from videoldm_core.sampling.interpolation import Progress
from videoldm_core.sampling.loading import Release, load_cascade, read_release
from videoldm_core.sampling.long import Cascade, first_latent, frames_of
from videoldm_core.sampling.unfinished import begin, end, unfinished_folder, write_video
from videoldm_core.told import check_request
from videoldm_core.training.journal import Journal
from videoldm_core.training.published import published_digest


class Request(Record):
    """One video, or several futures of one first frame."""

    stages: dict[str, Path]  # stage name -> its folder; needs all that have a role
    roles: Roles
    text_tower: Path
    prompt: str
    labels: dict[str, str] = {}  # name -> value, for models that are told labels
    boxes: tuple[GivenBox, ...] | None = None  # of the first frame; None: not said
    key_frames: int = Field(default=8, ge=2)
    passes: int = Field(default=2, ge=0, le=2)  # interpolation passes
    size: tuple[int, int] | None = None  # height, width of the base resolution, px; None: trained
    first_frame: Path | None = None  # png or jpg that the video goes on from
    futures: int = Field(default=1, ge=1)  # videos that share the first frame and differ after it
    backbone: Path | None = None  # fine-tune of the image model: diffusers folder or single file
    loras: tuple[Path, ...] = ()  # added to the backbone
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"  # of networks; bf16: autocast
    sampling: SamplingConfig = SamplingConfig()
    out: Path  # the mp4; a gif and a journal appear beside it

    @property
    def videos(self) -> list[Path]:
        """What is written: `out`, or of several futures video-1.mp4, video-2.mp4, ..."""
        if self.futures == 1:
            return [self.out]
        numbers = range(1, self.futures + 1)
        return [self.out.with_stem(f"{self.out.stem}-{number}") for number in numbers]


@dataclass(frozen=True, kw_only=True)
class Models:
    """What videos are made with, loaded: for any number of requests of the same models."""

    release: Release
    device: torch.device
    cascade: Cascade
    tower: TextTower
    personal_tower: TextTower | None  # of the backbone; None: there is none


def main() -> int:
    """The command; a user's error is one sentence on stderr and exit code 2."""
    try:
        generate(load_record(Request, Path(sys.argv[1]), what="request file"))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


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
    _check(request, release)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    personal = personal_tower = None
    if request.backbone is not None:
        personal = load_image_model(request.backbone, loras=request.loras)
    cascade = load_cascade(release, device, personal=personal)
    if request.backbone is not None:
        personal_tower = load_text_tower(request.backbone, loras=request.loras)
    return Models(
        release=release,
        device=device,
        cascade=cascade,
        tower=TextTower.load(request.text_tower),
        personal_tower=personal_tower,
    )


def make(request: Request, models: Models) -> None:
    """`generate` with models that are loaded: those of `request`, maybe for another one.

    Raises:
        UserError: the request asks for what the models cannot do, or the disk cannot be written to.
    """
    release, cascade = models.release, models.cascade
    _check(request, release)
    prompt = _prompt(request, models)
    folder = unfinished_folder(request.out)
    journal = cache(lambda: Journal(request.out.with_suffix(".journal.jsonl")))

    def progress(what: str, done: int, total: int) -> None:
        journal().write(what=what, done=done, total=total)

    def drawing(future: int) -> Drawing:
        numbered = replace(prompt, future=future)
        return Drawing(numbered, request.sampling, precision=request.precision)

    videos = {
        out: frames_of(
            cascade,
            drawing(future),
            key_frames=request.key_frames,
            passes=request.passes,
            folder=folder / f"future-{future}",
            first=_first(request, release, cascade, drawing(1), progress),
            progress=progress,
        )
        for future, out in enumerate(request.videos, start=1)
    }
    begin(folder, identity(request, release, models.device))
    fps = frame_rate(release, request.passes)
    for future, (out, frames) in enumerate(videos.items(), start=1):
        write_video(frames, out, folder=folder / f"future-{future}", fps=fps, progress=progress)
    end(folder)


def frame_rate(release: Release, passes: int) -> float:
    """Frames per second at which a video of so many interpolation passes has its true pace."""
    key = release.stages["key_frames"]
    fps = key.video.fps / max(key.stage.strides)
    if passes:
        given = release.given("interpolator")
        assert isinstance(given, KeyFrames), "checked when the release was read"
        fps *= given.every**passes
    return fps


def identity(request: Request, release: Release, device: torch.device) -> str:
    """Hex SHA-256 of all that decides the videos' bytes on one machine, wherever they are."""
    paths = {"out", "stages", "text_tower", "first_frame", "backbone", "loras"}
    decides: dict[str, Any] = request.model_dump(mode="json", exclude=paths)
    decides["stages"] = {role: published_digest(release.folder(role)) for role in release.stages}
    decides["text_tower"] = sha256_of_folder(request.text_tower)
    if request.first_frame is not None:
        decides["first_frame"] = sha256_of_file(request.first_frame)
    brought = [path for path in (request.backbone, *request.loras) if path is not None]
    # Gigabytes, so not read once more: an edited file has another size or time.
    decides["brought"] = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for path in brought
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
    ]
    decides["by"] = [torch.__version__, device.type]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _check(request: Request, release: Release) -> None:
    """Refuses what no model of the release can do, before any is loaded."""
    if request.out.suffix != ".mp4":
        raise UserError(f"out = {str(request.out)!r} is to be an mp4; let its name end in .mp4.")
    takes_first = isinstance(release.given("key_frames"), FirstFrames)
    if request.first_frame is not None and not takes_first:
        raise UserError(
            f"first_frame = {str(request.first_frame)!r}, but the key-frame model "
            f"{request.roles.key_frames!r} was trained without context and goes on from no frame; "
            "leave first_frame out, or train a prediction model (§3.2)."
        )
    if request.futures > 1 and request.first_frame is None and request.roles.first_frame is None:
        raise UserError(
            f"futures = {request.futures} share a first frame, but none is made or given; give "
            "first_frame, or a cascade whose roles have a first_frame."
        )
    if request.loras and request.backbone is None:
        raise UserError("loras are added to a backbone, but none is given; give backbone too.")
    if request.passes and "interpolator" not in release.stages:
        raise UserError(
            f"passes = {request.passes}, but no stage has the role of interpolator; set passes=0."
        )


def _prompt(request: Request, models: Models) -> Prompt:
    """What is asked for, by the run's own text tower and by the backbone's if there is one."""
    cascade, personal = models.cascade, None
    if models.personal_tower is not None:
        personal = _texts(models.personal_tower, request.prompt, models)
    own = _texts(models.tower, request.prompt, models)
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
        personal=personal,
        labels=request.labels,
        boxes=request.boxes,
        latent_size=latent,
        seed=request.seed,
    )


def _texts(tower: TextTower, prompt: str, models: Models) -> Texts:
    width = models.cascade.key_frames.denoiser.net.unet.config.cross_attention_dim
    if tower.dimension != width:
        raise UserError(
            f"A text tower gives {tower.dimension} values per token, but the models read {width}; "
            "use the one they were trained with, and a backbone of the same image model."
        )
    text, empty = tower.encode([prompt, ""]).to(models.device).chunk(2)
    return Texts(prompt=text, empty=empty)


def _first(
    request: Request, release: Release, cascade: Cascade, drawing: Drawing, progress: Progress
) -> Callable[[], Tensor] | None:
    """Gives the first frame's latent 1 c h w: the user's or the image model's; None: neither.

    What the image model makes is kept, so that it is made once for all futures.
    """
    if request.first_frame is not None:
        vae = load_vae(release.parts("key_frames")["vae"])
        height, width = (side * shrinking(vae) for side in drawing.prompt.latent_size[1:])
        picture = read_picture(request.first_frame, height, width)
        latent = encode_picture(picture, vae, cascade.key_frames.denoiser.scale)
        return lambda: latent.to(drawing.device)
    role, path = cascade.first_frame, unfinished_folder(request.out) / "first.safetensors"
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
