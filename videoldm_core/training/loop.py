"""The training loop: players in turn, then actions. Knows no stage, no file and no tracker."""

from collections.abc import Callable, Iterator

from videoldm_core.data.loader import Batch
from videoldm_core.randomness import SampleRng
from videoldm_core.training.engine import set_learning_rate
from videoldm_core.training.players import Player, Turn, unfreeze_only

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
) -> None:
    """Trains `players` in turn on each batch, from step `start` until `steps` are done.

    Args:
        rate: share of a player's learning rate at a step.
        after_step: called in order after every step.
    """
    for step in range(start, steps):
        batch = next(batches)
        metrics: dict[str, float] = {}
        for player in players:
            if step < player.starts_at:
                continue
            unfreeze_only(player, players)
            set_learning_rate(player.engine, player.optimizer.lr * rate(step))
            turn = Turn(step=step, rng=SampleRng(seed, player.name, batch.sample_ids))
            loss, numbers = player.loss(player.engine, batch, turn)
            player.engine.backward(loss)
            player.engine.step()
            player.ema.update(player.steps_at(step + 1))
            metrics |= numbers
        for action in after_step:
            action(step + 1, metrics)


def warmup_and_cooldown(step: int, *, warmup: int, cooldown: int, steps: int) -> float:
    """Share of the learning rate: a linear rise over `warmup` steps, a linear fall over the last
    `cooldown`.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    fall = min(1.0, (steps - step) / (cooldown + 1)) if cooldown else 1.0
    return rise * fall
