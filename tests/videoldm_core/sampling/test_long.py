"""The cascade run forward, with models of known guesses: counts, places and what is kept."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videoldm_core.conditioning import LowResolution, enlarge
from videoldm_core.diffusion import NoiseSchedule
from videoldm_core.objectives.denoising import Denoiser
from videoldm_core.sampling.guidance import Guidance
from videoldm_core.sampling.long import Cascade, Prompt, Sampling, SamplingConfig

SIZE = (4, 2, 3)  # c h w of a latent
SCALE = 0.5
# DDIM's last step is then the model's clean guess itself.
SCHEDULE = NoiseSchedule(
    {
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
)

Guess = Callable[[Tensor, dict[str, Any]], Tensor]


class Known(nn.Module):
    """Predicts v for a clean guess made from what it is given; remembers what that was."""

    def __init__(self, guess: Guess, *, channels: int = 4, told_pass: bool = False) -> None:
        super().__init__()
        self.guess, self.calls = guess, []
        self.temporal = SimpleNamespace(label=object()) if told_pass else None
        self.unet = SimpleNamespace(config=SimpleNamespace(out_channels=channels))

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, **given: Any) -> Tensor:
        self.calls.append(given | {"noisy": noisy, "text": text})
        clean = self.guess(noisy, given)
        noisy = noisy[:, :, : clean.shape[2]]
        alpha, sigma = SCHEDULE.alpha(timesteps), SCHEDULE.sigma(timesteps)
        return SCHEDULE.target(clean, (noisy - alpha * clean) / sigma, timesteps)


def starting(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    return torch.zeros_like(noisy)


def counting_on(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    """Every frame is one more than the one before; the first is the given one."""
    first = given["context"][:, :1, :4]
    return first + torch.arange(noisy.shape[1]).view(1, -1, 1, 1, 1)


def on_the_line(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    """The line between the given frames, in quarters; far off at the given frames themselves."""
    first, last = given["context"][:, :1, :4], given["context"][:, -1:, :4]
    share = torch.arange(5).view(1, 5, 1, 1, 1) / 4
    line = (1 - share) * first + share * last
    line[:, [0, 4]] += 100
    return line


def enlarged(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    return noisy[:, :, 3:]


class FrameDecoder(nn.Module):
    """Twice the size, the first three channels / 64; notes the frames it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[float]] = []

    def forward(self, latents: Tensor) -> Tensor:
        self.calls.append(latents[0, :, 0, 0, 0].tolist())
        height, width = latents.shape[-2:]
        return enlarge(latents[:, :, :3], (2 * height, 2 * width)) / 64


def denoiser(net: Known, scale: float = SCALE) -> Denoiser:
    return Denoiser(net, SCHEDULE, scale)  # type: ignore[arg-type]


@pytest.fixture
def cascade() -> Cascade:
    return Cascade(
        image=denoiser(Known(starting)),
        predictor=denoiser(Known(counting_on)),
        interpolator=denoiser(Known(on_the_line, told_pass=True)),
        decoder=FrameDecoder(),  # type: ignore[arg-type]
        upscaler=denoiser(Known(enlarged, channels=3), scale=1.0),
        key_frames=5,
        every=4,
        low_resolution=LowResolution(factor=4),
    )


def sampling(cascade: Cascade, *, seed: int = 0, progress=None, **config: Any) -> Sampling:
    prompt = Prompt(
        text=torch.ones(1, 2, 8), null_text=torch.zeros(1, 2, 8), latent_size=SIZE, seed=seed
    )
    settings = SamplingConfig(
        **{
            "steps": 2,
            "interpolation_steps": 2,
            "upscale_steps": 2,
            "guidance": Guidance(),
            "upscale_noise_timestep": 0,
        }
        | config
    )
    return Sampling(cascade, prompt, settings, progress or (lambda *report: None))


def latents(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SIZE).clone()


def levels(frames: Tensor) -> list[float]:
    return frames.flatten(1).mean(dim=1).tolist()


def test_key_frames_go_on_from_one_given_frame_and_then_from_two(cascade: Cascade):
    first = latents(0.0)
    keys = sampling(cascade).key_latents(first, 8)
    assert levels(keys) == pytest.approx(list(range(8)), abs=1e-3)
    assert torch.equal(keys[:1], first)
    contexts = [call["context"] for call in cascade.predictor.net.calls]  # type: ignore[union-attr]
    masks = [context[0, :, 4, 0, 0].tolist() for context in contexts]
    assert masks == [[1, 0, 0, 0, 0]] * 2 + [[1, 1, 0, 0, 0]] * 2
    given = [context[0, :, 0, 0, 0].tolist() for context in contexts]
    assert given[0] == [0, 0, 0, 0, 0]
    assert given[2] == pytest.approx([3, 4, 0, 0, 0], abs=1e-3)


