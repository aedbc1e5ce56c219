"""Batches hold what the plan says, on any number of processes, and pass errors on."""

import os
import threading
from pathlib import Path

import pytest
import torch

from videoldm_core.data.loader import Batches, read_batch
from videoldm_core.data.plan import Plan, Windows
from videoldm_core.data.store import open_store
from videoldm_core.errors import ShardError, UserError


def _plan(store, **changes) -> Plan:
    options = {"frames": 3, "strides": (4, 1), "split": "train"} | changes
    return Plan(Windows(store, **options), global_batch=8, seed=3)


def _threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_a_batch_holds_the_frames_of_its_windows(latent_store: Path):
    store = open_store(latent_store)
    plan = _plan(store)
    with Batches(store, plan, start_step=5) as batches:
        batch = next(batches)
    assert (batch.clip.dtype, batch.clip.shape) == (torch.float32, (8, 3, 4, 3, 5))
    assert batch.text.shape == (8, 7, 6)
    assert batch.sample_ids.tolist() == list(range(40, 48))
    for row, number in enumerate(plan.indices(5)):
        window = plan.windows[number]
        frames = window.start + window.stride * torch.arange(3)
        assert torch.equal(
            batch.clip[row, :, 0, 0, 0], (window.sample + frames / 32).half().float()
        )
        assert torch.equal(batch.text[row, 0, 0], torch.tensor(float(window.sample)))
        assert batch.stride_index[row] == window.stride_index
        assert plan.windows.strides[window.stride_index] == window.stride


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_together_read_the_global_batches_in_order(latent_store: Path, world: int):
    store = open_store(latent_store)
    plan = _plan(store)
    readers = [Batches(store, plan, rank=rank, world=world, start_step=2) for rank in range(world)]
    for step in (2, 3, 4):
        whole = read_batch(store, plan.windows, plan.indices(step), first_id=8 * step)
        parts = [next(reader) for reader in readers]
        for name in ("clip", "text", "stride_index", "sample_ids"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
    for reader in readers:
        reader.close()
    assert _threads() == 0


def test_pixels_are_scaled_to_plus_minus_one_and_averaged_down(pixel_store: Path):
    store = open_store(pixel_store)
    windows = Windows(store, frames=2, strides=(3,), split="train")
    full = read_batch(store, windows, [6])
    small = read_batch(store, windows, [6], resize_to=(8, 12))
    assert full.clip.shape == (1, 2, 3, 32, 48)
    assert small.clip.shape == (1, 2, 3, 8, 12)
    window = windows[6]
    for t, frame in enumerate((window.start, window.start + 3)):
        expected = (10 * window.sample + 4 * frame) / 127.5 - 1
        assert full.clip[0, t].mean() == pytest.approx(expected, abs=0.01)
        assert small.clip[0, t].mean() == pytest.approx(full.clip[0, t].mean().item(), abs=1e-5)


def test_an_error_of_the_reader_reaches_the_consumer_and_ends_the_thread(latent_store: Path):
    store = open_store(latent_store)
    for name in ("shard-000000.tar", "shard-000001.tar"):
        os.truncate(latent_store / name, 600)
    batches = Batches(store, _plan(store))
    with pytest.raises(ShardError, match="truncated"):
        next(batches)
    assert _threads() == 0
    with pytest.raises(StopIteration):
        next(batches)


def test_closing_early_ends_the_thread(latent_store: Path):
    store = open_store(latent_store)
    batches = Batches(store, _plan(store))
    next(batches)
    batches.close()
    batches.close()
    assert _threads() == 0


def test_a_batch_that_cannot_be_shared_fails_at_once(latent_store: Path):
    store = open_store(latent_store)
    with pytest.raises(UserError, match="batch of 8 cannot be shared by 3 processes"):
        Batches(store, _plan(store), rank=0, world=3)
    assert _threads() == 0
