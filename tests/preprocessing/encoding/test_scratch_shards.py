"""Where shards of a remote store are built: a folder of this user's alone."""

import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest

from preprocessing.admission.clips import Clip
from preprocessing.encoding.shard import build_shard, info_of, plan_units
from videoldm_core.data.shards import LatentClip, StoreIdentity
from videoldm_core.data.storage import LocalStorage
from videoldm_core.errors import UserError

IDENTITY = StoreIdentity(
    kind="latents", encoder="e", preprocessing="p", fps=16, height_px=8, width_px=8, text="t"
)
CLIP = Clip(
    key="0" * 16,
    source="0.mp4",
    source_digest="d",
    start_s=0,
    fps=16,
    frames=4,
    caption="a car",
    split="train",
)


class Remote:
    """Storage that has no folder of its own, as far as building needs it."""

    def __init__(self, folder: Path) -> None:
        self._kept = LocalStorage(folder)

    def __getattr__(self, name: str):
        return getattr(self._kept, name)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"videoldm-shards-{os.getuid()}"


def build(folder: Path, look=lambda: None) -> None:
    def make(clips):
        look()
        latents, text = np.zeros((4, 2, 3, 3), np.float16), np.ones((2, 2), np.float16)
        yield 0, LatentClip(info=info_of(clips[0]), latents=latents, text=text)

    storage = Remote(folder)
    (unit,) = plan_units([CLIP], storage, clips_per_shard=1)
    build_shard(unit, storage=storage, identity=IDENTITY, make=make)


def test_they_are_built_where_no_other_user_may_look(own, tmp_path):
    seen = []
    build(tmp_path / "store", lambda: seen.append((own.stat().st_mode, len(list(own.iterdir())))))
    ((mode, files),) = seen
    assert (stat.S_IMODE(mode), files) == (0o700, 1)
    assert list(own.iterdir()) == []


def test_a_folder_of_that_name_that_another_user_made_is_not_used(own, tmp_path, monkeypatch):
    own.mkdir()
    another = own.stat().st_uid + 1
    own.rename(own.with_name(f"videoldm-shards-{another}"))
    monkeypatch.setattr(os, "getuid", lambda: another)
    with pytest.raises(UserError, match=r"videoldm-shards-\d+' belongs to another user"):
        build(tmp_path / "store")


def test_a_link_of_that_name_is_not_followed(own, tmp_path):
    mine = tmp_path / "my own folder"
    mine.mkdir(mode=0o700)
    (mine / ".shard-000000.tar.1.building.part").touch()  # would be taken for one left behind
    own.symlink_to(mine)
    with pytest.raises(UserError, match=r"videoldm-shards-\d+' belongs to .* is a link"):
        build(tmp_path / "store")
    assert [path.name for path in mine.iterdir()] == [".shard-000000.tar.1.building.part"]


def test_a_folder_of_that_name_that_lets_others_in_is_not_used(own, tmp_path):
    own.mkdir()
    own.chmod(0o777)
    with pytest.raises(UserError, match=r"lets others in \(user \d+, drwxrwxrwx\); remove it"):
        build(tmp_path / "store")


@pytest.mark.parametrize(
    ("answer", "is_kept"), [(ProcessLookupError, False), (PermissionError, True)]
)
def test_what_a_living_process_builds_is_left_alone(own, tmp_path, monkeypatch, answer, is_kept):
    own.mkdir(mode=0o700)
    left = own / ".shard-000000.tar.123456.building.part"
    left.touch()

    def kill(process_id: int, number: int) -> None:
        raise answer

    monkeypatch.setattr(os, "kill", kill)
    build(tmp_path / "store")
    assert left.exists() == is_kept