@pytest.mark.parametrize(("count", "calls"), [(1, 0), (2, 1), (5, 1), (6, 2), (8, 2), (9, 3)])
def test_there_are_as_many_key_frames_as_asked_for(cascade: Cascade, count, calls):
    assert len(sampling(cascade, steps=1).key_latents(latents(0.0), count)) == count
    assert len(cascade.predictor.net.calls) == calls  # type: ignore[arg-type]


def test_8_frames_become_29_and_then_113_and_key_frames_stay_to_the_bit(cascade: Cascade):
    keys = torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1))
    run = sampling(cascade)
    once = run.interpolate(keys, 0)
    twice = run.interpolate(once, 1)
    assert (len(once), len(twice)) == (29, 113)
    assert torch.equal(once[::4], keys)
    assert torch.equal(twice[::4], once)
    assert torch.equal(twice[::16], keys)


def test_new_frames_lie_between_their_own_two_key_frames(cascade: Cascade):
    found = sampling(cascade, windows=2).interpolate(latents(0, 4, 12, 8), 0)
    assert levels(found) == pytest.approx([0, 1, 2, 3, 4, 6, 8, 10, 12, 11, 10, 9, 8], abs=1e-3)


def test_windows_are_given_their_ends_and_which_pass_it_is(cascade: Cascade):
    sampling(cascade, interpolation_steps=1, windows=2).interpolate(latents(1, 2, 3, 4), 1)
    first, second = cascade.interpolator.net.calls  # type: ignore[misc]
    assert first["context"][:, :, 0, 0, 0].tolist() == [[1, 0, 0, 0, 2], [2, 0, 0, 0, 3]]
    assert second["context"][:, :, 0, 0, 0].tolist() == [[3, 0, 0, 0, 4]]
    assert first["context"][:, :, 4, 0, 0].tolist() == [[1, 0, 0, 0, 1]] * 2
    assert (first["label"].tolist(), second["label"].tolist()) == ([1, 1], [1])


def noise_dependent(noisy: Tensor, given: dict[str, Any]) -> Tensor:
    return noisy


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_interpolation_does_not_depend_on_how_many_windows_run_at_once(
    cascade: Cascade, sampler: str
):
    cascade.interpolator.net.guess = noise_dependent  # type: ignore[assignment]
    keys = torch.randn(6, *SIZE, generator=torch.Generator().manual_seed(1))
    one, all_of_them = (
        sampling(cascade, windows=windows, sampler=sampler).interpolate(keys, 0)
        for windows in (1, 8)
    )
    assert torch.allclose(one, all_of_them, atol=1e-5)
    assert not torch.allclose(one[1:4], one[5:8], atol=0.1)


def test_only_a_model_of_several_passes_is_told_one(cascade: Cascade):
    sampling(cascade, steps=1).key_latents(latents(0.0), 2)
    assert cascade.predictor.net.calls[0]["label"] is None  # type: ignore[index]


@pytest.mark.parametrize(("portion", "overlap"), [(8, 2), (3, 0), (5, 1), (100, 2), (1, 3)])
def test_portions_follow_one_another_to_the_last_frame(cascade: Cascade, portion, overlap):
    given = latents(*range(13))
    run = sampling(cascade, portion=portion, overlap=overlap)
    portions = list(run.decode_and_upscale(given))
    assert [len(p) for p in portions[:-1]] == [portion] * (len(portions) - 1)
    frames = torch.cat(portions)
    assert frames.shape == (13, 3, 16, 24)
    # The decoder is given unscaled latents.
    assert levels(frames) == pytest.approx([i / SCALE / 64 for i in range(13)], abs=0.01)
    assert max(len(call) for call in cascade.decoder.calls) <= portion + 2 * overlap  # type: ignore[arg-type]


def test_a_portion_is_computed_with_its_neighbours(cascade: Cascade):
    list(sampling(cascade, portion=4, overlap=2).decode_and_upscale(latents(*range(10))))
    frames = [[value * SCALE for value in call] for call in cascade.decoder.calls]  # type: ignore[union-attr]
    assert frames == [list(range(6)), list(range(2, 10)), list(range(6, 10))]


