"""Why a file gives no video: a category and a detail, from the error and a look at the bytes."""

import errno
from pathlib import Path

from preprocessing.sources.listing import refusal_of
from videoldm_core.errors import UserError

_LOOKED_AT_BYTES = 4 * 1024 * 1024  # at either end of the file: where mp4 keeps its index
_MOST_BOXES = 100_000  # two for each fragment of a day's recording; eight bytes can be one


class DecodeError(UserError):
    """A video that cannot be used, with its category and the detail."""

    def __init__(self, category: str, detail: str) -> None:
        super().__init__(category, detail)
        self.category, self.detail = category, detail

    def __str__(self) -> str:
        return f"{self.category}: {self.detail}"


def reason_for_no_video(path: Path, error: Exception) -> DecodeError:
    """The reason for a file that does not even open."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES):
        return DecodeError(*refusal_of(error))
    if path.is_file() and path.stat().st_size == 0:
        return DecodeError("empty file", "it has 0 bytes")
    said = getattr(error, "strerror", None) or str(error)
    boxes, _ = _mp4_boxes(path)
    if "ftyp" in boxes and "moov" not in boxes:
        return DecodeError(
            "truncated", "an mp4 file without its index (moov): its writing was cut off"
        )
    if _is_text(path):
        return DecodeError("not a video", "it is a text file")
    return DecodeError("not a video", f"it does not open ({said})")


def reason_for_no_frames(path: Path, header_frames: int | None, damage: str) -> DecodeError:
    """The reason for a file that opens but gives no frame."""
    if _is_encrypted(path):
        return DecodeError("encrypted", "its frames are protected (CENC) and cannot be decoded")
    claim = f"the header promises {header_frames} frames" if header_frames else "it has a header"
    boxes, is_cut = _mp4_boxes(path)
    if "ftyp" in boxes and is_cut:
        return DecodeError("truncated", f"{claim}, the file ends before the first frame")
    if damage:
        return DecodeError("undecodable", f"{claim}, no frame can be decoded ({damage})")
    return DecodeError("truncated", f"{claim}, no frame is there")


def _mp4_boxes(path: Path) -> tuple[set[str], bool]:
    """(names of the top-level boxes, whether the last is cut off); nonsense for what is no mp4."""
    names: set[str] = set()
    if not path.is_file():
        return names, False
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        for _ in range(_MOST_BOXES):
            if at + 8 > size:
                break
            file.seek(at)
            header = file.read(16)
            names.add(header[4:8].decode("latin-1"))
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # the real length follows, in 64 bits
                length = int.from_bytes(header[8:16], "big")
            if length < 8:
                break
            at += length
    return names, at > size


def _is_encrypted(path: Path) -> bool:
    """Whether an mp4 index describes a protected video track (sample entry `encv`)."""
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT_BYTES)
        file.seek(max(0, path.stat().st_size - _LOOKED_AT_BYTES))
        end = file.read(_LOOKED_AT_BYTES)
    return start[4:8] == b"ftyp" and b"encv" in start + end


def _is_text(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return b"\0" not in start and all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)
