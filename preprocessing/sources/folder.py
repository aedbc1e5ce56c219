"""The user's folder of videos: which files, with which captions, labels and boxes, and digests.

Opens no video. Whatever is odd about one file costs that file alone, and is said.
"""

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from preprocessing.sources.beside import Beside
from preprocessing.sources.captions import FORMS, TEXT_SUFFIXES, Captions
from preprocessing.sources.digests import Digests
from preprocessing.sources.listing import (
    FoundFile,
    Listing,
    PassedOver,
    Refusal,
    counted_by_suffix,
    list_folder,
    refusal_of,
)
from preprocessing.sources.sidecars import SIDECAR_SUFFIX, Sidecars, TimedBoxes
from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.errors import UserError
from videoldm_core.records import Record

# What the reader's containers are called; each was read back from a file of its kind.
_VIDEO_KINDS = (
    "264 265 3g2 3gp asf avc avi dif divx dv f4v flv gif h264 h265 hevc ismv ivf m1v m2t m2ts m2v "
    "m4v mj2 mk3d mkv mov mp4 mpeg mpg mts mxf ogm ogv qt rm rmvb ts vob vro webm wmv wtv y4m"
)
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in _VIDEO_KINDS.split())
NO_WORDS = Vocabulary()
_MOST_HOLES = 1 << 30  # bytes; a file with more is a copy or a download that did not end


class Source(Record):
    """One video file as it lies in the user's folder."""

    name: str  # path below the folder, with forward slashes, as names.py writes it
    path: Path
    size: int  # bytes
    digest: str  # hex SHA-256 of the file; empty when it is refused
    caption: str
    labels: dict[str, str] = {}
    frames: tuple[TimedBoxes, ...] = ()  # in which boxes are annotated
    changed_ns: int | None = None  # when its content changed last, before it was read
    refusal: Refusal | None = None  # why it is not used; None: nothing is wrong so far
    notes: tuple[str, ...] = ()  # what somebody who looks at the video's line should know


class LeftOut(Record):
    """What lies in the folder besides videos and what belongs to them."""

    files: dict[str, int] = {}  # suffix -> how many that nobody looks at, most first
    passed_over: tuple[PassedOver, ...] = ()
    remarks: tuple[str, ...] = ()  # on files that were not understood


NOTHING_ELSE = LeftOut()


class Survey(NamedTuple):
    """A folder of videos."""

    sources: list[Source]  # in name order
    left_out: LeftOut


def find_sources(
    folder: Path, vocabulary: Vocabulary = NO_WORDS, *, digests: Path | None = None
) -> list[Source]:
    """The sources of `survey_folder`."""
    return survey_folder(folder, vocabulary, digests=digests).sources


def survey_folder(
    folder: Path, vocabulary: Vocabulary = NO_WORDS, *, digests: Path | None = None
) -> Survey:
    """Every video file below `folder`, in name order, and what else lies there.

    Captions come from one of the forms in captions.py, labels and boxes from NAME.json
    (sidecars.py). A video that cannot be read, or whose caption, labels or boxes cannot be, has its
    refusal.

    Args:
        vocabulary: the labels and classes that exist; without any, no NAME.json is read.
        digests: where digests are kept, so that unchanged files are not read again (digests.py).

    Raises:
        UserError: the folder is missing, holds no video file or cannot be read, its captions.csv
            cannot be used, or the digests cannot be written.
    """
    listing = list_folder(folder)
    videos = [file for file in listing.files if is_video(file)]
    others = [file for file in listing.files if not is_video(file)]
    if not videos:
        raise _no_videos(folder, listing)
    beside = Beside(videos, others + listing.folders, {*TEXT_SUFFIXES, SIDECAR_SUFFIX})
    captions = Captions(folder, videos, others + listing.folders, beside)
    annotations = Sidecars(beside, vocabulary)
    with Digests(digests) as of_files:
        sources = [_source(video, captions, annotations, of_files) for video in videos]
    read = captions.read | annotations.read
    unread = [file for file in others if file.name not in read]
    return Survey(sources, _left_out(listing, unread, captions.remarks))


def is_video(file: FoundFile) -> bool:
    """Whether it is named like one."""
    return file.path.suffix.lower() in VIDEO_SUFFIXES


def refusal_since(source: Source) -> Refusal | None:
    """Why what was decoded may not be what was digested: the file is gone, or another one now."""
    try:
        found = source.path.stat()
    except OSError as error:
        return refusal_of(error)
    if source.changed_ns in (None, found.st_mtime_ns) and source.size == found.st_size:
        return None
    return Refusal("changed", "it was written to while it was looked at; run again when it is done")


def digest_of_text(text: str) -> str:
    """Hex SHA-256 of a text: for keys and for choices that must not depend on order."""
    return hashlib.sha256(text.encode()).hexdigest()


def _source(
    video: FoundFile, captions: Captions, annotations: Sidecars, digests: Digests
) -> Source:
    caption, annotated = captions.of(video), annotations.of(video)
    refusal = video.refusal or caption.refusal or annotated.refusal
    size, changed_ns, digest = video.size, video.changed_ns, ""
    if refusal is None:
        try:
            found = video.path.stat()
            size, changed_ns = found.st_size, found.st_mtime_ns
            refusal = _sparse(video.path, found)
            digest = "" if refusal else digests.of(video.path)
        except OSError as error:
            refusal = refusal_of(error)
    return Source(
        name=video.name,
        path=video.path,
        size=size,
        digest=digest,
        caption=caption.text,
        labels=annotated.labels,
        frames=annotated.frames,
        changed_ns=changed_ns,
        refusal=refusal,
        notes=caption.notes + annotated.notes,
    )


def _sparse(path: Path, found: os.stat_result) -> Refusal | None:
    """Refuses a file that is mostly not there, which may claim to be larger than any disk."""
    stored = found.st_blocks * 512
    if found.st_size - stored <= _MOST_HOLES:
        return None
    holes = position = 0
    with path.open("rb") as file:
        while position < found.st_size and holes <= _MOST_HOLES:
            try:
                data = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # this file system knows no holes
                    return None
                data = found.st_size  # a hole up to the end
            holes += data - position
            position = os.lseek(file.fileno(), data, os.SEEK_HOLE) if data < found.st_size else data
    if holes <= _MOST_HOLES:  # the disk compresses, or does not say what it stores
        return None
    return Refusal(
        "sparse",
        f"of its {found.st_size:,} bytes {stored:,} are there: a copy or download that did not end",
    )


def _no_videos(folder: Path, listing: Listing) -> UserError:
    passed = ""
    if listing.passed_over:
        first = listing.passed_over[0]
        passed = f" ({len(listing.passed_over)} are passed over, as {first.name!r}: {first.reason})"
    if not listing.files:
        return UserError(
            f"The video folder {str(folder)!r} is empty{passed}; put video files (mp4, mkv ...) "
            "into it."
        )
    return UserError(
        f"None of the {len(listing.files)} files in {str(folder)!r} is a video{passed}; put files "
        f"ending in one of {_VIDEO_KINDS} into it."
    )


def _left_out(listing: Listing, unread: Sequence[FoundFile], remarks: Sequence[str]) -> LeftOut:
    unknown = [
        f"{file.name!r} is not read: captions come from {FORMS}"
        for file in unread
        if file.path.name.lower().partition(".")[0] in ("captions", "metadata")
    ]
    return LeftOut(
        files=counted_by_suffix((file.name for file in unread), hidden=listing.hidden),
        passed_over=tuple(listing.passed_over),
        remarks=(*remarks, *unknown),
    )
