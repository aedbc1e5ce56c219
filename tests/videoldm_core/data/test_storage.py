"""Folder and S3 behave alike; S3 reads resume where they broke; a store on S3 is a store."""

import hashlib
import io
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import IncompleteReadError, ReadTimeoutError
from moto.server import ThreadedMotoServer

from videoldm_core.data.index import contents_digest
from videoldm_core.data.storage import LocalStorage, S3Storage, Storage, open_storage
from videoldm_core.data.store import open_store
from videoldm_core.errors import ShardError, UserError


@pytest.fixture(scope="module")
def s3_server():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, tmp_path, monkeypatch) -> S3Storage:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="videos")
    prefix = tmp_path.name
    storage = open_storage(f"s3://videos/{prefix}/", cache=tmp_path / "cache")
    assert isinstance(storage, S3Storage)
    return storage


@pytest.fixture(params=["folder", "s3"])
def storage(request, tmp_path) -> Storage:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return open_storage(tmp_path / "folder")


def test_names_are_written_read_listed_and_deleted(storage: Storage, tmp_path: Path):
    storage.write("a/one", b"0123456789")
    storage.write("two", b"")
    (tmp_path / "file").write_bytes(b"from a file")
    storage.put_file("a/three", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert storage.list() == {"a/one": 10, "a/three": 11, "two": 0}
    assert storage.list("a/") == {"a/one": 10, "a/three": 11}
    assert storage.read_bytes("a/one") == b"0123456789"
    assert storage.read_bytes("a/one", 3, 4) == b"3456"
    assert storage.read_bytes("a/one", 7) == b"789"
    assert storage.read_bytes("a/one", 3, 0) == b""
    assert storage.read_bytes("two") == b""
    assert storage.sha256("a/three") == hashlib.sha256(b"from a file").hexdigest()
    storage.write("two", b"again")
    assert storage.read_bytes("two") == b"again"
    assert (storage.exists("three"), storage.exists("a/one")) == (False, True)


def test_a_name_that_is_not_there_is_a_missing_file(storage: Storage):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("nothing")


def test_unfinished_files_are_not_listed(tmp_path):
    (tmp_path / ".index.json.123.part").write_bytes(b"half")
    assert LocalStorage(tmp_path).list() == {}


def test_what_is_stored_or_fetched_survives_a_loss_of_power(s3, tmp_path, disk):
    (tmp_path / "shard").write_bytes(b"shard")
    LocalStorage(tmp_path / "store").put_file("shard-000000.tar", tmp_path / "shard")
    LocalStorage(tmp_path / "store").write("index.json", b"{}")
    s3.write("a.tar", b"content")
    kept = s3.local_copy("a.tar", hashlib.sha256(b"content").hexdigest())
    names = [path for kind, path in disk.events if kind == "name"]
    store = tmp_path / "store"
    assert names == [store / "shard-000000.tar", store / "index.json", kept]
    assert disk.unsafe() == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "shard").write_bytes(b"")
    with pytest.raises(UserError, match=r"Cannot write .*file/a.* free space there or choose"):
        LocalStorage(tmp_path / "file").put_file("a", tmp_path / "shard")


def test_an_s3_location_needs_a_bucket():
    with pytest.raises(UserError, match=r"'s3://' names no bucket; write s3://BUCKET/PREFIX"):
        open_storage("s3://")


@pytest.mark.parametrize(
    "place", ["AKIA:s3cret@videos/x", "videos/x?key=s3cret", "videos/x#s3cret"]
)
def test_a_secret_in_a_location_is_refused_and_not_repeated(place):
    with pytest.raises(UserError, match="The location of the store is not .* AWS_ACCESS") as error:
        open_storage(f"s3://{place}")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "endpoint", ["http://bob:s3cret@one", "http://one/?k=s3cret", "s3cret@one"]
)
def test_a_secret_in_the_endpoint_is_refused_and_not_repeated(s3, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match="The endpoint of S3 is not .*AWS_SECRET") as error:
        open_storage("s3://videos/x")
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


def test_a_secret_that_s3_repeats_is_not_shown(s3):
    said = s3._sentence("a", OSError("Could not connect to http://bob:s3cret@one/?key=s3cret"))
    assert "s3cret" not in str(said)


def test_a_bucket_that_is_not_there_is_named(s3):
    other = open_storage("s3://no-such-bucket/x")
    with pytest.raises(UserError, match=r"'s3://no-such-bucket/x/a': .*check bucket, AWS cred"):
        other.write("a", b"1")


class _Breaking:
    """A boto3 client whose reads break after a few bytes, as often as told."""

    def __init__(self, client, breaks: int, error: Exception):
        self._client, self.breaks, self._error, self.ranges = client, breaks, error, []

    def __getattr__(self, name):
        return getattr(self._client, name)

    def get_object(self, **request):
        self.ranges.append(request.get("Range"))
        reply = self._client.get_object(**request)
        if self.breaks:
            self.breaks -= 1
            reply["Body"] = _HalfBody(reply["Body"].read(4), self._error)
        return reply


