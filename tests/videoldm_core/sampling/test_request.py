"""Requests: what no model of a release can do is a sentence; what decides a video identifies it."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.videoldm_core.releases import TINY, request_for
from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.diffusion.conditioning import KeyFrames
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import ConditionTokens
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling import request as requests
from videoldm_core.sampling.loading import Release, read_release
from videoldm_core.sampling.request import check, identity

CPU = torch.device("cpu")
BOX = {"class": "car", "box": [0.1, 0.1, 0.5, 0.5]}


@pytest.fixture
def release(released) -> Release:
    return read_release(TINY.roles, released)


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        (
            {"upscale_noise_timestep": 150},
            "upscale_noise_timestep = 150, but .* below level 150 on the low .* from 0 to 149",
        ),
        (
            {"interpolation_noise_timestep": 1},
            "interpolation_noise_timestep = 1, but .* noise up to level 0 on its given frames",
        ),
    ],
)
def test_a_noise_level_that_a_model_does_not_have_is_refused(
    released, release, tmp_path: Path, sampling, sentence
):
    with pytest.raises(UserError, match=sentence):
        check(request_for(released, tmp_path / "v.mp4", sampling=sampling), release)


def test_noise_as_strong_as_an_interpolator_was_trained_with_can_be_asked_for(
    released, release, tmp_path: Path
):
    published = release.stages["interpolator"]
    told = published.stage.objective.model_copy(update={"given": KeyFrames(max_noise_timestep=250)})
    stage = published.stage.model_copy(update={"objective": told})
    release.stages["interpolator"] = published.model_copy(update={"stage": stage})

    def asked(level: int, **changes: Any) -> None:
        sampling = {"interpolation_noise_timestep": level}
        check(request_for(released, tmp_path / "v.mp4", sampling=sampling, **changes), release)

    asked(250)
    with pytest.raises(UserError, match="up to level 250 .* choose one from 0 to 250"):
        asked(251)
    asked(251, passes=0)


def with_objective(release: Release, role: str, **objective: Any) -> None:
    """Another objective, as if the stage of this role had been trained with it."""
    published = release.stages[role]
    changed = published.stage.objective.model_copy(update=objective)
    stage = published.stage.model_copy(update={"objective": changed})
    release.stages[role] = published.model_copy(update={"stage": stage})


def test_guidance_from_what_a_published_stage_never_saw_is_refused(
    released, release, tmp_path: Path
):
    with_objective(release, "interpolator", given=KeyFrames(dropout=0.0))

    def asked(context: float, **changes: Any) -> None:
        sampling = {"interpolation_guidance": {"context": context}}
        check(request_for(released, tmp_path / "v.mp4", sampling=sampling, **changes), release)

    asked(1)
    asked(2, passes=0)
    with pytest.raises(UserError, match="gives the interpolator no key frames, .*dropout = 0"):
        asked(2)


def test_labels_that_a_published_model_was_always_told_cannot_be_left_out(
    released, release, tmp_path: Path, monkeypatch
):
    words = Vocabulary(labels=(LabelKind(name="time", values=("day", "night")),))
    ConditionTokens(words, 8).save(tmp_path / "tokens")
    parts = Release.parts
    tokens = {"tokens": tmp_path / "tokens"}
    monkeypatch.setattr(Release, "parts", lambda self, role: parts(self, role) | tokens)

    def asked(**changes: Any) -> None:
        unguided = {"guidance": {"text": 1.0, "context": 1.0}}
        check(request_for(released, tmp_path / "v.mp4", sampling=unguided, **changes), release)

    asked()
    with_objective(release, "first_frame", label_dropout=0.0)
    asked(labels={"time": "day"})
    with pytest.raises(UserError, match="leaves the label 'time' unknown, but the stage 'image'"):
        asked()


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("image", "steps"),
        ("interpolator", "interpolation_steps"),
        ("upscaler", "upscale_steps"),
    ],
)
def test_more_steps_than_a_model_has_levels_are_refused(
    released, tmp_path: Path, monkeypatch, role, name
):
    release = read_release(TINY.roles, released)
    short = ScheduleConfig(timesteps=40).build()
    long = ScheduleConfig(timesteps=1000).build()
    playing = {"image": "first_frame"}.get(role, role)
    monkeypatch.setattr(Release, "schedule", lambda self, of: short if of == playing else long)
    sampling = {"upscale_noise_timestep": 0, name: 40}
    check(request_for(released, tmp_path / "v.mp4", sampling=sampling), release)
    with pytest.raises(UserError, match=f"{name} = 41, but the {playing} model has 40 noise"):
        check(request_for(released, tmp_path / "v.mp4", sampling={**sampling, name: 41}), release)


def test_boxes_of_a_first_frame_that_is_given_are_refused(released, release, tmp_path: Path):
    picture = tmp_path / "street.png"
    Image.new("RGB", (8, 8)).save(picture)
    options = {"first_frame": picture, "boxes": [BOX]}
    with pytest.raises(UserError, match="boxes say what the first frame shows, but first_frame ="):
        check(request_for(released, tmp_path / "v.mp4", **options), release)


def test_a_video_is_identified_by_all_that_decides_its_bytes(
    released, release, tmp_path: Path, monkeypatch
):
    request = request_for(released, tmp_path / "v.mp4")

    def found() -> str:
        return identity(request, release, CPU)

    plain = found()
    assert found() == plain
    changed = {"format": ("FORMAT", requests.FORMAT + 1)}
    changed["accelerator"] = ("device_name", lambda device: "another card")
    for package in requests.PACKAGES:
        newer = lambda name, package=package: "9.9" if name == package else "1.0"  # noqa: E731
        changed[package] = ("version", newer)
    seen = {plain}
    for attribute, value in changed.values():
        with monkeypatch.context() as patch:
            patch.setattr(requests, attribute, value)
            seen.add(found())
    assert len(seen) == 1 + len(changed)
    assert {"videoldm", "torch", "diffusers", "av"} == set(requests.PACKAGES)


def test_a_package_that_was_not_installed_has_no_version(released, release, tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(requests, "version", missing)
    assert len(identity(request_for(released, tmp_path / "v.mp4"), release, CPU)) == 64


def test_an_accelerator_is_named_by_its_product(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card of the year")
    assert requests.device_name(torch.device("cuda")) == "card of the year"
    assert requests.device_name(CPU) == "cpu"
