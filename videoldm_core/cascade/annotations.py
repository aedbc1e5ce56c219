"""What is known of a clip beside its caption: labels of the whole, boxes in some frames, by name.

A preset names the words that exist (`Vocabulary`). Sidecar files, shards and requests use these
words; how a network is told them is in `told.py`. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, field_validator, model_serializer, model_validator

from videoldm_core.errors import UserError
from videoldm_core.records import Record, nearest

Share = Annotated[float, Field(ge=0, le=1, strict=True)]  # of a frame's width or height

Word = Annotated[str, Field(max_length=100)]


class Box(NamedTuple):
    """A thing in a frame; x to the right and y downwards from the upper left corner."""

    name: str  # its class
    x0: Share
    y0: Share
    x1: Share
    y1: Share


class BoxedFrame(NamedTuple):
    """A frame in which somebody looked for things; perhaps there was none."""

    frame: int  # of the clip
    boxes: tuple[Box, ...]


class GivenBox(Record):
    """A box as people write it: {"class": "car", "box": [x0, y0, x1, y1]}."""

    model_config = ConfigDict(populate_by_name=True)

    name: Word = Field(alias="class")
    box: tuple[Share, Share, Share, Share]

    @field_validator("box")
    @classmethod
    def _has_area(cls, box: tuple[float, ...]) -> tuple[float, ...]:
        x0, y0, x1, y1 = box
        if not (x0 < x1 and y0 < y1):
            raise ValueError("expected [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
        return box

    def named(self) -> Box:
        """The same as clips hold it."""
        return Box(self.name, *self.box)


class LabelKind(Record):
    """One question that a label answers for a whole video."""

    name: str = Field(min_length=1)  # "time"
    values: tuple[str, ...] = Field(min_length=1)  # "day", "night"

    @field_validator("values")
    @classmethod
    def _differ(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _without_copies(values)


class Vocabulary(Record):
    """The labels and the classes of boxes that exist. What it has none of is ignored."""

    labels: tuple[LabelKind, ...] = ()
    box_classes: tuple[str, ...] = ()
    max_boxes: int = Field(
        default=32, ge=1, le=1000
    )  # per frame; of more, a model is told the largest

    @field_validator("box_classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        return _without_copies(classes)

    @model_validator(mode="after")
    def _kinds_differ(self) -> "Vocabulary":
        _without_copies(tuple(kind.name for kind in self.labels))
        return self

    def holds(self, other: "Vocabulary") -> bool:
        """Whether every word of `other` means the same here."""
        kinds, classes = set(self.labels), set(self.box_classes)
        return kinds.issuperset(other.labels) and classes.issuperset(other.box_classes)

    def known_labels(self, labels: Mapping[str, str], *, where: str) -> dict[str, str]:
        """The labels; none where no label exists.

        Args:
            where: who says so, for the message ("the request").

        Raises:
            UserError: a label or its value does not exist; names the nearest.
        """
        if not self.labels:
            return {}
        kinds = {kind.name: kind.values for kind in self.labels}
        for name, value in labels.items():
            if name not in kinds:
                raise UserError(f"{where}: unknown label {name!r}; {nearest(name, list(kinds))}")
            if value not in kinds[name]:
                known = nearest(value, list(kinds[name]))
                raise UserError(f"{where}: unknown value {value!r} of label {name!r}; {known}")
        return dict(labels)

    def known_boxes(self, boxes: Sequence[Box], *, where: str) -> tuple[Box, ...]:
        """The boxes; none where no class exists.

        Raises:
            UserError: a class does not exist; names the nearest.
        """
        if not self.box_classes:
            return ()
        for box in boxes:
            if box.name not in self.box_classes:
                known = nearest(box.name, list(self.box_classes))
                raise UserError(f"{where}: unknown class {box.name!r} of a box; {known}")
        return tuple(boxes)


class Annotations(Record):
    """The part of a clip's record that few clips have; written only where there is any.

    So the bytes of a store whose clips have none are what they were before there were any.
    """

    labels: dict[str, str] = {}  # name -> value; a missing one is unknown
    boxes: tuple[BoxedFrame, ...] = ()  # the annotated frames, in order
    # Mean frames per second of the video it was cut from, where they are fewer than the clip's, so
    # that some of its frames stand several times; None: there are as many (see plan.keeps_up).
    source_fps: float | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: Any) -> dict[str, Any]:
        written = handler(self)
        for name, field in Annotations.model_fields.items():
            if getattr(self, name) == field.default:
                written.pop(name, None)
        return written

    def __hash__(self) -> int:
        fields = self.__dict__ | {"labels": frozenset(self.labels.items())}
        return hash(tuple(fields.values()))


def _without_copies(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) < len(words):
        raise ValueError("expected each word once")
    return words
