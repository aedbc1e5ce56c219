"""Clips into published shards: append-only work units, built one by one, each complete or absent.

Publishing a shard: temporary name, checksum, move or upload, read back, manifest; the store's index
comes last, when all shards are there. Killed anywhere and repeated, it gives the same bytes. How a
clip becomes a sample is a function given by the caller (stores.py).
"""

import contextlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from preprocessing.admission.clips import Clip
from videoldm_core.data.names import ShardName
from videoldm_core.data.shards import (
    FORMAT_VERSION,
    INDEX_NAME,
    ClipInfo,
    DroppedClip,
    Index,
    IndexedShard,
    LatentClip,
    Manifest,
    PixelClip,
    ShardWriter,
    StoreIdentity,
    parse_published,
)
from videoldm_core.data.storage import LocalStorage, Storage
from videoldm_core.errors import UserError
from videoldm_core.records import Record
from videoldm_core.system.files import disk_error

PLAN_NAME = "plan.json"
QUARANTINE_NAME = "quarantine.json"

_log = logging.getLogger(__name__)

Made = LatentClip | PixelClip | DroppedClip
MakeSamples = Callable[[Sequence[Clip]], Iterable[tuple[int, Made]]]
"""Clips in; (place of the clip, what became of it) out, in any order."""


class Unit(Record):
    """One shard's worth of work; with the clips in it, it can be done anywhere."""

    shard: ShardName
    clips: tuple[Clip, ...]


class UnitPlan(Record):
    """All units of a store; units are only ever added."""

    format: int = FORMAT_VERSION
    units: tuple[Unit, ...] = ()


def plan_units(clips: Sequence[Clip], storage: Storage, *, clips_per_shard: int) -> list[Unit]:
    """Adds units for clips that are in none, and returns the units that some of `clips` is in.

    Finished shards are never planned again: adding ten videos encodes ten videos. A clip whose
    caption, labels, boxes or source's rate changed is a new one; copies of one video are one.
    """
    clips = _without_copies(clips)
    plan = _read_plan(storage)
    planned = {_what(clip) for unit in plan.units for clip in unit.clips}
    new = [clip for clip in clips if _what(clip) not in planned]
    units = list(plan.units)
    for first in range(0, len(new), clips_per_shard):
        some = tuple(new[first : first + clips_per_shard])
        units.append(Unit(shard=f"shard-{len(units):06d}", clips=some))
    if new:
        storage.write(PLAN_NAME, UnitPlan(units=tuple(units)).model_dump_json(indent=1).encode())
    wanted = {_what(clip) for clip in clips}
    return [unit for unit in units if any(_what(clip) in wanted for clip in unit.clips)]


def finished_units(
    units: Sequence[Unit], storage: Storage, identity: StoreIdentity
) -> dict[str, Manifest]:
    """Manifests of the units whose shard is there and has the size that its manifest says."""
    sizes = storage.list("shard-")
    manifests = {}
    for unit in units:
        if f"{unit.shard}.json" not in sizes:
            continue
        manifest = _read_manifest(storage, unit.shard)
        is_whole = sizes.get(f"{unit.shard}.tar") == manifest.size_bytes
        if is_whole and manifest.identity == identity.digest():
            manifests[unit.shard] = manifest
    return manifests


def build_shard(
    unit: Unit, *, storage: Storage, identity: StoreIdentity, make: MakeSamples
) -> Manifest:
    """Makes and publishes one shard; its manifest is written last.

    Raises:
        UserError: the storage is full or cannot be written to, or does not give back what it was
            given.
    """
    with _scratch_file(storage, unit.shard) as path:
        with ShardWriter(path, shard=unit.shard, identity=identity) as writer:
            dropped = _write_in_order(writer, unit, make(unit.clips))
        manifest = writer.manifest(dropped)
        storage.put_file(f"{unit.shard}.tar", path)
    stored = storage.sha256(f"{unit.shard}.tar")
    if stored != manifest.sha256:
        raise UserError(
            f"Shard '{storage}/{unit.shard}.tar' was written with sha256 {manifest.sha256[:12]} "
            f"and reads back as {stored[:12]}; check the storage, then run the same command again."
        )
    storage.write(f"{unit.shard}.json", manifest.model_dump_json(indent=1).encode())
    return manifest


