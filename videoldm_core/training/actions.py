"""What happens beside learning: journal, checkpoints, held-out evaluation, the launcher's end."""

import math
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import distributed

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.errors import UserError
from videoldm_core.system.journal import Journal
from videoldm_core.training.engine import took_step
from videoldm_core.training.loop import Action
from videoldm_core.training.task import Task
from videoldm_core.training.train_module import Player, Turn


def every(steps: int, action: Action, *, last: int) -> Action:
    """Runs `action` after each `steps` steps, and after step `last`."""

    def act(step: int, metrics: dict[str, float]) -> None:
        if step % steps == 0 or step == last:
            action(step, metrics)

    return act


def report(stage: str, players: list[Player], journal: Journal | None) -> Action:
    """Writes the losses of a step, their means over all processes, to the journal.

    All processes run it, and before any checkpoint: when one meets what is not finite, all stop.

    Args:
        journal: of the first process; None: of another.

    Raises:
        UserError: a loss, or a gradient of some process, is not finite.
    """

    def act(step: int, metrics: dict[str, float]) -> None:
        stepped = [player for player in players if player.steps_at(step)]
        whether = {player.name: took_step(player.engine, player.trainable) for player in stepped}
        gradients = {f"gradient of {k}": 0.0 if taken else math.nan for k, taken in whether.items()}
        means = _means_over_processes(metrics | gradients)
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"The stage {stage!r} diverged in step {step}: {bad[0]} is not finite; the last "
                "checkpoint is from before. Look at what it was given, or lower "
                f"stages.{stage}.optimizer.lr, which trains it anew."
            )
        if journal:
            journal.write(step=step, metrics={name: round(means[name], 6) for name in metrics})

    return act


def stop_when_orphaned() -> Action:
    """Ends the process once its launcher is gone: no rank keeps an accelerator for nobody."""
    parent = os.getppid()

    def act(step: int, metrics: dict[str, float]) -> None:
        if os.getppid() != parent:
            sys.stderr.write(f"error: the launcher is gone; stopped after step {step}.\n")
            os._exit(3)

    return act


def watch_heldout(
    task: Task, batches: list[Batch], seed: int, write: Callable[[int, dict[str, float]], None]
) -> Action:
    """Measures the averaged weights on the same held-out clips and noise every time.

    Args:
        batches: this process's share; every process has as many.
        write: is given the mean over all processes.
    """

    @torch.no_grad()
    def act(step: int, metrics: dict[str, float]) -> None:
        player = task.players[0]
        sums: dict[str, float] = {}
        with averaged(player):
            for batch in batches:
                turn = Turn(step=step, rng=SampleRng(seed, "heldout", batch.sample_ids))
                for name, values in task.heldout(player.engine, batch, turn).items():
                    sums[name] = sums.get(name, 0.0) + values.sum().item()
        clips = sum(len(batch.sample_ids) for batch in batches)
        means = _means_over_processes({name: total / clips for name, total in sums.items()})
        write(step, {f"heldout_{name}": mean for name, mean in means.items()})

    return act


@contextmanager
def averaged(player: Player):
    """Runs a block with the player's averaged weights in place."""
    player.ema.swap()
    modes = {layer: layer.training for layer in player.module.modules()}
    player.module.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():  # frozen layers may have another than those that train
            layer.training = mode
        player.ema.swap()


def _means_over_processes(numbers: dict[str, float]) -> dict[str, float]:
    """Means of numbers that all processes have by the same names; one collective call."""
    if not distributed.is_initialized():
        return numbers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    means = (total / distributed.get_world_size()).tolist()
    return dict(zip(numbers, means, strict=True))
