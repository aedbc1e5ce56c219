"""The report as a page and as JSON."""

import json
import re
from html.parser import HTMLParser

from preprocessing.admission import page as admission_page
from preprocessing.sources.folder import LeftOut
from preprocessing.sources.listing import PassedOver


class Page(HTMLParser):
    """Checks that tags close in order; collects text and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.loads = [], "", []
        self.feed(text)
        assert not self.open, f"unclosed {self.open}"

    def handle_starttag(self, tag, attrs):
        self.loads += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}"


def test_the_page_is_whole_and_loads_nothing(admit_folder, folder, tmp_path):
    (folder / "<b>bold & co.mp4").write_text("text")
    (folder / "good1.txt").write_text("a <red> car")
    admit_folder()
    page = Page((tmp_path / "out" / "admission.html").read_text())
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert len(page.loads) == 3
    for shown in (
        "<b>bold & co.mp4",
        "a <red> car",
        "it is a text file",
        "held-out windows",
        "motion",
    ):
        assert shown in page.text
    assert re.search(r"\b3\s+videos accepted", page.text)


def test_a_page_of_many_videos_shows_the_first_and_says_how_many_more(
    admit_folder, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(admission_page, "_MOST_SHOWN", 2)
    for number in range(5):
        (folder / f"bad{number}.mp4").write_text(f"text {number}")
    passed = [PassedOver(name=f"dir{number}", reason="why") for number in range(3)]
    remarks = [f"remark {number}" for number in range(6)]
    admit_folder(left_out=LeftOut(passed_over=tuple(passed), remarks=tuple(remarks)))
    page = Page((tmp_path / "out" / "admission.html").read_text()).text
    for shown, left in (("good1", "good2"), ("bad1", "bad2"), ("dir1", "dir2"), ("k 1", "k 2")):
        assert shown in page
        assert left not in page
    assert re.findall(r"and (\d) more in admission.json", page) == ["3", "4", "1", "1"]


def test_somebody_elses_words_are_shown_short_and_harmless(admit_folder, folder, tmp_path):
    (folder / "good1.txt").write_text("</td> \x1b[2J \u202e " + "x" * 9999)
    left = LeftOut(files={".<b>": 3}, remarks=("<i>\u2028</i>",))
    admit_folder(left_out=left)
    text = (tmp_path / "out" / "admission.html").read_text()
    page = Page(text)
    for shown in (r"</td> \x1b[2J \xe2\x80\xae xxx", "3  .<b>", "<i> </i>"):
        assert shown in page.text
    assert not {"\x1b", "\u202e", "\u2028"} & set(text)
    assert "x" * 400 not in text


def test_the_record_is_json_that_others_can_read(admit_folder, tmp_path):
    admit_folder()
    record = json.loads((tmp_path / "out" / "admission.json").read_text())
    assert {"format", "settings", "split_rule", "stages", "videos", "clips"} <= set(record)
    assert set(record["clips"][0]) == {
        "key", "source", "source_digest", "start_s", "fps", "frames", "caption", "split"
    }  # fmt: skip
