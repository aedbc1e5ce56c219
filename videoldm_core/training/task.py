"""An objective bound to networks: what is trained, published, and measured on the way."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.training.train_module import Player, Turn


class Task(Protocol):
    """One stage's networks and losses.

    A task without players trains nothing: it is saved, judged and published as it is.
    """

    players: list[Player]
    remark: str  # what whoever reads the log should know of this objective; "" for nothing

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """What the losses use beside the players; goes to their device."""
        ...

    def heldout(self, net: Any, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """What is watched on held-out clips while training: one value per clip, (b), by name."""
        ...

    def finish(self, batches: Iterator[Batch]) -> None:
        """Settles what follows from trained weights (a latent scale) on a few training batches."""
        ...

    def save(self, folder: Path) -> list[str]:
        """Writes the parts this stage made, each in `folder`/<part>; returns their names."""
        ...


def device_of(net: Any) -> torch.device:
    """Where a module's (or an engine's module's) weights are."""
    return next(getattr(net, "module", net).parameters()).device
