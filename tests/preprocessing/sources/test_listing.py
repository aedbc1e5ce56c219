"""What lies in a folder: links are followed once, and what nobody looks into is named."""

import errno
import os
import socket
from pathlib import Path

import pytest

from preprocessing.sources.listing import counted_by_suffix, list_folder
from videoldm_core.errors import UserError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def files(folder: Path) -> dict[str, str]:
    """Name -> why it cannot be read, in the order found."""
    return {
        file.name: ": ".join(file.refusal) if file.refusal else ""
        for file in list_folder(folder).files
    }


def passed_over(folder: Path) -> dict[str, str]:
    return {found.name: found.reason for found in list_folder(folder).passed_over}


def test_every_file_is_listed_in_name_order_with_size_and_time(tmp_path):
    touch(tmp_path, "b", "sub/deep/a", "c")
    (tmp_path / "b").write_text("four")
    os.utime(tmp_path / "b", ns=(5, 7))
    assert list(files(tmp_path)) == ["b", "c", "sub/deep/a"]
    assert list_folder(tmp_path).files[0][1:4] == (tmp_path / "b", 4, 7)


def test_linked_folders_are_followed_each_folder_once_and_under_its_own_name(tmp_path):
    folder = touch(tmp_path / "videos", "z/a")
    touch(tmp_path / "elsewhere", "b", "inner/c")
    (folder / "again").symlink_to("z")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "part").symlink_to(tmp_path / "elsewhere" / "inner")
    assert list(files(folder)) == ["linked/b", "linked/inner/c", "z/a"]
    assert passed_over(folder) == {
        "again": "a link to a folder that is looked into as 'z'",
        "part": "a link to a folder that is looked into as 'linked/inner'",
    }


def test_a_folder_reached_first_through_a_link_is_not_walked_twice(tmp_path):
    folder = touch(tmp_path / "videos", "a")
    touch(tmp_path / "elsewhere", "inner/c")
    (folder / "part").symlink_to(tmp_path / "elsewhere" / "inner")
    (folder / "whole").symlink_to(tmp_path / "elsewhere")
    assert list(files(folder)) == ["a", "part/c"]
    assert passed_over(folder) == {
        "whole/inner": "a link to a folder that is looked into as 'part'"
    }


def test_loops_and_links_upwards_end(tmp_path):
    folder = touch(tmp_path / "videos", "sub/a")
    touch(tmp_path, "outside.mp4")
    (folder / "sub" / "loop").symlink_to("..")
    (folder / "sub" / "up").symlink_to("../..")
    (folder / "root").symlink_to("/")
    (folder / "self").symlink_to("self")
    assert files(folder) == {
        "self": "unreadable: it is a link that leads back to itself",
        "sub/a": "",
    }
    reason = "a link to the folder of videos itself, or to one that holds it"
    assert passed_over(folder) == {"root": reason, "sub/loop": reason, "sub/up": reason}


def test_what_is_no_file_says_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "b.mp4"))
        (tmp_path / "c.mp4").symlink_to("/dev/zero")
        (tmp_path / "d.mp4").symlink_to("nowhere")
        assert files(tmp_path) == {
            "a.mp4": "not a file: it is a pipe (FIFO)",
            "b.mp4": "not a file: it is a socket",
            "c.mp4": "not a file: it is a device",
            "d.mp4": "unreadable: it is a link to nothing",
        }


def test_hidden_files_are_counted_and_hidden_folders_named(tmp_path):
    touch(tmp_path, "a", ".DS_Store", "sub/._a", ".cache/b")
    (tmp_path / ".link").symlink_to("sub")
    listing = list_folder(tmp_path)
    assert [file.name for file in listing.files] == ["a"]
    assert listing.hidden == 3
    assert [tuple(found) for found in listing.passed_over] == [
        (("name", ".cache"), ("reason", "a hidden folder"), ("is_hidden", True))
    ]


@pytest.fixture
def refuse(monkeypatch):
    """refuse("sub", errno.EACCES): folders of that name cannot be listed."""
    scan = os.scandir

    def install(name: str, number: int) -> None:
        def refused(path):
            if Path(path).name == name:
                raise OSError(number, os.strerror(number), str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", refused)

    return install


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "Permission denied"), (errno.ENOENT, "No such file or directory")],
)
def test_a_folder_that_cannot_be_listed_is_passed_over_and_named(tmp_path, refuse, number, said):
    touch(tmp_path, "a", "lost+found/b")
    refuse("lost+found", number)
    assert files(tmp_path) == {"a": ""}
    assert passed_over(tmp_path) == {"lost+found": f"a folder that cannot be listed ({said})"}


def test_the_folder_itself_must_be_readable(tmp_path, refuse):
    touch(tmp_path / "videos", "a")
    refuse("videos", errno.EACCES)
    with pytest.raises(UserError, match=r"Cannot read '.*/videos': Permission denied; let this us"):
        list_folder(tmp_path / "videos")


class _Vanishing:
    """A name that is gone when it is looked at."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name, self.path = entry.name, entry.path

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> os.stat_result:
        os.unlink(self.path)
        return os.stat(self.path)


def test_a_file_that_vanishes_while_the_folder_is_listed_costs_itself(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "b.mp4")
    scan = os.scandir

    class Entries:
        def __init__(self, path):
            self._entries = scan(path)

        def __enter__(self):
            with self._entries as entries:
                return [_Vanishing(e) if e.name == "a.mp4" else e for e in entries]

        def __exit__(self, *_):
            pass

        def close(self):
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Entries)
    assert files(tmp_path) == {"a.mp4": "gone: it was listed, but is no longer there", "b.mp4": ""}


def test_kinds_are_counted_most_first_and_not_without_end():
    assert counted_by_suffix(["a.JPG", "b.jpg", "c", "d.txt", "e.a sentence, in the end"]) == {
        ".jpg": 2, "without a suffix": 1, ".txt": 1, "other": 1
    }  # fmt: skip
    counts = counted_by_suffix(f"name.{number}" for number in range(1000))
    assert len(counts) == 101
    assert counts["further kinds"] == 900
