"""What training holds in memory per process, as arithmetic over numbers of parameters.

Counted as our engines hold it (engine.py): what trains is float32 in every ZeRO stage, what is
frozen float32 or, under bf16, bfloat16.
"""

from typing import NamedTuple

from videoldm_core.system.machine import Precision, ZeroStage
from videoldm_core.training.engine import LARGEST_BUCKET

FLOAT32, BFLOAT16 = 4, 2  # bytes per value
REDUCED_AT_ONCE = 500_000_000  # values that stage 0 copies to reduce them; DeepSpeed's own
GATHERED_AT_ONCE = 1_000_000_000  # values that stage 3 holds whole; DeepSpeed's own
ZERO_STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)


class HeldMemory(NamedTuple):
    """Bytes per process that stay from step to step."""

    weights: int
    gradients: int  # while a step's backward pass ends
    moments: int  # Adam's two
    average: int  # of the weights, kept beside them (EMA)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def held_memory(
    frozen: int, trainable: int, *, zero_stage: ZeroStage, processes: int, precision: Precision
) -> HeldMemory:
    """Memory of weights and of what the optimizer needs, on each of `processes` processes.

    Stage 1 shares the moments, 2 the gradients too, 3 the weights and their average too. Stages 1
    and 2 update a copy of the own share of the weights: with one process they take more than
    stage 0.

    Args:
        frozen, trainable: numbers of parameters.

    Raises:
        ValueError: there is no process.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; expected at least 1.")
    share = -(-trainable // processes)
    held = trainable if zero_stage < 3 else share
    kept = frozen if zero_stage < 3 else -(-frozen // processes)
    master = share if zero_stage in (1, 2) else 0
    return HeldMemory(
        weights=kept * (BFLOAT16 if precision == "bf16" else FLOAT32) + (held + master) * FLOAT32,
        gradients=(trainable if zero_stage < 2 else share) * FLOAT32,
        moments=2 * (trainable if zero_stage < 1 else share) * FLOAT32,
        average=held * FLOAT32,
    )


def exchanged_memory(
    frozen: int, trainable: int, *, zero_stage: ZeroStage, precision: Precision
) -> int:
    """Bytes per process that DeepSpeed takes within a step to exchange gradients and weights.

    Stage 0 copies the gradients, 1 to 3 fill buckets of them (engine.py says how large), and 3
    gathers weights whole while they are used: all of a model of less than a billion.
    """
    if zero_stage == 0:
        return min(trainable, REDUCED_AT_ONCE) * FLOAT32
    bucket = min(2 * trainable, LARGEST_BUCKET) * FLOAT32
    if zero_stage < 3:
        return bucket
    gathered = min(frozen + trainable, GATHERED_AT_ONCE)
    of_frozen = min(frozen, gathered)
    size = BFLOAT16 if precision == "bf16" else FLOAT32
    return bucket + of_frozen * size + (gathered - of_frozen) * FLOAT32
