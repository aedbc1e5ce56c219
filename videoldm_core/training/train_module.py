"""A player: one module trained in turn with the others, with its own optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.training.ema import Ema
from videoldm_core.training.engine import Engine
from videoldm_core.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Turn:
    """When a loss is asked for, and the random numbers that belong to it."""

    step: int  # counted from 0
    rng: SampleRng


# (engine, batch, turn) -> the loss to minimise, and numbers to report with it
Loss = Callable[[Any, Batch, Turn], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Player:
    """A module trained in turn; a denoiser alone, or a decoder and its critic."""

    name: str
    module: nn.Module
    trainable: dict[str, nn.Parameter]  # by name in the module; the rest of it is frozen
    loss: Loss
    optimizer: OptimizerConfig
    starts_at: int = 0  # first step at which it is trained
    shapes: dict[str, Tensor] = field(init=False, repr=False)  # whole shapes, also when partitioned
    engine: Engine = field(init=False, repr=False)
    ema: Ema = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.shapes = {k: torch.empty(p.shape, device="meta") for k, p in self.trainable.items()}

    def steps_at(self, step: int) -> int:
        """How often this player has stepped once the loop has done `step` steps."""
        return max(0, step - self.starts_at)


def trainable_parameters(module: nn.Module, parts: list[nn.Module]) -> dict[str, nn.Parameter]:
    """Freezes `module` but for `parts`; returns their parameters by their name in `module`."""
    module.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def unfreeze_only(player: Player, players: list[Player]) -> None:
    """Lets gradients reach `player` alone.

    Otherwise a decoder's loss would leave gradients in its critic: ZeRO-2 raises, ZeRO-0/1 are
    silently wrong.
    """
    for other in players:
        for parameter in other.trainable.values():
            parameter.requires_grad_(other is player)
