"""Stages made and registered: what is trained again, what a version says of its origin."""

import shutil
from pathlib import Path

import pytest

from flows.config.load import load_run
from flows.config.stage_table import table_of
from flows.launch.local import LocalLauncher
from flows.steps.stage_runner import Foreman, _write_job
from flows.tracking.tracker import Tracker
from videoldm_core.cascade.stage import preset
from videoldm_core.jobs.job import Job
from videoldm_core.jobs.published import (
    PublishedStage,
    part_paths,
    published_digest,
    read_published,
    write_published,
)


def publish(foreman: Foreman, name: str, parents: dict[str, str]) -> None:
    folder = foreman.run.stage_folder(name)
    folder.mkdir(parents=True)
    published = {
        "stage": foreman.table.stage(name),
        "video": foreman.table.video,
        "seed": 0,
        "fingerprint": "f" * 64,
        "parts": {},
        "parents": parents,
        "data": {},
        "step": 2,
        "worth": (),
        "versions": {},
        "commit": f"commit of {name}",
        "started": 1.0,
        "finished": 2.0,
        "process_seconds": 1.0,
    }
    write_published(folder, PublishedStage.model_validate(published))


def test_a_version_names_the_commit_that_trained_it_and_its_registered_parents(tmp_path: Path):
    run = load_run("tiny", [f"out={tmp_path}"])
    tracker = Tracker(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="demo", out=tmp_path)
    foreman = Foreman(run=run, table=table_of(run), launcher=LocalLauncher(), tracker=tracker)
    publish(foreman, "image", {"autoencoder": "0" * 64})
    publish(foreman, "temporal", {"image": published_digest(run.stage_folder("image"))})
    for name in ("image", "temporal"):
        tracker.begin(name, params={}, tags={})
        assert foreman.register(name).version == 1, tracker.problem
    with tracker.client_or_none() as client:
        image, temporal = (
            client.get_model_version(f"demo-{n}", 1).tags for n in ("image", "temporal")
        )
    assert image["git_commit"] == "commit of image"
    assert "parent.autoencoder" not in image, "no version of it is registered"
    assert temporal["parent.image"] == "demo-image/1"


@pytest.fixture
def stage(tmp_path: Path, released: dict[str, Path]) -> Path:
    """A published stage's folder with a part of its own."""
    return shutil.copytree(released["image"], tmp_path / "image")


def job_of(folder: Path) -> Job:
    row = preset("tiny").stage("image")
    where = {"out": folder, "latents": folder, "text_tower": folder}
    return Job.model_validate({"stage": row, "video": preset("tiny").video, **where})


def test_a_stage_that_is_whole_is_not_trained_again_because_registering_it_failed(stage: Path):
    _write_job(stage, job_of(stage), goes_on=True)
    assert read_published(stage) is not None
    assert part_paths(stage, verify=True)


def test_a_stage_whose_weights_are_damaged_is_no_longer_published(stage: Path):
    (weights,) = (stage / "weights" / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    _write_job(stage, job_of(stage), goes_on=True)
    assert read_published(stage) is None
    assert weights.exists()


def test_what_another_job_made_is_removed(stage: Path):
    _write_job(stage, job_of(stage), goes_on=False)
    assert [path.name for path in stage.iterdir()] == ["job.json"]
