"""What NAME.json may say, and that anything else is one sentence naming the file and the key."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from preprocessing.sources.folder import find_sources, survey_folder
from preprocessing.sources.sidecars import LARGEST_BYTES, TimedBoxes, read_sidecar
from videoldm_core.cascade.annotations import Box, LabelKind, Vocabulary
from videoldm_core.errors import UserError

TIME = LabelKind(name="time", values=("day", "night"))
WORDS = Vocabulary(labels=(TIME,), box_classes=("car", "bus"))


def boxed(box: str = "[0, 0.5, 0.25, 1]", name: str = "car", time_s: str = "1") -> str:
    return f'{{"frames": [{{"time_s": {time_s}, "boxes": [{{"class": "{name}", "box": {box}}}]}}]}}'


def read(folder: Path, text: str | bytes, words: Vocabulary = WORDS) -> Any:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "a.json").write_bytes(content)
    return read_sidecar(folder / "a.json", words)


def test_labels_and_boxes_are_read_in_order_of_time(tmp_path):
    said = {
        "labels": {"time": "night"},
        "frames": [
            {"time_s": 2, "boxes": [{"class": "car", "box": [0, 0.5, 0.25, 1]}]},
            {"time_s": 0.5, "boxes": []},
        ],
    }
    labels, frames = read(tmp_path, json.dumps(said))
    assert labels == {"time": "night"}
    assert frames == (
        TimedBoxes(0.5, ()),
        TimedBoxes(2.0, (Box("car", 0.0, 0.5, 0.25, 1.0),)),
    )


def test_a_preset_ignores_the_half_it_has_no_words_for(tmp_path):
    text = '{"labels": {"weather": "rain"}, ' + boxed(name="cow")[1:]
    assert read(
        tmp_path,
        text.replace("weather", "time").replace("rain", "day"),
        WORDS.model_copy(update={"box_classes": ()}),
    ) == ({"time": "day"}, ())
    cows = Vocabulary(box_classes=("cow",))
    labels, frames = read(tmp_path, text, cows)
    assert labels == {}
    assert frames[0].boxes[0].name == "cow"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"is not the JSON of labels and boxes"),
        ("{", r"is not the JSON of labels and boxes"),
        (b"\xff\xfe{}", r"is not the JSON .*utf-8"),
        ("[" * 100_000, r"is not the JSON .*recursion"),
        ('{"labels": ' + "[" * 900 + "]" * 900 + "}", r"labels = \[.*\.\.\..*dictionary"),
        ("[]", r"value = \[\]: Input should be a valid dictionary"),
        ("null", r"value = None: Input should be a valid dictionary"),
        ('{"label": {}}', r"unknown key 'label'; did you mean 'labels'\?"),
        ('{"labels": {}, "labels": {}}', r"the key 'labels' comes twice"),
        ('{"labels": {"time": 3}}', r"labels\.time = 3: Input should be a valid string"),
        ('{"labels": ["night"]}', r"labels = \['night'\]"),
        ('{"labels": {"tmie": "night"}}', r"unknown label 'tmie'; did you mean 'time'\?"),
        ('{"labels": {"time": "nigth"}}', r"'nigth' of label 'time'; did you mean 'night'\?"),
        ('{"labels": {"time": "dawn, perhaps"}}', r"label 'time'; known: day, night\."),
        ('{"labels": {"time": "' + "x" * 200 + '"}}', r"labels\.time = 'x+\.\.\.x+'.* at most 100"),
        ('{"' + "k" * 9999 + '": 1}', r"unknown key 'k{100}'; known: frames, labels"),
        ("{" + ", ".join(f'"k{i}": 0' for i in range(999)) + "}", r"an object has 999 keys"),
        ('{"frames": {}}', r"frames = \{\}: Input should be a valid tuple"),
        ('{"frames": [' + "0, " * 200_000 + "0]}", r"frames\.0 = 0: Input should be"),
        ('{"frames": [{"boxes": []}]}', r"key 'frames\.0\.time_s' is missing"),
        ('{"frames": [{"time_s": 1}]}', r"key 'frames\.0\.boxes' is missing"),
        ('{"frames": [{"time_s": 1, "boxs": []}]}', r"'frames\.0\.boxs'; did you mean 'boxes'"),
        (boxed(time_s="NaN"), r"NaN is no number"),
        (boxed(time_s="1e999"), r"frames\.0\.time_s = inf: Input should be a finite number"),
        (boxed(time_s="-0.1"), r"frames\.0\.time_s = -0\.1: .*greater than or equal to 0"),
        (boxed(time_s='"1"'), r"frames\.0\.time_s = '1': Input should be a valid number"),
        (boxed(time_s="true"), r"frames\.0\.time_s = True"),
        (boxed(time_s="9" * 5000), r"is not the JSON .*limit"),
        (boxed("[0, 0, 1, 1.5]"), r"frames\.0\.boxes\.0\.box\.3 = 1\.5: .*less than or equal to 1"),
        (boxed("[-1, 0, 1, 1]"), r"frames\.0\.boxes\.0\.box\.0 = -1"),
        (boxed("[0, 0, 1, Infinity]"), r"Infinity is no number"),
        (boxed("[0, 0, 1]"), r"key 'frames\.0\.boxes\.0\.box\.3' is missing"),
        (boxed("[0, 0, 1, 1, 1]"), r"frames\.0\.boxes\.0\.box = "),
        (boxed('["0", 0, 1, 1]'), r"box\.0 = '0': Input should be a valid number"),
        (boxed("[0.5, 0, 0.5, 1]"), r"boxes\.0\.box = .*x0 < x1 and y0 < y1"),
        (boxed("[0, 1, 1, 0]"), r"boxes\.0\.box = .*x0 < x1 and y0 < y1"),
        (boxed("null"), r"frames\.0\.boxes\.0\.box = None"),
        (boxed(name="cra"), r"frames\.0: unknown class 'cra' of a box; did you mean 'car'\?"),
        (boxed().replace("class", "clas"), r"'frames\.0\.boxes\.0\.clas'; did you mean 'class'\?"),
        (
            '{"frames": [{"time_s": 1, "boxes": []}, {"time_s": 1.0, "boxes": []}]}',
            r"frames\.1 gives time_s = 1 a second time",
        ),
    ],
)
def test_what_it_must_not_say_is_one_sentence_with_the_file_and_the_key(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as raised:
        read(tmp_path, text)
    sentence = str(raised.value)
    assert repr(str(tmp_path / "a.json")) in sentence
    assert "\n" not in sentence
    assert len(sentence) < len(str(tmp_path)) + 500


def test_a_file_of_unreasonable_size_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(UserError, match=r"a\.json' has 16 MiB, more than the 16"):
        read_sidecar(tmp_path / "a.json", WORDS)


@pytest.fixture
def folder(tmp_path):
    """Two files named like videos."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("name", ["a.json", "a.JSON", "a.mp4.json"])
