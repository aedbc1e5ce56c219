"""A folder in which everything is odd but three videos, from the listing to the pixel store."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch

from preprocessing.admission.admit import admit, remarks_on
from preprocessing.admission.examine import Progress
from preprocessing.admission.record import read_admission
from preprocessing.encoding.stores import StoreRequest, encode_pixels
from preprocessing.sources.folder import survey_folder
from tests.preprocessing.admission.test_page import Page
from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.cascade.stage import VideoFormat
from videoldm_core.data.store import open_store

VIDEO = VideoFormat(fps=8, height=16, width=24, upscale=2, clip_seconds=3)
WINDOWS = {"image": (1, (1,)), "motion": (5, (4, 1))}
WORDS = Vocabulary(labels=(LabelKind(name="time", values=("day", "night")),))
NAMES = (
    b"caf\xe9.mp4",
    b"two\nlines\tand a tab.mp4",
    b"\x1b[2J\x1b[31mred.mp4",
    "gpj.\u202e4pm.mp4".encode(),
    b'<script>alert(\'"&amp;")<script>.mp4',
    b"-rf %s %00 {0} $HOME `id` \\x41.mp4",
    b" .mp4",
    "e\u0301\U0001f697\u200d.mp4".encode(),
    b"n" * 251 + b".mp4",
)


class Letters:
    """A text tower that knows how many letters a caption has."""

    def encode(self, captions: list[str]) -> torch.Tensor:
        return torch.tensor([[[len(caption), 0.5]] for caption in captions]).float()

    def digest(self) -> str:
        return "letters"


@pytest.fixture
def folder(folder: Path, counting_video) -> Path:
    """Three good videos, and sound ones with odd names, each unlike the others."""
    sound = counting_video("sound.mp4", frames=40, fps=8, size=(48, 32)).read_bytes()
    for number, name in enumerate(NAMES):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_bytes(sound + bytes([number]))
    return folder


@pytest.fixture
def odd(folder: Path, tmp_path: Path):
    """Puts everything else that is odd into the folder; yields it."""
    good = (folder / "good0.mp4").read_bytes()
    for name in "abcdefgh":
        (folder / f"{name}.mp4").write_bytes(good + name.encode())
    (folder / "a.txt").write_bytes(b"Z\xfcrich")
    (folder / "b.json").write_text("not JSON")
    (folder / "c.json").mkdir()
    (folder / "d.txt").write_text("word " * 1_000_000)
    (folder / "e.txt").symlink_to("nowhere")
    (folder / "captions.csv").write_bytes(b"file,caption\nf.mp4,Z\xfcrich\ngood1.mp4,fine\n")
    (folder / "text.mp4").write_text("text")
    (folder / "empty.mp4").touch()
    (folder / "null.mp4").symlink_to("/dev/null")
    (folder / "dangling.mp4").symlink_to("nowhere")
    (folder / "self.mp4").symlink_to("self.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "sparse.mp4").write_bytes(good)
    os.truncate(folder / "sparse.mp4", 1 << 42)
    (folder / ".hidden").mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "loop").symlink_to("..")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.mp4").write_bytes(good + b"far")
    (folder / "x.webp").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        # The path of a socket may have 107 bytes; that of the folder may be longer.
        here = os.open(folder, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/socket.mp4")
        os.close(here)
        yield folder


def admitted(folder: Path, out: Path, *, workers: int = 2, progress: Progress | None = None):
    survey = survey_folder(folder, WORDS, digests=out / "digests.json")
    return admit(
        survey.sources,
        video=VIDEO,
        windows=WINDOWS,
        left_out=survey.left_out,
        out=out,
        workers=workers,
        progress=progress,
    )


def encoded(folder: Path, out: Path) -> Path:
    admission = read_admission(out)
    assert admission is not None
    return Path(
        encode_pixels(
            StoreRequest(
                clips=admission.clips,
                folder_of_videos=folder,
                out=out,
                video=VIDEO,
                text=Letters(),
            )
        )
    )


def test_sound_videos_with_odd_names_are_used_through_to_the_pixel_store(folder, tmp_path):
    out = tmp_path / "out"
    admission = admitted(folder, out)
    assert (admission.accepted, admission.refused) == (3 + len(NAMES), 0)
    location = encoded(folder, out)
    store = open_store(location)
    assert {sample.source for sample in store.samples} == {v.name for v in admission.videos}
    assert len(store.samples) == len(admission.clips)
    assert json.loads((location / "quarantine.json").read_text()) == []
    assert store.read_frames(store.samples[0], range(2)).shape == (2, 32, 48, 3)
    page = (out / "admission.html").read_text(encoding="utf-8")
    for text in ((out / "admission.json").read_text(encoding="utf-8"), page):
        assert not {"\x1b", "\t", "\u202e"} & set(text)
    assert "<script" not in page


def test_every_odd_file_costs_itself_and_is_in_the_report_with_its_reason(odd, tmp_path):
    out = tmp_path / "out"
    admission = admitted(odd, out)
    reasons = {
        "a.mp4": "bad caption: 'a.txt' is not UTF-8 text (byte 1); save it as UTF-8",
        "b.mp4": f"bad annotations: {str(odd / 'b.json')!r} is not the JSON of labels and boxes (",
        "c.mp4": "bad annotations: 'c.json' cannot be read: it is a folder",
        "e.mp4": "bad caption: 'e.txt' cannot be read: it is a link to nothing",
        "f.mp4": "bad caption: 'captions.csv' line 2 is not UTF-8 text; save the table as UTF-8",
        "text.mp4": "not a video: it is a text file",
        "empty.mp4": "empty file: it has 0 bytes",
        "null.mp4": "not a file: it is a device",
        "dangling.mp4": "unreadable: it is a link to nothing",
        "self.mp4": "unreadable: it is a link that leads back to itself",
        "pipe.mp4": "not a file: it is a pipe (FIFO)",
        "socket.mp4": "not a file: it is a socket",
        "sparse.mp4": "sparse: of its 4,398,046,511,104 bytes ",
    }
    refused = {v.name: v.reason for v in admission.videos if not v.is_accepted}
    assert {name: said[: len(reasons.get(name, said))] for name, said in refused.items()} == reasons
    used = {v.name: v for v in admission.videos if v.is_accepted}
    assert len(used) == 3 + len(NAMES) + 4
    assert {"d.mp4", "g.mp4", "h.mp4", "linked/far.mp4"} < set(used)
    cut = "its caption ('d.txt') is longer than 16 KiB and is cut"
    assert cut in used["d.mp4"].notes
    assert admission.left_out.files == {".webp": 1}
    assert {found.name for found in admission.left_out.passed_over} == {".hidden", "sub/loop"}
    assert (out / "admission.json").stat().st_size < 200_000
    page = Page((out / "admission.html").read_text(encoding="utf-8")).text
    for shown in (*reasons, *reasons.values(), cut, "sub/loop", ".hidden", "1  .webp"):
        assert shown in page


def test_videos_without_a_caption_are_counted_and_said(odd, tmp_path):
    admission = admitted(odd, tmp_path / "out")
    assert admission.captioned == 2
    first, *others = remarks_on(admission)
    assert first == (
        f"{admission.accepted - 2} of {admission.accepted} videos have no caption (captions are "
        "read from NAME.txt, NAME.mp4.txt, NAME.caption, captions.csv, metadata.csv and "
        "metadata.jsonl)"
    )
    assert others == [
        "'sub/loop' passed over: a link to the folder of videos itself, or to one that holds it"
    ]


@pytest.mark.parametrize(
    ("change", "category"),
    [
        (Path.unlink, "gone"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "changed"),
    ],
)
def test_a_video_that_vanishes_or_changes_before_it_is_decoded_costs_itself_this_time(
    folder, tmp_path, change, category
):
    out, last = tmp_path / "out", folder / "good2.mp4"
    content = last.read_bytes()

    def progress(done: int, total: int, name: str) -> None:
        if done == 1:
            change(last)

    admission = admitted(folder, out, progress=progress, workers=1)
    assert [v.category for v in admission.videos if not v.is_accepted] == [category]
    assert {clip.source for clip in admission.clips}.isdisjoint({"good2.mp4"})
    last.write_bytes(content)
    assert admitted(folder, out).refused == 0, "it is not held against the content"


def test_a_video_that_vanishes_after_its_admission_costs_its_clips(folder, tmp_path):
    out = tmp_path / "out"
    admission = admitted(folder, out)
    (folder / "good1.mp4").unlink()
    location = encoded(folder, out)
    lost = {clip.key for clip in admission.clips if clip.source == "good1.mp4"}
    quarantine = json.loads((location / "quarantine.json").read_text())
    assert {clip["key"] for clip in quarantine} == lost
    assert {clip["reason"] for clip in quarantine} == {
        "gone: it was listed, but is no longer there"
    }
    assert len(open_store(location).samples) == len(admission.clips) - len(lost)
