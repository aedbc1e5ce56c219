"""Draws that belong to samples."""

import torch

from videoldm_core.diffusion.sample_rng import SampleRng


def draws(ids: list[int], *, seed: int = 1, purpose: str = "denoiser") -> list[torch.Tensor]:
    rng = SampleRng(seed, purpose, torch.tensor(ids))
    return [
        rng.normal((2, 3)),
        rng.uniform(),
        rng.integers(0, 1000),
        rng.choice((0.2, 0.3, 0.5)),
        rng.normal((4,)),
    ]


def test_a_batch_draws_the_same_however_it_is_split():
    whole, left, right = draws([0, 1, 2, 3]), draws([0, 1]), draws([2, 3])
    for all_of_it, first, last in zip(whole, left, right, strict=True):
        assert torch.equal(all_of_it, torch.cat([first, last]))


def test_samples_seeds_and_purposes_draw_apart():
    value = draws([7])[0]
    assert torch.equal(value, draws([7])[0])
    assert not torch.equal(value, draws([8])[0])
    assert not torch.equal(value, draws([7], seed=2)[0])
    assert not torch.equal(value, draws([7], purpose="critic")[0])


def test_drawing_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    draws([0, 1])
    assert torch.equal(torch.get_rng_state(), before)


def test_values_have_the_distribution_they_are_named_after():
    rng = SampleRng(0, "worth", torch.arange(2000))
    normal, uniform = rng.normal((4,)), rng.uniform()
    whole, chosen = rng.integers(2, 5), rng.choice((0.0, 0.25, 0.75))
    assert abs(normal.mean().item()) < 0.05
    assert abs(normal.std().item() - 1) < 0.05
    assert (uniform >= 0).all()
    assert (uniform < 1).all()
    assert abs(uniform.mean().item() - 0.5) < 0.03
    assert set(whole.tolist()) == {2, 3, 4}
    assert set(chosen.tolist()) == {1, 2}
    assert abs((chosen == 2).float().mean().item() - 0.75) < 0.05


def test_there_is_a_generator_per_sample():
    assert len(SampleRng(0, "x", torch.arange(5))) == 5
