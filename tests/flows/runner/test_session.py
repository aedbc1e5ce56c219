"""A whole run whose commands only write files: what is made, registered and shown."""

import json
import shutil
import time
from pathlib import Path

import pytest

from flows.config.load import load_run
from flows.launch import Command, StageCrashed
from flows.launch.supervisor import End
from flows.registry.versions import registered_release
from flows.runner.failures import StepsFailed
from flows.runner.session import evaluate, sample_to, work
from flows.steps.data import StepRequest
from flows.steps.graph import Made
from flows.tracking.tracker import Tracker
from tests.flows.report.test_page import write_video
from videoldm_core.errors import UserError
from videoldm_core.jobs.job import load_job
from videoldm_core.jobs.published import PublishedStage, describe_parts, write_published
from videoldm_core.sampling.request import Request as SampleRequest

pytestmark = pytest.mark.usefixtures("prefect_server")


def worth_row(stage: str, *, passed: bool) -> dict:
    row = {"stage": stage, "metric": "loss", "unit": "", "higher_is_better": False}
    row |= {"value": [0.5, 0.0], "baselines": [["image", 0.4, 0.0, True]], "passed": passed}
    return row


class FakeLauncher:
    """Answers every command at once with the files it would leave behind."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.unworthy: set[str] = set()
        self.broken: dict[str, Exception] = {}

    def launch(self, command: Command, *, on_line, cancelled) -> None:
        answer = {
            "flows.steps.data": self.prepare,
            "videoldm_core.train": self.train,
            "videoldm_core.generate": self.generate,
            "videoldm_core.evaluate": self.evaluate,
        }
        answer[command.module](command)

    def prepare(self, command: Command) -> None:
        request = StepRequest.model_validate_json(command.argument.read_text())
        self.note(request.step)
        out = request.run.out
        places = {"text": "text_tower/config.json", "admission": "admission.json"}
        path = out / places.get(request.step, f"{request.step}/0123/index.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        request.answer.write_text(Made(output=path).model_dump_json())

    def train(self, command: Command) -> None:
        job = load_job(command.argument)
        self.note(job.stage.name)
        assert all(path.is_dir() for path in job.parts.values())
        weights = job.out / "weights" / job.stage.trains[-1]
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_text(job.fingerprint())
        lines = [{"time": 1.0, "total_steps": 2, "stage": job.stage.name}]
        lines += [{"time": 2.0 + s, "step": s, "metrics": {"loss": 0.5}} for s in range(2)]
        command.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        published = {
            "stage": job.stage,
            "video": job.video,
            "seed": job.seed,
            "fingerprint": job.fingerprint(),
            "parts": describe_parts(job.out, {weights.name: weights}, dict(job.parts)),
            "parents": job.parents,
            "data": {job.stage.reads: "d" * 64},
            "step": 2,
            "worth": [worth_row(job.stage.name, passed=job.stage.name not in self.unworthy)],
            "versions": {},
            "started": time.time(),
            "finished": 10.0,
            "process_seconds": 20.0,
        }
        write_published(job.out, PublishedStage.model_validate(published))

    def generate(self, command: Command) -> None:
        request = SampleRequest.model_validate_json(command.argument.read_text())
        self.note("sample")
        assert all(request.stages[name].is_dir() for name in request.roles.model_dump().values())
        for path in request.videos:
            write_video(path)
            path.with_suffix(".gif").write_bytes(b"GIF89a")

    def evaluate(self, command: Command) -> None:
        name = load_job(command.argument).stage.name
        self.note(f"evaluate {name}")
        rows = [worth_row(name, passed=False)]
        command.argument.with_name("worth.json").write_text(json.dumps(rows))

    def note(self, step: str) -> None:
        self.ran.append(step)
        if step in self.broken:
            raise self.broken[step]


@pytest.fixture
def run(tmp_path):
    return load_run("tiny", [f"out={tmp_path / 'out'}", "price_per_process_hour=1"])


STAGES = ["autoencoder", "image", "temporal", "predictor", "interpolator", "decoder"]
STAGES += ["image_upscaler", "upscaler"]


def test_a_run_makes_registers_and_reports_everything_once(run, capsys):
    launcher = FakeLauncher()
    work(run, launcher=launcher)
    assert sorted(launcher.ran) == sorted(
        ["videos", "admission", "text", "pixels", "latents", *STAGES, "sample"]
    )
    release = json.loads((run.out / "release.json").read_text())
    assert set(release["stages"]) == set(STAGES)
    assert release["version"] == 1
    tracker = Tracker(uri=f"sqlite:///{run.out}/mlflow.db", experiment=run.name, out=run.out)
    assert tracker.is_all_delivered()
    with tracker.client_or_none() as client:
        assert registered_release(client, "demo").stages["temporal"].version == 1
        version = client.get_model_version("demo-predictor", 1)
        assert version.tags["parent.temporal"] == "demo-temporal/1"
        assert version.tags["data.latents"] == "d" * 64
        stage_run = client.get_run(tracker.run_id("predictor"))
        assert stage_run.info.status == "FINISHED"
        assert stage_run.data.metrics["process_hours"] == pytest.approx(20 / 3600)
    page = (run.out / "report.html").read_text()
    assert "demo-temporal v1" in page
    assert "data:video/mp4;base64," in page
    said = capsys.readouterr().out
    assert str(run.out / "video.mp4") in said
    assert f"mlflow ui --backend-store-uri sqlite:///{run.out}/mlflow.db" in said

    assert said.splitlines()[-1] == "Every stage proves its worth: 8 of 8 claims hold."

    launcher.ran.clear()
    work(run, launcher=launcher)
    assert launcher.ran == []

    rows = evaluate(run, "temporal", launcher=launcher)
    assert [row["stage"] for row in rows] == ["temporal"]
    assert "Not worth it yet: temporal." in capsys.readouterr().out
    assert launcher.ran == ["evaluate temporal"]

    launcher.ran.clear()
    launcher.unworthy = {"decoder"}
    shutil.rmtree(run.stage_folder("decoder"))
    work(run, launcher=launcher)
    assert launcher.ran == ["decoder", "sample"]
    assert json.loads((run.out / "release.json").read_text())["version"] == 2
    assert capsys.readouterr().out.splitlines()[-1] == "Not worth it yet: decoder."
    with tracker.client_or_none() as client:
        worth = [client.get_model_version("demo-decoder", v).tags["worth"] for v in (1, 2)]
    assert worth == ["passed", "failed"]


def test_a_crashed_stage_is_named_and_the_same_command_goes_on(run):
    launcher = FakeLauncher()
    command = Command(module="m", argument=Path("j"), processes=2, log=Path("l"), journal=Path("j"))
    launcher.broken["temporal"] = StageCrashed(command, End(1, 1), "the moon fell")
    with pytest.raises(StepsFailed, match=r"step 'temporal' failed: .*\n  the moon fell"):
        work(run, launcher=launcher)
    assert {"decoder", "upscaler"} <= set(launcher.ran)
    assert "predictor" not in launcher.ran
    tracker = Tracker(uri=f"sqlite:///{run.out}/mlflow.db", experiment=run.name, out=run.out)
    with tracker.client_or_none() as client:
        assert client.get_run(tracker.run_id("temporal")).info.status == "FAILED"
        assert client.get_run(tracker.run_id("cascade")).info.status == "FAILED"
    launcher.broken.clear()
    launcher.ran.clear()
    work(run, launcher=launcher)
    assert launcher.ran == ["temporal", "predictor", "interpolator", "sample"] or (
        launcher.ran == ["temporal", "interpolator", "predictor", "sample"]
    )


def test_a_lone_mistake_of_the_user_is_one_sentence(run):
    launcher = FakeLauncher()
    launcher.broken["admission"] = UserError("No video can be used.")
    with pytest.raises(UserError, match=r"^step 'admission': No video can be used\.$"):
        work(run, launcher=launcher)


def test_without_a_tracking_server_the_run_goes_on_and_is_registered_later(run):
    away = run.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    launcher = FakeLauncher()
    work(away, launcher=launcher)
    assert (run.out / "video.mp4").exists()
    assert json.loads((run.out / "release.json").read_text())["version"] is None
    launcher.ran.clear()
    work(run, launcher=launcher)
    assert launcher.ran == []
    assert json.loads((run.out / "release.json").read_text())["version"] == 1


def test_several_futures_are_kept_with_the_run_and_shown(run):
    futures = run.model_copy(update={"sample": run.sample.model_copy(update={"futures": 2})})
    launcher = FakeLauncher()
    work(futures, launcher=launcher)
    receipt = json.loads((run.out / "steps" / "sample.json").read_text())
    assert receipt["output"] == "video-1.mp4"
    assert receipt["files"] == ["video-2.mp4", "video-1.gif", "video-2.gif"]
    assert "data:video/mp4;base64," in (run.out / "report.html").read_text()
    launcher.ran.clear()
    found = sample_to(futures, run.out / "again.mp4", launcher=launcher)
    assert found == [run.out / "again-1.mp4", run.out / "again-2.mp4"]
    assert launcher.ran == ["sample"]


def test_sampling_needs_every_stage(run, tmp_path):
    with pytest.raises(UserError, match="'autoencoder' is not trained .never finished.; train it"):
        sample_to(run, tmp_path / "x.mp4", launcher=FakeLauncher())
