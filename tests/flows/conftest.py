"""A Prefect server for the tests that run flows, and a registry with releases of untrained stages,
each started once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.registry.versions import (
    Defaults,
    Pin,
    PinnedRelease,
    StageModel,
    register_release,
    register_stage,
)
from flows.steps.stage_runner import own_files
from flows.tracking.tracker import Tracker
from tests.videoldm_core.releases import TINY
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.jobs.published import published_digest, read_published
from videoldm_core.system.files import sha256_of_folder

STEPS = {"steps": 1, "interpolation_steps": 1, "upscale_steps": 1}


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Flows run against a server and a database of their own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=1800):  # on a machine that others keep busy
        yield


def defaults(**changes) -> Defaults:
    values = {
        "roles": TINY.roles.model_dump(),
        "key_frames": 2,
        "passes": 1,
        "size": None,
        "labels": {},
        "seed": 0,
        "precision": "fp32",
        "sampling": SamplingConfig.model_validate(STEPS).model_dump(mode="json"),
    }
    return Defaults.model_validate(values | changes)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Tracker:
    out = tmp_path_factory.mktemp("registry")
    return Tracker(uri=f"sqlite:///{out / 'mlflow.db'}", experiment="demo", out=out)


@pytest.fixture
def register(tracker, released, monkeypatch) -> Callable[..., PinnedRelease]:
    """register("name", key_frames=3): a release with these defaults, its files its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    stages = {name: folder for name, folder in released.items() if name != "text_tower"}

    def run(name: str, *, tracker: Tracker = tracker, **changes) -> PinnedRelease:
        tracker.begin(name, params={}, tags={})
        assert tracker.deliver(), tracker.problem
        run_id = tracker.run_id(name)
        assert run_id
        asked, tower = defaults(**changes), released["text_tower"]
        with tracker.client_or_none() as client:
            release = PinnedRelease(
                name=name,
                stages={
                    stage: pin(client, name, stage, folder, run_id)
                    for stage, folder in stages.items()
                },
                request=asked.digest(),
                text_tower=sha256_of_folder(tower),
            )
            return register_release(
                client, release, run_id=run_id, defaults=asked, text_tower=tower
            )
        raise AssertionError(tracker.problem)

    return run


def pin(client, name: str, stage: str, folder: Path, run_id: str) -> Pin:
    published = read_published(folder)
    assert published
    digest = published_digest(folder)
    files = (Path("stage.json"), *own_files(folder, published))
    model = StageModel(stage=stage, folder=folder, files=files, digest=digest, run_id=run_id)
    version = register_stage(client, name, model)
    return Pin(model=f"{name}-{stage}", version=version, digest=digest, folder=folder)
