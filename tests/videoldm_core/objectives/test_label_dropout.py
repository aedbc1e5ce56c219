"""Text, labels and boxes are dropped each by a draw of its own, at its own share."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.videoldm_core.objectives.test_told_denoising import (
    LEFT,
    TIME,
    WORDS,
    asked,
    new_model,
    scene,
)
from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.diffusion.labels_boxes import nothing_told, told_of
from videoldm_core.objectives.denoising import Denoising

CROWD = LabelKind(name="crowdedness", values=("low", "high"))
TWO = Vocabulary(labels=(TIME, CROWD), box_classes=("car",), max_boxes=2)
MANY = 4000


def dropped(share: float, text_share: float) -> Tensor:
    """Which of text, two labels and boxes each of many clips loses, (MANY 4)."""
    batch = scene(0, by="box", clips=MANY)
    told = told_of(TWO, [({"time": "day", "crowdedness": "low"}, (LEFT,))] * MANY)
    batch = replace(batch, told=told, text=torch.ones_like(batch.text))
    call = asked(new_model(TWO, label_dropout=share, text_dropout=text_share), batch)
    unknown = nothing_told(TWO, MANY)
    return torch.stack(
        [
            call["text"].eq(0).flatten(1).all(dim=1),
            *call["labels"].eq(unknown.labels).T,
            call["boxes"].eq(unknown.boxes).flatten(1).all(dim=1),
        ],
        dim=1,
    )


def test_text_each_label_and_boxes_are_each_dropped_at_their_share_and_apart_from_one_another():
    share, of_text = Denoising().label_dropout, Denoising().text_dropout
    lost = dropped(share, of_text).float()
    expected = torch.tensor([of_text, share, share, share])
    assert expected.tolist() == pytest.approx([0.1] * 4)
    error = (expected * (1 - expected) / MANY).sqrt()
    assert ((lost.mean(dim=0) - expected).abs() < 4 * error).all()
    together = torch.corrcoef(lost.T) - torch.eye(4)
    assert together.abs().max() < 4 / MANY**0.5


def test_every_choice_of_labels_for_a_request_is_a_state_that_training_shows():
    """Some of them, all, none; and what guidance starts from: neither text nor labels nor boxes."""
    states = {tuple(row) for row in dropped(0.3, 0.3).int().tolist()}
    assert states == set(itertools.product((0, 1), repeat=4))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_labels_and_boxes_of_no_or_of_every_clip_are_dropped(share: float):
    lost = dropped(share, 0.5)
    assert (lost[:, 1:] == bool(share)).all()
    assert 0 < lost[:, 0].sum() < MANY


def test_the_draws_of_a_clip_are_its_own_in_whichever_batch_it_is():
    batch = scene(0, by="box", clips=16)
    batch = replace(batch, told=told_of(WORDS, [({"time": "day"}, (LEFT,))] * 16))
    config = new_model(label_dropout=0.5)
    whole, second = asked(config, batch), asked(config, batch[8:])
    for name in ("labels", "boxes"):
        assert torch.equal(whole[name][8:], second[name])
