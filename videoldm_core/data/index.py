"""A store's table of contents as it was published; what it says changes whenever the clips do."""

import hashlib
from pathlib import Path

from videoldm_core.data.shards import INDEX_NAME
from videoldm_core.data.storage import Storage, open_storage
from videoldm_core.errors import ShardError


def read_index(storage: Storage) -> bytes:
    """The bytes of a store's index.

    Raises:
        ShardError: the store was never published.
    """
    try:
        return storage.read_bytes(INDEX_NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(
            f"{str(storage)!r} has no {INDEX_NAME}: it is no store, or its encode step has not "
            "finished; run the encode step (again)."
        ) from None


def contents_digest(location: str | Path) -> str:
    """Hex SHA-256 of the index of a store, a folder or "s3://bucket/prefix": which clips it has.

    Raises:
        ShardError: the store was never published.
    """
    return hashlib.sha256(read_index(open_storage(location))).hexdigest()
