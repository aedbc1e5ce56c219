"""The memory that stays from step to step: known numbers, and what sharding can and cannot save."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoldm_core.memory.state import (
    ZERO_STAGES,
    exchanged_memory,
    held_memory,
)

COUNTS = st.integers(0, 10**10)
PRECISIONS = st.sampled_from(["fp32", "bf16"])


def test_one_process_without_sharding_holds_sixteen_bytes_per_trained_value_and_four_per_frozen():
    held = held_memory(1000, 500, zero_stage=0, processes=1, precision="fp32")
    assert held == (1500 * 4, 500 * 4, 500 * 8, 500 * 4)
    assert held.total == 1000 * 4 + 500 * 20


@pytest.mark.parametrize(
    ("zero_stage", "expected"),
    [
        (0, (1000 * 2 + 500 * 4, 500 * 4, 500 * 8, 500 * 4)),
        (1, (1000 * 2 + 500 * 4 + 125 * 4, 500 * 4, 125 * 8, 500 * 4)),
        (2, (1000 * 2 + 500 * 4 + 125 * 4, 125 * 4, 125 * 8, 500 * 4)),
        (3, (250 * 2 + 125 * 4, 125 * 4, 125 * 8, 125 * 4)),
    ],
)
def test_each_stage_shares_one_thing_more_over_four_processes(zero_stage, expected):
    held = held_memory(1000, 500, zero_stage=zero_stage, processes=4, precision="bf16")
    assert held == expected


@given(frozen=COUNTS, trainable=COUNTS, processes=st.integers(2, 4096), precision=PRECISIONS)
def test_a_higher_stage_never_holds_more_on_several_processes(
    frozen, trainable, processes, precision
):
    totals = [
        held_memory(
            frozen, trainable, zero_stage=zero, processes=processes, precision=precision
        ).total
        for zero in ZERO_STAGES
    ]
    # A share is rounded up: with fewer values than processes, by one value of each kind.
    slack = 16 * (trainable < processes)
    assert all(more + slack >= less for more, less in zip(totals, totals[1:], strict=False))


@given(frozen=COUNTS, trainable=COUNTS, zero_stage=st.sampled_from(ZERO_STAGES))
def test_more_processes_never_hold_more_each_and_bf16_never_more_than_fp32(
    frozen, trainable, zero_stage
):
    def total(processes, precision="fp32"):
        return held_memory(
            frozen, trainable, zero_stage=zero_stage, processes=processes, precision=precision
        ).total

    assert total(1) >= total(2) >= total(3) >= total(64)
    assert total(2) >= total(2, "bf16")


@given(frozen=COUNTS, trainable=COUNTS)
def test_stages_one_and_two_cost_a_copy_of_the_weights_where_there_is_nobody_to_share_with(
    frozen, trainable
):
    totals = [
        held_memory(frozen, trainable, zero_stage=zero, processes=1, precision="fp32").total
        for zero in ZERO_STAGES
    ]
    assert totals[1] == totals[2] == totals[0] + 4 * trainable
    assert totals[3] == totals[0]


def test_a_share_is_rounded_up():
    held = held_memory(0, 10, zero_stage=3, processes=4, precision="fp32")
    assert held == (3 * 4, 3 * 4, 3 * 8, 3 * 4)


def test_there_is_at_least_one_process():
    with pytest.raises(ValueError, match="processes is 0"):
        held_memory(1, 1, zero_stage=0, processes=0, precision="fp32")


@pytest.mark.parametrize(
    ("zero_stage", "expected"),
    [(0, 500 * 4), (1, 1000 * 4), (2, 1000 * 4), (3, 1000 * 4 + 1000 * 2 + 500 * 4)],
)
def test_what_is_exchanged_are_gradients_and_in_stage_three_whole_weights(zero_stage, expected):
    assert exchanged_memory(1000, 500, zero_stage=zero_stage, precision="bf16") == expected


def test_however_large_a_model_is_its_exchange_is_bounded():
    for zero_stage, bound in ((0, 2e9), (1, 2e8), (2, 2e8), (3, 4.2e9)):
        taken = exchanged_memory(10**11, 10**11, zero_stage=zero_stage, precision="fp32")
        assert taken == bound
