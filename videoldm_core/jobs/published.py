"""What a finished stage says of itself: stage.json, written last, so that it is all or nothing."""

import hashlib
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationError

from videoldm_core.cascade.stage import Stage, VideoFormat
from videoldm_core.errors import UserError
from videoldm_core.evaluation.comparison import WorthRow
from videoldm_core.records import Digest, PlainName, Record, path_inside, problem_of
from videoldm_core.system.files import sha256_of_folder, write_text_atomically
from videoldm_core.system.git import UNKNOWN
from videoldm_core.system.plain_json import read_json

FILE = "stage.json"


def _below_or_beside(text: str) -> str:
    """A path in the stage's folder, or in that of a stage it inherits from: ../image/weights/unet.

    Raises:
        ValueError: it is absolute, or `..` is in it elsewhere than at its beginning.
    """
    inside = text
    while inside.startswith("../"):
        inside = inside.removeprefix("../")
    path_inside(inside)
    return text


class Part(Record):
    """Weights on disk: made by this stage or inherited."""

    # Relative to the stage's folder.
    path: Annotated[str, AfterValidator(_below_or_beside)]
    sha256: Digest


class PublishedStage(Record):
    """Everything needed to use, judge and repeat a trained stage."""

    stage: Stage
    video: VideoFormat
    seed: int
    fingerprint: str  # of everything that decided the weights
    parts: dict[PlainName, Part]
    parents: dict[str, str]  # stage name -> digest of the stage.json it started from
    data: dict[str, str]  # latents, pixels -> identity of the store it learned from
    step: int
    worth: tuple[WorthRow, ...]
    versions: dict[str, str]  # of the packages that trained it
    commit: str = UNKNOWN  # of the code that trained it
    started: float  # unix time
    finished: float
    process_seconds: float  # over all processes, of the attempt that finished


def read_published(folder: Path) -> PublishedStage | None:
    """What the stage in `folder` published, or None when it has not finished.

    Raises:
        UserError: stage.json is there but is not one.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return PublishedStage.model_validate(read_json(path))
    except ValidationError as error:
        reason = problem_of(PublishedStage, error).removesuffix(".")
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{str(path)!r} is not a published stage of this version ({reason}); "
        "delete the folder and run the stage again."
    )


def published_digest(folder: Path) -> str:
    """Identity of one publication: a stage trained again is another parent."""
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


def part_paths(folder: Path, *, verify: bool = False) -> dict[str, Path]:
    """Where the parts of the stage in `folder` lie, inherited ones included.

    Args:
        verify: read every byte and compare digests.

    Raises:
        UserError: the stage is not published, or a part is missing or changed.
    """
    published = read_published(folder)
    if published is None:
        raise UserError(
            f"No trained stage in {str(folder)!r}: {FILE} is missing. Train the stage first."
        )
    paths = {}
    for name, part in published.parts.items():
        path = (folder / part.path).resolve()
        if not path.is_dir():
            raise UserError(
                f"Part {name!r} of {str(folder)!r} is missing at {str(path)!r}; "
                "train the stage that made it again."
            )
        if verify and sha256_of_folder(path) != part.sha256:
            raise UserError(
                f"Part {name!r} at {str(path)!r} is not what {str(folder / FILE)!r} recorded; "
                "train the stage that made it again."
            )
        paths[name] = path
    return paths


def describe_parts(
    folder: Path, own: dict[str, Path], inherited: dict[str, Path]
) -> dict[str, Part]:
    """Parts for stage.json; paths are relative so that a run folder can be moved."""
    return {
        name: Part(path=os.path.relpath(path, folder), sha256=sha256_of_folder(path))
        for name, path in (inherited | own).items()
    }


def write_published(folder: Path, published: PublishedStage) -> None:
    """Publishes: from here on the stage is there."""
    write_text_atomically(folder / FILE, published.model_dump_json(indent=2))
