"""The user's folder of videos: which files, with which captions, labels and boxes, and digests.

Opens no video.
"""

import csv
import hashlib
import io
import logging
from pathlib import Path

from preprocessing.digests import Digests
from preprocessing.sidecars import TimedBoxes, read_sidecar
from videoldm_core.annotations import Vocabulary
from videoldm_core.errors import UserError
from videoldm_core.files import files_below, unreadable
from videoldm_core.records import Record

_VIDEO_KINDS = "3g2 3gp asf avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in _VIDEO_KINDS.split())
CAPTIONS_TABLE = "captions.csv"
NO_WORDS = Vocabulary()

_log = logging.getLogger(__name__)


class Source(Record):
    """One video file as it lies in the user's folder."""

    name: str  # path below the folder, with forward slashes
    path: Path
    size: int  # bytes
    digest: str  # hex SHA-256 of the file; empty when it cannot be read
    caption: str
    labels: dict[str, str] = {}
    frames: tuple[TimedBoxes, ...] = ()  # in which boxes are annotated


def find_sources(
    folder: Path, vocabulary: Vocabulary = NO_WORDS, *, digests: Path | None = None
) -> list[Source]:
    """Every video file below `folder`, in name order.

    A caption comes from NAME.txt beside NAME.mp4, else from captions.csv at the folder's top
    (columns file,caption), else it is empty. Labels and boxes come from NAME.json (sidecars.py).

    Args:
        vocabulary: the labels and classes that exist; without any, no NAME.json is read.
        digests: where digests are kept, so that unchanged files are not read again (digests.py).

    Raises:
        UserError: the folder is missing, holds no video file or cannot be read, captions, labels
            or boxes cannot be read, or the digests cannot be written.
    """
    paths = _video_paths(folder)
    table = _read_captions(folder)
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    _check_captions_meet_videos(folder, table, set(names))
    known = {name: read_sidecar(path, vocabulary) for name, path in names.items()}
    with Digests(digests) as of_files:
        return [
            Source(
                name=name,
                path=path,
                size=path.stat().st_size,
                digest=_digest(path, of_files),
                caption=_caption_beside(path) or table.get(name, ""),
                labels=known[name][0],
                frames=known[name][1],
            )
            for name, path in sorted(names.items())
        ]


def _video_paths(folder: Path) -> list[Path]:
    if not folder.exists():
        raise UserError(
            f"The video folder {str(folder)!r} does not exist; give the path of a folder of videos."
        )
    if not folder.is_dir():
        raise UserError(
            f"{str(folder)!r} is a file, not a folder; give the folder that holds the video files."
        )
    files = [
        path
        for path in files_below(folder)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(
            f"The video folder {str(folder)!r} is empty; put video files (mp4, mkv ...) into it."
        )
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise UserError(
            f"None of the {len(files)} files in {str(folder)!r} is a video; put files ending in "
            f"one of {_VIDEO_KINDS} into it."
        )
    return videos


def _digest(path: Path, of_files: Digests) -> str:
    try:
        return of_files.of(path)
    except OSError as error:
        _log.warning("%s cannot be read: %s", path, error)
        return ""


def _caption_beside(video: Path) -> str:
    beside = video.with_suffix(".txt")
    return " ".join(_read_text(beside).split()) if beside.is_file() else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8 and run again."
        ) from None


def _read_captions(folder: Path) -> dict[str, str]:
    """Captions by file name from captions.csv; empty when there is none."""
    path = folder / CAPTIONS_TABLE
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    captions: dict[str, str] = {}
    try:
        columns = rows.fieldnames or []
        if sorted(columns) != ["caption", "file"]:
            raise UserError(
                f"{str(path)!r} has the columns {','.join(columns) or 'none'}; "
                "its first line must be file,caption."
            )
        for row in rows:
            _add_caption(captions, row, where=f"{str(path)!r} line {rows.line_num}")
    except csv.Error as error:
        raise UserError(
            f"{str(path)!r} line {rows.reader.line_num} is not valid CSV ({error}); put captions "
            'with commas in double quotes ("a red car, at night").'
        ) from None
    return captions


def _add_caption(
    captions: dict[str, str], row: dict[str | None, str | None], *, where: str
) -> None:
    if None in row or None in row.values():
        raise UserError(
            f"{where} does not have two columns; write file,caption and put captions with commas "
            "in double quotes."
        )
    name = Path((row["file"] or "").strip()).as_posix()
    caption = " ".join((row["caption"] or "").split())
    if captions.get(name, caption) != caption:
        raise UserError(f"{where} gives {name!r} a second caption; keep one line per file.")
    captions[name] = caption


def _check_captions_meet_videos(folder: Path, table: dict[str, str], names: set[str]) -> None:
    strays = sorted(set(table) - names)
    if table and len(strays) == len(table):
        raise UserError(
            f"No line of {str(folder / CAPTIONS_TABLE)!r} names a video of the folder (the first "
            f"is {strays[0]!r}); write paths relative to the folder."
        )
    if strays:
        _log.warning(
            "%s names %d files that are not there, such as %r",
            CAPTIONS_TABLE,
            len(strays),
            strays[0],
        )


def digest_of_text(text: str) -> str:
    """Hex SHA-256 of a text: for keys and for choices that must not depend on order."""
    return hashlib.sha256(text.encode()).hexdigest()
