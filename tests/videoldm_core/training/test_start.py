"""Players made ready: how a batch is split, what is held in which precision, and where."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.errors import UserError
from videoldm_core.jobs.job import Job
from videoldm_core.objectives.decoding import DecodingTask, TemporalDecoding
from videoldm_core.objectives.denoising import Denoising, DenoisingTask
from videoldm_core.training import start
from videoldm_core.training.checkpoints import save_checkpoint
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.start import (
    micro_batches_per_step,
    release_players,
    start_players,
)
from videoldm_core.training.train_module import Player, Turn, trainable_parameters

CPU = torch.device("cpu")


@pytest.fixture
def denoising(image_model: dict[str, Path]) -> DenoisingTask:
    return DenoisingTask(
        Denoising(alpha="scalar", text_dropout=0.0),
        parts=image_model,
        trains=("temporal",),
        frames=3,
        strides=1,
        crop=None,
        null_text=torch.zeros(4, 8),
        optimizer=OptimizerConfig(lr=1e-3),
        seed=0,
    )


@pytest.fixture
def job_of(program, tmp_path: Path):
    def make(precision: str = "fp32", **stage: Any) -> Job:
        return program.job_of(tmp_path, stage, precision=precision)

    return make


def test_a_share_is_split_into_micro_batches(job_of):
    assert micro_batches_per_step(job_of(batch=8).stage, 2) == 1
    assert micro_batches_per_step(job_of(batch=8, micro_batch=1).stage, 2) == 4
    assert micro_batches_per_step(job_of(batch=8, micro_batch=4).stage, 2) == 1


def test_a_micro_batch_that_does_not_divide_the_share_is_refused_with_those_that_do(job_of):
    with pytest.raises(
        UserError, match=r"micro_batch 3 does not divide the 4 clips .* choose one of 1, 2, 4\."
    ):
        micro_batches_per_step(job_of(batch=8, micro_batch=3).stage, 2)
    with pytest.raises(UserError, match="does not divide the 4 clips"):
        micro_batches_per_step(job_of(batch=8, micro_batch=8).stage, 2)


def test_players_that_are_let_go_leave_nothing_behind(denoising, job_of):
    start_players(job_of(), denoising, None, device=CPU, world=1)
    (player,) = denoising.players
    player.engine.backward(sum(p.sum() for p in player.trainable.values()))
    player.engine.step()
    moment = player.engine.optimizer.state[next(iter(player.trainable.values()))]["exp_avg"]
    average = next(iter(player.ema._average.values()))
    held = [weakref.ref(t) for t in (*player.module.parameters(), moment, average)]
    del player, moment, average
    release_players(denoising)
    assert denoising.players == []
    del denoising.model, denoising.frozen
    assert not any(ref() is not None for ref in held)


def types_of(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in module.named_parameters()}


def test_what_is_frozen_is_held_in_bfloat16_and_what_trains_in_float32(denoising, job_of):
    start_players(job_of("bf16"), denoising, None, device=CPU, world=1)
    (player,) = denoising.players
    types = types_of(player.module)
    assert {types[name] for name in player.trainable} == {torch.float32}
    frozen = {name: t for name, t in types.items() if name not in player.trainable}
    assert frozen["unet.conv_in.weight"] == frozen["unet.conv_in.bias"] == torch.bfloat16
    assert frozen["unet.conv_norm_out.weight"] == torch.float32
    halved = sum(p.numel() for p in player.module.parameters() if p.dtype == torch.bfloat16)
    assert halved > 0.95 * sum(p.numel() for p in denoising.model.net.unet.parameters())


def test_in_float32_nothing_is_rounded(denoising, job_of):
    start_players(job_of("fp32"), denoising, None, device=CPU, world=1)
    assert set(types_of(denoising.model).values()) == {torch.float32}


def test_holding_rounded_weights_changes_no_bit_of_the_loss(
    denoising, job_of, monkeypatch, random_batch
):
    batch: Batch = random_batch((2, 3, 4, 8, 12))

    def loss() -> torch.Tensor:
        player, turn = denoising.players[0], Turn(step=0, rng=SampleRng(0, "x", batch.sample_ids))
        return player.loss(player.engine, batch, turn)[0].detach()

    with monkeypatch.context() as patch:
        patch.setattr(start, "hold_frozen_in_bf16", lambda *_: None)
        start_players(job_of("bf16"), denoising, None, device=CPU, world=1)
    autocast = loss()
    assert set(types_of(denoising.model).values()) == {torch.float32}
    start_players(job_of("bf16"), denoising, None, device=CPU, world=1)
    assert torch.equal(loss(), autocast)


def test_a_step_moves_what_trains_and_rounds_nothing_of_it(denoising, job_of, random_batch):
    start_players(job_of("bf16"), denoising, None, device=CPU, world=1)
    (player,), batch = denoising.players, random_batch((2, 3, 4, 8, 12))
    before = {name: p.detach().clone() for name, p in player.module.named_parameters()}
    loss, _ = player.loss(
        player.engine, batch, Turn(step=0, rng=SampleRng(0, "x", batch.sample_ids))
    )
    player.engine.backward(loss)
    player.engine.step()
    moved = {n for n, p in player.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= set(player.trainable)
    rounded = [p for p in player.trainable.values() if torch.equal(p, p.bfloat16().float())]
    assert len(rounded) < len(player.trainable) / 2


def test_an_autoencoder_that_encodes_for_the_decoder_stays_float32(image_model, job_of):
    task = DecodingTask(TemporalDecoding(), parts=image_model, optimizer=OptimizerConfig(), seed=0)
    start_players(job_of("bf16"), task, None, device=CPU, world=1)
    assert set(types_of(task.vae.encoder).values()) == {torch.float32}
    assert set(types_of(task.vae.quant_conv).values()) == {torch.float32}
    assert task.vae.post_quant_conv.weight.dtype == torch.bfloat16


def test_all_that_a_task_computes_with_goes_to_the_players_device(image_model, job_of):
    task = DecodingTask(TemporalDecoding(), parts=image_model, optimizer=OptimizerConfig(), seed=0)
    start_players(job_of(), task, None, device=torch.device("meta"), world=1)
    modules = [task.vae, task.temporal, task.critic]
    assert {p.device.type for module in modules for p in module.parameters()} == {"meta"}


def test_compiling_is_asked_for_by_the_row_and_for_fixed_shapes(denoising, job_of, monkeypatch):
    asked: list[dict] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: asked.append(settings))
    start_players(job_of(), denoising, None, device=CPU, world=1)
    assert asked == []
    start_players(job_of(compile=True), denoising, None, device=CPU, world=1)
    assert asked == [{"backend": "inductor", "dynamic": False}]


def test_a_compiled_module_computes_the_same_under_the_same_names(tmp_path: Path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 1))
    names, given = list(module.state_dict()), torch.randn(4, 2)
    expected = module(given)
    player = Player(
        name="denoiser",
        module=module,
        trainable=trainable_parameters(module, [module]),
        loss=lambda net, batch, turn: (torch.zeros(()), {}),
        optimizer=OptimizerConfig(),
    )
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        compiled.append(graph)
        return graph.forward

    player.engine = TorchEngine(module, list(module.parameters()), player.optimizer, False)
    player.engine.compile(backend=backend, compile_kwargs={"dynamic": False})  # type: ignore[arg-type]
    assert torch.equal(player.engine(given), expected)
    assert len(compiled) == 1
    assert list(module.state_dict()) == names
    player.ema = start.Ema(player.trainable, 0.9)
    save_checkpoint(tmp_path, [player], 0)
    assert "_orig_mod" not in (tmp_path / "step_00000000/denoiser.safetensors").read_bytes().decode(
        "utf-8", errors="ignore"
    )