def write_index(
    clips: Sequence[Clip], units: Sequence[Unit], storage: Storage, identity: StoreIdentity
) -> Index:
    """Publishes the store: the quarantine list, then the index, which names every shard of `units`.

    Raises:
        UserError: a unit is not finished, or no clip at all could be used.
    """
    manifests = finished_units(units, storage, identity)
    for unit in units:
        if unit.shard not in manifests:
            raise UserError(f"'{storage}/{unit.shard}.tar' is not finished; run the encode again.")
    wanted = {_what(clip) for clip in _without_copies(clips)}
    dropped = [clip for manifest in manifests.values() for clip in manifest.dropped]
    if all(not manifest.samples for manifest in manifests.values()):
        first = dropped[0]
        raise UserError(
            f"None of {len(dropped)} clips could be encoded; the first is of {first.source!r}: "
            f"{first.reason}; give other videos or repair these."
        )
    retired = {
        name: tuple(sample.key for sample in manifest.samples if _what(sample) not in wanted)
        for name, manifest in manifests.items()
    }
    index = Index(
        kind=identity.kind,
        identity=identity,
        shards=tuple(
            IndexedShard(name=name, sha256=manifest.sha256, samples=len(manifest.samples))
            for name, manifest in manifests.items()
        ),
        retired={name: keys for name, keys in retired.items() if keys},
    )
    quarantine = json.dumps([clip.model_dump() for clip in dropped], indent=1, ensure_ascii=False)
    _store_if_changed(storage, QUARANTINE_NAME, quarantine.encode())
    _store_if_changed(storage, INDEX_NAME, index.model_dump_json(indent=1).encode())
    return index


def info_of(clip: Clip) -> ClipInfo:
    """The clip's record as shards keep it."""
    return ClipInfo.model_validate({name: getattr(clip, name) for name in ClipInfo.model_fields})


def _what(clip: Clip | ClipInfo) -> Hashable:
    """What makes a stored sample the one that is wanted."""
    labels = tuple(sorted(clip.labels.items()))
    return clip.key, clip.caption, labels, clip.boxes, clip.source_fps


def _without_copies(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of every key."""
    unique: dict[str, Clip] = {}
    for clip in clips:
        unique.setdefault(clip.key, clip)
    return list(unique.values())


def _write_in_order(
    writer: ShardWriter, unit: Unit, results: Iterable[tuple[int, Made]]
) -> tuple[DroppedClip, ...]:
    """Adds samples in the unit's order, whatever order they are made in."""
    waiting: dict[int, Made] = {}
    dropped, following = [], 0
    for place, made in results:
        waiting[place] = made
        while following in waiting:
            item = waiting.pop(following)
            following += 1
            if isinstance(item, DroppedClip):
                _log.warning("%r: %s (clip %s left out)", item.source, item.reason, item.key)
                dropped.append(item)
            else:
                writer.add(item)
    assert following == len(unit.clips), f"{following} results for {len(unit.clips)} clips"
    return tuple(dropped)


@contextmanager
def _scratch_file(storage: Storage, shard: str) -> Iterator[Path]:
    """A file to build a shard in, on the store's own disk where it has one.

    What a killed build left behind is removed by the next build of the same shard.
    """
    is_local = isinstance(storage, LocalStorage)
    folder = storage.folder if is_local else _own_temporary_folder()
    path = folder / f".{shard}.tar.{os.getpid()}.building.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{shard}.*.part"):
            if not _is_running(int(left.name.split(".")[3])):
                left.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _own_temporary_folder() -> Path:
    """Where shards for a remote store are built: this user's alone, for all its processes."""
    folder = Path(tempfile.gettempdir()) / f"videoldm-shards-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()  # of a link itself: where it leads to is for somebody else to say
    except OSError as error:
        raise disk_error(folder, error) from error
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if found.st_uid != os.getuid() or not is_private:
        raise UserError(
            f"{str(folder)!r} belongs to another user, is a link, or lets others in "
            f"(user {found.st_uid}, {stat.filemode(found.st_mode)}); remove it, or set TMPDIR to a "
            "folder of your own."
        )
    return folder


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return process_id != os.getpid()


def _read_plan(storage: Storage) -> UnitPlan:
    try:
        text = storage.read_bytes(PLAN_NAME)
    except FileNotFoundError:
        return UnitPlan()
    return parse_published(UnitPlan, text, where=f"{storage}/{PLAN_NAME}")


def _read_manifest(storage: Storage, shard: str) -> Manifest:
    name = f"{shard}.json"
    return parse_published(Manifest, storage.read_bytes(name), where=f"{storage}/{name}")


def _store_if_changed(storage: Storage, name: str, content: bytes) -> None:
    try:
        if storage.read_bytes(name) == content:
            return
    except FileNotFoundError:
        pass
    storage.write(name, content)
