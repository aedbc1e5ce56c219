"""The training loop: players in turn, then actions. Knows no stage, no file and no tracker."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.training.engine import set_learning_rate
from videoldm_core.training.train_module import Player, Turn, unfreeze_only

# (steps done, metrics of the last one); checkpoints, evaluation, the journal: nothing learning
# needs
Action = Callable[[int, dict[str, float]], None]


def train(  # noqa: PLR0913 - everything the loop depends on, by name
    players: list[Player],
    batches: Iterator[Batch],
    *,
    start: int,
    steps: int,
    seed: int,
    rate: Callable[[int], float],
    after_step: list[Action],
    micro_batch: int | None = None,
) -> None:
    """Trains `players` in turn on each batch, from step `start` until `steps` are done.

    Args:
        rate: share of a player's learning rate at a step.
        after_step: called in order after every step.
        micro_batch: clips per forward pass; None: the whole batch. Their gradients are added, so
            that a step is the same: every draw belongs to a sample, and every loss is a mean.
    """
    for step in range(start, steps):
        batch = next(batches)
        metrics: dict[str, float] = {}
        for player in players:
            if step < player.starts_at:
                continue
            unfreeze_only(player, players)
            set_learning_rate(player.engine, player.optimizer.lr * rate(step))
            reported: list[dict[str, Tensor]] = []
            for micro in micro_batches(batch, micro_batch):
                turn = Turn(step=step, rng=SampleRng(seed, player.name, micro.sample_ids))
                loss, numbers = player.loss(player.engine, micro, turn)
                player.engine.backward(loss)
                player.engine.step()  # takes the step after the last micro batch
                reported.append(numbers)
            player.ema.update(player.steps_at(step + 1))
            # Read once, after all work was handed over: reading waits for the accelerator.
            means = {k: torch.stack([n[k] for n in reported]).mean() for k in reported[0]}
            metrics |= {name: mean.item() for name, mean in means.items()}
        for action in after_step:
            action(step + 1, metrics)


def micro_batches(batch: Batch, size: int | None) -> list[Batch]:
    """A batch in parts of `size` clips, in order; None: in one part."""
    if size is None:
        return [batch]
    return [batch[i : i + size] for i in range(0, len(batch.sample_ids), size)]


def warmup_and_cooldown(step: int, *, warmup: int, cooldown: int, steps: int) -> float:
    """Share of the learning rate: rises over `warmup` steps, falls over the last `cooldown`."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    fall = min(1.0, (steps - step) / (cooldown + 1)) if cooldown else 1.0
    return rise * fall
