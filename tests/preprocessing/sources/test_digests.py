"""An unchanged file is read once; whatever is doubtful is read again."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from preprocessing.sources import digests
from preprocessing.sources.digests import Digests
from preprocessing.sources.folder import find_sources
from videoldm_core.errors import UserError

OLD_NS = 1_700_000_000_000_000_000


def put(path: Path, content: bytes, *, changed_ns: int = OLD_NS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(changed_ns, changed_ns))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in order."""
    names: list[str] = []
    real = digests.sha256_of_file
    monkeypatch.setattr(
        digests, "sha256_of_file", lambda path: names.append(path.name) or real(path)
    )
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        put(tmp_path / "videos" / name, name.encode())
    return tmp_path / "videos"


def found(folder: Path) -> dict[str, str]:
    kept = folder.parent / "out" / "digests.json"
    return {source.name: source.digest for source in find_sources(folder, digests=kept)}


def test_a_second_run_reads_no_unchanged_file_and_says_the_same(folder, read):
    first = found(folder)
    assert first == {name: sha256(name.encode()) for name in ("a.mp4", "b.mp4", "sub/c.mp4")}
    assert read == ["a.mp4", "b.mp4", "c.mp4"]
    assert found(folder) == first
    assert len(read) == 3


@pytest.mark.parametrize(
    ("content", "changed_ns"), [(b"A.mp4", OLD_NS + 1), (b"longer", OLD_NS), (b"A.mp4", OLD_NS - 5)]
)
def test_a_changed_file_is_read_again(folder, read, content, changed_ns):
    found(folder)
    put(folder / "a.mp4", content, changed_ns=changed_ns)
    assert found(folder)["a.mp4"] == sha256(content)
    assert read[3:] == ["a.mp4"]


def test_another_file_of_the_same_name_size_and_time_is_read_again(folder, read):
    found(folder)
    put(folder.parent / "new", b"A.mp4").replace(folder / "a.mp4")
    assert found(folder)["a.mp4"] == sha256(b"A.mp4")


def test_names_that_are_not_utf8_are_kept_apart_from_those_that_look_like_them(folder, read):
    raw = os.fsdecode(os.fsencode(folder) + b"/\xe9.mp4")
    put(Path(raw), b"one")
    put(folder / "\\xe9.mp4", b"two")
    put(folder / "\\udce9.mp4", b"six")
    names = {r"\xe9.mp4": b"one", r"\x5cxe9.mp4": b"two", r"\x5cudce9.mp4": b"six"}
    for _ in range(2):
        digests_by_name = found(folder)
        assert {name: digests_by_name[name] for name in names} == {
            name: sha256(content) for name, content in names.items()
        }
    assert len(read) == 6


def test_new_files_alone_are_read_and_those_gone_forgotten(folder, read):
    found(folder)
    (folder / "b.mp4").unlink()
    put(folder / "d.mp4", b"d")
    found(folder)
    assert read[3:] == ["d.mp4"]
    kept = json.loads((folder.parent / "out" / "digests.json").read_text())["files"]
    assert {Path(name).name for name in kept} == {"a.mp4", "c.mp4", "d.mp4"}


@pytest.mark.parametrize("damage", ["cut", "binary", "format", "digest", "list", "folder"])
def test_a_damaged_file_of_digests_counts_as_none(folder, read, damage):
    first = found(folder)
    kept = folder.parent / "out" / "digests.json"
    text = kept.read_text()
    if damage == "folder":
        kept.unlink()
        kept.mkdir()
        with pytest.raises(UserError, match=r"Cannot write '.*digests.json'"):
            found(folder)
        kept.rmdir()
    else:
        damaged = {
            "cut": text[: len(text) // 2],
            "format": text.replace('"format":2', '"format":3'),
            "digest": text.replace(first["a.mp4"], "../a"),
            "list": "[]",
        }
        kept.write_bytes(damaged[damage].encode() if damage in damaged else b"\xff\x00{")
    assert found(folder) == first
    assert set(read[3:]) == {"a.mp4", "b.mp4", "c.mp4"}
    count = len(read)
    assert found(folder) == first
    assert len(read) == count, "and it is written anew"


def test_a_file_that_has_only_just_changed_is_not_trusted_yet(folder, read, monkeypatch):
    monkeypatch.setattr(digests.time, "time_ns", lambda: OLD_NS + digests.SETTLED_NS)
    found(folder)
    put(folder / "a.mp4", b"A.mp4")  # within the same tick, of the same size
    assert found(folder)["a.mp4"] == sha256(b"A.mp4")


def test_a_file_that_settles_only_while_it_is_read_is_not_trusted_yet(folder, read, monkeypatch):
    now = [OLD_NS + 1]
    monkeypatch.setattr(digests.time, "time_ns", lambda: now[0])
    real = digests.sha256_of_file

    def slow(path):
        digest = real(path)
        now[0] += 2 * digests.SETTLED_NS
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_of_file", slow)
        found(folder)
    put(folder / "a.mp4", b"A.mp4")  # in the tick in which reading began
    assert found(folder)["a.mp4"] == sha256(b"A.mp4")


def test_a_file_that_changes_while_it_is_read_is_not_remembered(folder, tmp_path, monkeypatch):
    real = digests.sha256_of_file

    def changing(path):
        digest = real(path)
        put(path, b"grown while it was read", changed_ns=OLD_NS + 7)
        return digest

    monkeypatch.setattr(digests, "sha256_of_file", changing)
    found(folder)
    monkeypatch.setattr(digests, "sha256_of_file", real)
    assert set(found(folder).values()) == {sha256(b"grown while it was read")}


def test_what_an_interrupted_run_has_read_is_not_read_again(folder, read, monkeypatch):
    counted = digests.sha256_of_file

    def interrupted(path):
        if path.name == "c.mp4":
            raise KeyboardInterrupt
        return counted(path)

    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_of_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found(folder)
    assert found(folder)["b.mp4"] == sha256(b"b.mp4")
    assert read == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_killed_run_has_kept_what_it_read_until_the_minute_before(
    folder, tmp_path, read, monkeypatch
):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(digests.time, "monotonic", lambda: float(next(clock)))
    killed = Digests(tmp_path / "digests.json")  # never left
    killed.of(folder / "a.mp4")
    with Digests(tmp_path / "digests.json") as of_files:
        of_files.of(folder / "a.mp4")
    assert read == ["a.mp4"]


def test_an_unreadable_video_is_left_to_admission_and_not_remembered(folder, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_of_file", refused)
        assert set(found(folder).values()) == {""}
    assert found(folder)["a.mp4"] == sha256(b"a.mp4")
