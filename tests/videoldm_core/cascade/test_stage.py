"""The table of stages: plain data, citing its source, and consistent in itself."""

from pathlib import Path

import pytest

import videoldm_core.cascade.presets
from videoldm_core.cascade.stage import Preset, Stage, preset
from videoldm_core.errors import UserError
from videoldm_core.records import parse_record

PRESETS = [
    preset(path.stem)
    for path in sorted(Path(videoldm_core.cascade.presets.__path__[0]).glob("*.py"))
    if path.stem != "__init__"
]
STAGES = [
    pytest.param(one, stage, id=f"{one.name}-{stage.name}")
    for one in PRESETS
    for stage in one.stages
]


@pytest.mark.parametrize(("one", "stage"), STAGES)
def test_a_stage_is_plain_data(one: Preset, stage: Stage):
    assert Stage.model_validate_json(stage.model_dump_json()) == stage
    assert parse_record(Stage, stage.model_dump(mode="json"), where=stage.name) == stage


@pytest.mark.parametrize("one", PRESETS, ids=lambda one: one.name)
def test_a_preset_is_plain_data(one: Preset):
    assert Preset.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(("one", "stage"), STAGES)
def test_a_stage_cites_the_section_it_comes_from(one: Preset, stage: Stage):
    assert "§" in stage.paper


@pytest.mark.parametrize("one", PRESETS, ids=lambda one: one.name)
def test_no_two_stages_share_a_name(one: Preset):
    names = [row.name for row in one.stages]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("one", PRESETS, ids=lambda one: one.name)
def test_a_stage_plays_each_role(one: Preset):
    roles = one.roles.model_dump(exclude_none=True)
    assert {"key_frames", "decoder"} <= roles.keys()
    assert all(one.stage(name).name == name for name in roles.values())


def test_a_role_of_no_stage_is_refused_with_the_nearest():
    values = preset("tiny").model_dump(mode="json")
    values["roles"]["upscaler"] = "upscalr"
    with pytest.raises(UserError, match=r"roles.upscaler = 'upscalr' is no stage; did you mean"):
        parse_record(Preset, values, where="the preset")


@pytest.mark.parametrize(("one", "stage"), STAGES)
def test_a_clip_of_the_store_is_long_enough_for_the_stage(one: Preset, stage: Stage):
    longest = one.video.fps * one.video.clip_seconds
    assert all((stage.frames - 1) * stride + 1 <= longest for stride in stage.strides)


@pytest.mark.parametrize(("one", "stage"), STAGES)
def test_learning_rates_have_time_to_rise_and_fall(one: Preset, stage: Stage):
    assert stage.warmup + stage.cooldown <= stage.steps


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"Unknown preset 'tinny'; did you mean 'tiny'\?"):
        preset("tinny")


def test_an_unknown_stage_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"Unknown stage 'temporl'; did you mean 'temporal'\?"):
        preset("tiny").stage("temporl")


def test_an_unknown_stage_unlike_all_others_gets_the_list():
    with pytest.raises(UserError, match=r"Unknown stage 'zzz'; known: autoencoder, decoder, "):
        preset("tiny").stage("zzz")


def test_a_stage_with_an_unknown_key_is_refused_with_the_nearest():
    values = preset("tiny").stage("temporal").model_dump(mode="json") | {"stride": [16]}
    with pytest.raises(UserError, match=r"unknown key 'stride'; did you mean 'strides'\?"):
        parse_record(Stage, values, where="the run file")
