"""The loop over players: the order of events, their turns and their learning rates."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from videoldm_core.data.loader import Batch
from videoldm_core.training.loop import micro_batches, train, warmup_and_cooldown
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Player, Turn, trainable_parameters

Event = tuple[Any, ...]


class RecordingEngine:
    """Notes what is asked of it."""

    def __init__(self, name: str, module: nn.Module, events: list[Event]) -> None:
        self.module, self.name, self.events = module, name, events
        self.optimizer = SimpleNamespace(param_groups=[{"lr": None}])

    def __call__(self, *args: Any) -> Tensor:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        self.events.append(("backward", self.name, loss.item()))

    def step(self) -> None:
        self.events.append(("step", self.name, self.optimizer.param_groups[0]["lr"]))


def player(name: str, events: list[Event], *, lr: float = 1.0, starts_at: int = 0) -> Player:
    module = nn.Linear(1, 1)

    def loss(net: Any, batch: Batch, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        draw = turn.rng.uniform()[0].item()
        events.append(("loss", name, turn.step, int(batch.sample_ids[0]), draw))
        return torch.tensor(float(turn.step)), {name: torch.tensor(float(turn.step))}

    made = Player(
        name=name,
        module=module,
        trainable=trainable_parameters(module, [module]),
        loss=loss,
        optimizer=OptimizerConfig(lr=lr),
        starts_at=starts_at,
    )
    made.engine = RecordingEngine(name, module, events)
    made.ema = SimpleNamespace(update=lambda step: events.append(("average", name, step)))  # type: ignore[assignment]
    return made


def batches(start: int) -> Iterator[Batch]:
    while True:
        empty = torch.zeros(1)
        yield Batch(clip=empty, text=empty, stride_index=empty, sample_ids=torch.tensor([start]))
        start += 1


def run(players: list[Player], events: list[Event], *, start: int = 0, steps: int = 2) -> None:
    train(
        players,
        batches(start),
        start=start,
        steps=steps,
        seed=0,
        rate=lambda step: 1 / (step + 1),
        after_step=[
            lambda step, metrics: events.append(("first action", step, dict(metrics))),
            lambda step, metrics: events.append(("second action", step)),
        ],
    )


def without_draws(events: list[Event]) -> list[Event]:
    return [event[:4] if event[0] == "loss" else event for event in events]


def test_players_take_turns_and_actions_follow():
    events: list[Event] = []
    run([player("decoder", events), player("critic", events, lr=0.5, starts_at=1)], events)
    assert without_draws(events) == [
        ("loss", "decoder", 0, 0),
        ("backward", "decoder", 0.0),
        ("step", "decoder", 1.0),
        ("average", "decoder", 1),
        ("first action", 1, {"decoder": 0}),
        ("second action", 1),
        ("loss", "decoder", 1, 1),
        ("backward", "decoder", 1.0),
        ("step", "decoder", 0.5),
        ("average", "decoder", 2),
        ("loss", "critic", 1, 1),
        ("backward", "critic", 1.0),
        ("step", "critic", 0.25),
        ("average", "critic", 1),
        ("first action", 2, {"decoder": 1, "critic": 1}),
        ("second action", 2),
    ]


def test_going_on_from_a_step_does_what_follows_it_in_one_go():
    whole: list[Event] = []
    run([player("decoder", whole), player("critic", whole, starts_at=2)], whole, steps=5)
    later: list[Event] = []
    players = [player("decoder", later), player("critic", later, starts_at=2)]
    run(players, later, start=3, steps=5)
    assert later == whole[-len(later) :]
    assert later[0][:3] == ("loss", "decoder", 3)


def test_nothing_happens_when_all_steps_are_done():
    events: list[Event] = []
    run([player("decoder", events)], events, start=2, steps=2)
    assert events == []


def test_players_of_a_step_draw_apart_and_every_step_anew():
    events: list[Event] = []
    run([player("decoder", events), player("critic", events)], events)
    draws = [event[4] for event in events if event[0] == "loss"]
    assert len(set(draws)) == 4


def test_gradients_reach_the_player_whose_turn_it_is_alone():
    events: list[Event] = []
    players = [player("decoder", events), player("critic", events)]
    seen: dict[str, list[bool]] = {}
    for one in players:
        loss = one.loss

        def watching(net, batch, turn, name=one.name, loss=loss):
            seen[name] = [p.requires_grad for q in players for p in q.trainable.values()]
            return loss(net, batch, turn)

        one.loss = watching
    run(players, events, steps=1)
    assert seen == {"decoder": [True, True, False, False], "critic": [False, False, True, True]}


def test_only_the_named_parts_of_a_module_train():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    assert sorted(trainable_parameters(module, [module[1]])) == ["1.bias", "1.weight"]
    assert not module[0].weight.requires_grad


def test_the_rate_rises_rests_and_falls():
    rates = [warmup_and_cooldown(step, warmup=3, cooldown=3, steps=10) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_without_warmup_and_cooldown_the_rate_is_whole():
    assert {warmup_and_cooldown(step, warmup=0, cooldown=0, steps=5) for step in range(5)} == {1.0}


@given(
    steps=st.integers(1, 50), warmup=st.integers(0, 60), cooldown=st.integers(0, 60), data=st.data()
)
def test_the_rate_is_a_positive_share_at_every_step(steps, warmup, cooldown, data):
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < warmup_and_cooldown(step, warmup=warmup, cooldown=cooldown, steps=steps) <= 1


def wide_batch(start: int) -> Iterator[Batch]:
    rows = torch.arange(4.0)
    yield Batch(
        clip=rows, text=rows + 10, stride_index=rows + 20, sample_ids=torch.arange(start, start + 4)
    )


def test_a_player_sees_every_micro_batch_before_the_next_has_its_turn():
    events: list[Event] = []
    players = [player("decoder", events), player("critic", events)]
    train(
        players,
        wide_batch(8),
        start=0,
        steps=1,
        seed=0,
        rate=lambda step: 1.0,
        after_step=[],
        micro_batch=2,
    )
    one = [("loss", 8), "backward", "step", ("loss", 10), "backward", "step", "average"]
    found = [(e[0], e[3]) if e[0] == "loss" else e[0] for e in events]
    assert found == one + one
    assert [e[1] for e in events] == ["decoder"] * 7 + ["critic"] * 7


def test_a_sample_draws_the_same_in_any_micro_batch():
    draws: dict[int | None, list[float]] = {}
    for size in (None, 1, 2):
        events: list[Event] = []
        one = player("decoder", events)
        seen = draws.setdefault(size, [])

        def loss(net: Any, batch: Batch, turn: Turn, seen=seen) -> tuple[Tensor, dict[str, Tensor]]:
            seen += turn.rng.uniform().tolist()
            return torch.zeros(()), {"clips": batch.clip.sum()}

        one.loss = loss
        metrics: list[dict[str, float]] = []
        train(
            [one],
            wide_batch(8),
            start=0,
            steps=1,
            seed=0,
            rate=lambda step: 1.0,
            after_step=[lambda step, numbers, metrics=metrics: metrics.append(numbers)],
            micro_batch=size,
        )
        assert metrics == [{"clips": 6.0 / (4 // (size or 4))}]
    assert draws[None] == draws[1] == draws[2]


def test_a_micro_batch_keeps_each_clips_columns_together():
    parts = micro_batches(next(wide_batch(8)), 2)
    assert [part.text.tolist() for part in parts] == [[10, 11], [12, 13]]
    assert [part.stride_index.tolist() for part in parts] == [[20, 21], [22, 23]]
