"""Which files are videos, and what their captions are."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from preprocessing.sources import find_sources
from videoldm_core.errors import UserError


def put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def captions(folder: Path) -> dict[str, str]:
    return {source.name: source.caption for source in find_sources(folder)}


def test_videos_are_found_below_the_folder_in_name_order_with_digest_and_size(tmp_path):
    put(tmp_path, b_mp4="bb", sub__a_WEBM="a", note_txt="no video", c_gif="c")
    sources = find_sources(tmp_path)
    assert [source.name for source in sources] == ["b.mp4", "c.gif", "sub/a.WEBM"]
    assert sources[0].digest == hashlib.sha256(b"bb").hexdigest()
    assert sources[0].size == 2
    assert sources[2].path == tmp_path / "sub" / "a.WEBM"


def test_hidden_files_and_folders_are_no_videos(tmp_path):
    put(tmp_path, a_mp4="a")
    (tmp_path / "._a.mp4").write_text("what a mac leaves behind")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b.mp4").write_text("b")
    assert list(captions(tmp_path)) == ["a.mp4"]


def test_a_caption_beside_the_video_wins_over_the_table(tmp_path):
    put(tmp_path, a_mp4="", b_mp4="", c_mp4="", a_txt="beside\n a ")
    (tmp_path / "captions.csv").write_text('file,caption\na.mp4,table a\nb.mp4,"one, two"\n')
    assert captions(tmp_path) == {"a.mp4": "beside a", "b.mp4": "one, two", "c.mp4": ""}


def test_the_table_names_videos_in_subfolders_by_their_path(tmp_path):
    put(tmp_path, sub__a_mp4="")
    (tmp_path / "captions.csv").write_bytes("\ufefffile,caption\r\nsub/a.mp4,rain\r\n".encode())
    assert captions(tmp_path) == {"sub/a.mp4": "rain"}


def test_a_line_of_the_table_without_its_video_is_only_warned_of(tmp_path, caplog):
    put(tmp_path, a_mp4="")
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,x\ngone.mp4,y\n")
    assert captions(tmp_path) == {"a.mp4": "x"}
    assert "'gone.mp4'" in caplog.text


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


def test_a_folder_without_a_video_file_says_what_is_one(tmp_path):
    put(tmp_path, a_jpg="", b_docx="")
    with pytest.raises(UserError, match=r"None of the 2 files .* is a video; .* mp4 "):
        find_sources(tmp_path)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("name,text\na.mp4,x\n", r"columns name,text; its first line must be file,caption"),
        ("", r"columns none; its first line"),
        ("file,caption\na.mp4,x,y\n", r"captions.csv' line 2 does not have two columns"),
        ("file,caption\na.mp4\n", r"line 2 does not have two columns"),
        ('file,caption\na.mp4,"x" y\n', r"line 2 is not valid CSV"),
        ("file,caption\na.mp4,x\na.mp4,y\n", r"line 3 gives 'a.mp4' a second caption"),
        ("file,caption\nb.mp4,x\n", r"No line of .* names a video .*'b.mp4'"),
    ],
)
def test_a_malformed_table_says_where_and_what_to_write(tmp_path, table, said):
    put(tmp_path, a_mp4="")
    (tmp_path / "captions.csv").write_text(table)
    with pytest.raises(UserError, match=said):
        find_sources(tmp_path)


def test_captions_in_another_encoding_are_named(tmp_path):
    put(tmp_path, a_mp4="")
    (tmp_path / "a.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt' is not UTF-8 text \(byte 1\)"):
        find_sources(tmp_path)


def test_an_unreadable_caption_is_named(tmp_path, monkeypatch):
    put(tmp_path, a_mp4="", a_txt="a caption")

    def refuse(path: Path, **options: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"Cannot read '.*a.txt': Permission denied; let this user"):
        find_sources(tmp_path)


def test_an_unreadable_folder_is_named_instead_of_left_out(tmp_path, monkeypatch):
    put(tmp_path, a_mp4="", sub__b_mp4="")
    scan = os.scandir

    def refuse(path: str):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"Cannot read '.*/sub': Permission denied; let this user"):
        find_sources(tmp_path)
