"""What a finished stage says of itself, and finding its parts again."""

import shutil
from pathlib import Path

import pytest

from videoldm_core.cascade.stage import preset
from videoldm_core.errors import UserError
from videoldm_core.jobs.published import (
    PublishedStage,
    describe_parts,
    part_paths,
    published_digest,
    read_published,
    write_published,
)

TINY = preset("tiny")


def weights(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    return folder


@pytest.fixture
def predictor(tmp_path: Path) -> Path:
    """A published stage with weights of its own and some that lie in another stage's folder."""
    stages = tmp_path / "run" / "stages"
    folder = stages / "predictor"
    inherited = {
        "unet": weights(stages / "image" / "weights" / "unet", "theta"),
        "temporal": weights(stages / "temporal" / "weights" / "temporal", "older phi"),
    }
    own = {"temporal": weights(folder / "weights" / "temporal", "phi")}
    write_published(folder, published(describe_parts(folder, own, inherited)))
    return folder


def published(parts, *, step: int = 200) -> PublishedStage:
    return PublishedStage(
        stage=TINY.stage("predictor"),
        video=TINY.video,
        seed=0,
        fingerprint="f" * 64,
        parts=parts,
        parents={"temporal": "a" * 64},
        data={"latents": "b" * 64},
        step=step,
        worth=(),
        versions={"torch": "2"},
        started=1.0,
        finished=3.5,
        process_seconds=5.0,
    )


def test_a_stage_is_read_as_it_was_published(predictor: Path):
    found = read_published(predictor)
    assert found is not None
    assert found == published(found.parts)


def test_a_stage_that_has_not_finished_is_not_there(tmp_path: Path):
    assert read_published(tmp_path) is None
    with pytest.raises(UserError, match=r"No trained stage in .*stage\.json is missing"):
        part_paths(tmp_path)


def test_own_parts_come_before_inherited_ones(predictor: Path):
    paths = part_paths(predictor, verify=True)
    assert (paths["temporal"] / "model.safetensors").read_text() == "phi"
    assert (paths["unet"] / "model.safetensors").read_text() == "theta"


def test_parts_are_found_after_the_run_folder_has_moved(predictor: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere" / "deep" / "run"
    shutil.move(str(tmp_path / "run"), str(moved))
    paths = part_paths(moved / "stages" / "predictor", verify=True)
    assert sorted(paths) == ["temporal", "unet"]
    assert all(moved in path.parents for path in paths.values())


def test_a_missing_part_is_named(predictor: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "run" / "stages" / "image")
    with pytest.raises(UserError, match=r"Part 'unet' of .* is missing at .*train the stage"):
        part_paths(predictor)


def test_a_changed_part_is_found_when_every_byte_is_read(predictor: Path, tmp_path: Path):
    file = tmp_path / "run" / "stages" / "image" / "weights" / "unet" / "model.safetensors"
    file.write_text("thetb")
    part_paths(predictor)
    with pytest.raises(UserError, match=r"Part 'unet' at .* is not what .*stage\.json.* recorded"):
        part_paths(predictor, verify=True)


@pytest.mark.parametrize("text", ["{", '{"stage": "predictor"}', "\x00"])
def test_a_damaged_file_is_reported_in_one_sentence(predictor: Path, text: str):
    (predictor / "stage.json").write_text(text)
    with pytest.raises(UserError, match=r"is not a published stage .*delete the folder"):
        read_published(predictor)


def test_a_stage_trained_again_is_another_parent(predictor: Path):
    before = published_digest(predictor)
    found = read_published(predictor)
    assert found is not None
    write_published(predictor, published(found.parts))
    assert published_digest(predictor) == before
    write_published(predictor, published(found.parts, step=201))
    assert published_digest(predictor) != before
