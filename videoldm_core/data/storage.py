"""Where stores live: a folder, or a prefix of an S3 bucket. The only file that knows boto3.

A name is written completely or not at all. S3 is read by ranged requests that resume at the byte
where a connection broke; shards are kept once per node in a cache folder, by their digest.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from videoldm_core.errors import ShardError, UserError
from videoldm_core.system.addresses import checked_address
from videoldm_core.system.files import (
    disk_error,
    make_folder,
    publish_file,
    sha256_of_file,
    write_bytes_atomically,
)
from videoldm_core.system.locks import lock

ATTEMPTS = 6  # in a row without a single new byte, before a read gives up
MULTIPART_BYTES = 64 << 20
PIECE_BYTES = 1 << 20
CREDENTIALS = "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class Storage(Protocol):
    """Named, immutable-once-written byte strings."""

    def read_bytes(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start` (None: to the end); FileNotFoundError without such a name."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Makes `name` hold `content`."""
        ...

    def put_file(self, name: str, path: Path) -> None:
        """Makes `name` hold the bytes of the local file `path`, which is gone afterwards."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a name."""
        ...

    def list(self, prefix: str = "") -> dict[str, int]:
        """Sizes in bytes of all names that start with `prefix`."""
        ...

    def local_copy(self, name: str, sha256: str) -> Path:
        """A local file with the bytes of `name`, whose digest is checked if it is fetched."""
        ...

    def sha256(self, name: str) -> str:
        """Digest of the bytes that are stored now."""
        ...


def open_storage(location: str | Path, *, cache: Path | None = None) -> Storage:
    """Opens a folder, or "s3://bucket/prefix".

    Args:
        cache: node-local folder for shards read from S3; None is ~/.cache/videoldm.

    Raises:
        UserError: an s3 location without a bucket, or with more than bucket and prefix.
    """
    text = str(location)
    if not text.startswith("s3:"):
        return LocalStorage(Path(location))
    # Path("s3://bucket") collapses the slashes; both spellings mean the same.
    place = text.removeprefix("s3:").lstrip("/")
    bucket, _, prefix = place.partition("/")
    if not bucket:
        raise UserError(f"{text!r} names no bucket; write s3://BUCKET/PREFIX.")
    checked_address(f"s3://{place}", what="The location of the store", credentials=CREDENTIALS)
    return S3Storage(bucket, prefix, cache=cache or Path.home() / ".cache" / "videoldm")


