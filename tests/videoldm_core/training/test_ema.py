"""The moving average of weights."""

import pytest
import torch
from torch import nn

from videoldm_core.training.ema import Ema


def parameters(*values: float) -> dict[str, nn.Parameter]:
    return {f"p{i}": nn.Parameter(torch.tensor([value])) for i, value in enumerate(values)}


def test_the_average_is_what_one_computes_by_hand():
    weights = parameters(0.0, 10.0)
    average = Ema(weights, decay=0.25)
    for step, (first, second) in enumerate([(1.0, 20.0), (2.0, 30.0), (-1.0, 0.0)], start=1):
        weights["p0"].data.fill_(first)
        weights["p1"].data.fill_(second)
        average.update(step)
    # Decays: min(0.25, 2/11), min(0.25, 3/12), min(0.25, 4/13).
    first, second = 0.0, 10.0
    for decay, one, other in ((2 / 11, 1, 20), (0.25, 2, 30), (0.25, -1, 0)):
        first = decay * first + (1 - decay) * one
        second = decay * second + (1 - decay) * other
    found = average.full()
    assert found["p0"].item() == pytest.approx(first, rel=1e-5)
    assert found["p1"].item() == pytest.approx(second, rel=1e-5)


def test_before_the_first_step_the_average_is_the_start():
    weights = parameters(3.0)
    average = Ema(weights, decay=0.9)
    weights["p0"].data.fill_(5.0)
    assert average.full()["p0"].item() == 3.0


def test_swapping_exchanges_and_swapping_twice_changes_nothing():
    weights = parameters(3.0)
    average = Ema(weights, decay=0.9)
    weights["p0"].data.fill_(5.0)
    average.swap()
    assert weights["p0"].item() == 3.0
    assert average.full()["p0"].item() == 5.0
    average.swap()
    assert weights["p0"].item() == 5.0
    assert average.full()["p0"].item() == 3.0


def test_reading_the_average_leaves_the_weights_alone():
    weights = parameters(1.0, 2.0)
    average = Ema(weights, decay=0.9)
    weights["p0"].data.fill_(7.0)
    average.full()["p0"].fill_(99.0)
    assert weights["p0"].item() == 7.0
    assert average.full()["p0"].item() == 1.0


def test_a_restored_average_goes_on_as_if_never_interrupted():
    weights = parameters(0.0)
    one, other = Ema(weights, decay=0.5), Ema(weights, decay=0.5)
    weights["p0"].data.fill_(4.0)
    one.update(1)
    other.restore(one.full())
    weights["p0"].data.fill_(6.0)
    one.update(2)
    other.update(2)
    assert torch.equal(one.full()["p0"], other.full()["p0"])


def test_averaging_takes_no_part_in_gradients():
    weights = parameters(2.0)
    average = Ema(weights, decay=0.5)
    average.update(1)
    weights["p0"].square().sum().backward()
    assert weights["p0"].grad is not None
    assert not average.full()["p0"].requires_grad
