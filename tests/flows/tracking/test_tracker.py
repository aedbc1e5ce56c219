"""Delivery to a real SQLite MLflow, and to a server that does not answer."""

import json
from pathlib import Path

import pytest

from flows.tracking.tracker import CASCADE, Tracker
from videoldm_core.errors import UserError


def write_journal(
    path: Path, steps: range, *, first: str = '{"time": 1.0, "total_steps": 9}'
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if path.exists() else [first]
    lines += [
        json.dumps({"time": 100.0 + s, "step": s, "metrics": {"loss": 1.0 / (s + 1), "lr@x": 0.1}})
        for s in steps
    ]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """An MLflow database with its tables; making them takes seconds."""
    out = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(uri=f"sqlite:///{out / 'mlflow.db'}", experiment="first", out=out)
    tracker.begin(CASCADE, params={}, tags={})
    assert tracker.deliver(), tracker.problem
    return out / "mlflow.db"


@pytest.fixture
def tracker(database, tmp_path) -> Tracker:
    return Tracker(uri=f"sqlite:///{database}", experiment=tmp_path.name, out=tmp_path)


def reopened(tracker: Tracker) -> Tracker:
    return Tracker(uri=tracker.uri, experiment=tracker.experiment, out=tracker.out)


def history(tracker: Tracker, run: str, metric: str) -> list[tuple[int, float]]:
    with tracker.client_or_none() as client:
        return [(m.step, m.value) for m in client.get_metric_history(tracker.run_id(run), metric)]
    raise AssertionError(tracker.problem)


def run_of(tracker: Tracker, name: str):
    with tracker.client_or_none() as client:
        return client.get_run(tracker.run_id(name))


def test_a_stage_run_is_nested_and_says_everything(tracker, tmp_path):
    journal = tmp_path / "stages" / "temporal" / "journal.jsonl"
    write_journal(journal, range(3))
    (journal.parent / "x.png").write_bytes(b"png")
    with journal.open("a") as file:
        file.write('{"time": 200.0, "step": 3, "image": "x.png", "name": "grid"}\n')
    tracker.begin(CASCADE, params={"seed": 0}, tags={"git_commit": "abc"})
    tracker.begin("temporal", params={"steps": 9}, tags={"parents": "image:1"}, journal=journal)
    tracker.add("temporal", metrics={"worth/loss": 0.5})
    tracker.end("temporal", "FINISHED")
    assert tracker.deliver(), tracker.problem
    stage = run_of(tracker, "temporal")
    assert stage.data.tags["mlflow.parentRunId"] == tracker.run_id(CASCADE)
    assert stage.data.params == {"steps": "9"}
    assert stage.data.tags["parents"] == "image:1"
    assert stage.data.metrics["worth/loss"] == 0.5
    assert stage.info.status == "FINISHED"
    assert (
        Path(stage.info.artifact_uri.removeprefix("file://")) / "previews" / "x.png"
    ).read_bytes() == b"png"
    assert history(tracker, "temporal", "loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert len(history(tracker, "temporal", "lr_x")) == 3


def test_each_journal_line_is_delivered_once_also_by_another_process(tracker, tmp_path):
    journal = tmp_path / "journal.jsonl"
    tracker.begin("temporal", params={}, tags={}, journal=journal)
    write_journal(journal, range(2))
    assert tracker.deliver()
    later = reopened(tracker)
    write_journal(journal, range(2, 4))
    assert not later.is_all_delivered()
    assert later.deliver()
    assert later.is_all_delivered()
    assert [step for step, _ in history(later, "temporal", "loss")] == [0, 1, 2, 3]


def test_a_resumed_stage_goes_on_in_its_run_and_a_new_attempt_gets_a_new_one(tracker, tmp_path):
    journal = tmp_path / "journal.jsonl"
    write_journal(journal, range(2))
    tracker.begin("temporal", params={"steps": 1}, tags={}, journal=journal)
    tracker.end("temporal", "KILLED")
    assert tracker.deliver()
    first = tracker.run_id("temporal")
    assert run_of(tracker, "temporal").info.status == "KILLED"

    resumed = reopened(tracker)
    resumed.begin("temporal", params={"steps": 2}, tags={}, journal=journal)
    assert resumed.deliver()
    assert resumed.run_id("temporal") == first
    assert run_of(resumed, "temporal").info.status == "RUNNING"

    journal.unlink()
    resumed.begin("temporal", params={"steps": 2}, tags={}, journal=journal)
    write_journal(journal, range(1), first='{"time": 2.0, "total_steps": 9}')
    assert resumed.deliver()
    assert resumed.run_id("temporal") not in (None, first)


def test_a_full_disk_stops_no_delivery_for_good(tracker, monkeypatch):
    tracker.begin(CASCADE, params={}, tags={})

    def refuse(path: Path, text: str, *, mode: int) -> None:
        raise UserError(f"Cannot write {path}: No space left on device.")

    with monkeypatch.context() as full:
        full.setattr("flows.tracking.tracked_runs.write_text_atomically", refuse)
        assert not tracker.deliver()
        assert "No space left" in tracker.problem
    assert tracker.deliver(), tracker.problem
    assert run_of(tracker, CASCADE).info.status == "RUNNING"


def test_a_server_that_does_not_answer_stops_nothing_and_gets_everything_later(database, tmp_path):
    journal = tmp_path / "journal.jsonl"
    write_journal(journal, range(3))
    away = Tracker(uri="http://127.0.0.1:9", experiment="away", out=tmp_path)
    away.begin(CASCADE, params={}, tags={})
    away.begin("temporal", params={}, tags={}, journal=journal)
    away.end("temporal", "FINISHED")
    away.close()
    assert away.problem
    assert not away.is_all_delivered()
    back = Tracker(uri=f"sqlite:///{database}", experiment="away", out=tmp_path)
    assert back.deliver(), back.problem
    assert run_of(back, "temporal").info.status == "FINISHED"
    assert len(history(back, "temporal", "loss")) == 3


def test_a_server_that_no_driver_is_installed_for_stops_nothing(tmp_path):
    away = Tracker(uri="postgresql://db/mlflow", experiment="away", out=tmp_path)
    away.begin(CASCADE, params={}, tags={})
    away.start_delivering(every_s=0.01)
    away.close()
    assert away.problem
    assert "psycopg" in away.problem
    assert not away.is_all_delivered()


def test_a_damaged_database_stops_nothing(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 999)
    away = Tracker(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="away", out=tmp_path)
    away.begin(CASCADE, params={}, tags={})
    assert not away.deliver()
    assert away.problem
    assert "\n" not in away.problem


def test_delivering_in_the_background_needs_no_further_call(tracker, tmp_path):
    journal = tmp_path / "journal.jsonl"
    tracker.begin("temporal", params={}, tags={}, journal=journal)
    tracker.start_delivering(every_s=0.1)
    write_journal(journal, range(3))
    tracker.close()
    assert tracker.is_all_delivered()


def test_a_stage_may_have_more_parameters_than_one_request_takes(tracker):
    tracker.begin(CASCADE, params={f"p{i}": i for i in range(250)}, tags={})
    assert tracker.deliver(), tracker.problem
    assert len(run_of(tracker, CASCADE).data.params) == 250


def test_a_long_journal_is_delivered_in_several_requests(tracker, tmp_path):
    journal = tmp_path / "journal.jsonl"
    write_journal(journal, range(1100))
    tracker.begin("temporal", params={}, tags={}, journal=journal)
    assert tracker.deliver(), tracker.problem
    assert len(history(tracker, "temporal", "loss")) == 1100


@pytest.mark.parametrize("content", ["{", '{"uri": "x", "runs": {"cascade": {}}}'])
def test_what_was_kept_for_mlflow_is_not_forgotten_without_a_word(tmp_path, content):
    (tmp_path / "mlflow_runs.json").write_text(content)
    with pytest.raises(UserError, match=r"mlflow_runs.json' is not what this version writes .*del"):
        Tracker(uri="sqlite://", experiment="x", out=tmp_path)
