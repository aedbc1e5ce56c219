"""Shards are complete or absent, only added to, and the same bytes however often killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preprocessing.admission.clips import Clip
from preprocessing.encoding.shard import (
    DroppedClip,
    build_shard,
    finished_units,
    info_of,
    plan_units,
    write_index,
)
from videoldm_core.data.shards import LatentClip, StoreIdentity
from videoldm_core.data.storage import LocalStorage
from videoldm_core.data.store import open_store
from videoldm_core.errors import UserError

IDENTITY = StoreIdentity(
    kind="latents",
    encoder="e",
    preprocessing="p",
    fps=16,
    height_px=8,
    width_px=8,
    text="t",
)


def clip(number: int, caption: str = "a car") -> Clip:
    return Clip(
        key=f"{number:016x}",
        source=f"{number}.mp4",
        source_digest="d",
        start_s=0,
        fps=16,
        frames=4,
        caption=caption,
        split="train",
    )


def made(one: Clip) -> LatentClip:
    number = int(one.key, 16)
    return LatentClip(
        info=info_of(one),
        latents=np.full((4, 2, 3, 3), number, np.float16),
        text=np.ones((2, 2), np.float16),
    )


def make(clips):
    """Results come in reverse order, as they may from several processes."""
    return [(i, made(one)) for i, one in reversed(list(enumerate(clips)))]


def encode(clips, storage: LocalStorage, make=make) -> None:
    units = plan_units(clips, storage, clips_per_shard=2)
    finished = finished_units(units, storage, IDENTITY)
    for unit in units:
        if unit.shard not in finished:
            build_shard(unit, storage=storage, identity=IDENTITY, make=make)
    write_index(clips, units, storage, IDENTITY)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_store_holds_the_clips_in_order(tmp_path):
    encode([clip(i) for i in range(5)], LocalStorage(tmp_path))
    store = open_store(tmp_path)
    store.verify()
    assert [sample.key for sample in store.samples] == [clip(i).key for i in range(5)]
    assert [store.read_latents(s, [0])[0, 0, 0, 0].item() for s in store.samples] == [0, 1, 2, 3, 4]
    assert sorted(contents(tmp_path)) == [
        "index.json",
        "plan.json",
        "quarantine.json",
        *[f"shard-{i:06d}.{suffix}" for i in range(3) for suffix in ("json", "tar")],
    ]


def test_a_finished_store_is_left_alone(tmp_path):
    clips = [clip(i) for i in range(3)]
    encode(clips, LocalStorage(tmp_path))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    def never(_):
        raise AssertionError("nothing is left to make")

    encode(clips, LocalStorage(tmp_path), make=never)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_added_clips_get_new_shards_and_old_ones_are_not_touched(tmp_path):
    encode([clip(i) for i in range(3)], LocalStorage(tmp_path))
    before = contents(tmp_path)
    asked = []

    def recording(clips):
        asked.extend(one.key for one in clips)
        return make(clips)

    encode([clip(i) for i in (7, 0, 1, 2, 8)], LocalStorage(tmp_path), make=recording)
    assert asked == [clip(7).key, clip(8).key]
    after = contents(tmp_path)
    for name in before:
        if name.startswith("shard-"):
            assert after[name] == before[name]
    keys = [sample.key for sample in open_store(tmp_path).samples]
    assert keys == [clip(i).key for i in (0, 1, 2, 7, 8)]


def test_removed_clips_and_old_captions_are_retired(tmp_path):
    encode([clip(i) for i in range(4)], LocalStorage(tmp_path))
    changed = [clip(0), clip(2, caption="a bus"), clip(3)]
    encode(changed, LocalStorage(tmp_path))
    samples = open_store(tmp_path).samples
    assert [(s.key, s.caption) for s in samples] == [
        (clip(0).key, "a car"),
        (clip(3).key, "a car"),
        (clip(2).key, "a bus"),
    ]
    encode([clip(i) for i in range(4)], LocalStorage(tmp_path))
    assert [s.caption for s in open_store(tmp_path).samples] == ["a car"] * 4


def test_copies_of_one_video_are_stored_once(tmp_path):
    encode([clip(0), clip(0, caption="the same video elsewhere"), clip(1)], LocalStorage(tmp_path))
    assert [s.caption for s in open_store(tmp_path).samples] == ["a car", "a car"]


@pytest.mark.parametrize("damage", ["no tar", "no manifest", "truncated"])
def test_a_damaged_shard_is_built_again(tmp_path, damage):
    clips = [clip(i) for i in range(4)]
    encode(clips, LocalStorage(tmp_path))
    before = contents(tmp_path)
    tar, manifest = tmp_path / "shard-000001.tar", tmp_path / "shard-000001.json"
    if damage == "truncated":
        tar.write_bytes(tar.read_bytes()[:600])
    else:
        (tar if damage == "no tar" else manifest).unlink()
    encode(clips, LocalStorage(tmp_path))
    assert contents(tmp_path) == before


def test_a_dropped_clip_is_quarantined_with_its_reason(tmp_path, caplog):
    def dropping(clips):
        for i, one in enumerate(clips):
            bad = DroppedClip(key=one.key, source=one.source, reason="truncated: no frame")
            yield i, bad if one.key == clip(1).key else made(one)

    encode([clip(i) for i in range(3)], LocalStorage(tmp_path), make=dropping)
    assert [s.key for s in open_store(tmp_path).samples] == [clip(0).key, clip(2).key]
    dropped = {"key": clip(1).key, "source": "1.mp4", "reason": "truncated: no frame"}
    assert json.loads((tmp_path / "shard-000000.json").read_text())["dropped"] == [dropped]
    assert json.loads((tmp_path / "quarantine.json").read_text()) == [dropped]
    assert "'1.mp4': truncated: no frame" in caplog.text


def test_a_store_without_any_usable_clip_is_not_published(tmp_path):
    def dropping(clips):
        return [
            (i, DroppedClip(key=c.key, source=c.source, reason="bad")) for i, c in enumerate(clips)
        ]

    with pytest.raises(
        UserError, match="None of 3 clips could be encoded; the first is of '0.mp4'"
    ):
        encode([clip(i) for i in range(3)], LocalStorage(tmp_path), make=dropping)
    assert not (tmp_path / "index.json").exists()


def test_the_index_waits_for_every_shard(tmp_path):
    storage = LocalStorage(tmp_path)
    units = plan_units([clip(i) for i in range(4)], storage, clips_per_shard=2)
    build_shard(units[0], storage=storage, identity=IDENTITY, make=make)
    with pytest.raises(UserError, match="shard-000001.tar' is not finished; run the encode again"):
        write_index([clip(i) for i in range(4)], units, storage, IDENTITY)


def test_storage_that_does_not_give_back_what_it_was_given_is_noticed(tmp_path):
    class Forgetful(LocalStorage):
        def put_file(self, name, path):
            path.write_bytes(path.read_bytes()[:-1] + b"x")
            super().put_file(name, path)

    with pytest.raises(UserError, match="reads back as .*; check the storage"):
        encode([clip(0)], Forgetful(tmp_path))
    assert not (tmp_path / "shard-000000.json").exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    opening = Path.open

    def on_a_full_disk(path: Path, mode: str = "r", *args, **options):
        if path.name.endswith(".building.part"):
            path.touch()
            return opening(Path("/dev/full"), mode, buffering=0)
        return opening(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    with pytest.raises(UserError, match="Cannot write .*shard-000000.* No space left .*free space"):
        encode([clip(0)], LocalStorage(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


# One interpreter that forks a build per kill: nothing else runs in it, and starting is quick.
KILLED_BUILDS = """
import json, os, signal, sys
from pathlib import Path
tests, root, folder = sys.argv[1:]
sys.path[:0] = [tests, root]
import test_shard
from videoldm_core.data.storage import LocalStorage

