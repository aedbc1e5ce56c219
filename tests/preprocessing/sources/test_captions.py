"""Where captions come from, which of several counts, and what a bad one costs."""

import errno
import os
import re
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from preprocessing.sources.captions import MAX_BYTES
from preprocessing.sources.folder import Survey, find_sources, survey_folder
from videoldm_core.errors import UserError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files named a.mp4, b.mp4 and sub/c.mp4."""
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        (tmp_path / name).write_text(name)
    return tmp_path


def captions(folder: Path) -> dict[str, str]:
    """Of the videos that have one."""
    return {source.name: source.caption for source in find_sources(folder) if source.caption}


def refusals(found: Survey) -> dict[str, str]:
    return {s.name: ": ".join(s.refusal) for s in found.sources if s.refusal}


def notes(folder: Path, name: str) -> tuple[str, ...]:
    return next(source.notes for source in find_sources(folder) if source.name == name)


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "a.mp4.txt", "a.mp4.TXT", "a.caption", "a.mp4.caption"]
)
def test_a_file_beside_the_video_is_its_caption(folder, name):
    (folder / name).write_bytes("\ufeff a\n car  ".encode())
    assert captions(folder) == {"a.mp4": "a car"}
    assert survey_folder(folder).left_out.files == {}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("captions.csv", 'file,caption\na.mp4,a car\nsub/c.mp4,"one, two"\n'),
        ("captions.csv", '\ufeffcaption,file\r\na car, a.mp4 \r\n"one, two",sub/c.mp4\r\n'),
        ("captions.csv", 'file_name,text\ra.mp4,a car\r"./sub/c.mp4","one,\r two"\r'),
        ("metadata.csv", 'file_name,text\na.mp4,a car\nsub/c.mp4,"one, two"\n'),
        ("metadata.csv", 'width,caption,file_name\n9,a car,a.mp4\n9,"one, two",sub/c.mp4\n'),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": "a car"}\n\n'
            '{"caption": "one,\\n two", "n": {}, "file_name": "sub/c.mp4"}\n',
        ),
    ],
)
def test_a_table_gives_captions_to_videos_by_their_path(folder, name, table):
    (folder / name).write_bytes(table.encode())
    assert captions(folder) == {"a.mp4": "a car", "sub/c.mp4": "one, two"}
    assert survey_folder(folder).left_out.files == {}


def test_a_table_in_a_sub_folder_names_the_videos_there(folder):
    (folder / "sub" / "metadata.csv").write_text("file_name,text\nc.mp4,near\n../a.mp4,up\n")
    (folder / "metadata.csv").write_text("file_name,text\nsub/c.mp4,far\nb.mp4,here\n")
    assert captions(folder) == {"a.mp4": "up", "b.mp4": "here", "sub/c.mp4": "near"}
    assert notes(folder, "sub/c.mp4") == (
        "its captions differ: 'sub/metadata.csv' line 2 is used, not 'metadata.csv' line 2",
    )


def test_of_several_captions_the_first_in_the_order_of_forms_counts_and_others_are_noted(folder):
    forms = {
        "a.txt": "1",
        "a.mp4.txt": "2",
        "a.caption": "3",
        "a.mp4.caption": "4",
        "captions.csv": "file,caption\na.mp4,5\n",
        "metadata.csv": "file_name,text\na.mp4,6\n",
        "metadata.jsonl": '{"file_name": "a.mp4", "text": "7"}\n',
    }
    for name, text in forms.items():
        (folder / name).write_text(text)
    used = []
    for name in forms:
        used += captions(folder).values()
        (folder / name).unlink()
    assert used == list("1234567")
    (folder / "a.txt").write_text("same")
    (folder / "captions.csv").write_text("file,caption\na.mp4, same \n")
    assert notes(folder, "a.mp4") == ()
    (folder / "captions.csv").write_text("file,caption\na.mp4,other\n")
    assert notes(folder, "a.mp4") == (
        "its captions differ: 'a.txt' is used, not 'captions.csv' line 2",
    )
    (folder / "a.txt").write_text(" \n")
    assert captions(folder) == {"a.mp4": "other"}, "an empty one says nothing"


@pytest.mark.parametrize(("video", "written"), [(NFD, NFC), (NFC, NFD), (NFC, NFC)])
def test_names_match_however_their_accents_are_written(tmp_path, video, written):
    (tmp_path / f"{video}.mp4").write_text("1")
    (tmp_path / "captions.csv").write_text(f"file,caption\n{written}.mp4,coffee\n")
    assert captions(tmp_path) == {f"{video}.mp4": "coffee"}
    (tmp_path / "captions.csv").unlink()
    (tmp_path / f"{written}.txt").write_text("tea")
    assert captions(tmp_path) == {f"{video}.mp4": "tea"}


def test_a_name_that_two_videos_may_have_gives_neither_its_caption_unless_it_is_exact(tmp_path):
    # One letter, three spellings: composed, decomposed, and the Angstrom sign.
    for number, name in enumerate(("\u00c5", "A\u030a")):
        (tmp_path / f"{name}.mp4").write_text(str(number))
    (tmp_path / "captions.csv").write_text("file,caption\n\u212b.mp4,which?\nA\u030a.mp4,mine\n")
    (tmp_path / "\u00c5.txt").write_text("beside")
    found = survey_folder(tmp_path)
    assert {s.name: s.caption for s in found.sources} == {
        "\u00c5.mp4": "beside", "A\u030a.mp4": "mine"
    }  # fmt: skip
    (remark,) = found.left_out.remarks
    assert remark.startswith("'captions.csv' line 2 names '\u212b.mp4', and 2 videos are named")
    (tmp_path / "\u00c5.txt").rename(tmp_path / "\u212b.txt")
    doubt = "'\u212b.txt' may be another video's and is not read"
    assert notes(tmp_path, "\u00c5.mp4") == (doubt,)


def test_a_table_can_name_a_video_whose_name_is_not_utf8(tmp_path):
    for number, name in enumerate((b"caf\xe9.mp4", b"th\xe9.mp4")):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text(str(number))
    (tmp_path / "captions.csv").write_bytes(
        b"file,caption\ncaf\xe9.mp4,coffee\n" + rb"th\xe9.mp4,tea" + b"\n"
    )
    assert captions(tmp_path) == {r"caf\xe9.mp4": "coffee", r"th\xe9.mp4": "tea"}


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("a.txt", "{}"),
        ("captions.csv", 'file,caption\na.mp4,"{}"\n'),
        ("metadata.jsonl", '{{"file_name": "a.mp4", "text": "{}"}}\n'),
    ],
)
def test_a_long_caption_is_cut_at_a_character_and_that_is_noted(folder, name, template):
    (folder / name).write_text(template.format("words and ü " * 500_000))
    tracemalloc.start()
    (caption,) = captions(folder).values()
    assert tracemalloc.get_traced_memory()[1] < 90 << 20
    tracemalloc.stop()
    assert MAX_BYTES - 12 < len(caption.encode()) <= MAX_BYTES
    assert caption.startswith("words and ü words")
    (note,) = notes(folder, "a.mp4")
    assert re.fullmatch(rf"its caption \('{name}'.*\) is longer than 16 KiB and is cut", note)
    (folder / name).write_text(template.format("é" * (MAX_BYTES // 2)))
    assert captions(folder) == {"a.mp4": "é" * (MAX_BYTES // 2)}
    assert notes(folder, "a.mp4") == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes("Zürich".encode("latin-1")), "is not UTF-8 text (byte 1); "),
        (lambda path: path.write_bytes("Zürich".encode("utf-16")), "is not UTF-8 text (byte 0); "),
        (lambda path: path.mkdir(), "cannot be read: it is a folder"),
        (lambda path: os.mkfifo(path), "cannot be read: it is a pipe (FIFO)"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: it is a link to nothing"),
    ],
)
def test_a_bad_file_beside_the_video_costs_the_video_alone(folder, make, said):
    make(folder / "a.txt")
    found = refusals(survey_folder(folder))
    assert list(found) == ["a.mp4"]
    assert found["a.mp4"].startswith(f"bad caption: 'a.txt' {said}")


def test_an_unreadable_file_beside_the_video_costs_the_video_alone(folder, monkeypatch):
    (folder / "a.txt").write_text("a caption")
    real = Path.open

    def refuse(path: Path, *args):
        if path.name == "a.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args)

    monkeypatch.setattr(Path, "open", refuse)
    assert refusals(survey_folder(folder)) == {
        "a.mp4": "bad caption: 'a.txt' cannot be read: Permission denied"
    }


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("captions.csv", b"a.mp4,Z\xfcrich", "line 3 is not UTF-8 text; save the table as UTF-8"),
        ("captions.csv", b"a.mp4,x,y", "line 3 has 3 columns instead of 2; put captions with"),
        ("captions.csv", b"a.mp4", "line 3 has 1 columns instead of 2; put captions with"),
        ("captions.csv", b'a.mp4,"x" y', "line 3 is not valid CSV (',' expected after '\"');"),
        ("captions.csv", b"a.mp4,x\na.mp4,y", "line 4 gives it a second caption; keep one line"),
        ("metadata.csv", b"a.mp4,Z\xfcrich", "line 3 is not UTF-8 text; save the table as UTF-8"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "text": "x}', "line 3 is not valid JSON; rep"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "text": ["x"]}', "line 3 has a caption that"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "text": "\\ud800"}', "line 3 is not UTF-8"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "text": ' + b"[" * 99_999, "line 3 is not v"),
    ],
)
def test_a_bad_row_costs_its_video_alone(folder, name, rows, said):
    heads = {"captions.csv": b"file,caption", "metadata.csv": b"file_name,text"}.get(name, b"")
    others = [b"b.mp4,good", b"sub/c.mp4,good"]
    if not heads:
        others = [b'{"file_name": "b.mp4", "text": "good"}']
    (folder / name).write_bytes(b"\n".join([heads, others[0], rows, *others[1:]]) + b"\n")
    found = survey_folder(folder)
    refused = refusals(found)
    assert list(refused) == ["a.mp4"]
    assert refused["a.mp4"].startswith(f"bad caption: '{name}' {said}")
    assert {s.caption for s in found.sources if s.name in ("b.mp4", "sub/c.mp4")} >= {"good"}


def test_a_better_caption_makes_a_bad_row_a_note(folder):
    (folder / "a.txt").write_text("fine")
    (folder / "captions.csv").write_bytes(b"file,caption\na.mp4,Z\xfcrich\n")
    assert refusals(survey_folder(folder)) == {}
    assert notes(folder, "a.mp4") == (
        "its captions differ: 'a.txt' is used, not 'captions.csv' line 2",
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"name,text\na.mp4,x\n", r"has the columns name,text; its first line must name file and"),
        (b"file;caption\na.mp4;x\n", r"has the columns file;caption; its first line must name"),
        (b"", r"is empty; its first line must be file,caption"),
        ("file,caption\na.mp4,x\n".encode("utf-16"), r"is UTF-16, not UTF-8 text; save it as UTF"),
        (b'file,caption\na.mp4,"x\nb.mp4,"y"\n', r"has an error from line 2 to line 3 .*; close"),
        (b"file,caption\n" + b"x" * (17 << 20), r"has a line longer than 16 MiB \(line 2\)"),
        (b"file,caption\nz.mp4,x\n", r"No line of .* names a video .*'z.mp4'"),
    ],
)
def test_a_table_that_concerns_nobody_in_particular_is_refused_in_one_sentence(folder, table, said):
    (folder / "captions.csv").write_bytes(table)
    with pytest.raises(UserError, match=said) as raised:
        find_sources(folder)
    assert repr(str(folder / "captions.csv")) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_table_that_nobody_meant_for_us_is_named_and_costs_nothing(folder):
    (folder / "metadata.csv").write_text("id,date\n1,2\n")
    (folder / "sub" / "captions.csv").write_text("nonsense")
    (folder / "metadata.jsonl").mkdir()
    (folder / "captions.json").write_text("{}")
    found = survey_folder(folder)
    assert refusals(found) == {}
    assert [remark[:60] for remark in found.left_out.remarks] == [
        "'sub/captions.csv' has the columns nonsense; its first line ",
        "'metadata.csv' has the columns id,date; its first line must ",
        "'metadata.jsonl' cannot be read: it is a folder",
        "'captions.json' is not read: captions come from NAME.txt, NA",
    ]


def test_rows_and_columns_that_are_not_used_are_named(folder):
    (folder / "metadata.csv").write_text(
        "file_name,text,width,score\na.mp4,x,1,2\ngone.mp4,y,1,2\nlost.mp4,y,1,2\n,z,1,2\n,1\n"
    )
    found = survey_folder(folder)
    assert {s.name: s.caption for s in found.sources if s.caption} == {"a.mp4": "x"}
    assert found.left_out.remarks == (
        "'metadata.csv' line 6 has 2 columns instead of 4; put captions with commas in double "
        'quotes ("a red car, at night")',
        "'metadata.csv' names 3 files that are no videos of the folder, such as 'gone.mp4'",
        "'metadata.csv': nothing is read from width, score",
    )
