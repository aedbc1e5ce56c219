"""Versions and releases in a real registry."""

import shutil
from pathlib import Path

import pytest
import yaml

from flows.registry.versions import (
    DATA,
    MODEL_FILES,
    Defaults,
    Pin,
    PinnedRelease,
    StageModel,
    model_name,
    register_release,
    register_stage,
    registered_release,
)
from flows.tracking.tracker import CASCADE, Tracker
from videoldm_core.errors import UserError
from videoldm_core.system.files import sha256_of_file, sha256_of_folder

DEFAULTS = Defaults(
    roles={"key_frames": "temporal"},
    key_frames=5,
    passes=2,
    size=None,
    labels={},
    seed=0,
    precision="fp32",
    sampling={"steps": 50},
)


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


@pytest.fixture
def register(client, tracker, tmp_path):
    """register("c", text="tower", seed=3): a release of one stage; with it its text tower."""
    tower = tmp_path / "text_tower"
    tower.mkdir()

    def run(name: str, *, text: str = "tower", **changes) -> PinnedRelease:
        (tower / "config.json").unlink(missing_ok=True)
        (tower / "config.json").write_text(text)
        model = published_stage(tmp_path / "stage", tracker)
        version = register_stage(client, name, model)
        pin = Pin(
            model=model_name(name, "temporal"),
            version=version,
            digest=model.digest,
            folder=model.folder,
        )
        defaults = DEFAULTS.model_copy(update=changes)
        release = PinnedRelease(
            name=name,
            stages={"temporal": pin},
            request=defaults.digest(),
            text_tower=sha256_of_folder(tower),
        )
        return register_release(
            client, release, run_id=model.run_id, defaults=defaults, text_tower=tower
        )

    return run


def test_a_release_pins_versions_is_idempotent_and_reads_back(client, register):
    registered = register("c")
    assert registered.version == 1
    assert register("c") == registered
    assert registered_release(client, "c") == registered
    assert registered_release(client, "c", 1) == registered
    assert client.get_model_version("c-release", 1).tags["pin.temporal"] == "c-temporal/1"


def test_other_defaults_or_another_text_tower_are_another_version(client, register):
    versions = [register("d"), register("d", seed=1), register("d", text="other"), register("d")]
    assert [release.version for release in versions] == [1, 2, 3, 1]
    assert registered_release(client, "d", 2).request != registered_release(client, "d", 3).request


def test_a_release_is_an_mlflow_model_that_pickles_nothing(client, register, tmp_path):
    register("e")
    source = Path(client.get_model_version("e-release", 1).source.removeprefix("file://"))
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    data = {DATA / "release.json", DATA / "request.json", DATA / "text_tower" / "config.json"}
    assert files == {*map(Path, MODEL_FILES), *data}
    described = yaml.safe_load((source / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["loader_module"] == "flows.released"
    assert described["flavors"]["python_function"]["data"] == str(DATA)
    assert "videoldm==" in (source / "requirements.txt").read_text()
    assert str(tmp_path) not in (source / DATA / "request.json").read_text()


def test_an_unknown_release_is_one_sentence(client):
    with pytest.raises(UserError, match="no release 'champion' of 'nobody-release'"):
        registered_release(client, "nobody", "champion")
