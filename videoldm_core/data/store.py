"""A store of shards, opened for reading: any frames of any clip, by offset, in this process.

Knows where bytes are (manifests) and checks that they are all there; does not know which clip is
wanted when (plan.py).
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from videoldm_core.cascade.annotations import BoxedFrame
from videoldm_core.data.index import read_index
from videoldm_core.data.npy import HEADER_BYTES, SameShapes, parse_npy, parse_npy_header
from videoldm_core.data.pixels import FrameCache, decode_clip_frames
from videoldm_core.data.shards import (
    INDEX_NAME,
    Index,
    IndexedShard,
    Manifest,
    StoreIdentity,
    parse_published,
)
from videoldm_core.data.storage import Storage, open_storage
from videoldm_core.errors import ShardError, UserError

FRAME_CACHE_BYTES = 1 << 30
OPEN_FILES = 256
MOST_JSON_BYTES = 1 << 28  # of an index or a manifest: ten million retired clips
WASTE_BYTES_PER_CALL = 64 << 10  # reading this much too much costs about as much as one more call

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One clip of a store."""

    key: str
    split: Literal["train", "heldout"]
    frames: int
    fps: float
    caption: str
    source: str  # file name of the video it was cut from
    start_s: float
    labels: dict[str, str]
    boxes: tuple[BoxedFrame, ...]
    source_fps: float | None  # mean rate of a video slower than the store; None: fast enough
    shard: int  # place in Store.index.shards
    members: dict[str, tuple[int, int]]  # name -> (offset, size) in bytes


OF_ENTRY = tuple(field.name for field in fields(Sample) if field.name != "shard")


def open_store(
    location: str | Path, *, cache: Path | None = None, frame_cache_bytes: int = FRAME_CACHE_BYTES
) -> "Store":
    """Opens a published store: a folder or "s3://bucket/prefix".

    Args:
        cache: node-local folder for shards read from S3.
        frame_cache_bytes: decoded frames of a pixel store kept in memory.

    Raises:
        ShardError: the store was never published, has another format version, or a shard is missing
            or has another size than its manifest says.
    """
    storage = open_storage(location, cache=cache)
    sizes = storage.list()
    _check_described(storage, sizes)
    index = parse_published(Index, read_index(storage), where=f"{storage}/{INDEX_NAME}")
    with ThreadPoolExecutor(16) as pool:
        manifests = list(
            pool.map(lambda shard: _checked_manifest(storage, index, shard, sizes), index.shards)
        )
    return Store(
        storage, index, _live_samples(index, manifests), frame_cache_bytes=frame_cache_bytes
    )


class Store:
    """Random access to clips. May be shared by threads; do not carry it into a forked process."""

    def __init__(
        self, storage: Storage, index: Index, samples: list[Sample], *, frame_cache_bytes: int
    ):
        self.index, self.samples = index, samples
        self._storage = storage
        self._files = _OpenFiles(self._open_shard)
        self._cache = FrameCache(frame_cache_bytes)
        self._shapes = SameShapes()
        self._total_frames = sum(sample.frames for sample in samples)

    @property
    def identity(self) -> StoreIdentity:
        """What decided the bytes of this store."""
        return self.index.identity

    def read_latents(self, sample: Sample, frames: Sequence[int]) -> Tensor:
        """The latents of some frames, unscaled, float32 (t c h w); others are not read."""
        offset, size = self._member(sample, "latents.npy")
        head = self._pread(sample, offset, min(size, HEADER_BYTES))
        shape, start = parse_npy_header(head, size=size)
        self._shapes.check_latents(shape, sample.frames, clip=sample.key)
        wanted = (min(frames), max(frames))
        assert 0 <= wanted[0] <= wanted[1] < shape[0], f"frames {wanted} of a clip of {shape[0]}"
        row_bytes = (size - start) // shape[0]
        rows = np.empty((len(frames), *shape[1:]), np.float16)
        for into, first, count in _spans(frames, row_bytes):
            raw = self._pread(sample, offset + start + first * row_bytes, count * row_bytes)
            span = np.frombuffer(raw, np.float16).reshape(count, *shape[1:])
            rows[into] = span[np.asarray(frames[into]) - first]
        return torch.from_numpy(rows).float()

    def read_frames(
        self, sample: Sample, frames: Sequence[int], *, resize_to: tuple[int, int] | None = None
    ) -> Tensor:
        """Some frames of a pixel store's clip, uint8 (t h w c), RGB.

        Args:
            resize_to: (height, width) to which they are averaged down; None: as stored.
        """
        size = resize_to or (self.identity.height_px, self.identity.width_px)

        def decode(missing: Sequence[int]) -> dict[int, np.ndarray]:
            video = self._pread(sample, *self._member(sample, "mp4"))
            # Opening a clip costs about as much as decoding all of it: where everything can be
            # kept, everything is decoded once.
            wanted = range(sample.frames) if self._all_fit(size) else missing
            decoded = decode_clip_frames(video, wanted, width_px=self.identity.width_px)
            return dict(zip(wanted, _shrink(decoded, size), strict=True))

        return torch.from_numpy(self._cache.read((sample.key, size), frames, decode))

    def _all_fit(self, size: tuple[int, int]) -> bool:
        return self._total_frames * size[0] * size[1] * 3 <= self._cache.limit_bytes

    def read_text(self, sample: Sample) -> Tensor:
        """The caption's embedding, float32 (l d)."""
        offset, size = self._member(sample, "text.npy")
        text = parse_npy(self._pread(sample, offset, size))
        self._shapes.check_text(text.shape, clip=sample.key)
        return torch.from_numpy(text.astype(np.float32))

    def verify(self) -> None:
        """Reads every shard and compares it with its digest.

        Raises:
            ShardError: names the first shard that was modified.
        """
        for shard in self.index.shards:
            found = self._storage.sha256(f"{shard.name}.tar")
            if found != shard.sha256:
                raise ShardError(
                    f"Shard {f'{self._storage}/{shard.name}.tar'!r} has sha256 {found[:12]}, its "
                    f"manifest says {shard.sha256[:12]}: it was modified; delete it and run the "
                    "encode step again."
                )

    def close(self) -> None:
        """Closes the shards; the next read opens them again."""
        self._files.close()

    def _member(self, sample: Sample, name: str) -> tuple[int, int]:
        if name not in sample.members:
            raise UserError(
                f"Store {str(self._storage)!r} holds {self.index.kind}, its samples have "
                f"{sorted(sample.members)} and no {name!r}; give the stage a store of the other "
                "kind."
            )
        return sample.members[name]

    def _pread(self, sample: Sample, offset: int, size: int) -> bytes:
        content = self._files.use(sample.shard, lambda file: os.pread(file, size, offset))
        if len(content) != size:
            name = f"{self._storage}/{self.index.shards[sample.shard].name}.tar"
            raise ShardError(
                f"Shard {name!r} ended after {offset + len(content)} bytes where {offset + size} "
                "were expected: it was truncated; delete it and run the encode step again."
            )
        return content

    def _open_shard(self, shard: int) -> int:
        name, sha256 = f"{self.index.shards[shard].name}.tar", self.index.shards[shard].sha256
        try:
            return os.open(self._storage.local_copy(name, sha256), os.O_RDONLY)
        except FileNotFoundError:
            raise _missing(f"{self._storage}/{name}") from None


