"""The cascade run forward, with models of known guesses: counts, order, memory, seeds."""

import gc
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.videoldm_core.sampling.fakes import (
    SCALE,
    all_of,
    drawing,
    enlarged,
    fake_cascade,
    guessing,
    latents,
    levels,
    net_of,
    noise_dependent,
    unheard,
    video,
)
from videoldm_core.errors import UserError
from videoldm_core.sampling.guidance import Guidance
from videoldm_core.sampling.pipeline import Cascade, first_latent


@pytest.fixture
def cascade() -> Cascade:
    return fake_cascade()


def test_8_key_frames_become_113_frames_in_order_and_in_range(cascade: Cascade, tmp_path: Path):
    reports: list[tuple[str, int, int]] = []
    frames = video(
        cascade,
        tmp_path,
        key_frames=8,
        passes=2,
        progress=lambda *report: reports.append(report),
    )
    assert (frames.count, frames.portions) == (113, 29)
    assert not reports, "nothing is made before it is asked for"
    made = all_of(frames)
    assert made.shape == (113, 3, 16, 24)
    expected = [min(1, i / 16 / SCALE / 64) for i in range(113)]
    assert levels(made) == pytest.approx(expected, abs=0.02)
    assert made.abs().max() <= 1
    ends = [(what, total) for what, done, total in reports if done == total]
    assert ends == [("key frames", 8), ("interpolation pass 1", 7), ("interpolation pass 2", 28)]
    assert all(0 <= done <= total for _, done, total in reports)


def test_the_first_portion_needs_the_first_key_frames_only(cascade: Cascade, tmp_path: Path):
    frames = video(cascade, tmp_path, key_frames=60, passes=2, windows=1)
    frames.portion(0)
    assert len(net_of(cascade.key_frames).calls) == 2, "one call of two steps"
    assert [path.name for path in tmp_path.iterdir()] == ["keys-00000.safetensors"]


def test_any_portion_is_the_same_to_the_bit_whatever_was_asked_for_before(
    cascade: Cascade, tmp_path: Path
):
    for one in (cascade.key_frames, cascade.interpolator):
        guessing(one, noise_dependent)
    config = {"key_frames": 9, "passes": 2, "portion": 6, "windows": 3, "sampler": "ddpm"}
    in_order = video(cascade, tmp_path / "a", **config)
    expected = [in_order.portion(number) for number in range(in_order.portions)]
    assert in_order.portions == 65
    for number in (64, 7, 8, 0, 13, 63):
        alone = video(cascade, tmp_path / "b", **config).portion(number)
        assert torch.equal(alone, expected[number]), number


