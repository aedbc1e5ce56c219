"""The folder of a run: whose it is, moved, and with what MLflow knew of it deleted."""

import json
import os
import shutil
import stat

import pytest

from flows.config.load import load_run
from flows.registry.versions import registered_release
from flows.released import lay_out
from flows.runner.session import work
from flows.tracking.tracker import Tracker
from tests.flows.runner.test_session import STAGES, FakeLauncher
from videoldm_core.errors import UserError
from videoldm_core.jobs.published import part_paths

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run(tmp_path):
    return load_run("tiny", [f"out={tmp_path / 'out'}", "price_per_process_hour=1"])


@pytest.fixture
def no_umask():
    """As careless as a user can be."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_a_runs_folder_is_its_users_alone(run, capsys):
    work(run, only=("admission",), launcher=FakeLauncher())
    assert stat.S_IMODE(run.out.stat().st_mode) == 0o700
    assert "Others may look" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_umask")
def test_a_folder_that_others_may_look_into_stays_so_but_settings_are_private(run, capsys):
    run.out.mkdir(mode=0o755)
    marked = run.sample.model_copy(update={"prompt": "a marked settings text"})
    run = run.model_copy(update={"sample": marked})
    work(run, launcher=FakeLauncher())
    assert stat.S_IMODE(run.out.stat().st_mode) == 0o755
    assert f"Others may look into '{run.out}' (mode 755)" in capsys.readouterr().out
    with_settings = {
        path.relative_to(run.out).as_posix()
        for path in run.out.rglob("*")
        if path.is_file() and b"a marked settings text" in path.read_bytes()
    }
    assert {"run.json", "report.html", "steps/sample.request.json"} <= with_settings
    private = {*with_settings, "mlflow.db", "mlflow_runs.json", "stages/temporal/job.json"}
    modes = {name: (run.out / name).stat().st_mode & 0o077 for name in private}
    assert not any(modes.values()), modes
    work(run, launcher=FakeLauncher())
    assert "Others may look" not in capsys.readouterr().out, "it is said once"


def test_a_moved_run_ends_with_a_release_that_loads(run, tmp_path, monkeypatch):
    launcher = FakeLauncher()
    work(run, launcher=launcher)
    there = tmp_path / "there"
    run.out.rename(there)
    launcher.ran.clear()
    moved = load_run("tiny", [f"out={there}", "price_per_process_hour=1"])
    work(moved, launcher=launcher)
    assert launcher.ran == []
    assert not run.out.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there}/mlflow.db")
    tracker = Tracker(uri=f"sqlite:///{there}/mlflow.db", experiment="demo", out=there)
    with tracker.client_or_none() as client:
        release = registered_release(client, "demo")
    stages = lay_out(release, tmp_path / "laid out")
    assert sorted(stages) == sorted(STAGES)
    weights = [path for folder in stages.values() for path in part_paths(folder).values()]
    assert all(path.is_relative_to(there) for path in weights)


def test_a_deleted_experiment_is_said_with_what_to_do(run, capsys):
    launcher = FakeLauncher()
    work(run, launcher=launcher)
    tracker = Tracker(uri=f"sqlite:///{run.out}/mlflow.db", experiment="demo", out=run.out)
    with tracker.client_or_none() as client:
        client.delete_experiment(client.get_experiment_by_name("demo").experiment_id)
    shutil.rmtree(run.stage_folder("decoder"))
    capsys.readouterr()
    work(run, launcher=launcher)
    said = " ".join(capsys.readouterr().out.split())
    assert "has not taken everything: its experiment 'demo' was deleted there; restore it" in said
    assert "Once that is mended, the next command delivers the rest." in said
    assert json.loads((run.out / "release.json").read_text())["version"] is None


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "AWS_ENDPOINT_URL", "HF_ENDPOINT"])
def test_a_secret_in_an_address_of_the_environment_is_refused(run, monkeypatch, name):
    monkeypatch.setenv(name, "https://bob:s3cret@one/api")
    with pytest.raises(UserError, match=f"{name} is not just SCHEME://HOST") as error:
        work(run, launcher=FakeLauncher())
    assert "s3cret" not in str(error.value)
    assert not run.out.exists()
