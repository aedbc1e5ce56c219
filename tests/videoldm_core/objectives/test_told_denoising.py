"""Training with tokens of labels and boxes: they are learned, dropped, saved and inherited."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from videoldm_core.cascade.annotations import Box, GivenBox, LabelKind, Vocabulary
from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import FirstFrames, Given
from videoldm_core.diffusion.labels_boxes import told_of
from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.errors import UserError
from videoldm_core.models.denoiser import load_denoiser, predict
from videoldm_core.models.image import UNetConfig
from videoldm_core.objectives.denoising import Denoising, DenoisingTask, ScheduleConfig
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Turn

TIME = LabelKind(name="time", values=("day", "night"))
WORDS = Vocabulary(labels=(TIME,), box_classes=("car",), max_boxes=2)
SMALL = UNetConfig(widths=(16,), attention=(True,), layers_per_block=1, heads=2, text=8, groups=8)
LOSSES_BEFORE = (0.9223375, 0.7141046, 0.8740792, 0.6438358, 0.6982006, 0.6979271)
NOTHING = Given()
LEFT, RIGHT = Box("car", 0.0, 0.0, 0.5, 1.0), Box("car", 0.5, 0.0, 1.0, 1.0)


def task_for(
    config: Denoising,
    parts: dict[str, Path] | None = None,
    trains: tuple[str, ...] = ("unet", "tokens"),
    lr: float = 1e-2,
) -> DenoisingTask:
    return DenoisingTask(
        config,
        parts=parts or {},
        trains=trains,
        frames=3,
        strides=1,
        crop=None,
        null_text=torch.zeros(4, 8),
        optimizer=OptimizerConfig(lr=lr),
        seed=0,
    )


def new_model(words: Vocabulary | None = WORDS, **changes: Any) -> Denoising:
    return Denoising(
        unet=SMALL, schedule=ScheduleConfig(predicts="v_prediction"), tokens=words, **changes
    )


def turn(batch: Batch, step: int = 0) -> Turn:
    return Turn(step=step, rng=SampleRng(0, "denoiser", batch.sample_ids))


def trained(task: DenoisingTask, batch_at: Callable[[int], Batch], steps: int) -> TorchEngine:
    (player,) = task.players
    engine = TorchEngine(player.module, list(player.trainable.values()), player.optimizer, False)
    for step in range(steps):
        batch = batch_at(step)
        loss, _ = task.loss(engine, batch, turn(batch, step))
        engine.backward(loss)
        engine.step()
    return engine


def scene(step: int, *, by: str, lie: bool = False, clips: int = 16) -> Batch:
    """Pictures that a label, or a box, decides: dark or bright, bright on the left or the right."""
    g = torch.Generator().manual_seed(step)
    first = torch.rand(clips, generator=g) < 0.5
    clip = 0.1 * torch.randn(clips, 1, 4, 4, 4, generator=g)
    if by == "label":
        clip += torch.where(first, 1.0, -1.0)[:, None, None, None, None]
    else:
        clip[first, ..., :2] += 1.5
        clip[~first, ..., 2:] += 1.5
    said = (first != lie).tolist()
    told = told_of(
        WORDS,
        [({"time": "day" if one else "night"}, None) for one in said]
        if by == "label"
        else [({}, (LEFT if one else RIGHT,)) for one in said],
    )
    return Batch(
        clip=clip,
        text=torch.zeros(clips, 4, 8),
        stride_index=torch.zeros(clips, dtype=torch.long),
        sample_ids=torch.arange(step * clips, (step + 1) * clips),
        told=told,
    )


@pytest.mark.parametrize(("by", "steps"), [("label", 40), ("box", 80)])
def test_a_model_learns_what_a_label_or_a_box_decides(by: str, steps: int):
    task = task_for(new_model())
    engine = trained(task, lambda step: scene(step, by=by), steps)
    task.config = task.config.model_copy(update={"label_dropout": 0.0})
    losses = []
    for lie in (False, True):
        batch = scene(10**6, by=by, lie=lie, clips=64)
        with torch.no_grad():
            losses.append(task.heldout(engine, batch, turn(batch))["loss"].mean().item())
    right, wrong = losses
    assert right < 0.6 * wrong


def test_two_labels_give_two_predictions_and_so_do_two_boxes():
    task = task_for(new_model())
    trained(task, lambda step: scene(step, by="label"), 3)
    trained(task, lambda step: scene(step, by="box"), 3)
    model, noisy = task.model, torch.randn(1, 1, 4, 4, 4)

    def predicted(labels: dict[str, str], boxes: list[Box] | None) -> Tensor:
        asked = None if boxes is None else [given(b) for b in boxes]
        condition = model.asked_condition(torch.zeros(1, 4, 8), labels, asked)
        with torch.no_grad():
            return predict(model.net, noisy, torch.tensor([900]), condition, NOTHING)

    seen = [
        predicted({"time": "day"}, None),
        predicted({"time": "night"}, None),
        predicted({}, [LEFT]),
        predicted({}, [RIGHT]),
        predicted({}, []),
        predicted({}, None),
    ]
    for i, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-4 for other in seen[i + 1 :])


def test_sampling_and_training_make_the_same_condition(random_batch):
    task = task_for(new_model(label_dropout=0.0))
    batch = replace(random_batch((2, 1, 4, 4, 4)), told=scene(0, by="box", clips=2).told)
    condition = task.model.condition(batch.text, batch.told)
    timesteps = torch.tensor([10, 700])
    (player,) = task.players
    with torch.no_grad():
        whole = predict(task.model.net, batch.clip, timesteps, condition, NOTHING)
        inside = predict(player.module, batch.clip, timesteps, batch.text, NOTHING, told=batch.told)
        assert torch.equal(whole, inside)
        other = player.module(
            batch.clip,
            timesteps,
            batch.text,
            temporal_text=batch.text + 1,
            labels=batch.told.labels,
            boxes=batch.told.boxes,
        )
    assert torch.equal(other, whole), "an image model has no temporal layers to read another text"


def given(box: Box) -> GivenBox:
    return GivenBox.model_validate({"class": box.name, "box": box[1:]})


class Listening:
    """A network that remembers what it is asked."""

    def __init__(self, task: DenoisingTask) -> None:
        self.module, self.calls = task.model.net, []

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor, **given: Any) -> Tensor:
        self.calls.append({"noisy": noisy, "timesteps": timesteps, "text": text, **given})
        return torch.zeros_like(noisy)


def asked(config: Denoising, batch: Batch) -> dict[str, Any]:
    task = task_for(config, trains=("unet", "tokens") if config.tokens else ("unet",))
    net = Listening(task)
    task.heldout(net, batch, turn(batch))
    return net.calls[0]


def test_all_other_random_numbers_are_those_of_a_model_without_tokens():
    batch = scene(3, by="box")
    options = {"text_dropout": 0.5, "given": FirstFrames(), "label_dropout": 0.5}
    without = asked(new_model(None, **options), replace(batch, told=None))
    with_tokens = asked(new_model(**options), batch)
    for name in ("noisy", "timesteps", "text", "context"):
        assert torch.equal(without[name], with_tokens[name])
    assert not {"labels", "boxes"} & set(without)


def test_losses_without_labels_are_what_they_were_before_there_were_any(random_batch):
    # Of the code before labels and boxes, from the same weights, clips and random numbers.
    task = task_for(new_model(None), trains=("unet",), lr=1e-3)
    losses: list[float] = []

    def batch_at(step: int) -> Batch:
        return random_batch((4, 1, 4, 4, 4), first_id=4 * step, seed=step)

    (player,) = task.players
    engine = TorchEngine(player.module, list(player.trainable.values()), player.optimizer, False)
    for step in range(len(LOSSES_BEFORE)):
        batch = batch_at(step)
        loss, numbers = task.loss(engine, batch, turn(batch, step))
        engine.backward(loss)
        engine.step()
        losses.append(numbers["loss"].item())
    assert losses == pytest.approx(LOSSES_BEFORE, rel=1e-4)
    assert "tokens" not in {name.partition(".")[0] for name in player.trainable}


def test_a_later_stage_inherits_frozen_tokens_and_reads_them(tmp_path: Path):
    first = task_for(new_model())
    trained(first, lambda step: scene(step, by="box"), 2)
    names = first.save(tmp_path)
    assert sorted(names) == ["scheduler", "tokens", "unet"]
    parts = {name: tmp_path / name for name in names}
    second = task_for(Denoising(alpha="scalar"), parts, trains=("temporal",))
    assert second.model.tokens is not None
    before = {k: t.clone() for k, t in second.model.tokens.state_dict().items()}
    trained(second, lambda step: scene(step, by="label"), 2)
    saved = first.model.tokens.state_dict() if first.model.tokens else {}
    for name, tensor in second.model.tokens.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor, saved[name])
    assert second.save(tmp_path / "second") == ["temporal"]
    loaded = load_denoiser(parts | {"temporal": tmp_path / "second" / "temporal"})
    assert loaded.vocabulary == WORDS
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_scenario_model_adds_boxes_to_a_model_of_labels(tmp_path: Path):
    first = task_for(new_model(Vocabulary(labels=(TIME,))))
    parts = {name: tmp_path / name for name in first.save(tmp_path)}
    second = task_for(Denoising(tokens=WORDS), parts)
    assert second.model.tokens is not None
    assert first.model.tokens is not None
    for name, tensor in first.model.tokens.state_dict().items():
        assert torch.equal(tensor, second.model.tokens.state_dict()[name])
    assert {"tokens.labels.0.weight", "tokens.boxes.what.weight"} <= set(
        second.players[0].trainable
    )


def test_a_model_without_tokens_reads_the_text_alone_whatever_is_asked():
    model, text = task_for(new_model(None), trains=("unet",)).model, torch.randn(1, 4, 8)
    assert model.vocabulary is None
    assert model.condition(text) is text
    assert model.asked_condition(text, {"time": "dusk"}, []) is text


def test_an_unknown_word_of_a_request_is_refused():
    model = task_for(new_model()).model
    with pytest.raises(UserError, match=r"unknown value 'dya' of label 'time'; did you mean 'day'"):
        model.asked_condition(torch.zeros(1, 4, 8), {"time": "dya"})
