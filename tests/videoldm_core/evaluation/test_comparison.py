"""Rows of the worth table: who must beat whom, by how much, and what counts as not beaten."""

import pytest
import torch

from videoldm_core.evaluation.comparison import Claim, WorthRow, gather_series, summary


def claim(**changes) -> Claim:
    return Claim(
        **{
            "metric": "loss",
            "unit": "",
            "higher_is_better": False,
            "value": "mine",
            "beats": ("other",),
        }
        | changes
    )


def series(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((3, 4), value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("mine", "higher_is_better", "passed"),
    [
        (0.9, False, True),
        (1.1, False, False),
        (1.0, False, False),
        (0.9, True, False),
        (1.1, True, True),
    ],
)
def test_a_claim_holds_when_the_value_is_better(mine, higher_is_better, passed):
    row = claim(higher_is_better=higher_is_better).judge("s", series(mine=mine, other=1.0))
    assert row.passed is passed


def test_every_one_of_several_must_be_beaten():
    both = claim(beats=("one", "two"))
    assert both.judge("s", series(mine=1.0, one=2.0, two=3.0)).passed
    assert not both.judge("s", series(mine=1.0, one=2.0, two=0.5)).passed
    assert not both.judge("s", series(mine=1.0, one=0.5, two=2.0)).passed


def test_what_stands_beside_is_shown_but_not_judged():
    row = claim(beside=("ideal",)).judge("s", series(mine=1.0, other=2.0, ideal=0.0))
    assert row.passed
    assert row.baselines == (("other", 2.0, 0.0, True), ("ideal", 0.0, 0.0, False))


@pytest.mark.parametrize(("mine", "passed"), [(29.9, True), (29.81, True), (29.79, False)])
def test_a_slack_lets_the_value_be_a_little_worse(mine, passed):
    row = claim(higher_is_better=True, slack=0.2).judge("s", series(mine=mine, other=30.0))
    assert row.passed is passed


@pytest.mark.parametrize("broken", ["mine", "other"])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_what_is_not_a_number_fails(broken, higher_is_better):
    measured = series(mine=1.0, other=1.0)
    measured[broken][1, 2] = float("nan")
    row = claim(higher_is_better=higher_is_better, slack=10.0).judge("s", measured)
    assert not row.passed


def test_the_spread_is_the_deviation_of_the_means_of_seeds():
    values = torch.tensor([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])  # means 2, 3, 4
    assert summary(values) == pytest.approx((3.0, 1.0))
    assert summary(values[:1]) == (2.0, 0.0)


def test_a_row_tells_the_claim_and_its_evidence():
    row = claim(metric="PSNR", unit="dB").judge("decoder", series(mine=1.0, other=2.0))
    assert (row.stage, row.metric, row.unit, row.value) == ("decoder", "PSNR", "dB", (1.0, 0.0))
    assert WorthRow.model_validate_json(row.model_dump_json()) == row


def test_one_process_has_all_clips():
    measured = series(mine=1.0)
    assert gather_series(measured) is measured
