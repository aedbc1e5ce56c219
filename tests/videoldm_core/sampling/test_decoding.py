"""Latents to frames: portions in order, with neighbours, fading; what the upscaler is given."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.videoldm_core.sampling.fakes import (
    SCALE,
    FrameDecoder,
    all_of,
    fake_cascade,
    frames_from,
    guessing,
    latents,
    levels,
    net_of,
    random_latents,
    with_low_resolution,
)
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.diffusion.conditioning import LowResolution, enlarge
from videoldm_core.errors import UserError
from videoldm_core.models.image import AutoencoderConfig
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.records import parse_record
from videoldm_core.sampling.decoding import Frames
from videoldm_core.sampling.pipeline import Cascade


@pytest.fixture
def cascade() -> Cascade:
    return fake_cascade()


def a_little_noise(noisy: Tensor, given: dict) -> Tensor:
    return 0.1 * noisy[:, :, :3] + noisy[:, :, 3:]


@pytest.mark.parametrize(
    ("portion", "overlap", "blend"), [(8, 2, 2), (3, 0, 0), (5, 1, 2), (100, 2, 2), (9, 4, 8)]
)
def test_portions_follow_one_another_to_the_last_frame(cascade: Cascade, portion, overlap, blend):
    frames = frames_from(
        cascade, latents(*range(13)), portion=portion, overlap=overlap, blend=blend
    )
    portions = [frames.portion(number) for number in range(frames.portions)]
    assert [len(p) for p in portions[:-1]] == [portion - 2 * overlap] * (len(portions) - 1)
    whole = torch.cat(portions)
    assert whole.shape == (13, 3, 16, 24)
    # The decoder is given unscaled latents.
    assert levels(whole) == pytest.approx([i / SCALE / 64 for i in range(13)], abs=0.01)


@pytest.mark.parametrize("count", [3, 8, 9, 13, 113])
def test_decoder_and_upscaler_always_see_the_number_of_frames_asked_for(cascade: Cascade, count):
    all_of(frames_from(cascade, random_latents(count), portion=8, overlap=2))
    decoder: Any = cascade.decoder
    assert {len(call) for call in decoder.calls} == {min(8, count)}
    calls = net_of(cascade.upscaler).calls
    assert {call["noisy"].shape[1] for call in calls} == {min(8, count)}


def test_a_portion_is_computed_once_with_its_neighbours(cascade: Cascade):
    all_of(frames_from(cascade, latents(*range(15)), portion=8, overlap=2))
    frames = [[value * SCALE for value in call] for call in cascade.decoder.calls]  # type: ignore[union-attr]
    assert frames == [list(range(8)), list(range(4, 12)), list(range(7, 15))]


@pytest.mark.parametrize("blend", [0, 1, 4])
def test_a_portion_needs_no_later_one(cascade: Cascade, blend: int):
    frames = frames_from(cascade, latents(*range(24)), portion=8, overlap=2, blend=blend)
    frames.portion(0)
    assert len(cascade.decoder.calls) == 1  # type: ignore[arg-type]


class PortionDecoder(FrameDecoder):
    """Every portion has a value of its own."""

    def forward(self, latents: Tensor) -> Tensor:
        frames = super().forward(latents)
        return torch.full_like(frames, 0.2 * len(self.calls))


def test_neighbouring_portions_fade_linearly_into_one_another(cascade: Cascade):
    decoder = PortionDecoder()
    frames = Frames(
        frames_from(cascade, latents(0.0), portion=8, overlap=2, blend=4).drawing,
        frames_from(cascade, latents(*range(12))).latents,
        decoder=decoder,  # type: ignore[arg-type]
        shrinks=2,
        scale=SCALE,
        upscaler=None,
    )
    expected = [0.2] * 4 + [0.24, 0.28, 0.32, 0.36] + [0.4] * 4
    assert levels(all_of(frames)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("detail_scale", [None, 8.0])
def test_frames_do_not_depend_on_the_portions_they_are_made_in(cascade: Cascade, detail_scale):
    """With models that see one frame at a time, to rounding."""
    guessing(cascade.upscaler, a_little_noise)
    one = with_low_resolution(cascade, LowResolution(factor=4, detail_scale=detail_scale))
    given = random_latents(11, seed=2)
    first, *others = (
        all_of(
            frames_from(
                one, given, portion=portion, overlap=overlap, blend=0, upscale_noise_timestep=40
            )
        )
        for portion, overlap in ((8, 2), (3, 1), (4, 1), (11, 0))
    )
    for other in others:
        assert torch.allclose(first, other, atol=1e-5)


def test_the_upscaler_is_told_the_noise_that_was_put_on_the_low_resolution(cascade: Cascade):
    all_of(frames_from(cascade, latents(0, 1), upscale_noise_timestep=40))
    for call in net_of(cascade.upscaler).calls:
        assert call["noise_level"].tolist() == [40]


def test_detail_is_added_to_the_enlarged_low_resolution(cascade: Cascade):
    """A model that finds no detail leaves bilinear enlargement."""
    guessing(cascade.upscaler, lambda noisy, given: torch.zeros_like(noisy[:, :, :3]))
    one = with_low_resolution(cascade, LowResolution(factor=4, detail_scale=8.0))
    given = random_latents(3, seed=3)
    found = all_of(frames_from(one, given))
    decoded = cascade.decoder(given[None] / SCALE)
    expected = enlarge(decoded, (4 * decoded.shape[-2], 4 * decoded.shape[-1]))[0]
    assert torch.allclose(found, expected.clamp(-1, 1), atol=1e-5)


def steadied(noisy: Tensor, given: dict) -> Tensor:
    """Like a model of video: what all frames of a piece share is signal, the rest is noise."""
    shared = noisy[:, :, :3].mean(dim=1, keepdim=True)
    return 0.1 * shared + noisy[:, :, 3:].mean(dim=1, keepdim=True).expand_as(noisy[:, :, :3])


def test_noise_of_its_own_is_taken_for_noise_and_shared_noise_for_signal(cascade: Cascade):
    """In a video that stands still; from portion to portion it must not move either."""
    given, grain = latents(*[7.0] * 24), {}
    guessing(cascade.upscaler, steadied)
    for share in (0.0, 1.0):
        config = {"upscale_shared_noise": share, "upscale_noise_timestep": 0, "upscale_steps": 1}
        frames = all_of(frames_from(cascade, given, portion=8, **config))
        grain[share] = frames[:4].std(dim=(2, 3)).mean().item()
        flicker = (frames - frames.mean(dim=0)).std().item()
        assert flicker < (1e-5 if share else grain[share])
    assert grain[1.0] == pytest.approx(grain[0.0] * 8**0.5, rel=0.1)


def test_a_video_that_stands_still_is_upscaled_without_flicker_where_noise_is_shared(cascade):
    """Its noise too stands still, in a model of single frames as in one of video."""
    given = latents(*[7.0] * 16)
    for guess in (a_little_noise, steadied):
        guessing(cascade.upscaler, guess)
        still, moving = (
            all_of(
                frames_from(cascade, given, upscale_noise_timestep=40, upscale_shared_noise=share)
            )
            for share in (1.0, 0.0)
        )
        torch.testing.assert_close(still, still[:1].expand_as(still), atol=1e-5, rtol=0)
        assert still.std() > 0.01, "the noise shows, and stands still"
        assert (moving[0] - moving[-1]).abs().max() > 0.01


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_noise_belongs_to_frames_and_has_a_share_in_common(cascade: Cascade, share: float):
    """Of what upscaling begins with, and of what is put on the low resolution."""
    given = torch.zeros(12, 4, 16, 24)
    config = {"upscale_shared_noise": share, "upscale_noise_timestep": 400, "upscale_steps": 1}
    all_of(frames_from(cascade, given, portion=8, overlap=2, blend=2, **config))
    first, second = (call["noisy"][0] for call in net_of(cascade.upscaler).calls)
    assert torch.equal(first[4:], second[:4]), "frames 4 to 7, whichever portion they are in"
    for noise in (first[:, :3], first[:, 3:]):
        found = torch.corrcoef(noise.flatten(1))
        assert found.triu(1)[0, 1:].mean() == pytest.approx(share, abs=0.06)
    assert first[:, :3].std() == pytest.approx(1, abs=0.03)


def test_an_upscaler_with_one_alpha_per_frame_makes_no_other_portions(cascade: Cascade):
    net_of(cascade.upscaler).temporal.config.frames_in_alpha = 8
    given = latents(*range(17))
    assert frames_from(cascade, given, portion=8).portions == 5
    with pytest.raises(UserError, match="frames upscaled at once = .* alpha for each of 8 frames"):
        frames_from(cascade, given, portion=9)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"blend": 5}, "blend 5 needs an overlap of at least 3 .it is 2."),
        ({"portion": 4}, "portion 4 is all overlap .2 frames at each end.; expected .* than 4"),
        ({"portion": 0}, "portion = 0"),
        ({"tile": 128}, "tile 128 is all overlap .tile_overlap 64 px at each side.; .* than 128"),
        ({"decoder_tile": 64}, "decoder_tile 64 is all overlap"),
        ({"upscale_shared_noise": 1.5}, "upscale_shared_noise = 1.5: .* less than or equal to 1"),
        ({"steps": 0}, "steps = 0: .* greater than or equal to 1"),
        ({"upscale_steps": 1001}, "upscale_steps = 1001: .* less than or equal to 1000"),
        ({"interpolation_steps": -1}, "interpolation_steps = -1"),
        ({"upscale_noise_timestep": -1}, "upscale_noise_timestep = -1"),
        ({"guidance": {"text": float("nan")}}, "guidance.text = nan: .* finite number"),
        ({"guidance": {"context": float("inf")}}, "guidance.context = inf: .* finite number"),
    ],
)
def test_sizes_and_numbers_that_cannot_be_are_refused(values: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        parse_record(SamplingConfig, values, where="sample.sampling")


@pytest.fixture
def decoder() -> VideoDecoder:
    """A real video decoder whose temporal layers do much: 6 ResBlocks of 2 convolutions, and 1."""
    vae = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0)
    temporal = temporal_decoder_for(vae, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in temporal.named_parameters():
        if "conv" in name:
            parameter.data.normal_(0, 0.15, generator=generator)
    return VideoDecoder(vae, temporal).eval().requires_grad_(False)


REACH = 13


def decoded(decoder: VideoDecoder, given: Tensor, **config) -> Tensor:
    whole = frames_from(fake_cascade(), given, **config)
    frames = Frames(
        whole.drawing, whole.latents, decoder=decoder, shrinks=2, scale=1.0, upscaler=None
    )
    return all_of(frames)


def moving(count: int) -> Tensor:
    still = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    return 0.7 * still


def test_portions_equal_the_whole_where_the_overlap_covers_all_that_convolutions_see(decoder):
    """Exactly so without the group norms of the temporal layers, which see all frames at once."""
    for block in decoder.temporal.layers.values():
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    given = moving(48)
    whole = decoded(decoder, given, portion=48, overlap=0, blend=0)
    enough = decoded(decoder, given, portion=12 + 2 * REACH, overlap=REACH, blend=0)
    none = decoded(decoder, given, portion=12, overlap=0, blend=0)
    torch.testing.assert_close(enough, whole, atol=1e-3, rtol=0)
    assert (none - whole).abs().max() > 0.05


def test_group_norms_leave_a_small_difference_that_overlap_reduces(decoder):
    """What holds for the real decoder: near the whole where frames are alike in kind."""
    given = moving(48)
    whole = decoded(decoder, given, portion=48, overlap=0, blend=0)
    far, near = (
        (decoded(decoder, given, **config) - whole).square().mean().sqrt()
        for config in (
            {"portion": 12, "overlap": 0, "blend": 0},
            {"portion": 20, "overlap": 4, "blend": 2},
        )
    )
    assert near < far / 3
    assert near < 0.02
