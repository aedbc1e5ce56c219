"""What a model is given: masks, c_S = (m * z, m), and a noisy low resolution."""

import pytest
import torch

from videoldm_core.diffusion.conditioning import (
    FirstFrames,
    Given,
    KeyFrames,
    LowResolution,
    Nothing,
    enlarge,
    mark_known,
    shrink,
)
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.objectives.denoising import ScheduleConfig

SCHEDULE = ScheduleConfig().build()
SHAPE = (8, 5, 4, 8, 12)


def clips(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def rng(first: int, count: int) -> SampleRng:
    return SampleRng(3, "denoiser", torch.arange(first, first + count))


def test_context_is_the_known_frames_and_the_mask_and_zero_elsewhere():
    clip = clips()
    known = torch.tensor([True, False, False, False, True]).expand(len(clip), -1)
    given = mark_known(clip, known)
    assert given.context is not None
    assert torch.equal(given.context[:, [0, 4], :4], clip[:, [0, 4]])
    assert torch.equal(given.context[:, 1:4, :4], torch.zeros_like(clip[:, 1:4]))
    assert torch.equal(given.context[:, :, 4, 3, 7], known.float())


def test_a_context_of_no_frames_is_all_zero_as_is_the_masked_one():
    clip = clips()
    nothing = mark_known(clip, torch.zeros(SHAPE[:2], dtype=torch.bool))
    masked = mark_known(clip, torch.ones(SHAPE[:2], dtype=torch.bool)).without_context()
    assert nothing.context is not None
    assert masked.context is not None
    assert masked.known is not None
    assert not nothing.context.any()
    assert torch.equal(masked.context, nothing.context)
    assert not masked.known.any()


def test_masking_the_context_keeps_everything_else():
    low = LowResolution()(torch.rand(2, 3, 3, 16, 16), rng(0, 2), SCHEDULE)
    assert low.without_context() is low


def test_frames_that_are_not_given_do_not_reach_the_context():
    """Training sees the whole clip, sampling zeros where frames are to come: the same tensor."""
    clip = clips()
    given = FirstFrames(weights=(0, 0, 1))(clip, rng(0, 8), SCHEDULE)
    while_sampling = torch.zeros_like(clip)
    while_sampling[:, :2] = clip[:, :2]
    known = (torch.arange(5) < 2).expand(len(clip), -1)
    assert given.context is not None
    assert torch.equal(given.context, mark_known(while_sampling, known).context)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_first_frames_are_given_as_often_as_the_weights_say(count):
    weights = tuple(float(i == count) for i in range(3))
    known = FirstFrames(weights=weights)(clips(), rng(0, 8), SCHEDULE).known
    assert known is not None
    assert known.tolist() == [[i < count for i in range(5)]] * 8


def test_zero_one_and_two_first_frames_are_equally_frequent_by_default():
    clip = torch.zeros(600, 3, 1, 1, 1)
    known = FirstFrames()(clip, rng(0, 600), SCHEDULE).known
    assert known is not None
    counts = torch.bincount(known.sum(dim=1), minlength=3)
    assert len(counts) == 3
    assert (counts > 150).all()


def test_an_interpolator_is_given_every_fourth_frame():
    assert KeyFrames().mask(5).tolist() == [True, False, False, False, True]
    assert KeyFrames(every=2).mask(5).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(("dropout", "given"), [(0.0, True), (1.0, False)])
def test_key_frames_are_dropped_by_whole_clips(dropout, given):
    known = KeyFrames(dropout=dropout)(clips(), rng(0, 8), SCHEDULE).known
    assert known is not None
    expected = [given, False, False, False, given]
    assert known.tolist() == [expected] * 8


def test_noise_of_a_told_level_is_put_on_key_frames_alone():
    clip = clips()
    given = KeyFrames(dropout=0.0, max_noise_timestep=250)(clip, rng(0, 8), SCHEDULE)
    assert given.context is not None
    assert given.context_noise is not None
    assert not given.context[:, 1:4].any()
    assert given.context_noise.max() <= 250
    assert len(set(given.context_noise.tolist())) > 4
    error = (given.context[:, [0, 4], :4] - clip[:, [0, 4]]).square().mean(dim=(1, 2, 3, 4))
    by_level = error[given.context_noise.argsort()]
    assert by_level[0] < by_level[-1]
    alpha, sigma = (f(given.context_noise).flatten() for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    assert torch.allclose(error, (1 - alpha) ** 2 + sigma**2, rtol=0.25)


def test_key_frames_without_noise_draw_as_before_and_tell_no_level():
    given = KeyFrames(dropout=0.5)(clips(), rng(0, 8), SCHEDULE)
    noisy = KeyFrames(dropout=0.5, max_noise_timestep=9)(clips(), rng(0, 8), SCHEDULE)
    assert given.context_noise is None
    assert torch.equal(given.known, noisy.known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        Nothing(),
        FirstFrames(),
        KeyFrames(dropout=0.5),
        KeyFrames(max_noise_timestep=250),
        LowResolution(),
    ],
)
def test_draws_belong_to_clips_however_the_batch_is_split(given):
    clip = clips()
    whole = given(clip, rng(0, 8), SCHEDULE)
    parts = [given(clip[i : i + 2], rng(i, 2), SCHEDULE) for i in range(0, 8, 2)]
    for name in ("context", "known", "context_noise", "low_resolution", "noise_level"):
        values = [getattr(part, name) for part in parts]
        if getattr(whole, name) is None:
            assert values == [None] * 4
        else:
            assert torch.equal(getattr(whole, name), torch.cat(values))


@pytest.mark.parametrize("given", [Nothing(), FirstFrames(), KeyFrames(), LowResolution()])
def test_the_announced_context_channels_are_those_it_has(given):
    context = given(clips(), rng(0, 8), SCHEDULE).context
    assert given.context_channels(4) == (0 if context is None else context.shape[2])


def test_training_and_sampling_degrade_a_low_resolution_alike():
    low_resolution, clip = LowResolution(factor=4, detail_scale=8.0), torch.rand(2, 3, 3, 16, 24)
    trained = low_resolution(clip, rng(0, 2), SCHEDULE)
    draws, low = rng(0, 2), shrink(clip, 4)
    level = draws.integers(0, low_resolution.max_noise_timestep)
    noise = draws.normal(tuple(low.shape[1:]))
    sampled = low_resolution.degrade(low, level, noise, SCHEDULE, size=(16, 24))
    assert trained.low_resolution is not None
    assert sampled.low_resolution is not None
    assert trained.base is not None
    assert sampled.base is not None
    assert torch.equal(trained.low_resolution, sampled.low_resolution)
    assert torch.equal(trained.base, sampled.base)
    assert torch.equal(level, trained.noise_level)


def test_a_low_resolution_is_clean_at_level_0_and_noise_at_the_last():
    low, noise = torch.rand(1, 2, 3, 16, 16), torch.randn(1, 2, 3, 16, 16)
    clean, noisy = (
        LowResolution(factor=2)
        .degrade(low, torch.tensor([level]), noise, SCHEDULE, size=(32, 32))
        .low_resolution
        for level in (0, SCHEDULE.timesteps - 1)
    )
    assert clean is not None
    assert noisy is not None
    assert (clean - enlarge(low, (32, 32))).abs().mean() < 0.03
    assert (noisy - enlarge(noise, (32, 32))).abs().mean() < 0.1


def test_noise_levels_stay_below_the_greatest_that_is_trained():
    given = LowResolution(max_noise_timestep=3)(torch.rand(64, 1, 3, 8, 8), rng(0, 64), SCHEDULE)
    assert given.noise_level is not None
    assert set(given.noise_level.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("detail_scale", [None, 0.5, 8.0])
def test_what_is_diffused_maps_back_to_the_clip(detail_scale):
    clip = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    given = LowResolution(detail_scale=detail_scale)(clip, rng(0, 2), SCHEDULE)
    diffused = given.to_diffused(clip)
    assert torch.allclose(given.from_diffused(diffused), clip, atol=1e-5)
    if detail_scale is None:
        assert torch.equal(diffused, clip)
    else:
        detail = clip - enlarge(shrink(clip, 4), (16, 16))
        assert torch.allclose(diffused, detail * detail_scale, atol=1e-5)


def test_without_a_base_the_clip_itself_is_diffused():
    clip = clips()
    assert torch.equal(Given().to_diffused(clip), clip)
    assert torch.equal(Given().from_diffused(clip), clip)


def test_shrinking_averages_squares_and_enlarging_keeps_flat_frames_flat():
    clip = torch.arange(16.0).view(1, 1, 1, 4, 4)
    assert shrink(clip, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    flat = torch.full((1, 2, 3, 2, 2), 0.25)
    assert torch.equal(enlarge(flat, (8, 8)), torch.full((1, 2, 3, 8, 8), 0.25))
