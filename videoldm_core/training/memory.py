"""What training holds in memory per process, as arithmetic over numbers of parameters.

Counted as our engines hold it (engine.py): what trains is float32 in every ZeRO stage, what is
frozen float32 or, under bf16, bfloat16.
"""

from typing import Literal, NamedTuple

Precision = Literal["fp32", "bf16"]
ZeroStage = Literal[0, 1, 2, 3]

FLOAT32, BFLOAT16 = 4, 2  # bytes per value
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
    stage 0. DeepSpeed's communication buffers, of at most 200 MB each, are not counted.

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
