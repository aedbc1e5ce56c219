"""What training every stage of a cascade takes in memory, per process; starts nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from videoldm_core.cascade import Preset
from videoldm_core.errors import UserError
from videoldm_core.stage_networks import StageNetworks, inputs_on_meta, table_on_meta
from videoldm_core.training.live_memory import activation_bytes
from videoldm_core.training.memory import (
    FLOAT32,
    ZERO_STAGES,
    Precision,
    ZeroStage,
    held_memory,
)


@dataclass(frozen=True)
class StageMemory:
    """Of one stage."""

    stage: str
    frozen: int = 0  # parameters
    trained: int = 0
    held: dict[ZeroStage, int] = field(default_factory=dict)  # bytes per process that stay from step to step
    activations: int = 0  # bytes per process that one step takes beside them: an estimate
    unknown: str = ""  # why none of this is known


def expected_memory(
    table: Preset, *, processes: int, precision: Precision
) -> Iterator[StageMemory]:
    """Memory of every stage that trains, in the table's order, each as soon as it is counted.

    Players take turns, so their largest step counts; what it holds of the other's step does not.
    """
    for stage, inherited, networks in table_on_meta(table):
        if isinstance(networks, UserError):
            yield StageMemory(stage.name, unknown=str(networks))
        elif networks.players:
            counts = [_count(module) for module in networks.players.values()]
            beside = sum(sum(_count(module)) for module in networks.beside)
            frozen = sum(count for count, _ in counts) + beside
            trained = sum(count for _, count in counts)
            held = {
                zero: _held(networks, zero, processes, precision) for zero in ZERO_STAGES
            }
            clips = max(1, stage.batch // processes)
            activations = [
                activation_bytes(
                    module,
                    inputs_on_meta(module, stage, table.video, inherited, clips=clips),
                    _loss,
                    in_bfloat16=precision == "bf16",
                )
                for module in networks.players.values()
            ]
            yield StageMemory(stage.name, frozen, trained, held, max(activations))


def _held(
    networks: StageNetworks, zero_stage: ZeroStage, processes: int, precision: Precision
) -> int:
    counts = [_count(module) for module in networks.players.values()]
    sharded = [
        held_memory(
            frozen, trained, zero_stage=zero_stage, processes=processes, precision=precision
        )
        for frozen, trained in counts
    ]
    beside = sum(sum(_count(module)) for module in networks.beside)
    return sum(held.total for held in sharded) + beside * FLOAT32


def _count(module: nn.Module) -> tuple[int, int]:
    """How many parameters are frozen, and how many train."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return sum(p.numel() for p in module.parameters()) - trained, trained


def _loss(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Of some shape: what a step minimises takes little beside what it is computed from."""
    first, *others = out if isinstance(out, tuple) else (out,)
    return sum((other.float().mean() for other in others), first.float().square().mean())