class LocalStorage:
    """A folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read_bytes(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def write(self, name: str, content: bytes) -> None:
        write_bytes_atomically(self.folder / name, content)

    def put_file(self, name: str, path: Path) -> None:
        final = self.folder / name
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            make_folder(final.parent)
            shutil.move(path, part)
            publish_file(part, final)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise disk_error(final, error) from error

    def exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def list(self, prefix: str = "") -> dict[str, int]:
        paths = (p for p in self.folder.rglob("*") if p.is_file() and not p.name.endswith(".part"))
        sizes = {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in paths}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix)}

    def local_copy(self, name: str, sha256: str) -> Path:
        return self.folder / name

    def sha256(self, name: str) -> str:
        return sha256_of_file(self.folder / name)


class S3Storage:
    """The objects below a prefix of a bucket (S3, or what speaks it: set AWS_ENDPOINT_URL).

    Args:
        cache: node-local folder for `local_copy`.
        client: a boto3 S3 client; None makes one from the environment.
        backoff_s: pause after the first failed read; doubles with each further one.
    """

    def __init__(
        self, bucket: str, prefix: str, *, cache: Path, client: Any = None, backoff_s: float = 0.5
    ):
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self._cache, self._backoff_s = cache, backoff_s
        self._client = client or _s3_client()

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def read_bytes(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return b"".join(self._stream(name, start, length))

    def write(self, name: str, content: bytes) -> None:
        with self._explained(name):
            self._client.put_object(
                Bucket=self.bucket, Key=self._key(name), Body=content, ChecksumAlgorithm="SHA256"
            )

    def put_file(self, name: str, path: Path) -> None:
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig

        options = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES
        )
        with self._explained(name):
            try:
                self._client.upload_file(
                    str(path), self.bucket, self._key(name),
                    ExtraArgs={"ChecksumAlgorithm": "SHA256"}, Config=options,
                )  # fmt: skip
            except S3UploadFailedError as error:
                raise self._sentence(name, error) from error
        path.unlink()

    def exists(self, name: str) -> bool:
        try:
            with self._explained(name):
                self._client.head_object(Bucket=self.bucket, Key=self._key(name))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> dict[str, int]:
        sizes, root = {}, self._key("")
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=root + prefix):
                sizes |= {
                    entry["Key"][len(root) :]: entry["Size"] for entry in page.get("Contents", ())
                }
        return sizes

    def local_copy(self, name: str, sha256: str) -> Path:
        kept = self._cache / f"{sha256}{Path(name).suffix}"
        if kept.exists():
            return kept
        make_folder(self._cache, mode=0o700)
        with lock(self._cache / f".{sha256}.lock", waits=True):
            if not kept.exists():
                self._fetch(name, kept, sha256)
        return kept

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        for piece in self._stream(name, 0, None):
            digest.update(piece)
        return digest.hexdigest()

    def _fetch(self, name: str, kept: Path, sha256: str) -> None:
        part = kept.with_name(f".{kept.name}.part")
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for piece in self._stream(name, 0, None):
                    file.write(piece)
                    digest.update(piece)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise (
                error if isinstance(error, FileNotFoundError) else disk_error(kept, error)
            ) from error
        if digest.hexdigest() != sha256:
            part.unlink()
            raise ShardError(
                f"{self}/{name} has sha256 {digest.hexdigest()[:12]}, its manifest says "
                f"{sha256[:12]}: it was modified; delete it there and run the encode step again."
            )
        try:
            publish_file(part, kept)
        except OSError as error:
            raise disk_error(kept, error) from error

    def _stream(self, name: str, start: int, length: int | None) -> Iterator[bytes]:
        """The bytes in pieces; after a broken connection, from the next byte of the same object."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        at, end, etag, failures = start, None if length is None else start + length, None, 0
        while end is None or at < end:
            try:
                reply = self._get(name, at, end, etag)
                etag, end = reply["ETag"], at + reply["ContentLength"]
                for piece in reply["Body"].iter_chunks(PIECE_BYTES):
                    at, failures = at + len(piece), 0
                    yield piece
            except (HTTPClientError, IncompleteReadError) as error:
                failures += 1
                if failures == ATTEMPTS:
                    raise self._sentence(name, error) from error
                time.sleep(self._backoff_s * 2 ** (failures - 1))

    def _get(self, name: str, at: int, end: int | None, etag: str | None) -> Any:
        # Without a range where the whole object is meant: an empty object has no satisfiable range.
        whole = at == 0 and end is None
        span = {} if whole else {"Range": f"bytes={at}-{'' if end is None else end - 1}"}
        same = {"IfMatch": etag} if etag else {}
        with self._explained(name, passing_transport_errors=True):
            return self._client.get_object(Bucket=self.bucket, Key=self._key(name), **span, **same)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _explained(self, name: str, *, passing_transport_errors: bool = False) -> Iterator[None]:
        """Turns what S3 answers into FileNotFoundError or a user's sentence."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            yield
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"{self}/{name}") from None
            raise self._sentence(name, error) from error
        except BotoCoreError as error:
            if passing_transport_errors and isinstance(error, HTTPClientError):
                raise
            raise self._sentence(name, error) from error

    def _sentence(self, name: str, error: Exception) -> UserError:
        return UserError(
            f"S3 did not serve {f'{self}/{name}'!r}: {error}; check bucket, AWS credentials, "
            "AWS_ENDPOINT_URL and the network, then run the same command again."
        )


def _s3_client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UserError("Reading s3:// needs boto3: run pip install boto3.") from None
    retries: Any = {"mode": "standard", "max_attempts": 5}
    limits = Config(retries=retries, connect_timeout=10, read_timeout=60)
    try:
        client = boto3.client("s3", config=limits)
        endpoint = client.meta.endpoint_url  # of the environment, or of ~/.aws/config
    except ValueError:  # no address at all, and boto3 would repeat it
        client, endpoint = None, ""
    checked_address(endpoint, what="The endpoint of S3", credentials=CREDENTIALS)
    return client
