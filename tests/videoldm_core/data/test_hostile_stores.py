"""A store that somebody else wrote, or damaged, is refused in a sentence and reaches no file of
this machine but its own.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videoldm_core.data.npy import parse_npy
from videoldm_core.data.shards import INDEX_NAME, Index, Manifest, from_members, to_members
from videoldm_core.data.storage import LocalStorage, S3Storage
from videoldm_core.data.store import open_store
from videoldm_core.errors import ShardError

from .conftest import latent_clip, write_store

MANIFEST = "shard-000000.json"


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Lets `edit` change the values of a JSON file."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def put(*path: str | int, value: object) -> Callable[[Any], None]:
    def edit(values: Any) -> None:
        for part in path[:-1]:
            values = values[part]
        values[path[-1]] = value

    return edit


def entry(*path: str | int, value: object) -> Callable[[Any], None]:
    return put("samples", 0, *path, value=value)


def shard(*path: str | int, value: object) -> Callable[[Any], None]:
    return put("shards", 0, *path, value=value)


OUTSIDE = ["../../project/uv", "/etc/passwd", "..", "a/../b", "", "E" * 64, "shard-000000\n"]


@pytest.mark.parametrize("field", ["sha256", "name"])
@pytest.mark.parametrize("value", OUTSIDE)
def test_an_index_cannot_name_a_file_outside_its_store(latent_store: Path, field, value):
    change(latent_store / INDEX_NAME, shard(field, value=value))
    with pytest.raises(ShardError, match=rf"shards\.0\.{field} = .*should match pattern"):
        open_store(latent_store)


def test_a_store_in_a_bucket_empties_no_file_of_this_machine(latent_store: Path, tmp_path):
    lock = tmp_path / "project" / "uv.lock"
    lock.parent.mkdir()
    lock.write_text("pinned")
    change(latent_store / INDEX_NAME, shard("sha256", value="../project/uv"))
    cache = tmp_path / "cache"
    cache.mkdir()

    class Bucket(S3Storage):  # what boto3 would fetch lies in a folder
        def __init__(self) -> None:
            super().__init__("b", "p", cache=cache, client=object())
            self.folder = LocalStorage(latent_store)

        def read_bytes(self, name: str, start: int = 0, length: int | None = None) -> bytes:
            return self.folder.read_bytes(name, start, length)

        def list(self, prefix: str = "") -> dict[str, int]:
            return self.folder.list(prefix)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("videoldm_core.data.store.open_storage", lambda *_, **__: Bucket())
        with pytest.raises(ShardError, match="sha256"):
            open_store("s3://b/p")
    assert lock.read_text() == "pinned"
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (put("shard", value="../x"), "shard = '../x'"),
        (put("shard", value="shard-000007"), "is not the one that index.json names"),
        (put("identity", value="x"), "identity = 'x'"),
        (put("size_bytes", value=-1), "size_bytes = -1"),
        (put("size_bytes", value=10**30), "has 20480 bytes, its manifest says 1000000"),
        (entry("key", value="../../x"), r"samples\.0\.key = '../../x'"),
        (entry("source", value="../../x"), r"samples\.0\.source = .*inside its folder"),
        (entry("source", value="/x"), r"samples\.0\.source = .*inside its folder"),
        (entry("frames", value=0), r"samples\.0\.frames = 0"),
        (entry("frames", value=-3), r"samples\.0\.frames = -3"),
        (entry("frames", value=10**12), r"samples\.0\.frames = 1000000000000"),
        (entry("fps", value=float("nan")), r"samples\.0\.fps = nan"),
        (entry("fps", value=0), r"samples\.0\.fps = 0"),
        (entry("start_s", value=float("inf")), r"samples\.0\.start_s = inf"),
        (entry("boxes", value=[[99, []]]), r"boxes of frame 99, but it has 20 frames"),
        (entry("members", "../latents.npy", value=[0, 1]), r"members\.\.\./latents\.npy"),
        (entry("members", "latents.npy", value=[-4, 9]), r"latents\.npy\.0 = -4"),
        (entry("members", "latents.npy", value=[512, 10**15]), "ends at byte 1000000000000512"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(latent_store: Path, edit, sentence):
    change(latent_store / MANIFEST, edit)
    with pytest.raises(ShardError, match=sentence) as caught:
        open_store(latent_store)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_store_of_one_kind_cannot_say_that_it_is_of_the_other(latent_store: Path):
    change(latent_store / INDEX_NAME, put("kind", value="pixels"))
    with pytest.raises(ShardError, match="it is of pixels, its identity of latents"):
        open_store(latent_store)


@pytest.mark.parametrize("name", [INDEX_NAME, MANIFEST])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 5_000, '{"format": 1' + "0" * 9999])
def test_deep_or_endless_json_is_refused(latent_store: Path, name, text):
    (latent_store / name).write_text(text)
    with pytest.raises(ShardError, match=f"{name}' is not readable; delete it"):
        open_store(latent_store)


def test_an_index_that_would_fill_the_memory_is_not_read(latent_store: Path, monkeypatch):
    monkeypatch.setattr("videoldm_core.data.store.MOST_JSON_BYTES", 100)
    with pytest.raises(ShardError, match=r"json' has \d+ bytes, expected at most 100"):
        open_store(latent_store)


def npy(header: str, data: bytes = b"") -> bytes:
    padded = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


def described(shape: str, *, kind: str = "<f2", fortran: bool = False) -> str:
    return f"{{'descr': '{kind}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


ARRAYS = {
    "a thousand gigabytes": npy(described("(1000000, 1000000)")),
    "a negative side": npy(described("(-2, -4)"), bytes(16)),
    "a side that is no number": npy(described("('4',)"), bytes(8)),
    "sides that are true": npy(described("(True, 4)"), bytes(10)),
    "another type": npy(described("(4,)", kind="<f4"), bytes(16)),
    "objects": npy(described("(4,)", kind="|O"), b"cos\nsystem\n"),
    "fields": npy("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (4,), }", bytes(8)),
    "columns first": npy(described("(2, 2)", fortran=True), bytes(8)),
    "too few values": npy(described("(4,)"), bytes(6)),
    "too many values": npy(described("(4,)"), bytes(10)),
    "a call": npy("__import__('os').system('true')"),
    "brackets": npy("(" * 100),
    "a damaged line": npy("{'descr': '<f2"),
    "version 3": npy(described("(4,)"), bytes(8)).replace(b"\x01\x00", b"\x03\x00", 1),
    "a header without end": b"\x93NUMPY\x01\x00\xff\xff{",
    "nothing": b"",
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_what_its_bytes_are_or_is_refused(content):
    with pytest.raises(ShardError, match="A shard's array") as caught:
        parse_npy(content)
    assert "\n" not in str(caught.value)


def test_an_array_is_read_as_numpy_wrote_it():
    clip = latent_clip(1, 5)
    assert np.array_equal(parse_npy(to_members(clip)["latents.npy"]), clip.latents)
    with pytest.raises(ShardError, match="expected a float16 .npy"):
        from_members(to_members(clip) | {"text.npy": ARRAYS["objects"]})


def tampered(folder: Path, content: bytes) -> None:
    """Puts a header over that of the first clip's latents, and makes the digests fit."""
    tar, path = folder / "shard-000000.tar", folder / MANIFEST
    manifest = Manifest.model_validate_json(path.read_text())
    offset, _ = manifest.samples[0].members["latents.npy"]
    raw = bytearray(tar.read_bytes())
    raw[offset : offset + len(content)] = content
    tar.write_bytes(raw)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ("(20, 4, 1000000, 5000)", "has 2528 bytes, expected 800000000128"),
        ("(10, 8, 3, 5)", r"shape \(10, 8, 3, 5\), expected \(20, c, h, w\)"),
        ("(0, 4, 3, 5)", "has 2528 bytes, expected 128"),
        ("(20, 60)", r"shape \(20, 60\), expected \(20, c, h, w\)"),
    ],
)
def test_latents_of_another_shape_than_their_clip_are_refused(latent_store, shape, sentence):
    tampered(latent_store, npy(described(shape)))
    store = open_store(latent_store)
    with pytest.raises(ShardError, match=sentence):
        store.read_latents(store.samples[0], [0])


def test_clips_of_one_store_have_latents_of_one_shape(tmp_path):
    wide = latent_clip(1, 4)
    object.__setattr__(wide, "latents", wide.latents.repeat(2, axis=3))
    store = open_store(write_store(tmp_path / "s", "latents", [[latent_clip(0, 4), wide]]))
    store.read_latents(store.samples[0], [0])
    with pytest.raises(ShardError, match=r"has the shape \(4, 4, 3, 10\), expected \(4, c, h, w\)"):
        store.read_latents(store.samples[1], [0])


def test_an_honest_index_still_reads(latent_store: Path):
    index = Index.model_validate_json((latent_store / INDEX_NAME).read_text())
    assert [shard.name for shard in index.shards] == ["shard-000000", "shard-000001"]
    assert len(open_store(latent_store).samples) == 5
