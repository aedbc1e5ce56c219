"""Which files lie beside a video and are named after it: NAME.txt, NAME.mp4.txt, NAME.TXT.

Names are the same up to Unicode normalisation: what a Mac wrote is found by what a PC named.
"""

import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from preprocessing.sources.listing import FoundFile

_Key = tuple[Path, str, str]  # folder, normalised name without its suffix, suffix in small letters


class Companions(NamedTuple):
    """The files of one suffix that belong to a video."""

    files: list[FoundFile]  # the one that counts first
    doubtful: list[FoundFile]  # may be another video's: two videos are named alike but for accents


class Beside:
    """The files beside videos, by video and suffix.

    Args:
        others: what lies in the folder and is no video, folders too.
        suffixes: in small letters, with the dot.
    """

    def __init__(
        self, videos: Iterable[FoundFile], others: Iterable[FoundFile], suffixes: Collection[str]
    ) -> None:
        self._found: dict[_Key, list[FoundFile]] = {}
        for file in others:
            suffix = file.path.suffix.lower()
            if suffix in suffixes:
                key = file.path.parent, normalised(file.path.stem), suffix
                self._found.setdefault(key, []).append(file)
        self._spellings: dict[tuple[Path, str], set[str]] = {}
        for video in videos:
            for name in (video.path.stem, video.path.name):
                same = self._spellings.setdefault((video.path.parent, normalised(name)), set())
                same.add(name)

    def of(self, video: FoundFile, suffix: str) -> Companions:
        """Those named NAME + suffix, then those named NAME.mp4 + suffix."""
        files: list[FoundFile] = []
        doubtful: list[FoundFile] = []
        parent = video.path.parent
        for name in (video.path.stem, video.path.name):
            found = self._found.get((parent, normalised(name), suffix), [])
            exact = [file for file in found if file.path.stem == name]
            is_clear = len(self._spellings[parent, normalised(name)]) == 1
            if exact or is_clear:
                files += sorted(exact or found, key=_precedence)
            else:
                doubtful += found
        return Companions(files, doubtful)


def _precedence(file: FoundFile) -> tuple[bool, str]:
    """A suffix in small letters before others."""
    suffix = file.path.suffix
    return suffix != suffix.lower(), file.name


def normalised(name: str) -> str:
    """One spelling of names that look the same (NFC)."""
    return unicodedata.normalize("NFC", name)
