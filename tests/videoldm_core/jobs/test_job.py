"""A job as a file, and the identity of what decides its weights."""

import json
from pathlib import Path
from typing import Any

import pytest

import videoldm_core.jobs.job
from videoldm_core.cascade.stage import preset
from videoldm_core.errors import ShardError, UserError
from videoldm_core.jobs.job import Job, load_job
from videoldm_core.models.perceptual import PerceptualConfig
from videoldm_core.objectives.decoding import TemporalDecoding
from videoldm_core.system.files import write_text_atomically

TINY = preset("tiny")


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stores that the jobs here name, below the working folder."""
    monkeypatch.chdir(tmp_path)
    for store, contents in [
        ("run/latents/0123456789ab", "some clips"),
        ("elsewhere/latents/0123456789ab", "some clips"),
        ("run/latents/ba9876543210", "other clips"),
        ("run/pixels/x", "some clips"),
    ]:
        write_text_atomically(Path(store) / "index.json", contents)


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
        {"stage": TINY.stage("temporal").model_copy(update={"micro_batch": 2})},
        {"stage": TINY.stage("temporal").model_copy(update={"checkpointing": True})},
        {"stage": TINY.stage("temporal").model_copy(update={"compile": True})},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_where_and_on_how_many_processes_it_runs_does_not(changes: dict[str, Any]):
    assert job(**changes).fingerprint() == job().fingerprint()


def test_a_checkpoint_of_code_that_drew_other_numbers_is_not_resumed(monkeypatch):
    before = job().fingerprint()
    monkeypatch.setattr(videoldm_core.jobs.job, "FORMAT", videoldm_core.jobs.job.FORMAT - 1)
    assert job().fingerprint() != before


def test_every_stage_of_every_seed_draws_numbers_of_its_own():
    jobs = [job(stage=stage, seed=seed) for stage in TINY.stages for seed in range(20)]
    assert len({each.draws for each in jobs}) == len(jobs)
    elsewhere = job(out=Path("elsewhere"), zero_stage=0, precision="bf16")
    assert elsewhere.draws == job().draws


def test_a_store_that_is_given_other_clips_changes_the_fingerprint():
    index = job().store / "index.json"
    before, contents = job().fingerprint(), index.read_text()
    index.write_text(contents + " and more")
    assert job().fingerprint() != before
    index.write_text(contents)
    assert job().fingerprint() == before


def test_a_job_whose_store_was_never_published_has_no_fingerprint():
    (job().store / "index.json").unlink()
    with pytest.raises(ShardError, match=r"'run/latents/0123456789ab' has no index\.json: .*run"):
        job().fingerprint()


def test_a_file_that_an_objective_reads_counts_by_its_content(tmp_path: Path):
    def fingerprint(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        stage = TINY.stage("decoder")
        files = PerceptualConfig(backbone=tmp_path / name, heads=tmp_path / name)
        objective = stage.objective.model_copy(update={"perceptual": files})
        changed = stage.model_copy(update={"objective": objective})
        return job(stage=changed, pixels=Path("run/pixels/x")).fingerprint()

    first = fingerprint("vgg.pth", b"weights")
    assert fingerprint("elsewhere.pth", b"weights") == first
    assert fingerprint("vgg.pth", b"other weights") != first
    (tmp_path / "vgg.pth").unlink()
    with pytest.raises(UserError, match=r"Cannot read '.*vgg\.pth' \(No such file"):
        job(
            stage=TINY.stage("decoder").model_copy(
                update={
                    "objective": TemporalDecoding(
                        perceptual=PerceptualConfig(
                            backbone=tmp_path / "vgg.pth", heads=tmp_path / "vgg.pth"
                        )
                    )
                }
            ),
            pixels=Path("run/pixels/x"),
        ).fingerprint()


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
    with pytest.raises(UserError, match=rf"zero_stage = {stage}: Input should be 0, 1, 2 or 3"):
        load_job(tmp_path / "job.json")