def test_sources_carry_what_lies_beside_them_and_others_have_neither(folder, name):
    (folder / name).write_text('{"labels": {"time": "day"}, ' + boxed()[1:])
    a, b = find_sources(folder, WORDS)
    assert (a.labels, len(a.frames)) == ({"time": "day"}, 1)
    assert (b.labels, b.frames, b.refusal) == ({}, (), None)


def test_a_preset_without_words_does_not_even_open_the_file(folder):
    (folder / "a.json").write_text("not JSON at all")
    found = survey_folder(folder)
    assert all((s.labels, s.frames, s.refusal) == ({}, (), None) for s in found.sources)
    assert found.left_out.files == {".json": 1}


def test_a_second_file_of_labels_is_noted_and_not_read(folder):
    (folder / "a.json").write_text('{"labels": {"time": "day"}}')
    (folder / "a.mp4.json").write_text("not JSON")
    a, _ = find_sources(folder, WORDS)
    assert a.labels == {"time": "day"}
    assert a.notes == ("'a.mp4.json' is not read, as there is 'a.json'",)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("{"), r"'.*/a\.json' is not the JSON of labels and boxes"),
        (lambda path: path.write_bytes(b"\xff"), r"'.*/a\.json' is not the JSON .*utf-8"),
        (lambda path: path.write_text('{"labels": {"\\ud800\\n": "x"}}'), r"a\.json': labels"),
        (lambda path: path.mkdir(), r"'a\.json' cannot be read: it is a folder"),
        (lambda path: path.symlink_to("nowhere"), r"'a\.json' cannot be read: it is a link to n"),
        (lambda path: os.mkfifo(path), r"'a\.json' cannot be read: it is a pipe"),
        (lambda path: path.touch() or os.truncate(path, 1 << 40), r"a\.json' has 1048576 MiB"),
    ],
)
def test_bad_labels_cost_their_video_alone(folder, make, said):
    make(folder / "a.json")
    a, b = find_sources(folder, WORDS)
    assert a.refusal is not None
    assert a.refusal.category == "bad annotations"
    assert re.search(said, a.refusal.detail)
    assert a.refusal.detail.encode()
    assert not a.digest, "what is refused is not read"
    assert b.refusal is None
