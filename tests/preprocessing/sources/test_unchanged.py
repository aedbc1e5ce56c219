"""Videos are those that were admitted: by their state, and where that is another by content."""

import os
from pathlib import Path

import pytest

from preprocessing.sources.digests import Digests
from preprocessing.sources.unchanged import CHANGED, GONE, Admitted, state_now
from videoldm_core.system.files import sha256_of_file

OLD_S = 1_000_000_000


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"as it was admitted")
    os.utime(path, (OLD_S, OLD_S))
    return path


@pytest.fixture
def kept(video: Path, tmp_path: Path) -> Path:
    """What admitting the video kept."""
    with Digests(tmp_path / "digests.json") as digests:
        digests.of(video)
    return tmp_path / "digests.json"


def change(video: Path, kept: Path | None, digest: str) -> str:
    return Admitted(kept).change(video, digest, since=state_now(video))


def test_a_file_in_the_state_that_was_admitted_is_not_read_again(video, kept, monkeypatch):
    digest = sha256_of_file(video)
    monkeypatch.setattr("preprocessing.sources.digests.sha256_of_file", None)
    assert change(video, kept, digest) == ""


def test_a_file_in_another_state_is_read_once(video, kept, monkeypatch):
    digest, read = sha256_of_file(video), []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_of_file(path)

    monkeypatch.setattr("preprocessing.sources.digests.sha256_of_file", counted)
    os.utime(video, (OLD_S + 1, OLD_S + 1))
    admitted = Admitted(kept)
    for _ in range(3):
        assert admitted.change(video, digest, since=state_now(video)) == ""
    assert read == [video]


def test_another_content_of_the_same_size_and_time_is_noticed(video, kept):
    digest = sha256_of_file(video)
    video.write_bytes(b"as it was  changed")
    os.utime(video, (OLD_S, OLD_S))
    assert change(video, kept, digest) == CHANGED


@pytest.mark.parametrize("restored", [b"as it was admitted", b"as it was  changed"])
def test_a_file_that_changed_while_it_was_read_is_not_trusted(video, kept, restored):
    digest, before = sha256_of_file(video), state_now(video)
    video.write_bytes(restored)
    assert Admitted(kept).change(video, digest, since=before) == CHANGED


def test_a_file_that_is_gone_is_said(video, kept):
    digest, before = sha256_of_file(video), state_now(video)
    video.unlink()
    assert Admitted(kept).change(video, digest, since=before) == GONE


def test_without_kept_digests_the_content_decides(video):
    digest = sha256_of_file(video)
    assert change(video, None, digest) == ""
    assert change(video, None, "f" * 64) == CHANGED
