"""The shard format, both ways: clips <-> the members of a plain WebDataset tar, and its manifest.

A store is a folder of shard-NNNNNN.tar, each with a manifest shard-NNNNNN.json that tells where
every member's bytes are, and one index.json, published last. This file does not know where stores
live (storage.py), how they are read at training time (store.py), or how clips are made
(preprocessing).
"""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar, cast

import numpy as np
from pydantic import BaseModel, NonNegativeInt, ValidationError, model_validator

from videoldm_core.cascade.annotations import Annotations
from videoldm_core.data.hashing_file import HashingFile
from videoldm_core.data.names import (
    ClipKey,
    Frames,
    MemberName,
    Rate,
    Seconds,
    ShardName,
    Side,
    Words,
)
from videoldm_core.data.npy import npy_bytes, parse_npy
from videoldm_core.errors import ShardError
from videoldm_core.records import Digest, InnerPath, Record, problem_of, shown

FORMAT_VERSION = 1
INDEX_NAME = "index.json"

Kind = Literal["latents", "pixels"]
P = TypeVar("P", bound=Record)


class ClipInfo(Annotations):
    """What is known about a clip, however its frames are stored; a sample's JSON member."""

    key: ClipKey  # from the source's digest and the times
    source: InnerPath  # file name of the video it was cut from
    source_digest: Words
    start_s: Seconds  # of the first frame, in the source
    fps: Rate  # of the clip, after resampling
    frames: Frames
    caption: str
    split: Literal["train", "heldout"]

    @model_validator(mode="after")
    def _boxes_are_of_its_frames(self) -> Self:
        for boxed in self.boxes:
            if not 0 <= boxed.frame < self.frames:
                raise ValueError(f"boxes of frame {boxed.frame}, but it has {self.frames} frames")
        return self


