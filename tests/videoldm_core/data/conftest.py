"""Small stores with known content: frame t of clip i is recognisable in latents and pixels."""

from pathlib import Path

import numpy as np
import pytest

from videoldm_core.data.pixels import encode_clip
from videoldm_core.data.shards import (
    ClipInfo,
    Index,
    IndexedShard,
    LatentClip,
    PixelClip,
    ShardWriter,
    StoreIdentity,
)


def clip_info(number: int, frames: int, split: str = "train") -> ClipInfo:
    return ClipInfo(
        key=f"{number:016x}",
        source=f"video {number}.mp4",
        source_digest="ab" * 32,
        start_s=0.5 * number,
        fps=16,
        frames=frames,
        caption=f"a car número {number}",
        split="heldout" if split == "heldout" else "train",
    )


def identity_of(kind: str) -> StoreIdentity:
    return StoreIdentity(
        kind="pixels" if kind == "pixels" else "latents",
        encoder="e" * 64,
        preprocessing="area v1",
        fps=16,
        height_px=32,
        width_px=48,
        text="f" * 64,
    )


def latent_clip(number: int, frames: int, split: str = "train") -> LatentClip:
    """latents[t, c, h, w] = number + t / 32 everywhere."""
    values = number + np.arange(frames, dtype=np.float16)[:, None, None, None] / 32
    return LatentClip(
        info=clip_info(number, frames, split),
        latents=np.broadcast_to(values, (frames, 4, 3, 5)).astype(np.float16),
        text=np.full((7, 6), number, np.float16),
    )


def pixel_clip(number: int, frames: int, split: str = "train") -> PixelClip:
    """Frame t is grey of level 10 * number + 4 * t, 32x48."""
    greys = (10 * number + 4 * np.arange(frames)).astype(np.uint8)[:, None, None, None]
    return PixelClip(
        info=clip_info(number, frames, split),
        video=encode_clip(np.broadcast_to(greys, (frames, 32, 48, 3)).copy(), fps=16),
        text=np.full((7, 6), number, np.float16),
    )


def write_store(folder: Path, kind: str, shards: list[list[LatentClip | PixelClip]]) -> Path:
    """Publishes clips as a store, one list per shard."""
    folder.mkdir(parents=True, exist_ok=True)
    identity, indexed = identity_of(kind), []
    for i, clips in enumerate(shards):
        name = f"shard-{i:06d}"
        with ShardWriter(folder / f"{name}.tar", shard=name, identity=identity) as writer:
            for clip in clips:
                writer.add(clip)
        manifest = writer.manifest()
        (folder / f"{name}.json").write_text(manifest.model_dump_json())
        indexed.append(IndexedShard(name=name, sha256=manifest.sha256, samples=len(clips)))
    index = Index(kind=identity.kind, identity=identity, shards=tuple(indexed))
    (folder / "index.json").write_text(index.model_dump_json())
    return folder


@pytest.fixture
def latent_store(tmp_path: Path) -> Path:
    """Five clips of 20 to 24 frames in two shards; the last is held out."""
    clips: list[LatentClip | PixelClip] = [
        latent_clip(i, 20 + i, "heldout" if i == 4 else "train") for i in range(5)
    ]
    return write_store(tmp_path / "latents", "latents", [clips[:3], clips[3:]])


@pytest.fixture
def pixel_store(tmp_path: Path) -> Path:
    """Three clips of 8 frames in one shard; the last is held out."""
    clips: list[LatentClip | PixelClip] = [
        pixel_clip(i, 8, "heldout" if i == 2 else "train") for i in range(3)
    ]
    return write_store(tmp_path / "pixels", "pixels", [clips])
