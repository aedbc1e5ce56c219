"""Distances between decoded and real video, against values known by arithmetic."""

import pytest
import torch

from videoldm_core.evaluation.quality import flicker, psnr


def test_psnr_of_a_constant_error_is_known():
    real = torch.zeros(2, 3, 3, 4, 4)
    decoded = real.clone()
    decoded[0] += 0.02  # mean squared error 4e-4 of a range of 2
    decoded[1] -= 0.2
    assert psnr(decoded, real).tolist() == pytest.approx([40, 20], abs=1e-3)


def test_psnr_of_equal_frames_is_finite_and_high():
    real = torch.rand(1, 3, 4, 4)
    assert 100 < psnr(real, real).item() < 200


def test_values_beyond_white_are_no_error_where_white_is_right():
    white = torch.ones(1, 2, 3, 4, 4)
    assert psnr(white * 3, white).item() > 100
    assert flicker(white * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1), white).item() == 0


def test_a_steady_error_does_not_flicker():
    real = torch.rand(2, 4, 3, 4, 4) - 0.5
    assert flicker(real + 0.3, real).tolist() == pytest.approx([0, 0], abs=1e-4)


def test_flicker_is_the_change_that_the_real_clip_does_not_have_in_grey_levels():
    real = torch.zeros(1, 4, 3, 2, 2)
    sign = torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1, 1, 1)
    assert flicker(real + sign / 127.5, real).item() == pytest.approx(2.0, rel=1e-5)


def test_freezing_a_moving_clip_is_flicker_too():
    real = torch.tensor([0.0, 0.1, 0.2]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 2, 2)
    assert flicker(torch.zeros(1, 3, 3, 2, 2), real).item() == pytest.approx(12.75, rel=1e-4)


def test_clips_do_not_see_each_other():
    real = torch.rand(3, 4, 3, 4, 4)
    decoded = real.clone()
    decoded[1] = torch.rand(4, 3, 4, 4)
    for measure in (psnr, flicker):
        both = measure(decoded, real)
        alone = torch.cat([measure(decoded[i : i + 1], real[i : i + 1]) for i in range(3)])
        assert torch.allclose(both, alone)
