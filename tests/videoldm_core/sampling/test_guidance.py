"""Guidance: Eq. 4, text guidance and both, against evaluating every branch by itself."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from videoldm_core.diffusion.conditioning import Given, mark_known
from videoldm_core.models.denoiser import Denoiser, predict
from videoldm_core.models.image import UNetConfig
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_unet import VideoUNet, temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling.guidance import Guidance, guided_prediction

SCHEDULE = ScheduleConfig(predicts="v_prediction").build()
BATCH, FRAMES = 2, 3


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISY = values(BATCH, FRAMES, 4, 4, 8, seed=0)
TIMESTEPS = torch.tensor([3, 700])
TEXT, NULL_TEXT = values(BATCH, 4, 8, seed=1), values(1, 4, 8, seed=2).expand(BATCH, -1, -1)
KNOWN = torch.tensor([[True, False, False], [True, True, False]])
CONTEXT = mark_known(values(BATCH, FRAMES, 4, 4, 8, seed=3), KNOWN)
LABEL = torch.tensor([0, 1])


class Counting(nn.Module):
    """Passes calls on and notes how many clips were in each."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        self.net, self.unet, self.temporal = net, net.unet, net.temporal
        self.clips: list[int] = []

    def forward(self, noisy: Tensor, *given: Any, **named: Any) -> Tensor:
        self.clips.append(len(noisy))
        return self.net(noisy, *given, **named)


@pytest.fixture(scope="module")
def model(small_unet: UNetConfig) -> Denoiser:
    """A video model for which text, context and label all matter."""
    unet = small_unet.build(0)
    config = TemporalConfig(context_channels=5, labels=2)
    layers = temporal_layers_for(unet, config, seed=0)
    generator = torch.Generator().manual_seed(5)
    for parameter in layers.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    net = Counting(VideoUNet(unet, layers))
    return Denoiser(net.eval().requires_grad_(False), SCHEDULE, 1.0)  # type: ignore[arg-type]


def guided(model: Denoiser, guidance: Guidance, context: Given = CONTEXT) -> tuple[Tensor, int]:
    """The prediction, and how many branches it took."""
    model.net.clips.clear()  # type: ignore[operator]
    found = guided_prediction(
        model,
        NOISY,
        TIMESTEPS,
        text=TEXT,
        null_text=NULL_TEXT,
        given=context,
        guidance=guidance,
        label=LABEL,
    )
    return found, sum(model.net.clips) // BATCH  # type: ignore[arg-type]


def branch(model: Denoiser, text: Tensor, given: Given) -> Tensor:
    return predict(model.net, NOISY, TIMESTEPS, text, given, LABEL)


def test_every_condition_matters_to_this_model(model):
    """Guards the others: a model that ignores what it is given would pass them."""
    full = branch(model, TEXT, CONTEXT)
    assert not torch.allclose(full, branch(model, NULL_TEXT, CONTEXT), rtol=1e-2)
    assert not torch.allclose(full, branch(model, TEXT, CONTEXT.without_context()), rtol=1e-2)
    swapped = predict(model.net, NOISY, TIMESTEPS, TEXT, CONTEXT, LABEL.flip(0))
    assert not torch.allclose(full, swapped, rtol=1e-2)


def test_scale_1_is_the_conditional_model_exactly_and_computed_once(model):
    found, branches = guided(model, Guidance(text=1, context=1))
    assert torch.equal(found, branch(model, TEXT, CONTEXT))
    assert branches == 1


def test_without_context_scale_1_of_the_text_is_the_conditional_model_exactly(model):
    found, branches = guided(model, Guidance(text=1, context=9), Given())
    assert torch.equal(found, branch(model, TEXT, Given()))
    assert branches == 1


