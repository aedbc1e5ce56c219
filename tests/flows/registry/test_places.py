"""Run folders of any name, moved, copied, and with what MLflow kept of them deleted: real registry.

What is registered must load, so every test loads it.
"""

import shutil
import sqlite3
import threading
from pathlib import Path

import mlflow
import pytest

from flows.config.addresses import path_of, sqlite_address
from flows.config.load import load_run, tracking_uri
from flows.launch.local import LocalLauncher
from flows.steps.final import Ending
from flows.steps.graph import Attempt, Ledger, Made, Step
from flows.steps.stage_runner import Foreman
from flows.tracking.tracker import CASCADE, Tracker
from tests.videoldm_core.releases import STAGES, TINY
from videoldm_core.errors import UserError

ODD = [
    "what?mode=memory",
    "half?",
    "a#b",
    "with space",
    "größe 日本",
    "a:b",
    "it's",
    'so "called"',
    "a;b&c=d+e@f",
    "back\\slash",
    "100%",
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them; making those takes seconds."""
    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    tracker = Tracker(uri=sqlite_address(file), experiment="none", out=file.parent)
    with tracker.client_or_none() as client:
        client.search_experiments()
    assert tracker.problem is None
    return file


class Runs:
    """Runs of small untrained stages, as they are when all stages are trained."""

    def __init__(self, released: dict[str, Path], tables: Path) -> None:
        self.released, self.tables = released, tables

    def new(self, out: Path, *settings: str) -> Made:
        """Makes the files of a run in `out`, and ends it."""
        self.prepare(out, *settings)
        return self.end(out, *settings)

    def prepare(self, out: Path, *settings: str) -> Tracker:
        """Makes the files of a run in `out`, of which MLflow is to be told."""
        shutil.copytree(self.released["image"].parent, out / "stages")
        shutil.copytree(self.released["text_tower"], out / "text_tower")
        if not settings:
            shutil.copy(self.tables, out / "mlflow.db")
        tracker = self.tracker(out, *settings)
        for name in (CASCADE, *STAGES):
            tracker.begin(name, params={"of": name}, tags={})
        return tracker

    def end(self, out: Path, *settings: str, name: str = "demo") -> Made:
        """Registers the release of a run, as `videoldm run` does."""
        run = load_run("tiny", [f"out={out}", f"name={name}", *settings])
        rows = tuple(row for row in TINY.stages if row.name in STAGES)
        foreman = Foreman(
            run=run,
            table=TINY.model_copy(update={"stages": rows}),
            launcher=LocalLauncher(),
            tracker=self.tracker(out, *settings, name=name),
        )
        attempt = Attempt(goes_on=False, on_line=lambda line: None, cancelled=threading.Event())
        made = Ending(foreman).release(attempt)
        foreman.tracker.deliver()
        return made

    def tracker(self, out: Path, *settings: str, name: str = "demo") -> Tracker:
        run = load_run("tiny", [f"out={out}", f"name={name}", *settings])
        return Tracker(uri=tracking_uri(run), experiment=name, out=run.out)

    def sources(self, out: Path, *settings: str) -> set[Path]:
        """Where the release that is registered says that its files are."""
        with self.tracker(out, *settings).client_or_none() as client:
            release = client.get_model_version_by_alias("demo-release", "candidate")
            pins = [text.split("/") for key, text in release.tags.items() if key.startswith("pin.")]
            versions = [release, *(client.get_model_version(*pin) for pin in pins)]
            found = {path_of(version.source) for version in versions}
        assert len(found) == len(STAGES) + 1
        return {path for path in found if path}


@pytest.fixture
def runs(released: dict[str, Path], tables: Path) -> Runs:
    return Runs(released, tables)


def loads(uri: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Loads the release as its users do; that checks the digest of every weight."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow.pyfunc.load_model("models:/demo-release@candidate") is not None


def is_due(out: Path, made: Made) -> str | None:
    """Why a release that was made so is made again; None when it is not."""
    ledger, step = Ledger(out), Step(name="release", title="", make=lambda attempt: made)
    ledger.enter(step, made, started=0.0, seconds=0.0)
    return ledger.why_due(step)


def test_the_release_of_a_moved_run_loads_and_nothing_is_left_at_the_old_place(
    runs, tmp_path, monkeypatch
):
    old, new = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    assert not runs.new(old).incomplete
    assert loads(sqlite_address(old / "mlflow.db"), monkeypatch)
    old.rename(new)
    made = runs.end(new)
    assert not made.incomplete
    assert not old.exists()
    assert loads(sqlite_address(new / "mlflow.db"), monkeypatch)
    assert all(path.is_relative_to(new) for path in runs.sources(new))

    before = runs.sources(new)
    assert not runs.end(new).incomplete
    assert runs.sources(new) == before, "what is where it says is registered once"
    assert not old.exists()
    with runs.tracker(new).client_or_none() as client:
        found = client.get_experiment_by_name("demo")
        names = {run.info.run_name for run in client.search_runs([found.experiment_id])}
    assert names == {CASCADE, *STAGES}, "all is told where the artifacts are now"


def test_a_copied_run_loads_from_its_own_files(runs, tmp_path, monkeypatch):
    old, new = tmp_path / "a", tmp_path / "b"
    runs.new(old)
    shutil.copytree(old, new)
    before = sorted(old.rglob("*"))
    runs.end(new)
    assert all(path.is_relative_to(new) for path in runs.sources(new))
    assert sorted(old.rglob("*")) == before, "the other run is left alone"
    shutil.rmtree(old)
    assert loads(sqlite_address(new / "mlflow.db"), monkeypatch)
    assert not old.exists()


def test_a_moved_run_that_is_tracked_elsewhere_loads_too(runs, tables, tmp_path, monkeypatch):
    old, new, database = tmp_path / "a", tmp_path / "b", tmp_path / "shared.db"
    shutil.copy(tables, database)
    address = sqlite_address(database)
    runs.new(old, f"tracking_uri={address}")
    assert all(path.is_relative_to(old) for path in runs.sources(old, f"tracking_uri={address}"))
    old.rename(new)
    assert not runs.end(new, f"tracking_uri={address}").incomplete
    assert loads(address, monkeypatch)
    assert all(path.is_relative_to(new) for path in runs.sources(new, f"tracking_uri={address}"))
    assert not old.exists()


def test_a_release_whose_files_were_deleted_is_due_and_loads_again(runs, tmp_path, monkeypatch):
    out = tmp_path / "a"
    made = runs.new(out)
    assert is_due(out, made) is None
    shutil.rmtree(out / "mlflow-artifacts")
    assert "mlflow-artifacts/" in (is_due(out, made) or "")
    assert not runs.end(out).incomplete
    assert loads(sqlite_address(out / "mlflow.db"), monkeypatch)


def test_a_version_whose_files_were_changed_is_repaired(runs, tmp_path, monkeypatch):
    out = tmp_path / "a"
    runs.new(out)
    (image,) = (path for path in runs.sources(out) if (path / "weights" / "vae").is_dir())
    config = image / "weights" / "vae" / "config.json"
    text = config.read_text()
    config.unlink()  # it is a second name for the stage's file
    config.write_text(text + " ")
    before = runs.sources(out)
    assert not runs.end(out).incomplete
    assert runs.sources(out) == before, "the same version holds again what it says"
    assert loads(sqlite_address(out / "mlflow.db"), monkeypatch)


@pytest.mark.parametrize("name", ODD)
def test_a_run_folder_may_have_any_name(runs, tmp_path, monkeypatch, name):
    out = tmp_path / name / "run"
    assert not runs.new(out).incomplete
    assert {path.name for path in tmp_path.iterdir()} == {name}, "nothing lies elsewhere"
    assert loads(sqlite_address(out / "mlflow.db"), monkeypatch)
    assert all(path.is_relative_to(out) and path.is_dir() for path in runs.sources(out))
    with sqlite3.connect(out / "mlflow.db") as database:
        ((count,),) = database.execute("select count(*) from runs")
    assert count == len(STAGES) + 1, "its tables are in the file that the address names"


@pytest.mark.parametrize("name", ["a%2Fb", "a%20b", "%3F"])
def test_a_name_that_mlflow_would_decode_is_refused_at_once(tmp_path, name):
    with pytest.raises(UserError, match=r"MLflow takes '%[23].' .* out=FOLDER without it"):
        load_run("tiny", [f"out={tmp_path / name / 'run'}"])
    served = load_run("tiny", [f"out={tmp_path / name}", "tracking_uri=http://one:5000"])
    assert served.out == tmp_path / name


def test_a_deleted_experiment_is_a_sentence_with_what_to_do(runs, tmp_path, monkeypatch):
    out = tmp_path / "a"
    tracker = runs.prepare(out)
    assert tracker.deliver(), tracker.problem
    with tracker.client_or_none() as client:
        number = client.get_experiment_by_name("demo").experiment_id
        client.delete_experiment(number)
    made = runs.end(out)
    assert made.incomplete == (
        "not registered: its experiment 'demo' was deleted there; restore it with "
        "MLFLOW_TRACKING_URI set to that address (mlflow experiments restore --experiment-id "
        f"{number}), or give the run another name=NAME"
    )
    with runs.tracker(out).client_or_none() as client:
        client.restore_experiment(number)
    assert not runs.end(out).incomplete
    assert loads(sqlite_address(out / "mlflow.db"), monkeypatch)


def test_another_name_is_another_experiment_which_gets_everything(runs, tmp_path):
    out = tmp_path / "a"
    runs.new(out)
    with runs.tracker(out).client_or_none() as client:
        client.delete_experiment(client.get_experiment_by_name("demo").experiment_id)
    assert not runs.end(out, name="other").incomplete
    with runs.tracker(out, name="other").client_or_none() as client:
        found = client.get_experiment_by_name("other")
        told = {
            run.info.run_name: run.data.params for run in client.search_runs([found.experiment_id])
        }
    assert told == {name: {"of": name} for name in (CASCADE, *STAGES)}


def test_a_deleted_run_is_a_sentence_with_what_to_do(runs, tmp_path):
    out = tmp_path / "a"
    runs.new(out)
    tracker = runs.tracker(out)
    number = tracker.run_id("temporal")
    with tracker.client_or_none() as client:
        client.delete_run(number)
    tracker.add("temporal", metrics={"worth/loss": 0.5})
    assert not tracker.deliver()
    assert tracker.problem == (
        "its run 'temporal' was deleted there; restore it with MLFLOW_TRACKING_URI set to that "
        f"address (mlflow runs restore --run-id {number}), or give the run another name=NAME"
    )


def test_what_a_server_has_forgotten_is_told_anew(runs, tmp_path, monkeypatch):
    out = tmp_path / "a"
    runs.new(out)
    (out / "mlflow.db").unlink()
    shutil.copy(runs.tables, out / "mlflow.db")  # as after `mlflow gc`: nothing is known
    assert not runs.end(out).incomplete
    assert loads(sqlite_address(out / "mlflow.db"), monkeypatch)
