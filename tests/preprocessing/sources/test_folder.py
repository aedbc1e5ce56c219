"""Which files are videos, and what is said of those that cannot be used."""

import errno
import hashlib
import os
import re
from pathlib import Path

import pytest

from preprocessing.sources import digests
from preprocessing.sources.folder import find_sources, refusal_since, survey_folder
from videoldm_core.errors import UserError


def put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def refusals(folder: Path) -> dict[str, str]:
    return {
        source.name: ": ".join(source.refusal) for source in find_sources(folder) if source.refusal
    }


def test_videos_are_found_below_the_folder_in_name_order_with_digest_and_size(tmp_path):
    put(tmp_path, b_mp4="bb", sub__a_WEBM="a", note_txt="no video", c_gif="c")
    sources = find_sources(tmp_path)
    assert [source.name for source in sources] == ["b.mp4", "c.gif", "sub/a.WEBM"]
    assert sources[0].digest == hashlib.sha256(b"bb").hexdigest()
    assert sources[0].size == 2
    assert sources[2].path == tmp_path / "sub" / "a.WEBM"


def test_names_that_are_no_text_are_written_so_that_any_file_can_hold_them(tmp_path):
    raw = [b"caf\xe9.mp4", b"two\nlines.mp4", b"\x1b[31mred.mp4", "\u202e4pm.mp4".encode()]
    for name in raw:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    sources = find_sources(tmp_path)
    assert [source.name for source in sources] == [
        r"\x1b[31mred.mp4", r"\xe2\x80\xae4pm.mp4", r"caf\xe9.mp4", r"two\x0alines.mp4"
    ]  # fmt: skip
    assert {source.digest for source in sources} == {hashlib.sha256(n).hexdigest() for n in raw}


def test_what_is_no_video_is_counted_by_suffix_unless_it_belongs_to_one(tmp_path):
    put(tmp_path, a_mp4="", a_txt="a caption", b_txt="of nobody", c_webp="", d_webp="", LICENSE="")
    put(tmp_path, sub__e_docx="")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "v1.2 of the readme").touch()
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,a caption\n")
    assert survey_folder(tmp_path).left_out.files == {
        ".webp": 2, ".docx": 1, ".txt": 1, "without a suffix": 1, "other": 1, "hidden": 1
    }  # fmt: skip


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"folder '.*/nowhere' does not exist; give the path"):
        find_sources(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    put(tmp_path, a_mp4="")
    with pytest.raises(UserError, match=r"a.mp4' is a file, not a folder; give the folder"):
        find_sources(tmp_path / "a.mp4")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is empty; put video files"):
        find_sources(tmp_path)


def test_a_folder_without_a_video_file_says_what_is_one_and_where_nobody_looked(tmp_path):
    put(tmp_path, a_jpg="", b_docx="")
    with pytest.raises(UserError, match=r"None of the 2 files .* is a video; .* mp4 "):
        find_sources(tmp_path)
    (tmp_path / ".videos").mkdir()
    with pytest.raises(UserError, match=r"\(1 are passed over, as '\.videos': a hidden folder\)"):
        find_sources(tmp_path)


def test_a_video_that_vanishes_before_it_is_read_costs_itself(tmp_path, monkeypatch):
    put(tmp_path, a_mp4="a", b_mp4="b", c_mp4="c")
    real = digests.sha256_of_file

    def vanishing(path: Path) -> str:
        (tmp_path / "b.mp4").unlink(missing_ok=True)  # after it was listed
        if path.name == "c.mp4":  # after its size was taken
            path.unlink()
        return real(path)

    monkeypatch.setattr(digests, "sha256_of_file", vanishing)
    gone = "gone: it was listed, but is no longer there"
    assert refusals(tmp_path) == {"b.mp4": gone, "c.mp4": gone}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "unreadable: Permission denied"),
        (errno.EIO, "unreadable: Input/output error"),
        (errno.ESTALE, "gone: it was listed, but is no longer there"),
    ],
)
def test_a_video_that_cannot_be_read_costs_itself(tmp_path, monkeypatch, number, said):
    put(tmp_path, a_mp4="a", b_mp4="b")
    real = digests.sha256_of_file

    def refused(path: Path) -> str:
        if path.name == "a.mp4":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(digests, "sha256_of_file", refused)
    assert refusals(tmp_path) == {"a.mp4": said}


def test_a_file_that_is_mostly_not_there_is_refused_unread(tmp_path, monkeypatch):
    put(tmp_path, b_mp4="b")
    for name, size in (("a.mp4", 1 << 42), ("c.mp4", 1 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.write(b"start")
            file.truncate(size)
    monkeypatch.setattr(digests, "sha256_of_file", lambda path: path.name)
    found = refusals(tmp_path)
    assert list(found) == ["a.mp4"], "a small hole is a matter of decoding"
    assert re.fullmatch(
        r"sparse: of its 4,398,046,511,104 bytes [\d,]+ are there: a copy.*", found["a.mp4"]
    )


def test_what_the_kernel_shows_as_empty_is_not_read(tmp_path, monkeypatch):
    put(tmp_path, a_mp4="")
    monkeypatch.setattr(digests, "sha256_of_file", lambda path: pytest.fail("it may never end"))
    (source,) = find_sources(tmp_path)
    assert source.digest == hashlib.sha256(b"").hexdigest()


def test_a_file_is_known_to_have_gone_or_changed_since_it_was_read(tmp_path):
    put(tmp_path, a_mp4="a", b_mp4="b", c_mp4="c")
    a, b, c = find_sources(tmp_path)
    a.path.unlink()
    os.utime(b.path, ns=(1, 1))
    assert refusal_since(a) == ("gone", "it was listed, but is no longer there")
    changed = refusal_since(b)
    assert changed is not None
    assert changed.category == "changed"
    assert refusal_since(c) is None
