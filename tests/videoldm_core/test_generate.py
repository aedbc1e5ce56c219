"""The command that samples: refusals in a sentence, and videos from small untrained models."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.videoldm_core.releases import TEXT_TO_VIDEO, TINY, request_for, request_values
from videoldm_core import generate as generating
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.generate import generate, main
from videoldm_core.models.image import load_unet, load_vae
from videoldm_core.models.pretrained.stable_diffusion import ImageModel
from videoldm_core.models.text.encoder import TextTower


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rate_of(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 0)


@pytest.fixture
def command(released: dict[str, Path], tmp_path: Path, monkeypatch):
    """command(key=value): runs the command on a request with these changes; its exit code."""

    def run(**changes: Any) -> int:
        out = changes.pop("out", tmp_path / "out" / "video.mp4")
        values = request_values(released, out, **changes)
        path = tmp_path / "request.json"
        path.write_text(json.dumps(values))
        monkeypatch.setattr(sys, "argv", ["generate", str(path)])
        return main()

    return run


def test_a_request_becomes_a_video_a_preview_and_a_journal(command, tmp_path: Path):
    assert command() == 0
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["video.gif", "video.journal.jsonl", "video.mp4"]
    frames = frames_of(out / "video.mp4")
    assert len(frames) == 5
    assert frames[0].shape == (16 * 4, 24 * 4, 3)
    lines = [json.loads(line) for line in (out / "video.journal.jsonl").read_text().splitlines()]
    last = lines[-1]
    assert (last["what"], last["done"], last["total"]) == ("decoded and upscaled frames", 5, 5)
    assert {"first frame", "key frames", "interpolation pass 1"} <= {line["what"] for line in lines}


def test_text_to_video_makes_all_key_frames_in_one_call(released, tmp_path: Path):
    """No predictor, no image model, no upscaler; more frames than the clip had (§5.4)."""
    roles = TEXT_TO_VIDEO.model_copy(update={"interpolator": "interpolator"})
    request = request_for(
        released, tmp_path / "v.mp4", roles=roles.model_dump(), key_frames=12, size=[16, 22]
    )
    generate(request)
    frames = frames_of(tmp_path / "v.mp4")
    assert len(frames) == 4 * 11 + 1
    assert frames[0].shape == (16, 22, 3)


@pytest.mark.parametrize(("passes", "fps"), [(0, 1), (1, 4), (2, 16)])
def test_a_video_runs_at_its_true_pace_whatever_the_number_of_passes(
    released, tmp_path: Path, passes: int, fps: float
):
    roles = TINY.roles.model_copy(update={"upscaler": None})
    generate(request_for(released, tmp_path / "v.mp4", roles=roles.model_dump(), passes=passes))
    assert rate_of(tmp_path / "v.mp4") == pytest.approx(fps)


@pytest.mark.parametrize("size", [[18, 30], [16, 24], [4, 6]])
def test_a_video_has_the_size_asked_for(released, tmp_path: Path, size):
    """Sizes that the UNet's halvings do not divide too: convolutional in space (§5.4)."""
    generate(request_for(released, tmp_path / "v.mp4", size=size))
    assert frames_of(tmp_path / "v.mp4")[0].shape == (4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("size", [[17, 24], [16, 0], [-2, 24]])
def test_a_size_that_is_not_made_of_whole_latents_is_refused(released, tmp_path: Path, size):
    with pytest.raises(UserError, match=r"size = \[.*\] px is not made .* multiples of 2"):
        generate(request_for(released, tmp_path / "v.mp4", size=size))
    assert os.listdir(tmp_path) == []


def test_a_given_first_frame_is_what_the_video_begins_with(released, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(generating, "first_latent", None)  # the image model is not asked
    vae_sees = tmp_path / "street.png"
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 255
    Image.fromarray(pixels).save(vae_sees)
    firsts = []
    for name, picture in (("white above", pixels), ("white below", pixels[::-1])):
        Image.fromarray(picture).save(vae_sees)
        out = tmp_path / name / "v.mp4"
        roles = TINY.roles.model_copy(update={"upscaler": None})
        generate(request_for(released, out, first_frame=vae_sees, roles=roles.model_dump()))
        firsts.append(frames_of(out)[0].astype(float))
    assert np.abs(firsts[0] - firsts[1]).mean() > 1


def test_a_first_frame_that_nothing_goes_on_from_is_refused(released, tmp_path: Path):
    picture = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(picture)
    request = request_for(
        released,
        tmp_path / "v.mp4",
        roles=TEXT_TO_VIDEO.model_dump(),
        passes=0,
        first_frame=picture,
    )
    with pytest.raises(UserError, match="'temporal' was trained without context"):
        generate(request)
    picture.write_text("no picture")
    with pytest.raises(UserError, match="Cannot read the first frame"):
        generate(request_for(released, tmp_path / "v.mp4", first_frame=picture))
    assert os.listdir(tmp_path) == ["x.png"]


def test_futures_share_their_first_frame_and_are_each_the_same_again(released, tmp_path: Path):
    sampling = {"steps": 1, "interpolation_steps": 1, "overlap": 0, "blend": 0, "portion": 1}
    roles = TINY.roles.model_copy(update={"upscaler": None}).model_dump()
    options = {"sampling": sampling, "roles": roles, "futures": 3}
    for name in ("a", "b"):
        generate(request_for(released, tmp_path / name / "v.mp4", **options))
    assert sorted(os.listdir(tmp_path / "a")) == [
        *(f"v-{n}.{kind}" for n in (1, 2, 3) for kind in ("gif", "mp4")),
        "v.journal.jsonl",
    ]
    videos = [frames_of(tmp_path / "a" / f"v-{n}.mp4") for n in (1, 2, 3)]
    for n, video in enumerate(videos, start=1):
        name = f"v-{n}.mp4"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert np.abs(video[0].astype(int) - videos[0][0]).max() <= 4  # as far as H.264 keeps it
    last = [video[-1].astype(float) for video in videos]
    assert np.abs(last[0] - last[1]).mean() > 1
    assert np.abs(last[1] - last[2]).mean() > 1
    generate(request_for(released, tmp_path / "one" / "v.mp4", **options | {"futures": 1}))
    assert (tmp_path / "one" / "v.mp4").read_bytes() == (tmp_path / "a" / "v-1.mp4").read_bytes()


def test_futures_without_a_first_frame_are_refused(released, tmp_path: Path):
    roles = TINY.roles.model_copy(update={"first_frame": None}).model_dump()
    with pytest.raises(UserError, match="futures = 2 share a first frame, but none is made"):
        generate(request_for(released, tmp_path / "v.mp4", roles=roles, futures=2))


def test_what_of_a_fine_tune_was_not_used_is_said_in_the_journal(
    released, image_model, tmp_path: Path, monkeypatch
):
    model = ImageModel(
        unet=load_unet(image_model["unet"]),
        vae=load_vae(image_model["vae"]),
        schedule=NoiseSchedule.load(image_model["scheduler"]),
        remarks=("the words of a.safetensors were left out",),
    )
    tower = TextTower.load(released["text_tower"])
    monkeypatch.setattr(generating, "load_image_model", lambda *_, **__: model)
    monkeypatch.setattr(generating, "load_text_tower", lambda *_, **__: tower)
    generate(request_for(released, tmp_path / "v.mp4", backbone=tmp_path))
    lines = (tmp_path / "v.journal.jsonl").read_text().splitlines()
    assert [json.loads(line).get("remark") for line in lines][:2] == [*model.remarks, None]


def test_a_role_whose_stage_is_not_named_is_reported_and_nothing_is_written(
    command, released, tmp_path: Path, capsys
):
    some = {name: str(path) for name, path in released.items() if name != "interpolator"}
    assert command(stages=some) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Sampling needs a trained 'interpolator' stage as interpolator")
    assert error.endswith("Train it first.\n")
    assert not (tmp_path / "out").exists()


def test_a_stage_that_has_not_finished_is_reported_with_its_folder(
    command, released, tmp_path: Path, capsys
):
    stages = {name: str(folder) for name, folder in released.items()}
    untrained = str(tmp_path / "untrained")
    assert command(stages=stages | {"decoder": untrained}) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Sampling needs a trained 'decoder' stage")
    assert untrained in error


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        ({"interpolator": "predictor"}, "roles.interpolator = 'predictor', a model of 'first_fra"),
        ({"key_frames": "interpolator"}, "expected one that is given nothing or first_frames"),
        ({"decoder": "image"}, "roles.decoder = 'image', which trained no temporal decoder"),
        ({"key_frames": "temporal"}, "roles.first_frame = 'image', but the key-frame model 'temp"),
    ],
)
def test_a_stage_that_cannot_play_its_role_is_refused(released, tmp_path: Path, roles, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(request_for(released, tmp_path / "v.mp4", roles=TINY.roles.model_dump() | roles))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling": {"sampler": "dimm"}}, "sampler = 'dimm': Input should be 'ddim'"),
        ({"loras": ["x.safetensors"]}, "loras are added to a backbone, but none is given"),
        ({"out": "video.gif"}, "out = 'video.gif' is to be an mp4"),
        ({"futures": 0}, "futures = 0"),
        ({"backbone": "none.safetensors"}, "Cannot read 'none.safetensors'"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence_and_no_video_is_left(
    command, tmp_path: Path, capsys, changes, sentence
):
    assert command(**changes) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


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
