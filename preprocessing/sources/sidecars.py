"""Labels of a whole video and boxes in some of its frames, from a file NAME.json beside it.

{"labels": {"time": "night"},
 "frames": [{"time_s": 1.25, "boxes": [{"class": "car", "box": [0.1, 0.5, 0.3, 0.7]}]}]}

Boxes are shares of the shown frame's width and height: left, top, right, bottom. A frame with an
empty list of boxes is one in which there is nothing.
"""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import FailFast, Field

from preprocessing.sources.beside import Beside
from preprocessing.sources.listing import FoundFile, Refusal
from preprocessing.sources.names import printable
from videoldm_core.cascade.annotations import Box, GivenBox, Vocabulary, Word
from videoldm_core.errors import UserError
from videoldm_core.records import Record, parse_record

SIDECAR_SUFFIX = ".json"
LARGEST_BYTES = 16 << 20  # ten boxes in each of 20,000 frames
MOST_KEYS = 100  # of one object; a message names one wrong key, not a million


class TimedBoxes(NamedTuple):
    """What is in the frame that is shown at a time."""

    time_s: float  # after the first shown frame
    boxes: tuple[Box, ...]  # shares of the frame as shown


class _Frame(Record):
    time_s: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
    boxes: Annotated[tuple[GivenBox, ...], FailFast()]


class _Sidecar(Record):
    labels: dict[Word, Word] = {}
    frames: Annotated[tuple[_Frame, ...], FailFast()] = ()


class VideoAnnotations(NamedTuple):
    """Labels and boxes of one video, the boxes in order of time."""

    labels: dict[str, str] = {}
    frames: tuple[TimedBoxes, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: Refusal | None = None  # why they are not known


class Sidecars:
    """The labels and boxes of the videos of a folder.

    One folder serves several presets: where `vocabulary` has no words, no file is opened.
    """

    def __init__(self, beside: Beside, vocabulary: Vocabulary) -> None:
        self._beside, self._vocabulary = beside, vocabulary
        self.read: set[str] = set()  # names of the files that were opened

    def of(self, video: FoundFile) -> VideoAnnotations:
        """Those of one video; none where there is no file."""
        if not (self._vocabulary.labels or self._vocabulary.box_classes):
            return VideoAnnotations()
        files, doubtful = self._beside.of(video, SIDECAR_SUFFIX)
        self.read.update(file.name for file in files)
        notes = [f"{file.name!r} may be another video's and is not read" for file in doubtful]
        notes += [f"{file.name!r} is not read, as there is {files[0].name!r}" for file in files[1:]]
        if not files:
            return VideoAnnotations(notes=tuple(notes))
        try:
            if files[0].refusal:
                raise UserError(f"{files[0].name!r} cannot be read: {files[0].refusal.detail}")
            labels, frames = read_sidecar(files[0].path, self._vocabulary)
        except UserError as error:
            said = printable(str(error)).removesuffix(".")
            return VideoAnnotations(refusal=Refusal("bad annotations", said))
        return VideoAnnotations(labels, frames, tuple(notes))


def read_sidecar(
    path: Path, vocabulary: Vocabulary
) -> tuple[dict[str, str], tuple[TimedBoxes, ...]]:
    """Labels, and boxes in order of time, from a NAME.json.

    The labels are ignored where `vocabulary` has no label at all, the boxes where it has no class.

    Raises:
        UserError: the file cannot be read or says what it must not; names the file and the key.
    """
    sidecar = parse_record(_Sidecar, _read_json(path), where=repr(str(path)))
    labels = vocabulary.known_labels(sidecar.labels, where=repr(str(path)))
    return labels, _frames(sidecar, vocabulary, path) if vocabulary.box_classes else ()


def _frames(sidecar: _Sidecar, vocabulary: Vocabulary, path: Path) -> tuple[TimedBoxes, ...]:
    found: dict[float, TimedBoxes] = {}
    for place, frame in enumerate(sidecar.frames):
        where = f"{str(path)!r} frames.{place}"
        if frame.time_s in found:
            raise UserError(
                f"{where} gives time_s = {frame.time_s:g} a second time; list all boxes of a frame "
                "together."
            )
        boxes = vocabulary.known_boxes([box.named() for box in frame.boxes], where=where)
        found[frame.time_s] = TimedBoxes(frame.time_s, boxes)
    return tuple(found[time_s] for time_s in sorted(found))


def _read_json(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise UserError(
                f"{str(path)!r} has {size >> 20} MiB, more than the {LARGEST_BYTES >> 20} that "
                "labels and boxes may take; annotate fewer frames."
            )
        return json.loads(
            path.read_text(encoding="utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError, too
        raise UserError(
            f"{str(path)!r} is not the JSON of labels and boxes ({error}); repair or remove it."
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise ValueError(f"an object has {len(pairs)} keys")
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r:.100} comes twice")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
