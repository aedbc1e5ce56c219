r"""File names as text that every file, page and terminal can hold, and back again without loss.

Linux names are bytes: any but "/" and NUL. A written name is the name as UTF-8 in which bytes that
are not UTF-8, control characters, line breaks, marks that turn the direction of text, and the
backslash itself stand as \xNN, one per byte: caf\xe9.mp4. Names without those are themselves.
"""

import os
import re
from pathlib import Path

# C0 and C1 controls, line and paragraph separators, marks of direction, and what is no UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_UNSAFE_OR_BACKSLASH = re.compile(_UNSAFE.pattern[:-1] + r"\\]")
_WRITTEN_BYTE = re.compile(rb"\\x([0-9a-f]{2})")


def written_name(path: str | Path) -> str:
    """The name or path as text; `path_below` is the way back."""
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    return _UNSAFE_OR_BACKSLASH.sub(_as_bytes, text)


def path_below(folder: Path, name: str) -> Path:
    """The path below `folder` that was written as `name`."""
    raw = _WRITTEN_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), name.encode())
    return folder / os.fsdecode(raw)


def printable(text: str) -> str:
    """Somebody else's words on one line, in characters that every file and page can hold."""
    return _UNSAFE.sub(_as_bytes, " ".join(text.split()))


def _as_bytes(match: re.Match[str]) -> str:
    character = match[0]
    is_byte = "\udc80" <= character <= "\udcff"  # one that was no UTF-8 (PEP 383)
    raw = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)
