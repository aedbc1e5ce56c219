"""Judging a published stage: as many clips at once as fit, in the precision of the job."""

import pytest
import torch

from videoldm_core.diffusion.conditioning import FirstFrames
from videoldm_core.evaluate import judge
from videoldm_core.evaluation.measuring import Evidence
from videoldm_core.evaluation.previews import clips_shown
from videoldm_core.evaluation.video import UsesFirstFrames
from videoldm_core.jobs.clips import StageData, clips_at_once

from .conftest import STAGE

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_are_judged_in_the_precision_of_the_job(job_of, precision, monkeypatch):
    seen: list[tuple[bool, list[int]]] = []

    def measure(self: UsesFirstFrames, evidence: Evidence) -> dict[str, torch.Tensor]:
        sizes = [len(batch.clip) for batch in evidence.clips()]
        seen.append((torch.is_autocast_enabled("cpu"), sizes))
        return {name: torch.ones(1, 2) for name in ("masked", "1 frame", "2 frames")}

    monkeypatch.setattr(UsesFirstFrames, "measure", measure)
    stage = STAGE.model_copy(update={"micro_batch": 1})
    job, _ = job_of(f"judged in {precision}", precision=precision, stage=stage)
    rows = judge(job, job.parts, StageData(job, rank=0, world=1), CPU)
    assert len(rows) == 2
    assert seen == [(precision == "bf16", [1, 1])]


def test_a_proof_measures_with_what_the_objective_of_the_run_is_given(job_of, monkeypatch):
    seen: list[object] = []

    def measure(self: UsesFirstFrames, evidence: Evidence) -> dict[str, torch.Tensor]:
        seen.append(evidence.given)
        return {name: torch.ones(1, 2) for name in ("masked", "1 frame", "2 frames")}

    monkeypatch.setattr(UsesFirstFrames, "measure", measure)
    given = FirstFrames(weights=(1, 2, 3))
    objective = STAGE.objective.model_copy(update={"given": given})
    job, _ = job_of("judged as given", stage=STAGE.model_copy(update={"objective": objective}))
    judge(job, job.parts, StageData(job, rank=0, world=1), CPU)
    assert seen == [given]


def test_as_many_clips_as_are_trained_on_are_judged_at_once():
    assert clips_at_once(STAGE.model_copy(update={"batch": 8, "micro_batch": 2}), 2) == 2
    assert clips_at_once(STAGE.model_copy(update={"batch": 8}), 2) == 4
    assert clips_at_once(STAGE.model_copy(update={"batch": 8}), 16) == 1


def test_whole_upscaled_frames_are_judged_and_shown_one_clip_at_a_time():
    upscaler = STAGE.model_copy(update={"full_size": True, "batch": 32, "micro_batch": 4})
    assert clips_at_once(upscaler, 1) == 1
    assert clips_shown(upscaler) == 1
    assert clips_shown(STAGE) == 3


def test_clips_to_calibrate_on_are_read_when_they_are_asked_for(job_of, monkeypatch):
    job, _ = job_of("calibrated")
    data = StageData(job, rank=0, world=1)
    read: list[int] = []
    monkeypatch.setattr(
        "videoldm_core.jobs.clips.read_batch", lambda *_, first_id, **__: read.append(first_id)
    )
    clips = data.training_clips()
    assert read == []
    next(clips)
    assert read == [0]


def test_a_bfloat16_stage_is_judged_in_numbers_close_to_those_of_float32(job_of, tmp_path):
    from videoldm_core.objectives.build import build_task

    rows = {}
    for precision in ("fp32", "bf16"):
        job, _ = job_of(f"close in {precision}", precision=precision)
        names = build_task(job, torch.zeros(4, 8)).save(tmp_path / precision)
        parts = {**job.parts, **{name: tmp_path / precision / name for name in names}}
        rows[precision] = judge(job, parts, StageData(job, rank=0, world=1), CPU)
    for exact, rounded in zip(rows["fp32"], rows["bf16"], strict=True):
        assert rounded.value[0] == pytest.approx(exact.value[0], rel=0.02)
        assert rounded.value[0] != exact.value[0]
