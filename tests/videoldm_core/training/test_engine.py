"""DeepSpeed on two real processes against one torch process, and checkpoints across both."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = 3
TASKS = ("denoising", "telling", "decoding")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum((a[k] - b[k]).square().sum().item() for k in a) ** 0.5


@pytest.fixture(scope="module")
def results(tmp_path_factory, program, two_processes, deterministic) -> Path:
    """One start of two processes: every ZeRO stage, and ZeRO-2 interrupted after 2 steps."""
    folder = tmp_path_factory.mktemp("engines")
    weights = folder / "weights"
    weights.mkdir()
    program.denoising_task(weights), program.decoding_task(weights)

    def request(name: str, zero_stage: int, steps: int = STEPS) -> dict:
        return {"out": str(folder / name), "zero_stage": zero_stage, "steps": steps}

    requests = []
    for stage in range(4):
        requests += [request(f"zero{stage}", stage) | {"watch": True}]
        requests += [request(f"resumed{stage}", stage, steps) for steps in (2, 3)]
        poisoned = {"out": str(folder / f"poisoned{stage}"), "zero_stage": stage}
        (folder / f"poisoned{stage}").mkdir()
        requests += [poisoned | {"poisoned": True}]
    # ZeRO-3 comes last: DeepSpeed then puts a linear function of its own, with other rounding, into
    # the rest of the process. Another number of processes goes on from what it left after 2 steps.
    two_processes(weights, *requests, request("moved", 3, 2))
    for name, steps in (("start", 0), ("torch", STEPS), ("moved", STEPS)):
        program.run(str(folder / name), weights, steps=steps, watch=True)
    return folder


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_trains_as_one_torch_process_does(results, task, zero_stage):
    expected = load_file(results / "torch" / f"{task}_{STEPS}.safetensors")
    found = load_file(results / f"zero{zero_stage}" / f"{task}_{STEPS}.safetensors")
    start = load_file(results / "start" / f"{task}_0.safetensors")
    assert set(found) == set(expected)
    # Compared with how far training moved: Adam turns rounding of a tiny gradient into a share of a
    # step.
    assert distance(found, expected) < 0.01 * distance(expected, start)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_restarted_run_ends_with_the_same_bits(results, task, zero_stage):
    straight = load_file(results / f"zero{zero_stage}" / f"{task}_{STEPS}.safetensors")
    resumed = load_file(results / f"resumed{zero_stage}" / f"{task}_{STEPS}.safetensors")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


@pytest.mark.parametrize("task", TASKS)
def test_another_number_of_processes_goes_on_from_a_checkpoint(results, task):
    expected = load_file(results / "torch" / f"{task}_{STEPS}.safetensors")
    moved = load_file(results / "moved" / f"{task}_{STEPS}.safetensors")
    start = load_file(results / "start" / f"{task}_0.safetensors")
    assert distance(moved, expected) < 0.01 * distance(expected, start)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_averages_are_measured_as_in_one_torch_process_after_every_step(results, task, zero_stage):
    """Training goes on between, and ends as without (see the restarted run)."""
    expected, found = (
        json.loads((results / name / f"{task}_heldout.json").read_text())
        for name in ("torch", f"zero{zero_stage}")
    )
    assert list(found) == ["1", "2", "3"]
    assert len({str(numbers) for numbers in found.values()}) == 3, "the averages move"
    for step, numbers in expected.items():
        assert found[step] == pytest.approx(numbers, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_gradient_of_one_process_that_is_not_finite_stops_all_before_a_checkpoint(
    results, zero_stage
):
    folder = results / f"poisoned{zero_stage}"
    for rank in range(2):
        said = (folder / f"said_{rank}.txt").read_text()
        assert "'predictor' diverged in step 2: gradient of denoiser is not finite" in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000001"]


def test_training_moves_the_weights_it_should(results, program):
    start = program.denoising_task(results / "weights").players[0].trainable
    end = load_file(results / "zero2" / f"denoising_{STEPS}.safetensors")
    still = [k for k, p in start.items() if torch.equal(p.data, end[f"denoiser/{k}"])]
    assert not [k for k in still if "context" not in k and "pyramid" not in k]


def test_every_token_learns_beside_its_image_model(results):
    start = load_file(results / "start" / "telling_0.safetensors")
    end = load_file(results / "zero3" / f"telling_{STEPS}.safetensors")
    tokens = [name for name in start if name.startswith("denoiser/tokens.")]
    assert len(tokens) == 1 + 1 + 4
    assert not [name for name in tokens if torch.equal(start[name], end[name])]
