"""Sound videos of every container, damaged at random, and what admission and a store make of them.

Seeded: the same number gives the same damaged file wherever the sound one has the same bytes.
"""

import random
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch

from preprocessing.admission.admit import admit
from preprocessing.admission.record import Admission
from preprocessing.encoding.stores import StoreRequest, encode_pixels
from preprocessing.sources.folder import find_sources
from preprocessing.video.plausible import MOST_CLIPS_PER_FRAME, Timeline, why_implausible
from videoldm_core.cascade.stage import VideoFormat
from videoldm_core.data.store import open_store

# name, encoder, pixel format
CONTAINERS = (
    ("a.mp4", "libx264", "yuv420p"),
    ("a.mkv", "libx264", "yuv420p"),
    ("a.webm", "libvpx-vp9", "yuv420p"),
    ("a.flv", "flv", "yuv420p"),
    ("a.avi", "mpeg4", "yuv420p"),
    ("a.ts", "mpeg2video", "yuv420p"),
    ("a.mov", "mjpeg", "yuvj420p"),
    ("a.gif", "gif", "rgb8"),
    ("a.mpg", "mpeg1video", "yuv420p"),
)
FRAMES, RATE = 36, 25
TRUE_S = FRAMES / RATE
VIDEO = VideoFormat(fps=8, height=16, width=24, upscale=1, clip_seconds=2)
WINDOWS = {"image": (1, (1,)), "motion": (3, (2, 1))}
SOUND_VIDEOS = 3  # of each batch, so that there is always something to admit


class NoText:
    """A text tower for which all captions are alike."""

    def encode(self, captions: list[str]) -> torch.Tensor:
        return torch.zeros(len(captions), 1, 2)

    def digest(self) -> str:
        return "none"


def write_sound(path: Path, encoder: str, pixels: str, *, seed: int = 0) -> bytes:
    """Writes a grainy film of FRAMES frames; its bytes."""
    random_numbers = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.gop_size = 12
        for index in range(FRAMES):
            grain = random_numbers.integers(-9, 9, (48, 64, 3))
            frame = (grain + 30 + 5 * index).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def damaged(content: bytes, seed: int) -> bytes:
    """The file with one to three damages."""
    dice = random.Random(seed)
    changed = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        dice.choice(_DAMAGES)(changed, dice)
    return bytes(changed)


def _place(content: bytearray, dice: random.Random) -> int:
    """Half of the damages are in the first or last tenth, where containers keep their indexes."""
    length = len(content)
    end = max(1, length // 10)
    place = dice.randrange(length) if dice.random() < 0.5 else dice.randrange(end)
    return place if dice.random() < 0.7 else length - 1 - place


def _flip(content: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 2, 8, 40))):
        content[_place(content, dice)] ^= 1 << dice.randrange(8)


def _overwrite(content: bytearray, dice: random.Random) -> None:
    place, count = _place(content, dice), dice.choice((1, 4, 8, 60, 400))
    content[place : place + count] = dice.randbytes(len(content[place : place + count]))


def _zero(content: bytearray, dice: random.Random) -> None:
    place, count = _place(content, dice), dice.choice((1, 4, 16, 200, 2000))
    content[place : place + count] = bytes(len(content[place : place + count]))


def _delete(content: bytearray, dice: random.Random) -> None:
    place = _place(content, dice)
    if len(content) > 600:
        del content[place : place + dice.choice((1, 2, 4, 50, 500))]


def _insert(content: bytearray, dice: random.Random) -> None:
    place = _place(content, dice)
    content[place:place] = dice.randbytes(dice.choice((1, 2, 4, 50, 500)))


def _truncate(content: bytearray, dice: random.Random) -> None:
    del content[max(1, _place(content, dice)) :]


def _repeat(content: bytearray, dice: random.Random) -> None:
    place, count = _place(content, dice), dice.choice((8, 100, 1000, 5000))
    content[place:place] = content[place : place + count] * dice.choice((1, 1, 3))


