"""What a training run publishes and notes is what the same steps, written out, come to."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import videoldm_core.train
from videoldm_core.cascade.stage import Stage, VideoFormat
from videoldm_core.data.loader import read_batch
from videoldm_core.data.plan import Plan
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.evaluation.image import ReconstructsFrames
from videoldm_core.jobs.clips import StageData
from videoldm_core.jobs.job import Job
from videoldm_core.jobs.published import part_paths
from videoldm_core.models.image import AutoencoderConfig, latent_scale, load_vae
from videoldm_core.models.text.encoder import TextTower
from videoldm_core.objectives.autoencoding import Autoencoding
from videoldm_core.objectives.build import build_task
from videoldm_core.objectives.denoising import DenoisingTask
from videoldm_core.train import run
from videoldm_core.training.task import Task
from videoldm_core.training.train_module import Turn

from .conftest import STAGE
from .data.conftest import pixel_clip, write_store

THREE_STEPS = STAGE.model_copy(update={"steps": 3, "warmup": 1, "cooldown": 1, "ema": 0.2})
SHARES = (0.5, 1.0, 0.5)  # of the learning rate: one step of warm-up, one of cool-down
DECAYS = (2 / 11, 0.2, 0.2)  # a young average forgets its start faster than `ema` says
EVALUATE_EVERY = 2  # steps
LONE_FRAMES = Stage(
    name="autoencoder",
    paper="§3.1.1",
    objective=Autoencoding(network=AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4)),
    proves=ReconstructsFrames(),
    starts_from=(),
    trains=("vae",),
    reads="pixels",
    frames=1,
    batch=2,
    steps=1,
    ema=0.5,
    heldout_clips=2,
)


def test_what_is_published_is_the_average_of_steps_at_rates_that_rise_and_fall(job_of, monkeypatch):
    monkeypatch.setattr(videoldm_core.train, "_device", lambda: torch.device("cpu"))
    job, _ = job_of("by hand", stage=THREE_STEPS, evaluate_every=EVALUATE_EVERY)
    run(job)
    published = load_file(part_paths(job.out, verify=True)["temporal"] / "temporal.safetensors")
    averages, heldout = steps_by_hand(job)
    assert {f"temporal.{name}" for name in published} == set(averages)
    for name, tensor in published.items():
        assert torch.allclose(tensor, averages[f"temporal.{name}"], rtol=0, atol=1e-6), name
    assert heldout_lines(job) == pytest.approx(heldout, rel=1e-5)


def test_two_stages_with_equal_numbers_share_neither_clips_nor_levels_nor_noise(
    job_of, monkeypatch
):
    monkeypatch.setattr(videoldm_core.train, "_device", lambda: torch.device("cpu"))
    seen: dict[str, list[tuple[Tensor, list[int]]]] = {}

    def run_noting(name: str, **changes) -> None:
        noted = seen.setdefault(name, [])

        def noting(task, net, batch, turn, *, loss=DenoisingTask.loss):
            noted.append((batch.clip, [g.initial_seed() for g in turn.rng.generators]))
            return loss(task, net, batch, turn)

        with monkeypatch.context() as patch:
            patch.setattr(DenoisingTask, "loss", noting)
            run(job_of(name, **changes)[0])

    run_noting("predictor", stage=THREE_STEPS)
    run_noting("the same again", stage=THREE_STEPS)
    run_noting("temporal", stage=THREE_STEPS.model_copy(update={"name": "temporal"}))
    run_noting("other seed", stage=THREE_STEPS, seed=1)
    clips = {name: torch.cat([clip for clip, _ in noted]) for name, noted in seen.items()}
    draws = {name: {s for _, seeds in noted for s in seeds} for name, noted in seen.items()}
    assert len(draws["predictor"]) == 3 * THREE_STEPS.batch
    assert torch.equal(clips["predictor"], clips["the same again"])
    assert draws["predictor"] == draws["the same again"]
    for other in ("temporal", "other seed"):
        assert not torch.equal(clips["predictor"], clips[other])
        assert not draws["predictor"] & draws[other]


def steps_by_hand(job: Job) -> tuple[dict[str, Tensor], dict[int, float]]:
    """The averaged weights after all steps, and the held-out loss of those of some, by step."""
    task = build_task(job, TextTower.load(job.text_tower).encode([""])[0])
    (player,), data, config = task.players, StageData(job, rank=0, world=1), job.stage.optimizer
    plan = Plan(data.windows("train"), job.stage.batch, job.draws)
    averages = {name: p.detach().clone() for name, p in player.trainable.items()}
    optimizer = torch.optim.AdamW(
        player.trainable.values(), betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    heldout = {}
    for step, (share, decay) in enumerate(zip(SHARES, DECAYS, strict=True)):
        numbers, first_id = plan.indices(step), step * job.stage.batch
        batch = read_batch(data.store, plan.windows, numbers, first_id=first_id)
        rng = SampleRng(job.draws, player.name, batch.sample_ids)
        loss, _ = player.loss(player.module, batch, Turn(step=step, rng=rng))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(player.trainable.values(), config.clip_norm)
        optimizer.param_groups[0]["lr"] = config.lr * share
        optimizer.step()
        for name, parameter in player.trainable.items():
            averages[name] = decay * averages[name] + (1 - decay) * parameter.detach()
        done = step + 1
        if done % EVALUATE_EVERY == 0 or done == len(SHARES):
            heldout[done] = heldout_loss(job, task, averages, done)
    return averages, heldout


@torch.no_grad()
def heldout_loss(job: Job, task: Task, weights: dict[str, Tensor], step: int) -> float:
    """Mean loss of `weights` on the held-out clips, with the noise of every such measurement."""
    net = copy.deepcopy(task.players[0].module).eval()
    net.load_state_dict(weights, strict=False)
    losses = []
    for batch in StageData(job, rank=0, world=1).heldout(job.stage.heldout_clips):
        turn = Turn(step=step, rng=SampleRng(job.seed, "heldout", batch.sample_ids))
        losses.append(task.heldout(net, batch, turn)["loss"])
    return torch.cat(losses).mean().item()


def heldout_lines(job: Job) -> dict[int, float]:
    lines = [json.loads(line) for line in (job.out / "journal.jsonl").read_text().splitlines()]
    return {
        line["step"]: line["metrics"]["heldout_loss"]
        for line in lines
        if "heldout_loss" in line.get("metrics", {})
    }


def test_a_trained_autoencoder_is_published_with_the_scale_of_its_own_latents(
    job_of, tmp_path: Path
):
    clips = [pixel_clip(i, 8, "heldout" if i == 2 else "train") for i in range(3)]
    job, _ = job_of(
        "scaled",
        stage=LONE_FRAMES,
        video=VideoFormat(fps=16, height=32, width=48, clip_seconds=0.5),
        parts={},
        parents={},
        latents=None,
        pixels=write_store(tmp_path / "pixels", "pixels", [clips]),
    )
    run(job)
    folder = part_paths(job.out, verify=True)["vae"]
    vae = load_vae(folder)
    with torch.no_grad():
        latents = [
            vae.encode(batch.clip.flatten(0, 1)).latent_dist.mean
            for batch in StageData(job, rank=0, world=1).training_clips()
        ]
    deviation = torch.cat(latents).std().item()
    assert latent_scale(folder) == pytest.approx(1 / deviation, rel=1e-4)
    assert latent_scale(folder) != pytest.approx(0.18215, rel=1e-2), "diffusers' own"
