"""What the version of a trained stage says of where it came from."""

from pathlib import Path

from flows.config import load_run
from flows.launch.local import LocalLauncher
from flows.stages import Foreman
from flows.table import table_of
from flows.tracking import Tracker
from videoldm_core.training.published import PublishedStage, published_digest, write_published


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