def _extreme_field(content: bytearray, dice: random.Random) -> None:
    """A number of 1 to 8 bytes becomes the smallest or largest there is."""
    count = dice.choice((1, 2, 4, 8))
    largest = 256**count - 1
    number = dice.choice((0, 1, largest, largest - 1, largest // 2, largest // 2 + 1))
    order = dice.choice(("big", "little"))
    place = min(_place(content, dice), max(0, len(content) - count))
    content[place : place + count] = number.to_bytes(count, order)


# What stands before numbers that say when and how long frames are shown.
_OF_TIMES = (
    *(b"mvhd", b"tkhd", b"mdhd", b"elst", b"stts", b"ctts"),  # mp4, mov
    *(b"\x2a\xd7\xb1", b"\x44\x89", b"\x23\xe3\x83", b"\xe7", b"\xa3", b"\x9b"),  # mkv, webm
    *(b"avih", b"strh"),  # avi
    b"\x21\xf9\x04",  # gif
    b"\x09\x00",  # flv
    *(b"\x47\x01", b"\x00\x00\x01\xe0", b"\x00\x00\x01\xba"),  # ts, mpg
)


def _extreme_time(content: bytearray, dice: random.Random) -> None:
    """A number near a mark of times becomes the smallest, the largest, or another."""
    found = [mark for mark in _OF_TIMES if mark in content]
    if not found:
        return
    mark = dice.choice(found)
    places = [at for at in range(len(content)) if content.startswith(mark, at)]
    count = dice.choice((1, 2, 3, 4, 8))
    largest = 256**count - 1
    number = dice.choice((0, 1, largest, largest // 2, dice.randint(0, largest)))
    start = dice.choice(places) + len(mark) + dice.choice((*range(9), 12, 16, 20, 24, 28, 36))
    content[start : start + count] = number.to_bytes(count, dice.choice(("big", "little")))


_DAMAGES = (
    _flip, _overwrite, _zero, _delete, _insert, _truncate, _repeat, _extreme_field,
    *(_extreme_time,) * 3,
)  # fmt: skip


@dataclass
class Tally:
    """What became of many damaged files."""

    files: int = 0
    admitted: int = 0
    clips: int = 0
    stored: int = 0  # clips that are in the store
    longest_s: float = 0.0
    longest_name: str = ""
    most_frames: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    by_container: Counter[str] = field(default_factory=Counter)  # admitted ones
    peak_bytes: int = 0  # of this process

    def __str__(self) -> str:
        return (
            f"{self.files} files, {self.admitted} admitted {dict(self.by_container)}, refused "
            f"{dict(self.refused.most_common())}; longest {self.longest_s:.2f} s "
            f"({self.longest_name}) of true {TRUE_S:.2f} s, most frames {self.most_frames} of "
            f"{FRAMES}; {self.clips} clips, {self.stored} stored; peak "
            f"{self.peak_bytes / 2**20:.0f} MiB"
        )


def try_damages(folder: Path, seeds: range, *, workers: int = 2) -> Tally:
    """Admits and stores a damaged file per seed, from a folder that also has sound ones.

    Raises:
        AssertionError: something is admitted that cannot be, or a video is not in the report.
    """
    videos, out = folder / "videos", folder / "out"
    videos.mkdir(parents=True)
    sound = {
        name: write_sound(folder / name, encoder, pixels) for name, encoder, pixels in CONTAINERS
    }
    for number in range(SOUND_VIDEOS):
        write_sound(videos / f"sound{number}.mp4", "libx264", "yuv420p", seed=number + 1)
    names = dict(zip(seeds, _turns(seeds), strict=True))
    for seed, (name, *_) in names.items():
        (videos / f"{seed:06d}{Path(name).suffix}").write_bytes(damaged(sound[name], seed))
    admission = admit(find_sources(videos), video=VIDEO, windows=WINDOWS, out=out, workers=workers)
    assert len(admission.videos) == len(seeds) + SOUND_VIDEOS
    tally = _judged(admission)
    tally.stored = _store(admission, videos, out)
    tally.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return tally


def _turns(seeds: range) -> Iterator[tuple[str, str, str]]:
    for seed in seeds:
        yield CONTAINERS[seed % len(CONTAINERS)]


def _judged(admission: Admission) -> Tally:
    tally = Tally()
    for video in admission.videos:
        if video.name.startswith("sound"):
            assert video.is_accepted, video.reason
            continue
        tally.files += 1
        if not video.is_accepted:
            assert video.category, video.name
            assert video.reason, video.name
            tally.refused[video.category] += 1
            continue
        probe = video.probe
        assert probe is not None, video.name
        timeline = Timeline(probe.frames, probe.duration_s, probe.longest_frame_s)
        assert why_implausible(timeline, size=video.size) == "", video.name
        assert video.clips <= MOST_CLIPS_PER_FRAME * probe.frames, video.name
        # Three damages at most, each of which may leave the same bytes there four times.
        assert probe.frames <= 4**3 * FRAMES, f"{video.name}: {probe.frames} frames"
        tally.admitted += 1
        tally.clips += video.clips
        tally.by_container[Path(video.name).suffix] += 1
        tally.most_frames = max(tally.most_frames, probe.frames)
        if probe.duration_s > tally.longest_s:
            tally.longest_s, tally.longest_name = probe.duration_s, video.name
    return tally


def _store(admission: Admission, videos: Path, out: Path) -> int:
    """Every admitted clip is in the store or in its quarantine; how many are stored."""
    request = StoreRequest(
        clips=admission.clips, folder_of_videos=videos, out=out, video=VIDEO, text=NoText()
    )
    store = open_store(encode_pixels(request))
    store.verify()
    names = {sample.source for sample in store.samples}
    assert {f"sound{number}.mp4" for number in range(SOUND_VIDEOS)} <= names
    assert {sample.key for sample in store.samples} <= {clip.key for clip in admission.clips}
    return len(store.samples)
