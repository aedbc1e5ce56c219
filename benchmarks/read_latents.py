"""Latent batches per second: our indexed reads against a plain webdataset pipeline, side by side.

    python benchmarks/read_latents.py --samples 3200 --rounds 3

Writes a store of random clips (16 frames of 4x32x32 latents, 8 tokens of text), then reads batches
of 8 clips (latents and text, float32) in turns: each reader once per round, page cache warm. Ours
is shuffled in full; webdataset reads in order, its cheapest way.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset

from videoldm_core.data.loader import Batches, read_batch
from videoldm_core.data.plan import Plan, Windows
from videoldm_core.data.shards import (
    ClipInfo,
    Index,
    IndexedShard,
    LatentClip,
    ShardWriter,
    StoreIdentity,
)
from videoldm_core.data.store import Store, open_store

FRAMES, BATCH, SHARDS = 16, 8, 8
IDENTITY = StoreIdentity(
    kind="latents",
    encoder="random",
    preprocessing="none",
    fps=16,
    height_px=256,
    width_px=256,
    text="random",
)


def write_store(folder: Path, samples: int) -> None:
    """Publishes a store of random clips."""
    generator = np.random.default_rng(0)
    shards = []
    for shard, keys in enumerate(np.array_split(np.arange(samples), SHARDS)):
        name = f"shard-{shard:06d}"
        with ShardWriter(folder / f"{name}.tar", shard=name, identity=IDENTITY) as writer:
            for key in keys:
                writer.add(_random_clip(int(key), generator))
        manifest = writer.manifest()
        (folder / f"{name}.json").write_text(manifest.model_dump_json())
        shards.append(IndexedShard(name=name, sha256=manifest.sha256, samples=len(keys)))
    index = Index(kind="latents", identity=IDENTITY, shards=tuple(shards))
    (folder / "index.json").write_text(index.model_dump_json())


def _random_clip(number: int, generator: np.random.Generator) -> LatentClip:
    return LatentClip(
        info=ClipInfo(
            key=f"{number:016x}",
            source="random",
            source_digest="random",
            start_s=0,
            fps=16,
            frames=FRAMES,
            caption="a car",
            split="train",
        ),
        latents=generator.standard_normal((FRAMES, 4, 32, 32), np.float32).astype(np.float16),
        text=generator.standard_normal((8, 64), np.float32).astype(np.float16),
    )


def indexed(store: Store, plan: Plan, steps: int) -> Iterator[torch.Tensor]:
    """Our reads in the same thread."""
    for step in range(steps):
        yield read_batch(store, plan.windows, plan.indices(step)).clip


def prefetched(store: Store, plan: Plan, steps: int) -> Iterator[torch.Tensor]:
    """Our reads as training uses them: one background thread."""
    with Batches(store, plan) as batches:
        for batch in itertools.islice(batches, steps):
            yield batch.clip


def plain_webdataset(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """The stock pipeline over the same shards."""
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    samples = WebDataset(shards, shardshuffle=False).decode()
    batches = samples.to_tuple("latents.npy", "text.npy").batched(BATCH, collation_fn=_stack)
    for latents, _ in DataLoader(batches, batch_size=None, num_workers=workers):
        yield latents


def _stack(samples: list[tuple[np.ndarray, ...]]) -> tuple[torch.Tensor, ...]:
    columns = zip(*samples, strict=True)
    return tuple(torch.from_numpy(np.stack(column)).float() for column in columns)


def samples_per_second(batches: Iterator[torch.Tensor]) -> float:
    """Rate from the first request to the last batch."""
    began, count = time.perf_counter(), 0
    for clip in batches:
        count += len(clip)
        assert clip.shape[1:] == (FRAMES, 4, 32, 32)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measures and reports."""
    options = argparse.ArgumentParser(description="Latent batches per second.")
    options.add_argument("--samples", type=int, default=3200)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(1)  # for every reader alike, as DataLoader's workers do
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        write_store(folder, chosen.samples)
        written = time.perf_counter()
        store = open_store(folder)
        opened = time.perf_counter()
        plan = Plan(Windows(store, frames=FRAMES, strides=(1,), split="train"), BATCH, seed=0)
        steps = chosen.samples // BATCH
        readers: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
            "webdataset, in order": lambda: plain_webdataset(folder, 0),
            "webdataset, in order, 2 workers": lambda: plain_webdataset(folder, 2),
            "indexed, shuffled, same thread": lambda: indexed(store, plan, steps),
            "indexed, shuffled, one prefetch thread": lambda: prefetched(store, plan, steps),
        }
        rates = {reader: [] for reader in readers}
        for _ in range(chosen.rounds):
            for reader, start in readers.items():
                rates[reader].append(samples_per_second(start()))
    report = [
        f"{chosen.samples} samples: written at {chosen.samples / (written - began):.0f}/s, "
        f"opened in {1000 * (opened - written):.0f} ms"
    ]
    best = max(statistics.median(rates[reader]) for reader in readers if "webdataset" in reader)
    for reader, found in rates.items():
        median = statistics.median(found)
        report.append(
            f"{reader:40s} {median:7.0f} samples/s  {median / best:5.2f}x the best webdataset  "
            f"({', '.join(f'{rate:.0f}' for rate in found)})"
        )
    sys.stdout.write("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