class _OpenFiles:
    """Files of the shards used last: a store may have more than a process may open."""

    def __init__(self, opener: Callable[[int], int]):
        self._opener = opener
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, shard: int, read: Callable[[int], T]) -> T:
        # Reading under the lock keeps another thread from closing the file meanwhile.
        with self._lock:
            if shard not in self._open:
                self._open[shard] = self._opener(shard)
                if len(self._open) > OPEN_FILES:
                    os.close(self._open.popitem(last=False)[1])
            self._open.move_to_end(shard)
            return read(self._open[shard])

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _spans(frames: Sequence[int], row_bytes: int) -> list[tuple[slice, int, int]]:
    """Groups rising `frames` into reads: (which of them, first row, rows to read).

    Two neighbours share a read when the rows between them cost less than another call.
    """
    spans: list[tuple[slice, int, int]] = []
    begin = 0
    for i in range(1, len(frames) + 1):
        gap = frames[i] - frames[i - 1] - 1 if i < len(frames) else None
        if gap is None or gap < 0 or gap * row_bytes > WASTE_BYTES_PER_CALL:
            spans.append((slice(begin, i), frames[begin], frames[i - 1] - frames[begin] + 1))
            begin = i
    return spans


def _check_described(storage: Storage, sizes: dict[str, int]) -> None:
    """Refuses an index or a manifest that would fill the memory, before one is read."""
    for name, size in sizes.items():
        is_read = name == INDEX_NAME or (name.startswith("shard-") and name.endswith(".json"))
        if is_read and size > MOST_JSON_BYTES:
            where, most = f"{storage}/{name}", MOST_JSON_BYTES
            raise ShardError(f"{where!r} has {size} bytes, expected at most {most}; encode again.")


def _checked_manifest(
    storage: Storage, index: Index, shard: IndexedShard, sizes: dict[str, int]
) -> Manifest:
    tar = f"{shard.name}.tar"
    try:
        text = storage.read_bytes(f"{shard.name}.json")
    except FileNotFoundError:
        raise _missing(f"{storage}/{shard.name}.json") from None
    manifest = parse_published(Manifest, text, where=f"{storage}/{shard.name}.json")
    if tar not in sizes:
        raise _missing(f"{storage}/{tar}")
    if sizes[tar] != manifest.size_bytes:
        raise ShardError(
            f"Shard {f'{storage}/{tar}'!r} has {sizes[tar]} bytes, its manifest says "
            f"{manifest.size_bytes}; delete it and run the encode step again."
        )
    said = (manifest.shard, manifest.sha256, manifest.identity)
    if said != (shard.name, shard.sha256, index.identity.digest()):
        raise ShardError(
            f"Shard {f'{storage}/{tar}'!r} is not the one that {INDEX_NAME} names; run the "
            "encode step again."
        )
    return manifest


def _live_samples(index: Index, manifests: list[Manifest]) -> list[Sample]:
    samples = []
    for place, manifest in enumerate(manifests):
        retired = set(index.retired.get(manifest.shard, ()))
        for entry in manifest.samples:
            if entry.key not in retired:
                told = {name: getattr(entry, name) for name in OF_ENTRY}
                samples.append(Sample(shard=place, **told))
    return samples


def _missing(path: str) -> ShardError:
    return ShardError(
        f"{path!r} is missing though {INDEX_NAME} names it; run the encode step again."
    )


def _shrink(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 frames (t h w 3) averaged down to (height, width) and rounded."""
    if frames.shape[1:3] == size:
        return frames
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = interpolate(planes, size=size, mode="area").round_().to(torch.uint8)
    return small.permute(0, 2, 3, 1).contiguous().numpy()
