"""What is asked for: a request, what no release can do of it, and what decides its bytes."""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from videoldm_core.cascade.annotations import GivenBox
from videoldm_core.cascade.checks.sampling import check_asked
from videoldm_core.cascade.checks.trained_states import Inputs
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.cascade.stage import Roles
from videoldm_core.diffusion.conditioning import FirstFrames
from videoldm_core.errors import UserError
from videoldm_core.jobs.published import published_digest
from videoldm_core.memory.state import Precision
from videoldm_core.records import Record
from videoldm_core.sampling.loading import Release
from videoldm_core.system.files import sha256_of_file, sha256_of_folder

FORMAT = 3  # of sampling: raised when the same request and weights make another video
PACKAGES = ("videoldm", "torch", "diffusers", "av")  # whose version decides bytes


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
    precision: Precision = "fp32"  # of networks; bf16: autocast
    sampling: SamplingConfig = SamplingConfig()
    out: Path  # the mp4; a gif and a journal appear beside it

    @property
    def videos(self) -> list[Path]:
        """What is written: `out`, or of several futures video-1.mp4, video-2.mp4, ..."""
        if self.futures == 1:
            return [self.out]
        numbers = range(1, self.futures + 1)
        return [self.out.with_stem(f"{self.out.stem}-{number}") for number in numbers]


def check(request: Request, release: Release) -> None:
    """Refuses what no model of the release can do, before any is loaded.

    Raises:
        UserError: says what to change.
    """
    if request.out.suffix != ".mp4":
        raise UserError(f"out = {str(request.out)!r} is to be an mp4; let its name end in .mp4.")
    _check_first_frame(request, release)
    if request.loras and request.backbone is None:
        raise UserError("loras are added to a backbone, but none is given; give backbone too.")
    check_asked(
        {role: published.stage for role, published in release.stages.items()},
        passes=request.passes,
        inputs=Inputs(
            prompt=request.prompt,
            labels=request.labels,
            has_boxes=request.boxes is not None,
            has_first_frame=request.first_frame is not None,
        ),
        sampling=request.sampling,
        vocabularies={role: release.vocabulary(role) for role in release.stages},
    )
    _check_steps(request, release)


def _check_first_frame(request: Request, release: Release) -> None:
    takes_first = isinstance(release.given("key_frames"), FirstFrames)
    if request.first_frame is not None and not takes_first:
        raise UserError(
            f"first_frame = {str(request.first_frame)!r}, but the key-frame model "
            f"{request.roles.key_frames!r} was trained without context and goes on from no frame; "
            "leave first_frame out, or train a prediction model (§3.2)."
        )
    if request.first_frame is not None and request.boxes is not None:
        raise UserError(
            f"boxes say what the first frame shows, but first_frame = {str(request.first_frame)!r} "
            "is given already; leave one of them out."
        )
    if request.futures > 1 and request.first_frame is None and request.roles.first_frame is None:
        raise UserError(
            f"futures = {request.futures} share a first frame, but none is made or given; give "
            "first_frame, or a cascade whose roles have a first_frame."
        )


def _check_steps(request: Request, release: Release) -> None:
    """Refuses more steps than a model's noise schedule has levels."""
    config = request.sampling
    steps = {
        "first_frame": ("steps", config.steps),
        "key_frames": ("steps", config.steps),
        "interpolator": ("interpolation_steps", config.interpolation_steps),
        "upscaler": ("upscale_steps", config.upscale_steps),
    }
    for role, (name, asked) in steps.items():
        levels = release.schedule(role).timesteps if role in release.stages else asked
        if asked > levels:
            raise UserError(
                f"{name} = {asked}, but the {role} model has {levels} noise levels; ask for at "
                f"most {levels} steps."
            )


def identity(request: Request, release: Release, device: torch.device) -> str:
    """Hex SHA-256 of all that decides the videos' bytes on one machine, wherever they are."""
    paths = {"out", "stages", "text_tower", "first_frame", "backbone", "loras"}
    decides: dict[str, Any] = request.model_dump(mode="json", exclude=paths)
    decides["stages"] = {role: published_digest(release.folder(role)) for role in release.stages}
    decides["text_tower"] = sha256_of_folder(request.text_tower)
    if request.first_frame is not None:
        decides["first_frame"] = sha256_of_file(request.first_frame)
    scales = [path.with_name("adapter_config.json") for path in request.loras]
    brought = [path for path in (request.backbone, *request.loras, *scales) if path is not None]
    # Gigabytes, so not read once more: an edited file has another size or time.
    decides["brought"] = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for path in brought
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
    ]
    decides["by"] = [FORMAT, *_versions(), device_name(device)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def device_name(device: torch.device) -> str:
    """What computes: the accelerator's product name, or the kind of the device."""
    is_cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if is_cuda else device.type


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:  # run from a checkout that nobody installed
            yield name
