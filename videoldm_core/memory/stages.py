"""What training every stage of a cascade takes in memory, per process; starts nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from videoldm_core.cascade.stage import Preset, Stage
from videoldm_core.errors import UserError
from videoldm_core.memory.evaluation import judging_bytes
from videoldm_core.memory.live import activation_bytes
from videoldm_core.memory.networks import Configs, StageNetworks, inputs_on_meta, table_on_meta
from videoldm_core.memory.state import (
    FLOAT32,
    ZERO_STAGES,
    exchanged_memory,
    held_memory,
)
from videoldm_core.models.perceptual import Perceptual
from videoldm_core.models.weights import hold_frozen_in_bf16
from videoldm_core.system.machine import Precision, ZeroStage


@dataclass(frozen=True)
class StageMemory:
    """Of one stage."""

    stage: str
    frozen: int = 0  # parameters
    trained: int = 0
    # Bytes per process of weights, gradients, moments, average, and of exchanging them.
    state: dict[ZeroStage, int] = field(default_factory=dict)
    activations: int = 0  # bytes per process that one step takes beside them: an estimate
    judging: int = 0  # all that judging takes once training has let go of its own: an estimate
    unknown: str = ""  # why none of this is known


def expected_memory(
    table: Preset, *, processes: int, precision: Precision
) -> Iterator[StageMemory]:
    """Memory of every stage that trains, in the table's order, each as soon as it is counted.

    Players take turns, so the one whose step takes most is what counts of the steps. Measured on
    two CPU processes with 60 M parameters, processes grew to 1.04, 1.03, 1.06 and 1.31 times state
    and step under ZeRO 0 to 3.
    """
    for stage, inherited, networks in table_on_meta(table):
        if isinstance(networks, UserError):
            yield StageMemory(stage.name, unknown=str(networks))
        elif networks.players:
            counts = [_count(module) for module in networks.players.values()]
            beside = sum(sum(_count(module)) for module in networks.beside)
            yield StageMemory(
                stage.name,
                frozen=sum(frozen for frozen, _ in counts) + beside,
                trained=sum(trained for _, trained in counts),
                state={
                    zero: beside * FLOAT32 + _sharded(counts, zero, processes, precision)
                    for zero in ZERO_STAGES
                },
                activations=_largest_step(
                    stage, networks, inherited, table, processes=processes, precision=precision
                ),
                judging=judging_bytes(
                    stage, inherited, table, processes=processes, precision=precision
                ),
            )


class _Judged(nn.Module):
    """A player that makes frames, with the network that its error looks through."""

    def __init__(self, player: nn.Module, perceptual: Perceptual) -> None:
        super().__init__()
        self.player, self.perceptual = player, perceptual

    def forward(self, **given: Tensor) -> Any:
        out = self.player(**given)
        made = (out[0] if isinstance(out, tuple) else out).float()
        frames = made.flatten(0, 1) if made.ndim == 5 else made
        with torch.autocast("cpu", enabled=False):
            distance = self.perceptual(frames, torch.zeros_like(frames))
        return made, distance


def _sharded(
    counts: list[tuple[int, int]], zero_stage: ZeroStage, processes: int, precision: Precision
) -> int:
    held = [
        held_memory(
            frozen, trained, zero_stage=zero_stage, processes=processes, precision=precision
        ).total
        for frozen, trained in counts
    ]
    exchanged = [
        exchanged_memory(frozen, trained, zero_stage=zero_stage, precision=precision)
        for frozen, trained in counts
    ]
    return sum(held) + sum(exchanged)


def _largest_step(  # noqa: PLR0913 - private; one call site
    stage: Stage,
    networks: StageNetworks,
    inherited: Configs,
    table: Preset,
    *,
    processes: int,
    precision: Precision,
) -> int:
    clips = stage.micro_batch or max(1, stage.batch // processes)
    perceptual, steps = networks.perceptual, []
    for player in networks.players.values():
        given = inputs_on_meta(player, stage, table.video, inherited, clips=clips)
        if precision == "bf16":
            hold_frozen_in_bf16(player, [p for p in player.parameters() if p.requires_grad])
        judged = player if perceptual is None else _Judged(player, perceptual)
        steps.append(activation_bytes(judged, given, _loss, in_bfloat16=precision == "bf16"))
        perceptual = None  # the first player's error alone looks through it
    return max(steps)


def _count(module: nn.Module) -> tuple[int, int]:
    """How many parameters are frozen, and how many train."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return sum(p.numel() for p in module.parameters()) - trained, trained


def _loss(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Of some shape: what a step minimises takes little beside what it is computed from."""
    first, *others = out if isinstance(out, tuple) else (out,)
    return sum((other.float().mean() for other in others), first.float().square().mean())
