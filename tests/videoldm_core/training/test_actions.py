"""What happens beside learning."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.errors import UserError
from videoldm_core.system.journal import Journal
from videoldm_core.training import actions
from videoldm_core.training.ema import Ema
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Player, Turn, trainable_parameters


def test_an_action_runs_every_so_often_and_at_the_end():
    ran: list[int] = []
    act = actions.every(3, lambda step, metrics: ran.append(step), last=8)
    for step in range(1, 9):
        act(step, {})
    assert ran == [3, 6, 8]


def player_after(gradient: float) -> Player:
    """One that has been stepped once by this gradient."""
    module = nn.Linear(1, 1)
    player = Player(
        name="denoiser",
        module=module,
        trainable=trainable_parameters(module, [module]),
        loss=lambda net, batch, turn: (torch.zeros(()), {}),
        optimizer=OptimizerConfig(lr=0.1),
    )
    player.engine = TorchEngine(module, list(module.parameters()), player.optimizer, False)
    player.engine.backward(module.weight.sum() * gradient)
    player.engine.step()
    return player


def test_losses_go_into_the_journal(tmp_path: Path):
    journal = Journal(tmp_path / "j.jsonl")
    actions.report("decoder", [player_after(1.0)], journal)(4, {"loss": 0.12345678, "critic": 1.0})
    line = json.loads(journal.path.read_text())
    assert line["step"] == 4
    assert line["metrics"] == {"loss": 0.123457, "critic": 1.0}


def test_a_loss_that_is_not_a_number_stops_training_and_is_named(tmp_path: Path):
    journal = Journal(tmp_path / "j.jsonl")
    report = actions.report("decoder", [player_after(1.0)], journal)
    with pytest.raises(
        UserError, match=r"'decoder' diverged in step 4: critic is not finite; .*lr"
    ):
        report(4, {"loss": 0.1, "critic": float("nan")})
    assert not journal.path.exists()


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing_and_stops_training(gradient):
    player = player_after(gradient)
    assert all(p.isfinite().all() for p in player.trainable.values())
    with pytest.raises(UserError, match="gradient of denoiser is not finite"):
        actions.report("decoder", [player], None)(1, {"loss": 0.1})


def test_a_player_that_has_not_started_is_not_asked_for_its_step():
    critic = player_after(float("nan"))
    critic.starts_at = 8
    actions.report("decoder", [player_after(1.0), critic], None)(8, {"loss": 0.1})
    with pytest.raises(UserError, match="gradient of"):
        actions.report("decoder", [player_after(1.0), critic], None)(9, {"loss": 0.1})


class CountingTask:
    """Held-out values are weight + a draw; the weight under test is 1 and its average 5."""

    def __init__(self) -> None:
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, 5.0)
        player = Player(
            name="denoiser",
            module=module,
            trainable=trainable_parameters(module, [module]),
            loss=lambda net, batch, turn: (torch.zeros(()), {}),
            optimizer=OptimizerConfig(),
        )
        player.engine = TorchEngine(module, list(module.parameters()), player.optimizer, False)
        player.ema = Ema(player.trainable, 0.9)
        nn.init.constant_(module.weight, 1.0)
        self.players, self.draws, self.modes = [player], [], []

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        self.draws.append(turn.rng.uniform())
        self.modes.append((net.module.training, torch.is_grad_enabled()))
        return {"loss": batch.clip.flatten(1).mean(dim=1) + net.module.weight.item()}


@pytest.fixture
def clips(random_batch: Callable[..., Batch]) -> list[Batch]:
    return [random_batch((3, 1, 1, 1, 1)), random_batch((1, 1, 1, 1, 1), first_id=3, seed=1)]


def test_heldout_clips_are_measured_with_averaged_weights_and_counted_equally(clips):
    task, written = CountingTask(), []
    watch = actions.watch_heldout(task, clips, 0, lambda *entry: written.append(entry))  # type: ignore[arg-type]
    watch(7, {})
    values = torch.cat([batch.clip.flatten() for batch in clips])
    ((step, metrics),) = written
    assert step == 7
    assert metrics == {"heldout_loss": pytest.approx(5 + values.mean().item(), rel=1e-5)}


def test_measuring_leaves_weights_and_mode_as_they_were(clips):
    task = CountingTask()
    module = task.players[0].module.train()
    actions.watch_heldout(task, clips, 0, lambda *entry: None)(1, {})  # type: ignore[arg-type]
    assert task.modes == [(False, False)] * 2
    assert module.training
    assert module.weight.item() == 1.0
    assert task.players[0].ema.full()["weight"].item() == 5.0


def test_measuring_leaves_every_layer_in_its_own_mode(clips):
    player = CountingTask().players[0]
    player.module.train().add_module("frozen", nn.Dropout(0.5).eval())
    with actions.averaged(player):
        assert not any(layer.training for layer in player.module.modules())
    assert [layer.training for layer in player.module.modules()] == [True, False]


def test_every_measurement_has_the_same_noise(clips):
    task = CountingTask()
    watch = actions.watch_heldout(task, clips, 0, lambda *entry: None)  # type: ignore[arg-type]
    watch(1, {})
    watch(2, {})
    assert [d.tolist() for d in task.draws[:2]] == [d.tolist() for d in task.draws[2:]]


def test_weights_come_back_when_measuring_fails():
    player, seen = CountingTask().players[0], []

    def fail() -> None:
        with actions.averaged(player):
            seen.append(player.module.weight.item())  # type: ignore[operator]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert seen == [5.0]
    assert player.module.weight.item() == 1.0  # type: ignore[operator]


def test_a_process_ends_once_its_launcher_is_gone(monkeypatch, capsys):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    act = actions.stop_when_orphaned()
    act(1, {})
    assert ended == []
    monkeypatch.setattr(os, "getppid", lambda: -1)
    act(2, {})
    assert ended == [3]
    assert "the launcher is gone; stopped after step 2" in capsys.readouterr().err
