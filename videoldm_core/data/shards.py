"""The shard format, both ways: clips <-> the members of a plain WebDataset tar, and its manifest.

A store is a folder of shard-NNNNNN.tar, each with a manifest shard-NNNNNN.json that tells where
every member's bytes are, and one index.json, published last. This file does not know where stores
live (storage.py), how they are read at training time (store.py), or how clips are made
(preprocessing).
"""

import functools
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeVar, cast

import numpy as np

from videoldm_core.annotations import Annotations
from videoldm_core.errors import ShardError
from videoldm_core.files import disk_error
from videoldm_core.records import Record

FORMAT_VERSION = 1
INDEX_NAME = "index.json"

Kind = Literal["latents", "pixels"]
P = TypeVar("P", bound=Record)


class ClipInfo(Annotations):
    """What is known about a clip, however its frames are stored; a sample's JSON member."""

    key: str  # 16 hex digits, from the source's digest and the times
    source: str  # file name of the video it was cut from
    source_digest: str
    start_s: float  # of the first frame, in the source
    fps: float  # of the clip, after resampling
    frames: int
    caption: str
    split: Literal["train", "heldout"]


class StoreIdentity(Record):
    """Everything that decides the bytes of a store; another value of any field is another store."""

    kind: Kind
    encoder: str  # digest of the image encoder's weights, or the pixel codec with its settings
    preprocessing: str  # decoder, resizer and their versions
    fps: float
    height_px: int  # of the frames that were encoded
    width_px: int
    text: str  # digest of the text tower
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

    members: dict[str, tuple[int, int]]  # name without the key -> (offset, size) in bytes


class DroppedClip(Record):
    """A clip that could not be decoded; it is left out of its shard, never fatal to it."""

    key: str
    source: str
    reason: str


class Manifest(Record):
    """What one shard holds; written beside the tar once the tar is complete and verified."""

    format: int = FORMAT_VERSION
    shard: str  # "shard-000000"
    identity: str  # StoreIdentity.digest()
    sha256: str  # of the tar
    size_bytes: int  # of the tar
    samples: tuple[SampleEntry, ...]
    dropped: tuple[DroppedClip, ...]


class IndexedShard(Record):
    """One line of the index."""

    name: str
    sha256: str
    samples: int


class Index(Record):
    """The store's table of contents; its presence means that every shard it names is complete.

    Shards are never rewritten. When videos or captions change, new clips get new shards, and
    `retired` names the samples of old ones that no longer hold.
    """

    format: int = FORMAT_VERSION
    kind: Kind
    identity: StoreIdentity
    shards: tuple[IndexedShard, ...]
    retired: dict[str, tuple[str, ...]] = {}  # shard -> keys


def parse_published(kind: type[P], text: bytes, *, where: str) -> P:
    """Reads a manifest or an index.

    Raises:
        ShardError: the format version is another one, or the file is damaged.
    """
    try:
        version = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        raise ShardError(
            f"{where!r} is not readable; delete it and run the encode step again."
        ) from None
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{where!r} has format version {version}, this code reads {FORMAT_VERSION}. "
            "Re-run the encode step on its source clips."
        )
    try:
        return kind.model_validate_json(text)
    except ValueError:
        raise ShardError(
            f"{where!r} lacks what a {kind.__name__.lower()} must say; delete it and run the "
            "encode step again."
        ) from None


def to_members(clip: LatentClip | PixelClip) -> dict[str, bytes]:
    """The members of one sample, by name without the key."""
    members = {
        "json": _json_bytes(clip.info),
        "txt": clip.info.caption.encode(),
        "text.npy": _npy_bytes(clip.text),
    }
    if isinstance(clip, LatentClip):
        return members | {"latents.npy": _npy_bytes(clip.latents)}
    return members | {"mp4": clip.video}


def from_members(members: dict[str, bytes]) -> LatentClip | PixelClip:
    """The clip that `to_members` took apart."""
    info = ClipInfo.model_validate_json(members["json"])
    text = np.load(io.BytesIO(members["text.npy"]), allow_pickle=False)
    if "mp4" in members:
        return PixelClip(info=info, video=members["mp4"], text=text)
    latents = np.load(io.BytesIO(members["latents.npy"]), allow_pickle=False)
    return LatentClip(info=info, latents=latents, text=text)


class ShardWriter:
    """Writes one tar; equal clips in equal order give equal bytes.

    Use as a context manager; `manifest` tells, after it, what was written.
    """

    def __init__(self, path: Path, *, shard: str, identity: StoreIdentity):
        self._shard, self._identity = shard, identity
        self._file = _HashingFile(path)
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


@functools.lru_cache(maxsize=256)
def parse_npy_header(head: bytes) -> tuple[tuple[int, ...], int]:
    """Shape of a float16 .npy and where its data starts, from (at least) its first 128 bytes.

    Raises:
        ShardError: it is no .npy of float16 in C order.
    """
    stream = io.BytesIO(head)
    try:
        assert np.lib.format.read_magic(stream) == (1, 0), "the writer uses .npy version 1.0"
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        assert (dtype, fortran_order) == (np.float16, False), "the writer uses float16 in C order"
    except (ValueError, AssertionError) as error:
        raise ShardError(
            f"A shard's array begins with {head[:16]!r}, expected a float16 .npy ({error}); "
            "delete the shard and run the encode step again."
        ) from None
    return shape, stream.tell()


class _HashingFile:
    """A file being written whose digest and length are known when it is closed."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.size += len(content)
        try:
            return self._file.write(content)
        except OSError as error:
            raise disk_error(self._path, error) from error

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(self._path, error) from error


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the names of owner and group empty
    info.size, info.mode = size, 0o444
    return info


def _json_bytes(info: ClipInfo) -> bytes:
    return json.dumps(info.model_dump(), sort_keys=True, ensure_ascii=False).encode()


def _npy_bytes(array: np.ndarray) -> bytes:
    assert array.dtype == np.float16, f"shards hold float16, got {array.dtype}"
    stream = io.BytesIO()
    np.lib.format.write_array(
        stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return stream.getvalue()