@pytest.mark.parametrize("detail_scale", [None, 8.0])
def test_frames_do_not_depend_on_the_portions_they_are_made_in(cascade: Cascade, detail_scale):
    """With models that see one frame at a time, to rounding."""
    cascade.upscaler.net.guess = lambda noisy, given: 0.1 * noisy[:, :, :3] + noisy[:, :, 3:]  # type: ignore[assignment]
    low_resolution = LowResolution(factor=4, detail_scale=detail_scale)
    cascade = Cascade(**{**vars(cascade), "low_resolution": low_resolution})
    given = torch.randn(11, *SIZE, generator=torch.Generator().manual_seed(2))
    videos = []
    for portion, overlap in ((8, 2), (3, 1), (11, 0)):
        run = sampling(cascade, portion=portion, overlap=overlap, upscale_noise_timestep=40)
        videos.append(torch.cat(list(run.decode_and_upscale(given))))
    assert torch.allclose(videos[0], videos[1], atol=1e-5)
    assert torch.allclose(videos[0], videos[2], atol=1e-5)


def test_the_upscaler_is_told_the_noise_that_was_put_on_the_low_resolution(cascade: Cascade):
    list(sampling(cascade, upscale_noise_timestep=40).decode_and_upscale(latents(0, 1)))
    for call in cascade.upscaler.net.calls:  # type: ignore[union-attr]
        assert call["noise_level"].tolist() == [40]


def test_detail_is_added_to_the_enlarged_low_resolution(cascade: Cascade):
    """A model that finds no detail leaves bilinear enlargement."""
    cascade.upscaler.net.guess = lambda noisy, given: torch.zeros_like(noisy[:, :, :3])  # type: ignore[assignment]
    low_resolution = LowResolution(factor=4, detail_scale=8.0)
    cascade = Cascade(**{**vars(cascade), "low_resolution": low_resolution})
    given = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(3))
    found = torch.cat(list(sampling(cascade).decode_and_upscale(given)))
    decoded = cascade.decoder(given[None] / SCALE)
    expected = enlarge(decoded, (4 * decoded.shape[-2], 4 * decoded.shape[-1]))[0]
    assert torch.allclose(found, expected.clamp(-1, 1), atol=1e-5)


def test_a_whole_video_has_every_frame_and_stays_in_range(cascade: Cascade):
    reports: list[tuple[str, int, int]] = []
    run = sampling(cascade, portion=8, progress=lambda *report: reports.append(report))
    frames = torch.cat(list(run.video(8, 2)))
    assert frames.shape == (113, 3, 16, 24)
    expected = [min(1, i / 16 / SCALE / 64) for i in range(113)]
    assert levels(frames) == pytest.approx(expected, abs=0.02)
    assert frames.abs().max() <= 1
    ends = [(what, total) for what, done, total in reports if done == total]
    assert ends == [
        ("first frame", 1),
        ("key frames", 8),
        ("interpolation pass 1", 7),
        ("interpolation pass 2", 28),
        ("decoded and upscaled frames", 113),
    ]
    assert all(0 <= done <= total for _, done, total in reports)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_same_seed_makes_the_same_video_and_another_another(cascade: Cascade, sampler: str):
    for model in (cascade.image, cascade.predictor):
        model.net.guess = noise_dependent  # type: ignore[assignment]
    first, again, other = (
        torch.cat(list(sampling(cascade, seed=seed, sampler=sampler).video(3, 1)))
        for seed in (1, 1, 2)
    )
    assert first.shape[0] == 9
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_a_video_that_stands_still_is_upscaled_without_flicker(cascade: Cascade):
    cascade.upscaler.net.guess = lambda noisy, given: 0.1 * noisy[:, :, :3] + noisy[:, :, 3:]  # type: ignore[assignment]
    run = sampling(cascade, portion=3, upscale_noise_timestep=40)
    frames = torch.cat(list(run.decode_and_upscale(latents(*[7.0] * 8))))
    torch.testing.assert_close(frames, frames[:1].expand_as(frames), atol=1e-5, rtol=0)
    assert frames.std() > 0.01, "the noise shows, and stands still"


def test_each_model_has_the_guidance_that_is_meant_for_it(cascade: Cascade):
    both = Guidance(text=3.0, context=2.0)
    for between, branches_between in ((Guidance(), 1), (both, 3)):
        run = sampling(cascade, guidance=both, interpolation_guidance=between)
        torch.cat(list(run.video(2, 1)))
        branches = {
            role: len(getattr(cascade, role).net.calls[-1]["noisy"])
            for role in ("image", "predictor", "interpolator", "upscaler")
        }
        assert branches == {
            "image": 2,
            "predictor": 3,
            "interpolator": branches_between,
            "upscaler": 1,
        }
