"""The shard format round trips, is deterministic, and is a plain WebDataset."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from videoldm_core.data.npy import parse_npy_header
from videoldm_core.data.shards import (
    Index,
    LatentClip,
    PixelClip,
    ShardWriter,
    from_members,
    parse_published,
    to_members,
)
from videoldm_core.errors import ShardError

from .conftest import identity_of, latent_clip, pixel_clip


def _write(path: Path, clips: list[LatentClip | PixelClip]):
    with ShardWriter(path, shard="shard-000000", identity=identity_of("latents")) as writer:
        for clip in clips:
            writer.add(clip)
    return writer.manifest()


def test_latent_clip_survives_the_round_trip():
    clip = latent_clip(3, 9)
    again = from_members(to_members(clip))
    assert isinstance(again, LatentClip)
    assert again.info == clip.info
    np.testing.assert_array_equal(again.latents, clip.latents)
    np.testing.assert_array_equal(again.text, clip.text)


def test_pixel_clip_survives_the_round_trip():
    clip = pixel_clip(2, 4)
    again = from_members(to_members(clip))
    assert isinstance(again, PixelClip)
    assert (again.info, again.video) == (clip.info, clip.video)


def test_equal_clips_give_equal_bytes_and_another_clip_does_not(tmp_path):
    first = _write(tmp_path / "a.tar", [latent_clip(0, 5), latent_clip(1, 5)])
    second = _write(tmp_path / "b.tar", [latent_clip(0, 5), latent_clip(1, 5)])
    other = _write(tmp_path / "c.tar", [latent_clip(0, 5), latent_clip(2, 5)])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert first == second
    assert other.sha256 != first.sha256


def test_manifest_tells_where_every_member_is(tmp_path):
    path = tmp_path / "a.tar"
    clips: list[LatentClip | PixelClip] = [latent_clip(i, 5) for i in range(3)]
    manifest = _write(path, clips)
    raw = path.read_bytes()
    assert manifest.size_bytes == len(raw)
    for entry, clip in zip(manifest.samples, clips, strict=True):
        members = {name: raw[at : at + size] for name, (at, size) in entry.members.items()}
        assert members == to_members(clip)
    with tarfile.open(path) as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} == {(0, 0, 0, 0o444)}


def test_plain_webdataset_reads_a_shard(tmp_path):
    clips: list[LatentClip | PixelClip] = [latent_clip(1, 5), pixel_clip(2, 4)]
    _write(tmp_path / "a.tar", clips)
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [clip.info.key for clip in clips]
    np.testing.assert_array_equal(samples[0]["latents.npy"], latent_clip(1, 5).latents)
    np.testing.assert_array_equal(samples[0]["text.npy"], clips[0].text)
    assert samples[0]["txt"] == "a car número 1"
    assert samples[0]["json"]["frames"] == 5
    assert samples[1]["mp4"] == pixel_clip(2, 4).video


def test_identity_depends_on_every_field():
    identity = identity_of("latents")
    changes = [
        {"kind": "pixels"},
        {"encoder": "x"},
        {"preprocessing": "x"},
        {"fps": 8},
        {"height_px": 8},
        {"width_px": 8},
        {"text": "x"},
        {"format_version": 2},
    ]
    digests = {identity.model_copy(update=change).digest() for change in changes}
    assert len(digests | {identity.digest()}) == len(changes) + 1
    assert {key for change in changes for key in change} == set(identity.model_fields_set) | {
        "format_version"
    }


def test_another_format_version_is_refused_by_number():
    with pytest.raises(
        ShardError, match=r"'index.json' has format version 7, this code reads 1. Re-run the encode"
    ):
        parse_published(Index, b'{"format": 7, "rows": []}', where="index.json")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"kind": 1}', b"\xff\xfe"])
def test_a_damaged_index_is_named(text):
    with pytest.raises(ShardError, match=r"'x/index.json' is not readable; delete it and run"):
        parse_published(Index, text, where="x/index.json")


def test_an_index_without_shards_is_named():
    with pytest.raises(
        ShardError,
        match=r"'i' lacks what a index must say \(key 'kind' is missing; add it\); delete it",
    ):
        parse_published(Index, b'{"format": 1}', where="i")


def test_an_array_that_is_no_float16_npy_is_refused():
    with pytest.raises(ShardError, match="expected a float16 .npy"):
        parse_npy_header(b"RIFF" + bytes(124), size=128)
