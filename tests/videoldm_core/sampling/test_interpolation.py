"""Interpolation passes: the given frames are kept, new ones lie between their own two."""

import pytest
import torch
from torch import Tensor

from tests.videoldm_core.sampling.fakes import (
    Fixed,
    Known,
    drawing,
    latents,
    levels,
    net_of,
    noise_dependent,
    on_the_line,
    random_latents,
    role,
    unheard,
)
from videoldm_core.diffusion.conditioning import KeyFrames
from videoldm_core.sampling.clip_sampler import RoleModel
from videoldm_core.sampling.interpolation import GROUPS_KEPT, Interpolation


@pytest.fixture
def interpolator() -> RoleModel:
    return role(Known(on_the_line, told_pass=True), KeyFrames())


def between(
    one: RoleModel, below: Tensor | Interpolation, which: int = 0, **config
) -> Interpolation:
    source = Fixed(below) if isinstance(below, Tensor) else below
    return Interpolation(drawing(**config), one, source, which=which, progress=unheard)


def whole(one: Interpolation) -> Tensor:
    return one.read(0, one.count)


def test_8_frames_become_29_and_then_113_and_key_frames_stay_to_the_bit(interpolator: RoleModel):
    keys = random_latents(8)
    first = between(interpolator, keys)
    second = between(interpolator, first, which=1)
    once, twice = whole(first), whole(second)
    assert (first.count, second.count) == (len(once), len(twice)) == (29, 113)
    assert torch.equal(once[::4], keys)
    assert torch.equal(twice[::4], once)
    assert torch.equal(twice[::16], keys)


def test_new_frames_lie_between_their_own_two_key_frames(interpolator: RoleModel):
    found = whole(between(interpolator, latents(0, 4, 12, 8), windows=2))
    assert levels(found) == pytest.approx([0, 1, 2, 3, 4, 6, 8, 10, 12, 11, 10, 9, 8], abs=1e-3)


def test_windows_are_given_their_ends_and_which_pass_it_is(interpolator: RoleModel):
    whole(between(interpolator, latents(1, 2, 3, 4), which=1, windows=2, interpolation_steps=1))
    first, second = net_of(interpolator).calls
    assert first["context"][:, :, 0, 0, 0].tolist() == [[1, 0, 0, 0, 2], [2, 0, 0, 0, 3]]
    assert second["context"][:, :, 0, 0, 0].tolist() == [[3, 0, 0, 0, 4]]
    assert first["context"][:, :, 4, 0, 0].tolist() == [[1, 0, 0, 0, 1]] * 2
    assert (first["label"].tolist(), second["label"].tolist()) == ([1, 1], [1])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_windows_do_not_depend_on_how_many_run_at_once(interpolator: RoleModel, sampler: str):
    net_of(interpolator).guess = noise_dependent
    keys = random_latents(6)
    one, all_of_them = (
        whole(between(interpolator, keys, windows=windows, sampler=sampler)) for windows in (1, 8)
    )
    assert torch.allclose(one, all_of_them, atol=1e-5)
    assert not torch.allclose(one[1:4], one[5:8], atol=0.1)


@pytest.mark.parametrize("windows", [1, 2, 8])
def test_any_range_is_the_same_to_the_bit_as_in_the_whole(interpolator: RoleModel, windows: int):
    net_of(interpolator).guess = noise_dependent
    keys = random_latents(6)
    expected = whole(between(interpolator, keys, windows=windows))
    for low in range(21):
        for high in range(low + 1, 22):
            found = between(interpolator, keys, windows=windows, interpolation_steps=2)
            assert torch.equal(found.read(low, high), expected[low:high]), (low, high)


def test_only_the_windows_that_are_asked_for_are_made_and_each_once(interpolator: RoleModel):
    source = Fixed(random_latents(100))
    one = Interpolation(
        drawing(windows=4, interpolation_steps=1),
        interpolator,
        source,
        which=0,
        progress=unheard,
    )
    for low in range(160, 240, 8):
        one.read(low - 2, low + 10)
    groups = [(low, high - 1) for low, high in source.reads]
    assert groups == [(36, 40), (40, 44), (44, 48), (48, 52), (52, 56), (56, 60), (60, 64)]


def test_few_groups_are_kept(interpolator: RoleModel):
    one = between(interpolator, random_latents(40), windows=2)
    whole(one)
    assert len(one._groups) == GROUPS_KEPT
