"""Models that the user brings: named in the run, refused before anything runs, due when changed."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from flows.config.load import load_run
from flows.config.pretrained import check_brought, content_of, local_stage
from flows.config.stage_table import table_of
from flows.launch import Command
from flows.launch.local import environment
from flows.steps.cascade import data_steps, text_settings
from flows.steps.data import Preparation, StepRequest, launch_text
from flows.steps.data import main as prepare_main
from flows.steps.graph import Attempt, Made
from flows.steps.stage_runner import Foreman
from flows.tracking.tracker import Tracker
from tests.flows.fake_hub import FakeHub, files_below
from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.stable_diffusion import load_text_tower
from videoldm_core.models.text.encoder import TextTower
from videoldm_core.models.text.source import OF_PIXELS, OpenClipText, pixel_tower
from videoldm_core.objectives.pretrained import Brought

WITHOUT_UPSCALER = "without=[image_upscaler, upscaler]"


def brought(run: list[str], stage: str = "image_model") -> Brought:
    objective = table_of(load_run("text_to_video", run)).stage(stage).objective
    assert isinstance(objective, Brought)
    return objective


def test_a_named_model_becomes_the_source_of_its_stage(stable_diffusion):
    assert brought([f"pretrained.image_model={stable_diffusion}"]).source == str(stable_diffusion)


def test_a_cascade_without_its_model_is_refused_with_the_key_to_set():
    table = table_of(load_run("text_to_video"))
    with pytest.raises(UserError, match=r"an image model.* pretrained\.image_model=PATH"):
        check_brought(table)


def test_a_stage_that_is_trained_cannot_be_brought(stable_diffusion):
    with pytest.raises(UserError, match="trains 'temporal', it is brought image_model and image_u"):
        load_run("text_to_video", [f"pretrained.temporal={stable_diffusion}"])


def test_a_stage_left_out_takes_its_role_with_it(stable_diffusion):
    run = [f"pretrained.image_model={stable_diffusion}", "without=[image_upscaler, upscaler]"]
    table = table_of(load_run("text_to_video", run))
    check_brought(table)
    assert table.roles.upscaler is None
    assert table.pixel_text is None  # nobody is left to read it
    assert "upscaler" not in [row.name for row in table.stages]


def test_a_stage_that_others_start_from_or_sampling_needs_cannot_be_left_out():
    with pytest.raises(UserError, match="'temporal' starts from 'image', which is no stage before"):
        load_run("text_to_video", ["without=[image]"])
    with pytest.raises(UserError, match="without decoder: key 'roles.decoder' is missing"):
        load_run("tiny", ["without=[decoder]"])


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"pretrained.image_model = '/no/model' does not exist"):
        load_run("text_to_video", ["pretrained.image_model=/no/model"])


def test_a_moved_model_is_the_same_and_a_changed_one_is_not(stable_diffusion, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(stable_diffusion, here)
    before = content_of(brought([f"pretrained.image_model={here}"]))
    here.rename(there)
    run = [f"pretrained.image_model={there}"]
    assert content_of(brought(run)) == before
    os.utime(there / "vae" / "config.json", (1, 1))
    assert content_of(brought(run)) != before


def test_the_text_tower_is_due_when_the_model_it_is_part_of_changes(stable_diffusion, tmp_path):
    shutil.copytree(stable_diffusion, tmp_path / "model")
    run = load_run("text_to_video", [f"pretrained.image_model={tmp_path / 'model'}"])
    before = text_settings(table_of(run))
    (tmp_path / "model" / "text_encoder" / "model.safetensors").write_bytes(b"other")
    assert text_settings(table_of(run)) != before


def test_a_model_of_the_hub_is_fetched_only_when_the_run_says_hub(
    monkeypatch, stable_diffusion: Path
):
    hub = FakeHub(monkeypatch, stable_diffusion, files_below(stable_diffusion))
    run = load_run("text_to_video", ["pretrained.image_model=hub:owner/name"])
    stage = table_of(run).stage("image_model")
    assert not hub.asked
    objective = local_stage(stage).objective
    assert isinstance(objective, Brought)
    assert objective.source == str(stable_diffusion)
    ((name, options),) = hub.asked
    assert name == "owner/name"
    assert sorted(options["allow_patterns"]) == sorted(hub.files)  # type: ignore[call-overload]


class Offline:
    """A launcher whose processes reach no hub, as those of every launcher; it stays in this one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def launch(self, command: Command, **how: object) -> None:
        def refuse(name: str, **options: object) -> None:
            raise ConnectionError("HF_HUB_OFFLINE")

        assert environment(command.processes)["HF_HUB_OFFLINE"] == "1"
        with self.monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.model_info", refuse)
            patch.setattr("huggingface_hub.snapshot_download", refuse)
            patch.setattr("sys.argv", [command.module, str(command.argument)])
            assert prepare_main() == 0


