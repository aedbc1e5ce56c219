"""Batches for small image models, and a job that trains one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from videoldm_core.cascade.stage import Stage, VideoFormat
from videoldm_core.data.loader import Batch
from videoldm_core.data.shards import (
    ClipInfo,
    Index,
    IndexedShard,
    LatentClip,
    ShardWriter,
    StoreIdentity,
)
from videoldm_core.diffusion.conditioning import FirstFrames
from videoldm_core.evaluation.video import UsesFirstFrames
from videoldm_core.jobs.job import Job
from videoldm_core.models.text.encoder import TextConfig, TextTower
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.training.optimizer import OptimizerConfig

TEXT = (4, 8)  # l d
STEPS, CHECKPOINT_EVERY = 50, 4  # of `job_of`

STAGE = Stage(
    name="predictor",
    paper="§3.2",
    objective=Denoising(alpha="scalar", given=FirstFrames()),
    proves=UsesFirstFrames(),
    starts_from=("image",),
    trains=("temporal",),
    reads="latents",
    frames=3,
    strides=(2,),
    batch=2,
    optimizer=OptimizerConfig(lr=1e-3),
    steps=STEPS,
    warmup=2,
    cooldown=10,
    ema=0.9,
    heldout_clips=2,
)


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    """random_batch((b, t, c, h, w)): a batch in [-1, 1]; `first_id` numbers its samples."""

    def make(shape: tuple[int, ...], *, first_id: int = 0, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return Batch(
            clip=torch.randn(shape, generator=generator).clamp(-1, 1),
            text=torch.randn(shape[0], *TEXT, generator=generator),
            stride_index=torch.arange(shape[0]) % 2,
            sample_ids=torch.arange(first_id, first_id + shape[0]),
        )

    return make


def write_store(folder: Path) -> Path:
    """Six clips of random latents, two of them held out."""
    identity = StoreIdentity(
        kind="latents",
        encoder="e" * 64,
        preprocessing="none",
        fps=8,
        height_px=8,
        width_px=16,
        text="f" * 64,
    )
    folder.mkdir()
    generator = np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar", shard="shard-000000", identity=identity) as tar:
        for i in range(6):
            info = ClipInfo(
                key=f"{i:016x}",
                source=f"{i}.mp4",
                source_digest="ab" * 32,
                start_s=0.0,
                fps=8,
                frames=9,
                caption="",
                split="train" if i < 4 else "heldout",
            )
            latents = generator.standard_normal((9, 4, 4, 8)).astype(np.float16)
            text = generator.standard_normal((4, 8)).astype(np.float16)
            tar.add(LatentClip(info=info, latents=latents, text=text))
    manifest = tar.manifest()
    (folder / "shard-000000.json").write_text(manifest.model_dump_json())
    shard = IndexedShard(name="shard-000000", sha256=manifest.sha256, samples=6)
    index = Index(kind="latents", identity=identity, shards=(shard,))
    (folder / "index.json").write_text(index.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def job_of(image_model: dict[str, Path], tmp_path_factory) -> Callable[..., tuple[Job, Path]]:
    """job_of("name", seed=1): a job of a folder of its own, and its file."""
    root = tmp_path_factory.mktemp("run")
    store = write_store(root / "store")
    config = TextConfig(context_length=4, width=8, heads=2, layers=1)
    TextTower.build(config).save(root / "text_tower")

    def make(name: str, **changes) -> tuple[Job, Path]:
        job = Job(
            **{
                "stage": STAGE,
                "video": VideoFormat(fps=8, height=8, width=16, clip_seconds=2),
                "parts": image_model,
                "parents": {"image": "a" * 64},
                "latents": store,
                "text_tower": root / "text_tower",
                "out": root / name,
                "checkpoint_every": CHECKPOINT_EVERY,
                "evaluate_every": 20,
            }
            | changes
        )
        (root / f"{name}.json").write_text(job.model_dump_json())
        return job, root / f"{name}.json"

    return make
