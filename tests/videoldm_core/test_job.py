"""A job as a file, and the identity of what decides its weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from videoldm_core.cascade import preset
from videoldm_core.errors import UserError
from videoldm_core.job import Job, load_job

TINY = preset("tiny")


def job(**changes: Any) -> Job:
    return Job(
        **{
            "stage": TINY.stage("temporal"),
            "video": TINY.video,
            "parents": {"image": "a" * 64},
            "parts": {"unet": Path("run/stages/image/weights/unet")},
            "latents": Path("run/latents/0123456789ab"),
            "text_tower": Path("run/text_tower"),
            "out": Path("run/stages/temporal"),
        }
        | changes
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"precision": "bf16"},
        {"parents": {"image": "b" * 64}},
        {"parents": {}},
        {"latents": Path("run/latents/ba9876543210")},
        {"stage": TINY.stage("temporal").model_copy(update={"steps": 201})},
        {"stage": TINY.stage("temporal").model_copy(update={"batch": 16})},
        {"video": TINY.video.model_copy(update={"fps": 8})},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_what_decides_the_weights_changes_the_fingerprint(changes: dict[str, Any]):
    assert job(**changes).fingerprint() != job().fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 3},
        {"out": Path("elsewhere/stages/temporal")},
        {"latents": Path("elsewhere/latents/0123456789ab")},
        {"parts": {"unet": Path("elsewhere/unet")}},
        {"text_tower": Path("elsewhere/text_tower")},
        {"checkpoint_every": 7},
        {"evaluate_every": 7},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_where_and_on_how_many_processes_it_runs_does_not(changes: dict[str, Any]):
    assert job(**changes).fingerprint() == job().fingerprint()


def test_a_job_is_the_same_after_its_file(tmp_path: Path):
    path = tmp_path / "job.json"
    path.write_text(job(seed=3).model_dump_json())
    assert load_job(path) == job(seed=3)
    assert load_job(path).fingerprint() == job(seed=3).fingerprint()


def test_a_job_reads_the_store_of_its_stages_kind():
    pixels = job(stage=TINY.stage("decoder"), pixels=Path("run/pixels/x"))
    assert pixels.store == Path("run/pixels/x")
    assert job().store == Path("run/latents/0123456789ab")


@pytest.mark.parametrize(("stage", "kind"), [("temporal", "latents"), ("decoder", "pixels")])
def test_a_job_without_its_store_is_refused_by_name(stage: str, kind: str):
    alone = job(stage=TINY.stage(stage), latents=None, pixels=None)
    with pytest.raises(UserError, match=rf"'{stage}' reads {kind}, but the job names no {kind}"):
        alone.store  # noqa: B018 - a property that raises


def test_a_job_file_with_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path):
    values = job().model_dump(mode="json") | {"zero_stages": 2}
    (tmp_path / "job.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"unknown key 'zero_stages'; did you mean 'zero_stage'\?"):
        load_job(tmp_path / "job.json")


def test_a_job_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"No job file at '.*job\.json'"):
        load_job(tmp_path / "job.json")


@pytest.mark.parametrize("stage", [-1, 4])
def test_there_are_zero_stages_0_to_3(tmp_path: Path, stage: int):
    values = job().model_dump(mode="json") | {"zero_stage": stage}
    (tmp_path / "job.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"zero_stage = {stage}: .*(greater|less)"):
        load_job(tmp_path / "job.json")