def test_the_text_step_fetches_before_it_launches_a_process_without_network(
    monkeypatch, stable_diffusion: Path, tmp_path
):
    hub = FakeHub(monkeypatch, stable_diffusion, files_below(stable_diffusion))
    out, source = f"out={tmp_path / 'run'}", "pretrained.image_model=hub:owner/name"
    run = load_run("text_to_video", [out, source, WITHOUT_UPSCALER])
    attempt = Attempt(goes_on=False, on_line=lambda line: None, cancelled=threading.Event())
    launch_text(attempt, run=run, launcher=Offline(monkeypatch))
    assert [name for name, _ in hub.asked] == ["owner/name"]
    tower = TextTower.load(tmp_path / "run" / "text_tower")
    assert tower.digest() == load_text_tower(stable_diffusion).digest()


def test_the_text_of_pixel_shards_is_the_upscalers_own_or_what_the_run_names(
    stable_diffusion, x4_upscaler, tmp_path
):
    models = {"image_model": stable_diffusion, "image_upscaler": x4_upscaler}
    brought = [f"pretrained.{name}={path}" for name, path in models.items()]
    brought.append(f"out={tmp_path / 'run'}")
    attempt = Attempt(goes_on=False, on_line=lambda line: None, cancelled=threading.Event())
    launcher = Recording()
    tower = {"width": 64, "heads": 2, "layers": 1}
    named = ["kind=new", *(f"tower.{name}={value}" for name, value in tower.items())]
    other = [*brought, *(f"pixel_text.{field}" for field in named)]
    for run, width in ((brought, 48), (other, 64)):
        launch_text(attempt, run=load_run("text_to_video", run), launcher=launcher)
        made = Preparation(launcher.request).text()
        folder = made.output.parent
        assert TextTower.load(folder).dimension == 32
        assert TextTower.load(pixel_tower(folder)).dimension == width
        assert {path.parent for path in made.files} == {folder, folder / OF_PIXELS}
    settings = text_settings(table_of(load_run("text_to_video", brought)))
    assert set(settings) == {"of_latents", "of_pixels"}


class Recording:
    """A launcher that keeps the request, and answers as if it had been worked on."""

    request: StepRequest

    def launch(self, command: Command, **how: object) -> None:
        self.request = StepRequest.model_validate_json(command.argument.read_text())
        made = Made(output=self.request.run.out / "made")
        self.request.answer.write_text(made.model_dump_json())


def test_an_open_clip_tag_is_downloaded_before_the_launch_too(monkeypatch, tmp_path):
    weights = tmp_path / "weights.pt"
    monkeypatch.setattr("open_clip.download_pretrained", lambda config: str(weights))
    text = ["text.kind=open_clip", "text.model=ViT-L-14", "text.pretrained=openai"]
    text += ["text.download=true", WITHOUT_UPSCALER]
    run = load_run("text_to_video", [*text, f"out={tmp_path / 'run'}"])
    attempt = Attempt(goes_on=False, on_line=lambda line: None, cancelled=threading.Event())
    launcher = Recording()
    launch_text(attempt, run=run, launcher=launcher)
    source = table_of(launcher.request.run).text
    assert source == OpenClipText(
        model="ViT-L-14", pretrained=str(weights), activation="quick_gelu"
    )


def test_the_graph_makes_text_through_the_step_that_fetches(tmp_path):
    run = load_run("tiny", [f"out={tmp_path}"])
    tracker = Tracker(uri="sqlite://", experiment="x", out=tmp_path)
    foreman = Foreman(run=run, table=table_of(run), launcher=Recording(), tracker=tracker)
    makes = {step.name: step.make for step in data_steps(foreman)}
    assert makes["text"].func is launch_text  # type: ignore[attr-defined]


def test_another_kind_of_text_replaces_the_presets(stable_diffusion):
    run = load_run("text_to_video", ["text.kind=new", "text.tower.width=24", "text.tower.heads=2"])
    assert table_of(run).text.model_dump()["tower"]["width"] == 24
    with pytest.raises(UserError, match="unknown key"):
        load_run("text_to_video", ["text.width=3"])
