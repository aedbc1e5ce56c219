"""The two stores of a cascade: pixels, and latents of a frozen image encoder, from the same clips.

Both are made of shards (shard.py) from clips decoded in child processes with limits. The same call
continues where the last one stopped, and adds what is new.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from preprocessing.admission.clips import Clip
from preprocessing.encoding import recode
from preprocessing.encoding.latents import encode_side_by_side
from preprocessing.encoding.shard import (
    DroppedClip,
    Made,
    build_shard,
    finished_units,
    info_of,
    plan_units,
    write_index,
)
from preprocessing.isolation.workers import Call, Workers
from preprocessing.sources.digests import State
from preprocessing.sources.names import path_below
from preprocessing.sources.unchanged import Admitted, state_now
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import RESIZER
from preprocessing.video.decoding_limits import MOST_CPU_HOURS, decoding_limits
from preprocessing.video.fields import deinterlacing
from videoldm_core.cascade.stage import VideoFormat
from videoldm_core.data.pixels import CODEC_NAME
from videoldm_core.data.shards import LatentClip, PixelClip, StoreIdentity
from videoldm_core.data.storage import open_storage
from videoldm_core.errors import UserError
from videoldm_core.models.frozen_encoder import load_frozen_encoder
from videoldm_core.system.files import sha256_of_folder
from videoldm_core.system.machine import usable_cores


class CaptionEncoder(Protocol):
    """The text tower, as far as stores need it."""

    def encode(self, captions: list[str], /) -> Tensor:
        """Embeddings (b l d)."""
        ...

    def digest(self) -> str:
        """Hex digest of everything that decides what `encode` returns."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """What the two stores have in common."""

    clips: Sequence[Clip]
    folder_of_videos: Path  # clips name their sources below it
    out: Path | str  # stores appear below it as KIND/IDENTITY; a folder or s3://bucket/prefix
    video: VideoFormat
    text: CaptionEncoder
    digests: Path | None = None  # that admitting the videos kept; None: videos are read once more
    clips_per_shard: int = 64
    cpu_hours: float = MOST_CPU_HOURS  # of processor time, that decoding one clip may take
    progress: Callable[[int, int], None] = lambda done, total: None  # clips done, clips in all


def encode_pixels(request: StoreRequest) -> Path | str:
    """Makes, continues or extends the pixel store; returns where it is.

    Raises:
        UserError: no clip could be used, or the storage cannot be written to.
    """
    video = request.video
    size = (video.height * video.upscale, video.width * video.upscale)
    identity = _identity(request, "pixels", encoder=CODEC_NAME, size=size)
    texts, limits = _Texts(request.text), decoding_limits(request.cpu_hours)
    admitted = Admitted(request.digests)

    def make(clips: Sequence[Clip], workers: Workers) -> Iterator[tuple[int, Made]]:
        calls = [
            recode.video_call(_wanted(request, clip, size), limits, clip.fps) for clip in clips
        ]
        run = partial(_isolated, workers, recode.video_of_clip, clips, calls=calls)
        for place, coded in run(admitted=admitted, folder=request.folder_of_videos):
            if isinstance(coded, DroppedClip):
                yield place, coded
            else:
                info = info_of(clips[place])
                yield place, PixelClip(info=info, video=coded, text=texts.of(info.caption))

    return _make_store(request, identity, make)


def encode_latents(
    request: StoreRequest, *, vae_folder: Path, device: str = "cpu", in_bfloat16: bool = False
) -> Path | str:
    """Makes, continues or extends the latent store of one frozen encoder; returns where it is.

    Args:
        vae_folder: a diffusers `vae` folder; other weights are another store.

    Raises:
        UserError: there is no usable encoder, no clip could be used, or the storage cannot be
            written to.
    """
    size = (request.video.height, request.video.width)
    precision = "bfloat16" if in_bfloat16 else "float32"
    encoder = f"{sha256_of_folder(vae_folder)} {precision}" if vae_folder.is_dir() else ""
    vae = load_frozen_encoder(vae_folder, device=device)
    identity = _identity(request, "latents", encoder=encoder, size=size)
    texts, limits = _Texts(request.text), decoding_limits(request.cpu_hours)
    admitted = Admitted(request.digests)

    def make(clips: Sequence[Clip], workers: Workers) -> Iterator[tuple[int, Made]]:
        calls = [recode.frames_call(_wanted(request, clip, size), limits) for clip in clips]
        places: deque[int] = deque()
        dropped: list[tuple[int, Made]] = []

        def decoded() -> Iterator[np.ndarray]:
            run = partial(_isolated, workers, recode.frames_of_clip, clips, calls=calls)
            for place, frames in run(admitted=admitted, folder=request.folder_of_videos):
                if isinstance(frames, DroppedClip):
                    dropped.append((place, frames))
                else:
                    places.append(place)
                    yield frames

        for latents in encode_side_by_side(vae, decoded(), in_bfloat16=in_bfloat16):
            place = places.popleft()
            info = info_of(clips[place])
            yield place, LatentClip(info=info, latents=latents, text=texts.of(info.caption))
        yield from dropped

    return _make_store(request, identity, make)


class _Texts:
    """Embeddings of captions, each computed once."""

    def __init__(self, encoder: CaptionEncoder):
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def of(self, caption: str) -> np.ndarray:
        """float16 (l d)."""
        if caption not in self._known:
            self._known[caption] = self._encoder.encode([caption])[0].half().cpu().numpy()
        return self._known[caption]


def _identity(
    request: StoreRequest, kind: str, *, encoder: str, size: tuple[int, int]
) -> StoreIdentity:
    return StoreIdentity.model_validate(
        {
            "kind": kind,
            "encoder": encoder,
            "preprocessing": f"{RESIZER}; deinterlaced: {request.video.deinterlace}",
            "fps": request.video.fps,
            "height_px": size[0],
            "width_px": size[1],
            "text": request.text.digest(),
        }
    )


def _wanted(request: StoreRequest, clip: Clip, size: tuple[int, int]) -> recode.Wanted:
    path = path_below(request.folder_of_videos, clip.source)
    how = deinterlacing(clip.scan, request.video.deinterlace)
    return recode.Wanted(str(path), clip.times_s(), size, how)


def _isolated(
    workers: Workers,
    function: Callable[..., Any],
    clips: Sequence[Clip],
    *,
    calls: Sequence[Call],
    admitted: Admitted,
    folder: Path,
) -> Iterator[tuple[int, Any]]:
    """(place, value) of every call, as they finish; a failed call's value is the dropped clip.

    So is that of a call that may have read another file than was admitted.

    Args:
        folder: of the videos.
    """
    paths = [path_below(folder, clip.source) for clip in clips]
    states: dict[int, State | None] = {}

    def begun() -> Iterator[Call]:
        for place, call in enumerate(calls):
            states[place] = state_now(paths[place])
            yield call

    for outcome in workers.run(function, begun()):
        place, clip = outcome.index, clips[outcome.index]
        change = admitted.change(paths[place], clip.source_digest, since=states.pop(place))
        reason = change or str(outcome.error or "")
        dropped = DroppedClip(key=clip.key, source=clip.source, reason=reason) if reason else None
        yield place, dropped or outcome.value


def _make_store(
    request: StoreRequest,
    identity: StoreIdentity,
    make: Callable[[Sequence[Clip], Workers], Iterator[tuple[int, Made]]],
) -> Path | str:
    if not request.clips:
        raise UserError("There are 0 clips to encode; give a folder with usable videos.")
    place = f"{identity.kind}/{identity.digest()[:12]}"
    is_remote = str(request.out).startswith("s3:")
    location = f"{request.out}/{place}" if is_remote else Path(request.out) / place
    storage = open_storage(location)
    units = plan_units(request.clips, storage, clips_per_shard=request.clips_per_shard)
    finished = finished_units(units, storage, identity)
    total = sum(len(unit.clips) for unit in units)
    done = sum(len(unit.clips) for unit in units if unit.shard in finished)
    request.progress(done, total)
    # Children start on demand: none for a store that is finished.
    with Workers(usable_cores(), errors=(DecodeError,)) as workers:

        def counted(clips: Sequence[Clip]) -> Iterator[tuple[int, Made]]:
            for count, made in enumerate(make(clips, workers), 1):
                yield made
                request.progress(done + count, total)

        for unit in units:
            if unit.shard not in finished:
                build_shard(unit, storage=storage, identity=identity, make=counted)
                done += len(unit.clips)
    write_index(request.clips, units, storage, identity)
    return location