@pytest.mark.parametrize(
    ("text", "context", "expected"), [(1, 1, 1), (1, 2.5, 2), (3, 3, 2), (3, 1, 3), (0, 0, 1)]
)
def test_branches_of_weight_zero_are_not_computed(model, text, context, expected):
    assert guided(model, Guidance(text=text, context=context))[1] == expected


def test_branches_run_as_one_batch(model):
    guided(model, Guidance(text=7.5, context=1.5))
    assert model.net.clips == [3 * BATCH]


@settings(max_examples=6, deadline=None)
@given(scale=st.floats(1, 4))
def test_context_guidance_is_equation_4(model, scale):
    without = branch(model, TEXT, CONTEXT.without_context())
    expected = without + scale * (branch(model, TEXT, CONTEXT) - without)
    found, _ = guided(model, Guidance(text=1, context=scale))
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


@settings(max_examples=6, deadline=None)
@given(text=st.floats(0, 9), context=st.floats(0, 4))
def test_both_guidances_are_the_three_way_sum(model, text, context):
    nothing = branch(model, NULL_TEXT, CONTEXT.without_context())
    text_only = branch(model, TEXT, CONTEXT.without_context())
    both = branch(model, TEXT, CONTEXT)
    expected = nothing + text * (text_only - nothing) + context * (both - text_only)
    found, _ = guided(model, Guidance(text=text, context=context))
    assert torch.allclose(found, expected, atol=2e-3, rtol=1e-3)


def test_text_guidance_alone_extrapolates_from_the_empty_text(model):
    nothing = branch(model, NULL_TEXT, Given())
    expected = nothing + 4 * (branch(model, TEXT, Given()) - nothing)
    found, branches = guided(model, Guidance(text=4), Given())
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)
    assert branches == 2


def test_temporal_layers_read_their_own_texts_in_every_branch(model):
    """Both towers' texts, of the prompt and of nothing, go through guidance (§4.3)."""
    temporal, null_temporal = values(BATCH, 3, 8, seed=8), values(BATCH, 3, 8, seed=9)

    def own(text: Tensor, temporal_text: Tensor, given: Given) -> Tensor:
        return predict(model.net, NOISY, TIMESTEPS, text, given, LABEL, temporal_text=temporal_text)

    blind = CONTEXT.without_context()
    nothing = own(NULL_TEXT, null_temporal, blind)
    text_only, both = own(TEXT, temporal, blind), own(TEXT, temporal, CONTEXT)
    found = guided_prediction(
        model,
        NOISY,
        TIMESTEPS,
        text=TEXT,
        null_text=NULL_TEXT,
        given=CONTEXT,
        guidance=Guidance(text=3, context=2),
        label=LABEL,
        temporal_texts=(temporal, null_temporal),
    )
    expected = nothing + 3 * (text_only - nothing) + 2 * (both - text_only)
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)
    shared, _ = guided(model, Guidance(text=3, context=2))
    assert not torch.allclose(found, shared, atol=1e-2)


def test_every_branch_has_the_low_resolution_and_its_noise_level():
    seen = []

    class Upscaler(nn.Module):
        def forward(self, noisy, timesteps, text, *, noise_level, **nothing_else):
            assert not any(value is not None for value in nothing_else.values())
            seen.append((noisy[:, :, 3:], noise_level, timesteps))
            return noisy[:, :, :3]

    low, level = values(BATCH, FRAMES, 3, 4, 8, seed=6), torch.tensor([5, 6])
    guided_prediction(
        Denoiser(Upscaler(), SCHEDULE, 1.0),  # type: ignore[arg-type]
        NOISY[:, :, :3],
        TIMESTEPS,
        text=TEXT,
        null_text=NULL_TEXT,
        given=Given(low_resolution=low, noise_level=level),
        guidance=Guidance(text=3),
    )
    ((lows, levels, timesteps),) = seen
    assert torch.equal(lows, torch.cat([low, low]))
    assert levels.tolist() == [5, 6, 5, 6]
    assert timesteps.tolist() == [3, 700, 3, 700]
