"""Paths as users write them: home folders, empty ones, and those that would feed on themselves."""

import pytest

from flows.config.load import load_run
from videoldm_core.errors import UserError


def test_a_home_folder_is_meant_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "drives").mkdir()
    (tmp_path / "street.png").write_bytes(b"")
    overrides = ["out=~/run", "videos=~/drives", "sample.first_frame=~/street.png"]
    run = load_run("driving", overrides)
    assert run.out == tmp_path / "run"
    assert run.videos == tmp_path / "drives"
    assert run.sample.first_frame == tmp_path / "street.png"


@pytest.mark.parametrize("out", [".", "runs/demo"])
def test_a_run_in_the_folder_of_its_videos_is_refused(tmp_path, out):
    with pytest.raises(UserError, match="lies in videos = .* would be trained on"):
        load_run("tiny", [f"videos={tmp_path}", f"out={tmp_path / out}"])
    (tmp_path / "videos").mkdir()
    beside = load_run("tiny", [f"videos={tmp_path / 'videos'}", f"out={tmp_path / out}"])
    assert beside.videos == tmp_path / "videos"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["videos=/films/caf\udce9"],
            r"videos holds '\"/films/caf\\udce9', which is not UTF-8; ren",
        ),
        (["out=caf\udce9"], r"out holds '\"caf\\udce9', which is not UTF-8"),
        (["sample.prompt=caf\udce9"], r"sample holds .*caf\\udce9', which is not UTF-8"),
    ],
)
def test_settings_that_are_not_utf8_are_one_sentence(overrides, said):
    with pytest.raises(UserError, match=said) as raised:
        load_run("tiny", overrides)
    assert str(raised.value).encode()


def test_a_present_folder_that_is_not_utf8_is_one_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"the present folder holds .*caf.*not UTF-8"):
        load_run("tiny")
