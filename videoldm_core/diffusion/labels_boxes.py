"""Labels and boxes as numbers: what the tokens of a network are made from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoldm_core.cascade.annotations import Box, GivenBox, Vocabulary
from videoldm_core.errors import UserError

UNKNOWN = 0  # of labels and of boxes alike
NO_BOX = 1  # "there is no further box", which is something else than not being told
FIRST_CLASS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a denoiser is told of a batch of clips by way of tokens."""

    labels: Tensor  # int64 (b n): 0 unknown, else 1 + place among the label's values
    # float32 (b k 5), a row [what, x0, y0, x1, y1]: what is 0 unknown, 1 no box, else 2 + class
    boxes: Tensor

    def without(self, labels: Tensor, boxes: Tensor) -> "Told":
        """The same with some labels (b n), and the boxes of some clips (b), unknown; masks."""
        return Told(
            labels=self.labels.masked_fill(labels, UNKNOWN),
            boxes=self.boxes.masked_fill(boxes[:, None, None], UNKNOWN),
        )

    def __getitem__(self, clips: slice) -> "Told":
        """What is told of some of the clips."""
        return Told(labels=self.labels[clips], boxes=self.boxes[clips])

    def to(self, device: torch.device) -> "Told":
        """The same on another device."""
        return Told(labels=self.labels.to(device), boxes=self.boxes.to(device))


def told_of(
    vocabulary: Vocabulary, clips: Iterable[tuple[Mapping[str, str], Sequence[Box] | None]]
) -> Told:
    """What is told of clips, given the labels and boxes of each.

    A label or a class that `vocabulary` lacks is not told: a model need not use all that a store
    holds. Of too many boxes the largest are told. Boxes None are unknown.

    Raises:
        UserError: a label has a value that `vocabulary` does not know.
    """
    rows = [(_labels(vocabulary, labels), _boxes(vocabulary, boxes)) for labels, boxes in clips]
    count = vocabulary.max_boxes if vocabulary.box_classes else 0
    return Told(
        labels=torch.tensor([labels for labels, _ in rows], dtype=torch.int64).view(
            len(rows), len(vocabulary.labels)
        ),
        boxes=torch.tensor([boxes for _, boxes in rows]).view(len(rows), count, 5),
    )


def nothing_told(vocabulary: Vocabulary, clips: int) -> Told:
    """Everything unknown, as after dropout: what guidance starts from."""
    return told_of(vocabulary, [({}, None)] * clips)


def told_of_request(
    vocabulary: Vocabulary, labels: Mapping[str, str], boxes: Sequence[GivenBox] | None
) -> Told:
    """What is told of the one clip that somebody asks for.

    Args:
        labels: name -> value; those not named are unknown.
        boxes: None: it is not said where things are; empty: there are none.

    Raises:
        UserError: a word is unknown, with the nearest known one, or there are too many boxes.
    """
    known = vocabulary.known_labels(labels, where="the request")
    if boxes is None:
        return told_of(vocabulary, [(known, None)])
    named = vocabulary.known_boxes([box.named() for box in boxes], where="the request")
    if len(named) > vocabulary.max_boxes:
        raise UserError(
            f"the request: {len(named)} boxes are more than the {vocabulary.max_boxes} that this "
            "model can be told; leave the smallest out."
        )
    return told_of(vocabulary, [(known, named)])


def check_request(
    vocabularies: Iterable[Vocabulary | None],
    labels: Mapping[str, str],
    boxes: Sequence[GivenBox] | None,
) -> None:
    """Refuses labels and boxes that no model of a cascade is told; each alone ignores them.

    Args:
        vocabularies: of the models that sample, None of one that is told nothing.

    Raises:
        UserError: says what cannot be asked for.
    """
    told = [vocabulary for vocabulary in vocabularies if vocabulary is not None]
    if labels and not any(vocabulary.labels for vocabulary in told):
        raise UserError(
            f"the request names the label {next(iter(labels))!r}, but none of these models was "
            "trained with labels; ask without labels, or use a preset that has them."
        )
    if boxes is not None and not any(vocabulary.box_classes for vocabulary in told):
        raise UserError(
            f"the request names {len(boxes)} boxes, but none of these models was trained with "
            "boxes; ask without boxes, or use a preset that has them."
        )


def _labels(vocabulary: Vocabulary, labels: Mapping[str, str]) -> list[int]:
    numbers = []
    for kind in vocabulary.labels:
        value = labels.get(kind.name)
        vocabulary.known_labels({} if value is None else {kind.name: value}, where="the store")
        numbers.append(UNKNOWN if value is None else 1 + kind.values.index(value))
    return numbers


def _boxes(vocabulary: Vocabulary, boxes: Sequence[Box] | None) -> list[list[float]]:
    classes, count = vocabulary.box_classes, vocabulary.max_boxes
    if not classes:
        return []
    if boxes is None:
        return [[UNKNOWN, 0.0, 0.0, 0.0, 0.0]] * count
    known = [box for box in boxes if box.name in classes]
    if len(known) > count:
        known = sorted(known, key=lambda box: (box.x0 - box.x1) * (box.y1 - box.y0))[:count]
    rows = [[FIRST_CLASS + classes.index(box.name), *box[1:]] for box in known]
    return rows + [[NO_BOX, 0.0, 0.0, 0.0, 0.0]] * (count - len(rows))