class _HalfBody:
    def __init__(self, content: bytes, error: Exception):
        self._content, self._error = io.BytesIO(content), error

    def iter_chunks(self, size: int):
        yield self._content.read(size)
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        IncompleteReadError(actual_bytes=4, expected_bytes=10),
        ReadTimeoutError(endpoint_url="http://x"),
    ],
)
def test_an_interrupted_read_goes_on_at_the_next_byte(s3, tmp_path, error):
    s3.write("ten", b"0123456789")
    client = _Breaking(boto3.client("s3"), breaks=2, error=error)
    broken = S3Storage(s3.bucket, s3.prefix, cache=tmp_path, client=client, backoff_s=0)
    assert broken.read_bytes("ten") == b"0123456789"
    assert client.ranges == [None, "bytes=4-9", "bytes=8-9"]
    client.ranges, client.breaks = [], 1
    assert broken.read_bytes("ten", 2, 7) == b"2345678"
    assert client.ranges == ["bytes=2-8", "bytes=6-8"]


def test_an_object_replaced_during_a_read_is_not_spliced(s3, tmp_path):
    s3.write("ten", b"0123456789")
    client = _Breaking(boto3.client("s3"), breaks=1, error=ReadTimeoutError(endpoint_url="x"))
    broken = S3Storage(s3.bucket, s3.prefix, cache=tmp_path, client=client, backoff_s=0)
    pieces = broken._stream("ten", 0, None)
    assert next(pieces) == b"0123"
    s3.write("ten", b"abcdefghij")
    with pytest.raises(UserError, match=r"did not serve .*ten"):
        list(pieces)


def test_a_server_that_is_gone_is_named_after_a_few_tries(s3, tmp_path):
    error = ReadTimeoutError(endpoint_url="http://x")

    class Gone:
        calls = 0

        def get_object(self, **_):
            self.calls += 1
            raise error

    client = Gone()
    gone = S3Storage("videos", "p", cache=tmp_path, client=client, backoff_s=0)
    with pytest.raises(UserError, match=r"S3 did not serve 's3://videos/p/x': .*timeout.* check"):
        gone.read_bytes("x")
    assert client.calls == 6


def _publish(folder: Path, storage: S3Storage) -> None:
    for path in sorted(folder.iterdir()):
        storage.write(path.name, path.read_bytes())


def test_a_store_on_s3_reads_like_a_folder_and_keeps_each_shard_once(s3, latent_store, tmp_path):
    _publish(latent_store, s3)
    local = open_store(latent_store)
    store = open_store(str(s3), cache=tmp_path / "cache")
    for ours, theirs in zip(store.samples, local.samples, strict=True):
        assert ours == theirs
        assert store.read_latents(ours, [3, 7]).equal(local.read_latents(theirs, [3, 7]))
    store.verify()
    kept = sorted(p.name for p in (tmp_path / "cache").glob("*.tar"))
    assert kept == sorted(f"{shard.sha256}.tar" for shard in store.index.shards)
    s3.write("shard-000000.tar", b"no longer what it was")
    again = open_storage(str(s3), cache=tmp_path / "cache")
    assert again.local_copy("shard-000000.tar", store.index.shards[0].sha256).exists()


def test_a_shard_modified_on_s3_is_refused_and_not_kept(s3, latent_store, tmp_path):
    _publish(latent_store, s3)
    raw = bytearray((latent_store / "shard-000000.tar").read_bytes())
    raw[5000] ^= 1
    s3.write("shard-000000.tar", bytes(raw))
    store = open_store(str(s3), cache=tmp_path / "cache")
    with pytest.raises(ShardError, match=r"shard-000000.tar has sha256 .* was modified; delete"):
        store.read_latents(store.samples[0], [0])
    assert list((tmp_path / "cache").glob("*.tar")) == []


def test_readers_of_a_node_fetch_a_shard_once_between_them(s3, latent_store, tmp_path):
    _publish(latent_store, s3)
    sha256 = open_store(latent_store).index.shards[0].sha256
    client = _Breaking(boto3.client("s3"), breaks=0, error=Exception())

    def fetch(_: int) -> Path:
        reader = S3Storage(s3.bucket, s3.prefix, cache=tmp_path / "cache", client=client)
        return reader.local_copy("shard-000000.tar", sha256)

    with ThreadPoolExecutor(4) as pool:
        (kept,) = set(pool.map(fetch, range(8)))
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == sha256
    assert len(client.ranges) == 1


def test_a_large_file_goes_up_in_parts(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("videoldm_core.data.storage.MULTIPART_BYTES", 5 << 20)
    content = bytes(range(256)) * (12 << 12)
    (tmp_path / "big").write_bytes(content)
    s3.put_file("big", tmp_path / "big")
    head = boto3.client("s3").head_object(Bucket="videos", Key=f"{s3.prefix}/big")
    assert head["ETag"].strip('"').endswith("-3")
    assert s3.read_bytes("big", len(content) - 10) == content[-10:]
    assert s3.sha256("big") == hashlib.sha256(content).hexdigest()


def test_what_a_store_holds_is_told_by_its_index_wherever_it_lives(storage: Storage):
    with pytest.raises(ShardError, match=r"has no index\.json: it is no store"):
        contents_digest(str(storage))
    storage.write("index.json", b"some clips")
    assert contents_digest(str(storage)) == hashlib.sha256(b"some clips").hexdigest()
