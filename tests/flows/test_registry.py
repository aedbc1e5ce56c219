"""Versions and releases in a real registry."""

import shutil
from pathlib import Path

import pytest

from flows.registry import (
    Pin,
    Release,
    StageModel,
    model_name,
    read_release,
    register_release,
    register_stage,
)
from flows.tracking import CASCADE, Tracker
from videoldm_core.errors import UserError
from videoldm_core.files import sha256_of_file


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Tracker:
    out = tmp_path_factory.mktemp("registry")
    tracker = Tracker(uri=f"sqlite:///{out / 'mlflow.db'}", experiment="demo", out=out)
    tracker.begin(CASCADE, params={}, tags={})
    assert tracker.deliver(), tracker.problem
    return tracker


@pytest.fixture
def client(tracker):
    with tracker.client_or_none() as client:
        yield client


def published_stage(folder: Path, tracker: Tracker, content: str = "one") -> StageModel:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "weights" / "temporal.safetensors").unlink(missing_ok=True)
    (folder / "weights" / "temporal.safetensors").write_text(content)
    (folder / "log.txt").write_text("not kept")
    (folder / "stage.json").unlink(missing_ok=True)
    (folder / "stage.json").write_text(f'{{"weights": "{content}"}}')
    run_id = tracker.run_id(CASCADE)
    assert run_id
    digest = sha256_of_file(folder / "stage.json")
    return StageModel(
        stage="temporal",
        folder=folder,
        files=(Path("stage.json"), Path("weights/temporal.safetensors")),
        digest=digest,
        run_id=run_id,
        tags={"parents": "image:1"},
    )


def test_the_same_digest_is_the_same_version_and_another_is_the_next(client, tracker, tmp_path):
    first = register_stage(client, "a", published_stage(tmp_path, tracker))
    again = register_stage(client, "a", published_stage(tmp_path, tracker))
    other = register_stage(client, "a", published_stage(tmp_path, tracker, "two"))
    assert (first, again, other) == (1, 1, 2)
    assert client.get_model_version_by_alias("a-temporal", "candidate").version == 2
    assert client.get_model_version("a-temporal", 1).tags["parents"] == "image:1"


def test_a_version_keeps_its_weights_when_the_stage_is_trained_again_or_deleted(
    client, tracker, tmp_path
):
    version = register_stage(client, "b", published_stage(tmp_path / "stage", tracker, "one"))
    published_stage(tmp_path / "stage", tracker, "two")
    shutil.rmtree(tmp_path / "stage")
    source = Path(client.get_model_version("b-temporal", version).source.removeprefix("file://"))
    assert (source / "weights" / "temporal.safetensors").read_text() == "one"
    assert not (source / "log.txt").exists()


def test_a_release_pins_versions_is_idempotent_and_reads_back(client, tracker, tmp_path):
    model = published_stage(tmp_path, tracker)
    version = register_stage(client, "c", model)
    pin = Pin(
        model=model_name("c", "temporal"), version=version, digest=model.digest, folder=tmp_path
    )
    release = Release(name="c", stages={"temporal": pin})
    run_id = tracker.run_id(CASCADE)
    registered = register_release(client, release, run_id=run_id)
    assert registered.version == 1
    assert register_release(client, release, run_id=run_id) == registered
    assert read_release(client, "c") == registered
    assert read_release(client, "c", 1) == registered
    assert client.get_model_version("c-release", 1).tags["pin.temporal"] == "c-temporal/1"


def test_an_unknown_release_is_one_sentence(client):
    with pytest.raises(UserError, match="no release 'champion' of 'nobody-release'"):
        read_release(client, "nobody", "champion")
