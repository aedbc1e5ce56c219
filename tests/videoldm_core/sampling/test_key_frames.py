"""Key frames: call by call from one frame, from none, or all at once; kept in files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.videoldm_core.sampling.fakes import (
    SIZE,
    Known,
    counting_on,
    drawing,
    latents,
    levels,
    net_of,
    noise_dependent,
    role,
    starting,
    unheard,
)
from videoldm_core.diffusion.conditioning import FirstFrames, Given, Nothing
from videoldm_core.errors import UserError
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.models.image import UNetConfig
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling.clip_sampler import Drawing, Prompt, RoleModel, Texts
from videoldm_core.sampling.key_frames import KeyFrameCalls

FIRST = latents(0.0)
# Sampling in one step is then the prediction of the noisiest level.
SCHEDULE = ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True).build()


def calls_of(
    one: RoleModel, count: int, folder: Path, *, first: torch.Tensor | None = FIRST, **config
) -> KeyFrameCalls:
    config = {"steps": 1} | config
    return KeyFrameCalls(
        drawing(**config),
        one,
        count,
        folder=folder,
        first=None if first is None else lambda: first,
        progress=unheard,
    )


@pytest.fixture
def predictor() -> RoleModel:
    return role(Known(counting_on), FirstFrames())


def test_calls_go_on_from_one_given_frame_and_then_from_two(predictor: RoleModel, tmp_path: Path):
    keys = calls_of(predictor, 8, tmp_path).read(0, 8)
    assert levels(keys) == pytest.approx(list(range(8)), abs=1e-3)
    assert torch.equal(keys[:1], FIRST)
    contexts = [call["context"] for call in net_of(predictor).calls]
    masks = [context[0, :, 4, 0, 0].tolist() for context in contexts]
    assert masks == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    given = [context[0, :, 0, 0, 0].tolist() for context in contexts]
    assert given[0] == [0, 0, 0, 0, 0]
    assert given[1] == pytest.approx([3, 4, 0, 0, 0], abs=1e-3)


def test_without_a_first_frame_the_first_call_is_given_none(predictor: RoleModel, tmp_path: Path):
    net_of(predictor).guess = lambda noisy, given: torch.full_like(noisy, 7.0)
    keys = calls_of(predictor, 8, tmp_path, first=None).read(0, 8)
    assert levels(keys) == pytest.approx([7.0] * 8, abs=1e-3)
    masks = [call["context"][0, :, 4, 0, 0].tolist() for call in net_of(predictor).calls]
    assert masks == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert not net_of(predictor).calls[0]["context"].any()


@pytest.mark.parametrize("frames", [3, 4, 5])
@pytest.mark.parametrize("count", [2, 5, 6, 8, 9])
def test_any_range_is_read_as_it_was_made(predictor: RoleModel, tmp_path: Path, count, frames):
    keys = calls_of(replace(predictor, frames=frames), count, tmp_path)
    whole = keys.read(0, count)
    assert levels(whole) == pytest.approx(list(range(count)), abs=1e-2)
    for low in range(count):
        for high in range(low + 1, count + 1):
            assert torch.equal(keys.read(low, high), whole[low:high])


def test_a_far_frame_is_made_through_all_calls_before_it(predictor: RoleModel, tmp_path: Path):
    assert levels(calls_of(predictor, 40, tmp_path).read(38, 40)) == pytest.approx(
        [38, 39], abs=1e-2
    )
    assert len(list(tmp_path.iterdir())) == len(net_of(predictor).calls) == 13


def test_frames_that_are_kept_are_not_made_again(predictor: RoleModel, tmp_path: Path):
    before = calls_of(predictor, 12, tmp_path).read(0, 7)
    made = len(net_of(predictor).calls)
    again = calls_of(predictor, 12, tmp_path)
    assert torch.equal(again.read(0, 7), before)
    assert len(net_of(predictor).calls) == made
    assert levels(again.read(7, 12)) == pytest.approx(list(range(7, 12)), abs=1e-2)


def test_only_a_model_of_several_passes_is_told_one(predictor: RoleModel, tmp_path: Path):
    calls_of(predictor, 2, tmp_path).read(0, 2)
    assert net_of(predictor).calls[0]["label"] is None


@pytest.mark.parametrize(("count", "reach"), [(8, None), (5, None), (20, 8)])
def test_a_model_without_context_makes_all_frames_in_one_call(tmp_path: Path, count, reach):
    """More than it was trained on with attention that keeps to a distance (§4.2)."""
    one = role(Known(noise_dependent), Nothing(), frames=8)
    keys = calls_of(one, count, tmp_path, first=None)
    assert keys.read(0, count).shape == (count, *SIZE)
    (call,) = net_of(one).calls
    assert call["noisy"].shape == (1, count, *SIZE)
    assert call["context"] is None
    assert call["reach"] == reach


def test_the_reach_is_what_the_config_says(tmp_path: Path):
    one = role(Known(noise_dependent), Nothing(), frames=8)
    calls_of(one, 20, tmp_path, first=None, temporal_reach=5).read(0, 1)
    assert net_of(one).calls[0]["reach"] == 5


def test_one_alpha_per_frame_makes_no_other_number_of_frames(tmp_path: Path):
    one = role(Known(starting, alphas=8), Nothing(), frames=8)
    assert calls_of(one, 8, tmp_path, first=None).count == 8
    for count in (7, 20):
        with pytest.raises(UserError, match=f"key_frames = {count}, .* alpha for each of 8 frames"):
            calls_of(one, count, tmp_path, first=None)


def test_a_model_without_context_takes_no_first_frame(tmp_path: Path):
    with pytest.raises(UserError, match="takes no first frame: .* roles.key_frames"):
        calls_of(role(Known(starting), Nothing()), 8, tmp_path)


def test_a_predictor_of_two_frames_is_refused(predictor: RoleModel, tmp_path: Path):
    with pytest.raises(UserError, match="trained on 2 frames, 2 of which it is given"):
        calls_of(replace(predictor, frames=2), 8, tmp_path)


def test_frames_beyond_the_reach_of_all_layers_do_not_matter(small_unet: UNetConfig):
    """A real network: with a reach of 1, frame 0 moves frames near it only, by attention.

    The temporal ResBlocks are silenced: their group norms see all frames.
    """
    unet = small_unet.build(0)
    phi = temporal_layers_for(unet, TemporalConfig(), seed=0)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in phi.named_parameters():
        is_convolution = "resnet" in name and "conv2" in name
        parameter.data.normal_(0, 0.0 if is_convolution else 0.3, generator=generator)
    net = VideoUNet(unet, phi).eval().requires_grad_(False)
    one = RoleModel(
        denoiser=Denoiser(net, SCHEDULE, 1.0),
        frames=4,
        given=Nothing(),
    )
    texts = Texts(prompt=torch.ones(1, 2, 8), empty=torch.zeros(1, 2, 8))
    prompt = Prompt(texts=texts, latent_size=(4, 2, 2), seed=0)
    config = drawing(steps=1, temporal_reach=1).config
    noise = torch.randn(1, 24, 4, 2, 2, generator=generator)
    other = noise.clone()
    other[:, 0] += 1

    def drawn(start: torch.Tensor) -> torch.Tensor:
        return Drawing(prompt, config)(
            one,
            start,
            Given(),
            generators=[torch.Generator()],
            steps=1,
            guidance=config.guidance,
        )

    moved = (drawn(noise) - drawn(other)).abs().amax(dim=(0, 2, 3, 4))
    layers = sum("attention" in name for name in phi.layers)
    assert moved[1] > 1e-4
    assert (moved[layers + 1 :] == 0).all()
