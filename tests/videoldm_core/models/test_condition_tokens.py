"""Tokens of labels and boxes: what tells them apart, and that they are saved alone."""

from pathlib import Path

import pytest
import torch

from videoldm_core.cascade.annotations import Box, LabelKind, Vocabulary
from videoldm_core.diffusion.labels_boxes import told_of
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import ConditionTokens, load_tokens, load_vocabulary
from videoldm_core.models.condition_tokens import condition_tokens_for as new_tokens
from videoldm_core.models.image import UNetConfig

TIME = LabelKind(name="time", values=("day", "night"))
WORDS = Vocabulary(labels=(TIME,), box_classes=("car", "bus"), max_boxes=3)
LABELS_ONLY = Vocabulary(labels=(TIME,))
TEXT = torch.zeros(1, 4, 8)


@pytest.fixture(scope="module")
def unet():
    config = UNetConfig(
        widths=(16,), attention=(True,), layers_per_block=1, heads=2, text=8, groups=8
    )
    return config.build(0)


def tokens_of(tokens: ConditionTokens, labels=None, boxes=None) -> torch.Tensor:
    return tokens.condition(TEXT, told_of(tokens.vocabulary, [(labels or {}, boxes)]))[0, 4:]


def test_the_condition_is_the_text_then_one_token_per_label_and_place_for_a_box(unet):
    text = torch.randn(2, 4, 8)
    tokens = new_tokens(unet, WORDS, seed=0)
    condition = tokens.condition(text, told_of(WORDS, [({}, None), ({"time": "day"}, ())]))
    assert condition.shape == (2, 4 + 1 + 3, 8)
    assert torch.equal(condition[:, :4], text)
    assert torch.equal(tokens.condition(text, None)[1, 4:], condition[0, 4:])


def test_every_value_class_and_place_has_another_token(unet):
    tokens = new_tokens(unet, WORDS, seed=0)
    labels = [tokens_of(tokens, {"time": value})[0] for value in ("day", "night")]
    labels.append(tokens_of(tokens)[0])
    places = [(0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.51), (0.5, 0.0, 1.0, 0.5)]
    things = [Box(name, *place) for name in ("car", "bus") for place in places]
    boxes = [tokens_of(tokens, boxes=[thing])[1] for thing in things]
    boxes += [tokens_of(tokens, boxes=[])[1], tokens_of(tokens)[1]]
    for several in (labels, boxes):
        apart = torch.cdist(torch.stack(several), torch.stack(several))
        assert (apart + torch.eye(len(several))).min() > 1e-3


def test_what_is_no_box_has_no_place(unet):
    tokens = new_tokens(unet, WORDS, seed=0)
    assert tokens.boxes is not None
    rows = torch.tensor(
        [[[0, 0, 0, 0, 0], [0, 0.3, 0, 1, 1.0], [1, 0, 0, 0, 0], [1, 0.3, 0, 1, 1]]]
    )
    unknown, also_unknown, none, also_none = tokens.boxes(rows)[0]
    assert torch.equal(unknown, also_unknown)
    assert torch.equal(none, also_none)


def test_start_values_depend_on_the_seed_alone_and_disturb_no_other_draws(unet):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (new_tokens(unet, WORDS, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if "bias" not in k)
    assert all(tensor.dim() > 0 for tensor in first.values()), "DeepSpeed takes no 0-d parameter"


def test_tokens_are_loaded_as_they_were_saved(unet, tmp_path: Path):
    tokens = new_tokens(unet, WORDS, seed=3)
    tokens.save(tmp_path)
    assert load_vocabulary(tmp_path) == WORDS
    loaded = load_tokens(tmp_path, unet)
    assert all(torch.equal(t, loaded.state_dict()[k]) for k, t in tokens.state_dict().items())


def test_a_model_of_boxes_may_start_from_one_of_the_same_labels(unet, tmp_path: Path):
    parent = new_tokens(unet, LABELS_ONLY, seed=3)
    parent.save(tmp_path)
    child = new_tokens(unet, WORDS, seed=4)
    boxes = {k: t.clone() for k, t in child.state_dict().items() if k.startswith("boxes.")}
    child.load(tmp_path)
    assert torch.equal(child.labels[0].weight, parent.labels[0].weight)  # type: ignore[arg-type]
    assert all(torch.equal(child.state_dict()[k], t) for k, t in boxes.items())


@pytest.mark.parametrize(
    "words",
    [
        Vocabulary(labels=(LabelKind(name="time", values=("night", "day")),)),
        Vocabulary(box_classes=("car", "bus")),
        Vocabulary(labels=(TIME,), box_classes=("bus", "car")),
    ],
)
def test_tokens_of_other_words_are_refused(unet, tmp_path: Path, words: Vocabulary):
    new_tokens(unet, WORDS, seed=0).save(tmp_path)
    with pytest.raises(UserError, match=r"of time \(day, night\) and boxes \(car, bus\), this sta"):
        new_tokens(unet, words, seed=0).load(tmp_path)


def test_tokens_that_are_missing_damaged_or_of_another_width_are_refused(unet, tmp_path: Path):
    with pytest.raises(UserError, match=r"No description of tokens"):
        load_tokens(tmp_path, unet)
    ConditionTokens(WORDS, 16).save(tmp_path)
    with pytest.raises(
        UserError, match=r"'labels.0.weight' has shape \(3, 16\), expected \(3, 8\)"
    ):
        load_tokens(tmp_path, unet)
    (tmp_path / "tokens.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"tokens.safetensors"):
        load_tokens(tmp_path, unet)
