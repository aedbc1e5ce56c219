"""The report as a page and as JSON."""

import json
import re
from html.parser import HTMLParser


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


def test_the_record_is_json_that_others_can_read(admit_folder, tmp_path):
    admit_folder()
    record = json.loads((tmp_path / "out" / "admission.json").read_text())
    assert {"format", "settings", "split_rule", "stages", "videos", "clips"} <= set(record)
    assert set(record["clips"][0]) == {
        "key", "source", "source_digest", "start_s", "fps", "frames", "caption", "split"
    }  # fmt: skip
