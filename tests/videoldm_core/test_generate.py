"""The command that samples: refusals in a sentence, and a video from small untrained models."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from videoldm_core.cascade import Stage, preset
from videoldm_core.generate import ROLES, main
from videoldm_core.models.image import UNetConfig, load_unet, load_vae
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.text import TextConfig, TextTower
from videoldm_core.models.video_decoder import temporal_decoder_for
from videoldm_core.models.video_unet import temporal_layers_for
from videoldm_core.objectives.denoising import Denoising, ScheduleConfig
from videoldm_core.training.published import PublishedStage, describe_parts, write_published

TINY = preset("tiny")
VIDEO = TINY.video.model_copy(update={"height": 16, "width": 24})
CONTEXT = {"predictor": 5, "interpolator": 5}


def publish(folder: Path, stage: Stage, parts: dict[str, Path]) -> Path:
    write_published(
        folder,
        PublishedStage(
            stage=stage,
            video=VIDEO,
            seed=0,
            fingerprint="f" * 64,
            parts=describe_parts(folder, parts, {}),
            parents={},
            data={},
            step=0,
            worth=(),
            versions={},
            started=0.0,
            finished=0.0,
            process_seconds=0.0,
        ),
    )
    return folder


@pytest.fixture(scope="module")
def cascade(image_model: dict[str, Path], tmp_path_factory) -> dict[str, Path]:
    """Folders of untrained stages for every role."""
    root = tmp_path_factory.mktemp("cascade")
    unet = load_unet(image_model["unet"])
    latent = {name: image_model[name] for name in ("unet", "scheduler", "vae")}
    parts: dict[str, dict[str, Path]] = {"image": latent}
    for role, channels in CONTEXT.items():
        phi = TemporalConfig(context_channels=channels, labels=2 if role == "interpolator" else 0)
        temporal_layers_for(unet, phi, seed=0).save(root / role / "temporal")
        parts[role] = latent | {"temporal": root / role / "temporal"}
    temporal_decoder_for(load_vae(image_model["vae"]), seed=0).save(root / "temporal_decoder")
    parts["decoder"] = {
        "vae": image_model["vae"],
        "temporal_decoder": root / "temporal_decoder",
    }
    objective = TINY.stage("image_upscaler").objective
    assert isinstance(objective, Denoising)
    UNetConfig(
        in_channels=6,
        out_channels=3,
        widths=(16, 32),
        attention=(False, False),
        layers_per_block=1,
        text=8,
        groups=8,
        told_noise_level=True,
    ).build(0).save_pretrained(root / "upscaler" / "unet")
    ScheduleConfig(predicts="v_prediction").build().save(root / "upscaler" / "scheduler")
    parts["upscaler"] = {n: root / "upscaler" / n for n in ("unet", "scheduler")}
    return {r: publish(root / "stages" / r, TINY.stage(r), parts[r]) for r in ROLES}


@pytest.fixture
def request_of(cascade: dict[str, Path], tmp_path: Path, monkeypatch):
    """request_of(key=value): runs the command on a request with these changes; its exit code."""
    config = TextConfig(context_length=4, width=8, heads=2, layers=1)
    TextTower.build(config).save(tmp_path / "text_tower")

    def run(**changes: Any) -> int:
        values = {
            "stages": {role: str(folder) for role, folder in cascade.items()},
            "text_tower": str(tmp_path / "text_tower"),
            "prompt": "a red car",
            "key_frames": 2,
            "passes": 1,
            "sampling": {"steps": 1, "upscale_steps": 1, "guidance": {"text": 2, "context": 1}},
            "out": str(tmp_path / "out" / "video.mp4"),
        }
        path = tmp_path / "request.json"
        path.write_text(json.dumps(values | changes))
        monkeypatch.setattr(sys, "argv", ["generate", str(path)])
        return main()

    return run


def test_a_request_becomes_a_video_a_preview_and_a_journal(request_of, tmp_path: Path):
    torch.manual_seed(0)
    assert request_of() == 0
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["video.gif", "video.journal.jsonl", "video.mp4"]
    with av.open(str(out / "video.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (16 * 4, 24 * 4, 3)
    last = json.loads((out / "video.journal.jsonl").read_text().splitlines()[-1])
    assert (last["what"], last["done"], last["total"]) == ("decoded and upscaled frames", 5, 5)


def test_a_role_that_is_not_named_is_reported_and_nothing_is_written(
    request_of, cascade, tmp_path: Path, capsys
):
    some = {role: str(folder) for role, folder in cascade.items() if role != "interpolator"}
    assert request_of(stages=some) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Sampling needs a trained 'interpolator' stage")
    assert error.endswith("Train it first.\n")
    assert not (tmp_path / "out").exists()


def test_a_stage_that_has_not_finished_is_reported_with_its_folder(
    request_of, cascade, tmp_path: Path, capsys
):
    stages = {role: str(folder) for role, folder in cascade.items()}
    untrained = str(tmp_path / "untrained")
    assert request_of(stages=stages | {"decoder": untrained}) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Sampling needs a trained 'decoder' stage")
    assert untrained in error


def test_an_unknown_sampler_is_reported_and_no_video_is_left(request_of, tmp_path: Path, capsys):
    assert request_of(sampling={"sampler": "dimm"}) == 2
    assert "sampler = 'dimm': Input should be 'ddim'" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.mp4"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "error: No request file at '"), ("{", "is not JSON"), ('{"x": 1}', "unknown key 'x'")],
)
def test_a_request_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch, capsys, content, message
):
    path = tmp_path / "request.json"
    if content:
        path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["generate", str(path)])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