class Killed(LocalStorage):
    def tick(self):
        self.events_left -= 1
        if self.events_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, name, content):
        self.tick(); super().write(name, content); self.tick()

    def put_file(self, name, path):
        self.tick(); super().put_file(name, path); self.tick()

    def make(self, clips):
        for i, one in enumerate(clips):
            self.tick()
            yield i, test_shard.made(one)

def build(events):
    storage = Killed(Path(folder))
    storage.events_left = events
    test_shard.encode([test_shard.clip(i) for i in range(3)], storage, storage.make)
    os._exit(0)

signals = []
while not signals or signals[-1]:
    child = os.fork()
    if child == 0:
        build(len(signals))
    signals.append(os.WTERMSIG(os.waitpid(child, 0)[1]))
    (Path(folder) / "index.json").exists() and test_shard.open_store(folder).verify()
print(json.dumps(signals))
"""


def test_a_build_killed_anywhere_and_repeated_gives_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    encode([clip(i) for i in range(3)], LocalStorage(whole))
    here = Path(__file__).resolve().parent
    # Each build is killed one event later than the last, over what that one left behind.
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_BUILDS, str(here), str(here.parents[1]), str(killed)],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    signals = json.loads(ended.stdout)
    assert set(signals[:-1]) == {signal.SIGKILL}
    assert len(signals) > 5
    finished = {k: v for k, v in contents(killed).items() if not k.endswith(".part")}
    assert finished == contents(whole)
    assert not [name for name in contents(killed) if name.startswith(".shard-")]
