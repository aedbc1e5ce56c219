"""Micro batches, recomputed activations and bfloat16 on two processes, under every ZeRO stage."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = 2  # the critic starts in the second
MICRO = {"micro_batch": 1, "checkpointing": True}


@pytest.fixture(scope="module")
def results(tmp_path_factory, program, two_processes, deterministic) -> Path:
    """One start of two processes; each has two clips of a batch, one at a time."""
    folder = tmp_path_factory.mktemp("accumulation")
    weights = folder / "weights"
    weights.mkdir()
    program.denoising_task(weights), program.decoding_task(weights)

    def request(name: str, **more) -> dict:
        return {"out": str(folder / name), "steps": STEPS, "stage": MICRO} | more

    micro = [request(f"zero{stage}", zero_stage=stage) for stage in range(4)]
    resumed = [request("resumed", zero_stage=2, steps=steps) for steps in (1, STEPS)]
    bf16 = [request(f"bf16_{s}", zero_stage=s, precision="bf16", steps=1) for s in (2, 3)]
    # ZeRO-3 last: DeepSpeed leaves a linear layer of its own behind, which rounds differently.
    two_processes(weights, *micro[:3], *resumed, bf16[0], micro[3], bf16[1])
    program.run(str(folder / "start"), weights, steps=0)
    program.run(str(folder / "whole"), weights, steps=STEPS)
    program.run(str(folder / "torch"), weights, steps=STEPS, stage=MICRO)
    program.run(str(folder / "bf16"), weights, steps=1, precision="bf16")
    return folder


def apart(results: Path, task: str, one: str, other: str, *, steps: int = STEPS) -> float:
    """How far two results are apart, compared with how far training moved."""

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return sum((a[k] - b[k]).square().sum().item() for k in a) ** 0.5

    found, expected = (
        load_file(results / name / f"{task}_{steps}.safetensors") for name in (one, other)
    )
    start = load_file(results / "start" / f"{task}_0.safetensors")
    assert found.keys() == expected.keys() == start.keys()
    return distance(found, expected) / distance(expected, start)


# Adam turns the rounding of a tiny gradient into a share of a step; the critic adds to it.
BOUND = {"denoising": 1e-4, "decoding": 5e-3}


@pytest.mark.parametrize("task", ["denoising", "decoding"])
@pytest.mark.parametrize("run", ["torch", "zero0", "zero1", "zero2", "zero3"])
def test_micro_batches_train_as_one_batch_does(results, task, run):
    assert apart(results, task, run, "whole") < BOUND[task]


@pytest.mark.parametrize("task", ["denoising", "decoding"])
def test_a_run_of_micro_batches_that_is_restarted_ends_with_the_same_bits(results, task):
    assert apart(results, task, "resumed", "zero2") == 0


@pytest.mark.parametrize("task", ["denoising", "decoding"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_sharded_weights_may_be_float32_where_they_train_and_bfloat16_where_not(
    results, task, zero_stage
):
    # The first step of Adam is the gradients' signs; in bfloat16 the smallest are rounding alone.
    assert apart(results, task, f"bf16_{zero_stage}", "bf16", steps=1) < 0.3
    trained = load_file(results / f"bf16_{zero_stage}" / f"{task}_1.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
