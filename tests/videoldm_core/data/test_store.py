"""A store gives back the frames that were written, and names what is wrong with a damaged one."""

import os
from pathlib import Path

import pytest
import torch

from videoldm_core.data.shards import Index
from videoldm_core.data.store import Store, open_store
from videoldm_core.errors import ShardError, UserError

from .conftest import latent_clip, write_store


@pytest.mark.parametrize(
    "frames", [[0], [19], range(20), [0, 4, 8, 12, 16], [1, 2, 3, 9, 10], [5, 3, 3, 18], (7, 6)]
)
def test_latents_of_exactly_the_frames_asked_for(latent_store: Path, frames):
    store = open_store(latent_store)
    for number, sample in enumerate(store.samples):
        latents = store.read_latents(sample, frames)
        assert (latents.dtype, latents.shape) == (torch.float32, (len(frames), 4, 3, 5))
        expected = number + torch.tensor(list(frames)) / 32
        assert torch.equal(latents[:, 1, 2, 3], expected.half().float())


def test_frames_that_are_not_asked_for_are_not_read(tmp_path, monkeypatch):
    big = latent_clip(0, 64)
    object.__setattr__(big, "latents", big.latents.repeat(40, axis=2).repeat(40, axis=3))
    store = open_store(write_store(tmp_path / "s", "latents", [[big]]))
    read_bytes = 0
    pread = os.pread

    def counting(file: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        read_bytes += size
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    latents = store.read_latents(store.samples[0], [0, 16, 32, 48])
    assert torch.equal(latents[:, 0, 0, 0], torch.tensor([0, 0.5, 1, 1.5]))
    assert read_bytes == 128 + latents.numel() * 2


def test_text_caption_and_split_come_with_the_sample(latent_store: Path):
    store = open_store(latent_store)
    assert [s.split for s in store.samples] == ["train"] * 4 + ["heldout"]
    assert [s.frames for s in store.samples] == [20, 21, 22, 23, 24]
    assert store.samples[3].caption == "a car número 3"
    assert torch.equal(store.read_text(store.samples[3]), torch.full((7, 6), 3.0))


def test_pixel_frames_are_exact_and_kept_in_memory(pixel_store: Path, monkeypatch):
    store = open_store(pixel_store)
    for _ in range(2):
        frames = store.read_frames(store.samples[1], [6, 0, 3])
        assert (frames.dtype, frames.shape) == (torch.uint8, (3, 32, 48, 3))
        assert [round(f.float().mean().item()) for f in frames] == [34, 10, 22]
        monkeypatch.setattr("videoldm_core.data.store.decode_clip_frames", None)


def test_a_latent_store_has_no_frames(latent_store: Path):
    store = open_store(latent_store)
    with pytest.raises(UserError, match="holds latents, .* no 'mp4'; give the stage a store of"):
        store.read_frames(store.samples[0], [0])


def test_retired_samples_are_skipped(latent_store: Path):
    index = Index.model_validate_json((latent_store / "index.json").read_text())
    changed = index.model_copy(update={"retired": {"shard-000000": (f"{1:016x}",)}})
    (latent_store / "index.json").write_text(changed.model_dump_json())
    assert [s.key[-1] for s in open_store(latent_store).samples] == ["0", "2", "3", "4"]


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"no index.json: it is no store, or its encode step has"):
        open_store(tmp_path)
    with pytest.raises(ShardError, match="no index.json"):
        open_store(tmp_path / "nowhere")


def test_another_format_version_says_what_to_do(latent_store: Path):
    path = latent_store / "index.json"
    path.write_text(path.read_text().replace('"format":1', '"format":2', 1))
    with pytest.raises(ShardError, match="index.json' has format version 2, this code reads 1"):
        open_store(latent_store)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.json"])
def test_a_missing_file_is_named(latent_store: Path, name: str):
    (latent_store / name).unlink()
    with pytest.raises(ShardError, match=f"{name}' is missing though index.json names it; run"):
        open_store(latent_store)


def test_a_truncated_shard_is_found_on_open(latent_store: Path):
    path = latent_store / "shard-000000.tar"
    size = path.stat().st_size
    os.truncate(path, 3000)
    with pytest.raises(ShardError, match=f"has 3000 bytes, its manifest says {size}; delete it"):
        open_store(latent_store)


def test_a_shard_truncated_after_opening_raises_instead_of_returning_rubbish(latent_store: Path):
    store = open_store(latent_store)
    os.truncate(latent_store / "shard-000000.tar", 3000)
    with pytest.raises(ShardError, match="shard-000000.tar' ended after .* truncated; delete it"):
        store.read_latents(store.samples[2], range(20))


def test_verify_finds_one_changed_bit(latent_store: Path):
    store = open_store(latent_store)
    store.verify()
    path = latent_store / "shard-000001.tar"
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ShardError, match="shard-000001.tar' has sha256 .* was modified; delete it"):
        open_store(latent_store).verify()


def test_a_shard_of_another_store_is_refused(latent_store: Path, tmp_path: Path):
    other = write_store(tmp_path / "other", "latents", [[latent_clip(9, 20)]])
    for suffix in ("tar", "json"):
        (latent_store / f"shard-000000.{suffix}").write_bytes(
            (other / f"shard-000000.{suffix}").read_bytes()
        )
    with pytest.raises(ShardError, match="shard-000000.tar' is not the one that index.json names"):
        open_store(latent_store)


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("videoldm_core.data.store.OPEN_FILES", 2)
    folder = write_store(tmp_path / "s", "latents", [[latent_clip(i, 3)] for i in range(5)])
    store: Store = open_store(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number, sample in [*enumerate(store.samples)] * 2:
        assert store.read_latents(sample, [0])[0, 0, 0, 0] == number
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
