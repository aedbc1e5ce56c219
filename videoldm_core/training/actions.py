"""What happens beside learning: journal, checkpoints, held-out evaluation, and not outliving the
launcher.
"""

import math
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import distributed

from videoldm_core.data.loader import Batch
from videoldm_core.objectives.task import Task
from videoldm_core.randomness import SampleRng
from videoldm_core.training.journal import Journal
from videoldm_core.training.loop import Action
from videoldm_core.training.players import Player, Turn


def every(steps: int, action: Action, *, last: int) -> Action:
    """Runs `action` after each `steps` steps, and after step `last`."""

    def act(step: int, metrics: dict[str, float]) -> None:
        if step % steps == 0 or step == last:
            action(step, metrics)

    return act


def report(journal: Journal) -> Action:
    """Writes the losses of a step to the journal.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint is from before.
    """

    def act(step: int, metrics: dict[str, float]) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"{bad[0]} is {metrics[bad[0]]} after step {step}")
        journal.write(step=step, metrics={name: round(v, 6) for name, v in metrics.items()})

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
        totals: dict[str, torch.Tensor] = {}
        with averaged(player):
            for batch in batches:
                turn = Turn(step=step, rng=SampleRng(seed, "heldout", batch.sample_ids))
                for name, values in task.heldout(player.engine, batch, turn).items():
                    totals.setdefault(name, torch.zeros(2))
                    totals[name] += torch.tensor([values.sum().item(), len(values)])
        write(step, {f"heldout_{k}": _mean_over_processes(v) for k, v in totals.items()})

    return act


@contextmanager
def averaged(player: Player):
    """Runs a block with the player's averaged weights in place."""
    player.ema.swap()
    was_training = player.module.training
    player.module.eval()
    try:
        yield
    finally:
        player.module.train(was_training)
        player.ema.swap()


def _mean_over_processes(total_and_count: torch.Tensor) -> float:
    if distributed.is_initialized():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        total_and_count = total_and_count.to(device)
        distributed.all_reduce(total_and_count)
    return (total_and_count[0] / total_and_count[1]).item()