class StoreIdentity(Record):
    """Everything that decides the bytes of a store; another value of any field is another store."""

    kind: Kind
    # Digest of the image encoder's weights, or the pixel codec with its settings.
    encoder: Words
    preprocessing: Words  # decoder, resizer and their versions
    fps: Rate
    height_px: Side  # of the frames that were encoded
    width_px: Side
    text: Words  # digest of the text tower
    format_version: int = FORMAT_VERSION

    def digest(self) -> str:
        """Hex SHA-256 of all fields."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentClip:
    """A clip as unscaled posterior means of the frozen image encoder."""

    info: ClipInfo
    latents: np.ndarray  # float16 (t c h w)
    text: np.ndarray  # float16 (l d)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelClip:
    """A clip as an all-intra, near-lossless mp4 (pixels.py)."""

    info: ClipInfo
    video: bytes
    text: np.ndarray  # float16 (l d)


class SampleEntry(ClipInfo):
    """One clip of a shard, with the place of its members in the tar."""

    # Name without the key -> (offset, size) in bytes.
    members: dict[MemberName, tuple[NonNegativeInt, NonNegativeInt]]


class DroppedClip(Record):
    """A clip that could not be decoded; it is left out of its shard, never fatal to it."""

    key: ClipKey
    source: InnerPath
    reason: str


class Manifest(Record):
    """What one shard holds; written beside the tar once the tar is complete and verified."""

    format: int = FORMAT_VERSION
    shard: ShardName
    identity: Digest  # StoreIdentity.digest()
    sha256: Digest  # of the tar
    size_bytes: NonNegativeInt  # of the tar
    samples: tuple[SampleEntry, ...]
    dropped: tuple[DroppedClip, ...]

    @model_validator(mode="after")
    def _members_lie_within(self) -> Self:
        for sample in self.samples:
            for name, (offset, size) in sample.members.items():
                if offset + size > self.size_bytes:
                    raise ValueError(
                        f"{name} of clip {sample.key} ends at byte {offset + size} of a shard of "
                        f"{self.size_bytes}"
                    )
        return self


class IndexedShard(Record):
    """One line of the index."""

    name: ShardName
    sha256: Digest
    samples: NonNegativeInt


class Index(Record):
    """The store's table of contents; its presence means that every shard it names is complete.

    Shards are never rewritten. When videos or captions change, new clips get new shards, and
    `retired` names the samples of old ones that no longer hold.
    """

    format: int = FORMAT_VERSION
    kind: Kind
    identity: StoreIdentity
    shards: tuple[IndexedShard, ...]
    retired: dict[ShardName, tuple[ClipKey, ...]] = {}  # shard -> keys

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> Self:
        if self.kind != self.identity.kind:
            raise ValueError(f"it is of {self.kind}, its identity of {self.identity.kind}")
        return self


class _Versioned(BaseModel):
    """Of a file of whichever version."""

    format: Any


def parse_published(kind: type[P], text: bytes, *, where: str) -> P:
    """Reads a manifest or an index.

    Raises:
        ShardError: the format version is another one, or the file is damaged.
    """
    try:
        version = _Versioned.model_validate_json(text).format
    except ValidationError:
        raise ShardError(
            f"{where!r} is not readable; delete it and run the encode step again."
        ) from None
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{where!r} has format version {shown(version)}, this code reads "
            f"{FORMAT_VERSION}. Re-run the encode step on its source clips."
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ShardError(
            f"{where!r} lacks what a {kind.__name__.lower()} must say "
            f"({problem_of(kind, error).removesuffix('.')}); delete it and run the encode step "
            "again."
        ) from None


def to_members(clip: LatentClip | PixelClip) -> dict[str, bytes]:
    """The members of one sample, by name without the key."""
    members = {
        "json": _json_bytes(clip.info),
        "txt": clip.info.caption.encode(),
        "text.npy": npy_bytes(clip.text),
    }
    if isinstance(clip, LatentClip):
        return members | {"latents.npy": npy_bytes(clip.latents)}
    return members | {"mp4": clip.video}


def from_members(members: dict[str, bytes]) -> LatentClip | PixelClip:
    """The clip that `to_members` took apart."""
    info = ClipInfo.model_validate_json(members["json"])
    text = parse_npy(members["text.npy"])
    if "mp4" in members:
        return PixelClip(info=info, video=members["mp4"], text=text)
    return LatentClip(info=info, latents=parse_npy(members["latents.npy"]), text=text)


class ShardWriter:
    """Writes one tar; equal clips in equal order give equal bytes.

    Use as a context manager; `manifest` tells, after it, what was written.
    """

    def __init__(self, path: Path, *, shard: str, identity: StoreIdentity):
        self._shard, self._identity = shard, identity
        self._file = HashingFile(path)
        # USTAR has no time stamps or ids beyond the header that `_member` fixes.
        self._tar = tarfile.TarFile(
            fileobj=cast(IO[bytes], self._file), mode="w", format=tarfile.USTAR_FORMAT
        )
        self._samples: list[SampleEntry] = []

    def add(self, clip: LatentClip | PixelClip) -> None:
        """Appends one sample."""
        places = {}
        for name, content in to_members(clip).items():
            self._tar.addfile(_member(f"{clip.info.key}.{name}", len(content)), io.BytesIO(content))
            padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            places[name] = (self._file.tell() - padded, len(content))
        self._samples.append(SampleEntry(members=places, **clip.info.model_dump()))

    def close(self) -> None:
        """Ends the tar and flushes it to the disk."""
        self._tar.close()
        self._file.close()

    def manifest(self, dropped: tuple[DroppedClip, ...] = ()) -> Manifest:
        """What the closed tar holds."""
        assert self._file.closed, "the manifest of a shard is known once it is closed"
        return Manifest(
            shard=self._shard,
            identity=self._identity.digest(),
            sha256=self._file.sha256.hexdigest(),
            size_bytes=self._file.size,
            samples=tuple(self._samples),
            dropped=dropped,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the names of owner and group empty
    info.size, info.mode = size, 0o444
    return info


def _json_bytes(info: ClipInfo) -> bytes:
    return json.dumps(info.model_dump(), sort_keys=True, ensure_ascii=False).encode()