def bytes_held() -> int:
    """Of all tensors with the axes of frames that exist now."""
    storages = {}
    for found in gc.get_objects():
        if type(found) is torch.Tensor and found.ndim >= 3:
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.fixture
def old_objects_left_out():
    """What exists before the test is not looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("old_objects_left_out")
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path):
    """Three passes: 12 key frames make 705 frames, 48 make 3009."""
    most = {}
    for count in (12, 48):
        cascade = fake_cascade(remembers=False)
        short = {"steps": 1, "interpolation_steps": 1, "upscale_steps": 1}
        sizes = {"windows": 2, "portion": 12}
        frames = video(cascade, tmp_path / str(count), key_frames=count, passes=3, **short, **sizes)
        assert frames.count == {12: 705, 48: 3009}[count]
        most[count] = 0
        for number in range(frames.portions):
            frames.portion(number)
            if number % 5 == 0:
                most[count] = max(most[count], bytes_held())
        del frames
    assert 0 < most[48] <= most[12]


def broken(noisy: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    return torch.full_like(enlarged(noisy, given) if noisy.shape[2] == 6 else noisy, math.nan)


@pytest.mark.parametrize(
    ("role", "sentence", "keys_kept"),
    [
        ("key_frames", "The model of key frames, call 1 gave numbers that are not finite", 0),
        ("interpolator", "interpolation pass 1, windows 1 to 2 gave numbers that are not", 1),
        ("decoder", "The model of decoding, frames 1 to 6 gave numbers that are not finite", 1),
        ("upscaler", "The model of upscaling, frames 1 to 6 gave numbers that are not", 1),
    ],
)
def test_numbers_that_are_not_finite_end_sampling_and_are_not_kept(
    cascade: Cascade, tmp_path: Path, role: str, sentence: str, keys_kept: int
):
    if role == "decoder":
        decoder = lambda latents: latents.new_full((1, 6, 3, 4, 6), math.nan)  # noqa: E731
        cascade = replace(cascade, decoder=decoder)  # type: ignore[arg-type]
    else:
        guessing(getattr(cascade, role), broken)
    frames = video(cascade, tmp_path, key_frames=3, passes=1, portion=6)
    with pytest.raises(UserError, match=sentence):
        frames.portion(0)
    assert len(list(tmp_path.glob("keys-*"))) == keys_kept


def test_a_first_frame_that_is_not_finite_ends_sampling(cascade: Cascade):
    guessing(cascade.first_frame, broken)
    assert cascade.first_frame is not None
    with pytest.raises(UserError, match="The model of the first frame gave numbers that are not"):
        first_latent(drawing(), cascade.first_frame, unheard)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_same_seed_makes_the_same_video_and_another_another(
    cascade: Cascade, tmp_path: Path, sampler: str
):
    guessing(cascade.key_frames, noise_dependent)
    first, again, other = (
        all_of(video(cascade, tmp_path / str(i), seed=seed, sampler=sampler))
        for i, seed in enumerate((1, 1, 2))
    )
    assert first.shape[0] == 9
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_futures_share_the_first_frame_and_differ_after_it(cascade: Cascade, tmp_path: Path):
    for one in (cascade.first_frame, cascade.key_frames):
        guessing(one, noise_dependent)
    assert cascade.first_frame is not None
    starts = [first_latent(drawing(future=n), cascade.first_frame, unheard) for n in (1, 2)]
    assert torch.equal(*starts)
    one, two, again = (
        all_of(
            video(
                cascade,
                tmp_path / str(i),
                future=future,
                first=starts[0],
                passes=0,
                blend=0,
                overlap=0,
                portion=1,
            )
        )
        for i, future in enumerate((1, 2, 2))
    )
    assert torch.equal(one[0], two[0])
    assert not torch.allclose(one[1:], two[1:], atol=1e-3)
    assert torch.equal(two, again)


def test_the_first_frame_is_the_image_models(cascade: Cascade):
    assert cascade.first_frame is not None
    guessing(cascade.first_frame, lambda noisy, given: torch.full_like(noisy, 3.0))
    reports: list[tuple[str, int, int]] = []
    first = first_latent(drawing(), cascade.first_frame, lambda *report: reports.append(report))
    torch.testing.assert_close(first, latents(3.0))
    assert reports == [("first frame", 0, 1), ("first frame", 1, 1)]


def test_each_model_has_the_guidance_that_is_meant_for_it(cascade: Cascade, tmp_path: Path):
    both = Guidance(text=3.0, context=2.0)
    for between, branches_between in ((Guidance(), 1), (both, 3)):
        folder = tmp_path / str(branches_between)
        all_of(video(cascade, folder, guidance=both, interpolation_guidance=between))
        assert cascade.first_frame is not None
        first_latent(drawing(guidance=both), cascade.first_frame, unheard)
        branches = {
            name: len(net_of(getattr(cascade, name)).calls[-1]["noisy"])
            for name in ("first_frame", "key_frames", "upscaler")
        }
        assert branches == {"first_frame": 2, "key_frames": 3, "upscaler": 1}
        windows = 2
        calls = net_of(cascade.interpolator).calls
        assert len(calls[-1]["noisy"]) == branches_between * windows


def test_without_an_upscaler_decoded_frames_are_the_video(cascade: Cascade, tmp_path: Path):
    plain = replace(cascade, upscaler=None)
    made = all_of(video(plain, tmp_path, key_frames=3, passes=1))
    assert made.shape == (9, 3, 4, 6)
    assert levels(made) == pytest.approx([i / 4 / SCALE / 64 for i in range(9)], abs=1e-3)


def test_without_an_interpolator_there_is_no_pass(cascade: Cascade, tmp_path: Path):
    plain = replace(cascade, interpolator=None)
    assert len(all_of(video(plain, tmp_path / "a", key_frames=4, passes=0))) == 4
    with pytest.raises(UserError, match="passes = 1, but no stage has the role of interpolator"):
        video(plain, tmp_path / "b", passes=1)
