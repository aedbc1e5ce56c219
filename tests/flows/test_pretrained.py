"""Models that the user brings: named in the run, refused before anything runs, due when changed."""

import os
import shutil
from pathlib import Path

import pytest

from flows.config import load_run
from flows.pretrained import check_brought, content_of, fetch, local_stage
from flows.steps import text_settings
from flows.table import table_of
from videoldm_core.errors import UserError
from videoldm_core.objectives.brought import Brought


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


def test_a_model_of_the_hub_is_fetched_only_when_the_run_says_hub(monkeypatch, tmp_path: Path):
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run = load_run("text_to_video", ["pretrained.image_model=hub:owner/name"])
    stage = table_of(run).stage("image_model")
    assert not asked
    objective = local_stage(stage).objective
    assert isinstance(objective, Brought)
    assert objective.source == str(tmp_path)
    ((name, options),) = asked
    assert name == "owner/name"
    assert all("bin" not in str(pattern) for pattern in options["allow_patterns"])


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    def download(name: str, **options: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=r"Cannot fetch 'owner/name' .*\(no route to host\)"):
        fetch("owner/name")


def test_another_kind_of_text_replaces_the_presets(stable_diffusion):
    run = load_run("text_to_video", ["text.kind=new", "text.tower.width=24", "text.tower.heads=2"])
    assert table_of(run).text.model_dump()["tower"]["width"] == 24
    with pytest.raises(UserError, match="unknown key"):
        load_run("text_to_video", ["text.width=3"])
