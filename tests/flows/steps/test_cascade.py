"""The graph of a run follows the stage table."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.config.load import load_run
from flows.config.run import SampleConfig
from flows.config.stage_table import table_of
from flows.launch.local import LocalLauncher
from flows.steps.cascade import (
    boxed_stages,
    cascade_steps,
    encoder_stage,
    inventory,
    sample_settings,
)
from flows.steps.data import Preparation, StepRequest
from flows.steps.graph import Step, ancestors, in_order
from flows.steps.stage_runner import Foreman
from flows.tracking.tracker import Tracker
from preprocessing.video.plausible import RULES
from videoldm_core.cascade.annotations import LabelKind, Vocabulary


def steps_of(tmp_path, *overrides: str, table=None) -> dict[str, Step]:
    run = load_run("tiny", [f"out={tmp_path}", *overrides])
    tracker = Tracker(uri="sqlite://", experiment="x", out=tmp_path)
    foreman = Foreman(
        run=run, table=table or table_of(run), launcher=LocalLauncher(), tracker=tracker
    )
    return {step.name: step for step in cascade_steps(foreman)}


def test_a_stage_needs_what_it_starts_from_and_the_store_it_reads(tmp_path):
    steps, table = steps_of(tmp_path), table_of(load_run("tiny"))
    for stage in table.stages:
        assert set(steps[stage.name].needs) == {stage.reads, *stage.starts_from}


def test_latents_wait_for_the_stage_that_trains_their_encoder(tmp_path):
    steps, table = steps_of(tmp_path), table_of(load_run("tiny"))
    assert encoder_stage(table) in steps["latents"].needs
    assert "latents" not in ancestors(list(steps.values()), encoder_stage(table))


def test_what_does_not_read_latents_does_not_wait_for_them(tmp_path):
    steps = list(steps_of(tmp_path).values())
    assert "latents" in ancestors(steps, "temporal")
    assert "latents" not in ancestors(steps, "upscaler")
    assert "latents" not in ancestors(steps, "decoder")


def test_another_row_in_the_table_is_another_step(tmp_path):
    table = table_of(load_run("tiny"))
    slow = table.stage("interpolator").model_copy(update={"name": "slow", "strides": (2,)})
    steps = steps_of(tmp_path, table=table.model_copy(update={"stages": (*table.stages, slow)}))
    assert steps["slow"].needs == ("latents", "temporal")
    assert "slow" in steps["release"].needs


def test_what_trains_encodes_or_samples_holds_a_slot(tmp_path):
    holding = {name for name, step in steps_of(tmp_path).items() if step.uses_accelerator}
    stages = {row.name for row in table_of(load_run("tiny")).stages}
    assert holding == stages | {"latents", "sample"}


def test_the_report_comes_last(tmp_path):
    steps = list(steps_of(tmp_path).values())
    assert in_order(steps)[-1].name == "report"
    assert ancestors(steps, "report") == {step.name for step in steps} - {"report"}


def test_the_users_videos_are_not_filmed_and_their_change_is_noticed(tmp_path):
    videos = tmp_path / "mine"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"1")
    before = steps_of(tmp_path, f"videos={videos}")
    assert "videos" not in before
    (videos / "b.mp4").write_bytes(b"2")
    after = steps_of(tmp_path, f"videos={videos}")
    assert before["admission"].settings != after["admission"].settings


def test_an_odd_file_in_the_folder_of_videos_does_not_stop_the_command(tmp_path):
    videos = tmp_path / "mine"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"1")
    (videos / "b.mp4").symlink_to("nowhere")
    os.mkfifo(videos / "c.mp4")
    Path(os.fsdecode(os.fsencode(videos) + b"/\xe9.mp4")).touch()
    (tmp_path / "elsewhere").mkdir()
    (videos / "linked").symlink_to(tmp_path / "elsewhere")
    stat = os.stat(videos / "a.mp4")
    found = inventory(videos)
    assert found[1] == ["a.mp4", 1, stat.st_mtime_ns]
    assert [name for name, *_ in found] == [r"\xe9.mp4", "a.mp4", "b.mp4", "c.mp4"]
    assert json.loads(json.dumps(found)) == found
    (tmp_path / "elsewhere" / "d.mp4").touch()
    assert "linked/d.mp4" in [name for name, *_ in inventory(videos)]


def test_a_video_that_may_be_read_now_makes_admission_due(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"1")
    before = inventory(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert inventory(tmp_path) != before


@pytest.mark.parametrize("change", ["processes=4", "zero_stage=0", "concurrent_stages=4"])
def test_how_a_stage_is_computed_does_not_make_it_due(tmp_path, change):
    assert (
        steps_of(tmp_path)["temporal"].settings == steps_of(tmp_path, change)["temporal"].settings
    )


def test_a_changed_stage_changes_only_its_own_settings(tmp_path):
    before, after = steps_of(tmp_path), steps_of(tmp_path, "stages.temporal.steps=9")
    assert [n for n in before if before[n].settings != after[n].settings] == ["temporal"]


def test_other_words_admit_again_and_a_preset_without_words_admits_as_before(tmp_path):
    table = table_of(load_run("tiny"))
    before = steps_of(tmp_path, table=table)["admission"].settings
    assert set(before) == {"video", "stages", "folder"}
    kinds = [LabelKind(name="time", values=values) for values in (("day",), ("day", "night"))]
    for kind in kinds:
        told = table.model_copy(update={"labels": (kind,)})
        settings = steps_of(tmp_path, table=told)["admission"].settings
        assert settings["vocabulary"]["labels"] == [kind.model_dump(mode="json")]


def test_a_stage_of_boxes_is_admitted_for_by_its_boxes(tmp_path):
    table = table_of(load_run("tiny"))
    objective = table.stage("image").objective.model_copy(
        update={"tokens": Vocabulary(box_classes=("car",))}
    )
    rows = [
        row.model_copy(update={"objective": objective}) if row.name == "image" else row
        for row in table.stages
    ]
    told = table.model_copy(update={"stages": tuple(rows), "box_classes": ("car",)})
    assert boxed_stages(told) == ["image"]
    assert boxed_stages(table) == []
    assert steps_of(tmp_path, table=told)["admission"].settings["boxed"] == ["image"]


def test_videos_admitted_under_other_rules_are_admitted_again(tmp_path):
    (tmp_path / "mine").mkdir()
    mine = f"videos={tmp_path / 'mine'}"
    settings = steps_of(tmp_path, mine)["admission"].settings
    assert {"rates": "mean", "rules": RULES}.items() <= settings.items()
    assert steps_of(tmp_path, mine, "decode_cpu_hours=9")["admission"].settings != settings
    before, after = steps_of(tmp_path), steps_of(tmp_path, "decode_cpu_hours=9")
    assert before["admission"].settings == after["admission"].settings, "filmed ones are not"


class GivenUp(Exception):
    """Ends a step where a test has seen enough."""


def _give_up(*_, **given):
    raise GivenUp(given)


def test_the_processor_time_that_decoding_may_take_reaches_every_decoding(tmp_path, monkeypatch):
    run = load_run("tiny", [f"out={tmp_path}", "decode_cpu_hours=3.5"])
    files = {"journal": tmp_path / "journal", "answer": tmp_path / "answer"}
    steps = Preparation(StepRequest(step="admission", run=run, **files))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("not looked at")
    with monkeypatch.context() as patch:
        patch.setattr("preprocessing.admission.admit.examine_all", _give_up)
        with pytest.raises(GivenUp) as called:
            steps.admission()
    assert called.value.args[0]["cpu_hours"] == 3.5
    admission = SimpleNamespace(clips=())
    monkeypatch.setattr("preprocessing.admission.record.read_admission", lambda out: admission)
    monkeypatch.setattr("videoldm_core.models.text.encoder.TextTower.load", lambda folder: None)
    assert steps._stores(tmp_path).cpu_hours == 3.5


def test_another_role_makes_the_release_and_the_sample_due(tmp_path):
    table = table_of(load_run("tiny"))
    roles = table.roles.model_copy(update={"upscaler": None})
    changed = table.model_copy(update={"roles": roles})
    before, after = steps_of(tmp_path), steps_of(tmp_path, table=changed)
    changed_steps = [n for n in before if before[n].settings != after[n].settings]
    assert changed_steps == ["release", "sample"]


def test_another_default_of_sampling_makes_the_release_due_and_another_prompt_does_not(tmp_path):
    before = steps_of(tmp_path)["release"].settings
    assert steps_of(tmp_path, "sample.sampling.steps=3")["release"].settings != before
    assert steps_of(tmp_path, "sample.prompt=rain")["release"].settings == before


def test_a_replaced_file_makes_sampling_due_and_a_moved_one_does_not(tmp_path):
    """First frame, fine-tune and LoRAs, under the names they had."""
    files = {name: tmp_path / name for name in ("street.png", "backbone", "a.safetensors")}
    files["street.png"].write_bytes(b"1")
    files["backbone"].mkdir()
    (files["backbone"] / "unet.safetensors").write_bytes(b"1")
    files["a.safetensors"].write_bytes(b"1")

    def settings(root) -> str:
        sample = SampleConfig(
            first_frame=root / "street.png",
            backbone=root / "backbone",
            loras=(root / "a.safetensors",),
        )
        return json.dumps(sample_settings(sample))

    seen = [settings(tmp_path)]
    for file in (
        files["street.png"],
        files["backbone"] / "unet.safetensors",
        files["a.safetensors"],
    ):
        file.write_bytes(b"22")
        seen.append(settings(tmp_path))
    assert len(set(seen)) == 4
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert settings(moved) == seen[-1]


def test_what_is_asked_of_the_sample_is_in_its_steps_settings(tmp_path):
    steps = steps_of(tmp_path, "sample.seed=7")
    assert steps["sample"].settings["seed"] == 7
    assert steps["sample"].settings["first_frame"] is None
