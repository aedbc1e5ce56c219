"""Files that are complete or absent: written under a temporary name, then renamed."""

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import IO

from videoldm_core.errors import UserError

PRIVATE = 0o600  # of files that hold settings: for their owner's eyes, whatever the umask
# How file systems say that they cannot sync a folder (CIFS, FUSE), or that this user may not open
# it to do so. What was renamed there is as safe as they can make it.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EACCES)


def write_bytes_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Writes `content` so that `path` either holds all of it or is what it was before.

    A loss of power afterwards changes nothing of that.

    Args:
        mode: of the file; the umask takes from it.

    Raises:
        UserError: the folder cannot be written to (read-only, full).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make_folder(path.parent)
        part.unlink(missing_ok=True)  # of a killed process that had our number
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        publish_file(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the folder is a file, there is no part either
            part.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def write_text_atomically(path: Path, text: str, *, mode: int = 0o666) -> None:
    """`write_bytes_atomically` for UTF-8 text."""
    write_bytes_atomically(path, text.encode(), mode=mode)


def append_private(path: Path) -> IO[bytes]:
    """Opens a file to append to; made for its owner's eyes, where it is made here."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE), "ab")


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Makes `folder` and the missing ones above it; a loss of power does not undo that.

    Args:
        mode: of `folder` itself, where it is made here; the umask takes from it.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(mode, parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def publish_file(part: Path, final: Path) -> None:
    """Gives the complete file `part` its final name, in place of what had it.

    Its content is on the disk before the rename, and its name when this returns.
    """
    sync(part)
    part.replace(final)
    sync(final.parent)


def disk_error(path: Path, error: OSError) -> UserError:
    """The user's sentence for an operating-system error on `path`."""
    return UserError(
        f"Cannot write {str(path)!r}: {error.strerror or error}; "
        "free space there or choose another output folder, then run the same command again."
    )


def unreadable(path: Path, error: OSError) -> UserError:
    """The user's sentence for an operating-system error on reading `path`."""
    return UserError(
        f"Cannot read {str(path)!r}: {error.strerror or error}; "
        "let this user read it, then run the same command again."
    )


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, in name order; links to folders are not followed.

    Raises:
        UserError: `folder` or a folder below it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from None

    found = [
        Path(place) / name for place, _, names in os.walk(folder, onerror=fail) for name in names
    ]
    return sorted(path for path in found if path.is_file())


def publish_folder(part: Path, final: Path) -> None:
    """Makes the complete folder `part` appear as `final` in one rename; an older one goes first.

    Its files are on the disk before: a loss of power leaves no half of one under the final name.
    """
    for path in (*part.rglob("*"), part):
        sync(path)
    if final.exists():
        shutil.rmtree(final)
    part.replace(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: it could not be written. A file system that cannot sync folders is no error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):
            raise


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_for_json(path: Path) -> str:
    """`default` of json.dumps for what is named by a path: the content tells it, not the place.

    Raises:
        UserError: there is no such file.
    """
    try:
        return sha256_of_folder(path) if path.is_dir() else sha256_of_file(path)
    except OSError as error:
        raise UserError(
            f"Cannot read {str(path)!r} ({error.strerror}); check the path in the run file."
        ) from None


def sha256_of_folder(folder: Path) -> str:
    """Hex SHA-256 over the names and bytes of every file below `folder`, in name order."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return total.hexdigest()
