"""Files that are complete or absent."""

import ast
import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from videoldm_core.errors import UserError
from videoldm_core.system.files import (
    PRIVATE,
    publish_folder,
    sha256_of_file,
    sha256_of_folder,
    write_bytes_atomically,
    write_text_atomically,
)


def test_text_is_written_as_utf8_into_a_new_folder(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    write_text_atomically(path, "número")
    assert path.read_bytes() == "número".encode()
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    write_text_atomically(path, "former")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"Cannot write .*a\.json.*No space left.*free space"):
        write_bytes_atomically(path, b"later")
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_crash_before_the_rename_leaves_the_former_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    write_text_atomically(path, "former")

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(path, "later")
    assert path.read_text() == "former"


def test_a_folder_that_is_a_file_is_reported_in_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*choose another output folder"):
        write_text_atomically(tmp_path / "file" / "a.json", "{}")


def test_a_published_folder_replaces_the_older_one(tmp_path: Path):
    final, part = tmp_path / "final", tmp_path / "part"
    for folder, name in ((final, "old"), (part, "new")):
        folder.mkdir()
        (folder / name).write_text(name)
    publish_folder(part, final)
    assert os.listdir(final) == ["new"]
    assert not part.exists()


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch):
    final, part = tmp_path / "final", tmp_path / "part"
    write_text_atomically(part / "inner" / "weights", "content")
    inside = {path.stat().st_ino for path in (part, *part.rglob("*"))}
    synced: dict[bool, set[int]] = {False: set(), True: set()}  # inodes by whether it has its name
    monkeypatch.setattr(os, "fsync", lambda file: synced[final.exists()].add(os.fstat(file).st_ino))
    publish_folder(part, final)
    assert synced == {False: inside, True: {tmp_path.stat().st_ino}}


def test_a_file_and_its_name_survive_a_loss_of_power(tmp_path: Path, disk):
    path = tmp_path / "new" / "folder" / "a.json"
    write_text_atomically(path, "content")
    assert [name for kind, name in disk.events if kind == "name"] == [path]
    assert disk.unsafe() == []
    assert disk.synced(tmp_path), "the name of the new folder"
    assert disk.synced(tmp_path / "new")


NO_FOLDER_SYNC = [errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF]


def refuse_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Answers as a file system that does so when a folder is synced."""
    fsync = os.fsync

    def refusing(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", refusing)


@pytest.mark.parametrize("number", NO_FOLDER_SYNC)
def test_a_file_system_that_cannot_sync_folders_loses_nothing(tmp_path, monkeypatch, number):
    refuse_folders(monkeypatch, number)
    write_text_atomically(tmp_path / "a" / "b.json", "content")
    part = tmp_path / "part"
    part.mkdir()
    (part / "weights").write_text("content")
    publish_folder(part, tmp_path / "final")
    assert (tmp_path / "a" / "b.json").read_text() == "content"
    assert (tmp_path / "final" / "weights").read_text() == "content"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_could_not_be_written_is_an_error(tmp_path, monkeypatch, number):
    refuse_folders(monkeypatch, number)
    with pytest.raises(UserError, match=rf"Cannot write .*b\.json': {os.strerror(number)}"):
        write_text_atomically(tmp_path / "b.json", "content")


@pytest.mark.parametrize("number", NO_FOLDER_SYNC)
def test_a_file_that_could_not_be_synced_is_an_error(tmp_path, monkeypatch, number):
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"Cannot write .*b\.json"):
        write_text_atomically(tmp_path / "b.json", "content")


def test_a_private_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        write_text_atomically(tmp_path / "a", "x", mode=PRIVATE)
        write_text_atomically(tmp_path / "b", "x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes == [0o600, 0o666]


def test_nothing_is_renamed_past_what_waits_for_the_disk():
    root = Path(__file__).parents[3]
    inside_a_part = {("videoldm_core/objectives/pretrained.py", "rename")}  # published as a whole
    found = set()  # of calls with one argument: a path's, not a text's
    for package in ("videoldm_core", "preprocessing", "flows"):
        for path in (root / package).rglob("*.py"):
            file = path.relative_to(root).as_posix()
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = [getattr(call.func, "attr", "") for call in calls if len(call.args) == 1]
            found |= {(file, name) for name in names if name in ("replace", "rename")}
    assert found == inside_a_part | {("videoldm_core/system/files.py", "replace")}


def test_a_files_digest_is_sha256(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_a_folders_digest_tells_names_and_bytes_but_not_its_place(tmp_path: Path):
    def folder(place: str, files: dict[str, str]) -> str:
        for name, text in files.items():
            write_text_atomically(tmp_path / place / name, text)
        return sha256_of_folder(tmp_path / place)

    digest = folder("1", {"a": "x", "b/c": "y"})
    assert folder("2", {"b/c": "y", "a": "x"}) == digest
    assert folder("3", {"a": "x", "b/d": "y"}) != digest
    assert folder("4", {"a": "x", "b/c": "z"}) != digest
    assert folder("5", {"a": "x", "b/c": "y", "d": ""}) != digest
