"""Who reads which window at which step: arithmetic over frame counts, without state or I/O.

A window is (sample, start, stride): `frames` frames of one clip. Nothing here remembers a position:
to resume, or to change the number of processes, is to ask for the same step again.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from videoldm_core.cascade.annotations import BoxedFrame
from videoldm_core.data.shuffle import mixed, shuffled
from videoldm_core.errors import UserError

# Of a rate, that may be missing: 29.97 is taken for 30, 23.976 for 24, and 24 is not for 25.
RATE_TOLERANCE = 0.02
AT_ONCE = 1024  # positions drawn together: 0.4 us each, where one alone takes 100


class HasFrames(Protocol):
    """The part of a sample that decides its windows."""

    @property
    def frames(self) -> int: ...

    @property
    def split(self) -> str: ...

    @property
    def fps(self) -> float: ...

    @property
    def source_fps(self) -> float | None: ...


class HasSamples(Protocol):
    """A store, as far as the plan needs it."""

    @property
    def samples(self) -> Sequence[HasFrames]: ...


class HasBoxes(HasFrames, Protocol):
    """The part of a sample that decides which of its frames have boxes."""

    @property
    def boxes(self) -> Sequence[BoxedFrame]: ...


class HasBoxedSamples(Protocol):
    """A store, as far as `BoxedFrames` needs it."""

    @property
    def samples(self) -> Sequence[HasBoxes]: ...


class Window(NamedTuple):
    """`frames` frames of store.samples[sample]: start, start + stride, ..."""

    sample: int
    start: int
    stride: int
    stride_index: int  # place of `stride` in Windows.strides


def keeps_up(source_fps: float, fps: float) -> bool:
    """Whether a video of `source_fps` has a frame of its own for every frame at `fps`.

    Of a variable rate it is the mean: who stands still for long is too slow everywhere.
    """
    return source_fps >= fps * (1 - RATE_TOLERANCE)


def shows_motion(clip: HasFrames, stride: int) -> bool:
    """Whether the clip's source has a frame of its own for every frame at `stride`.

    Otherwise some neighbours are copies, and what is learned from them is to stand still. So
    1.875 key frames per second are learned from videos of 10 too, and interpolation to 30 only from
    videos of 30 (§4.1: most of the driving videos have 10).
    """
    return clip.source_fps is None or keeps_up(clip.source_fps * stride, clip.fps)


def window_count(clip: HasFrames, *, frames: int, stride: int) -> int:
    """Windows of `frames` frames at `stride` in one clip; none where its source is too slow.

    Too slow for them to show motion. A single frame shows none, and is taken from any source.
    """
    if frames > 1 and not shows_motion(clip, stride):
        return 0
    return max(0, clip.frames - (frames - 1) * stride)


def why_too_slow(clips: Sequence[HasFrames], *, frames: int, stride: int) -> str:
    """Why clips that are long enough hold no window at `stride`, and what to do; no full stop."""
    rates = [(clip.source_fps, clip.fps) for clip in clips if clip.source_fps is not None]
    assert len(rates) == len(clips), "a source that keeps up is not too slow"
    fastest, fps = max(rates)
    return (
        f"{frames} frames at stride {stride} need videos of {fps / stride:.4g} frames/s, and the "
        f"fastest that is long enough has {fastest:.4g}, so that frames would repeat; add videos "
        f"of {fps / stride:.4g} frames/s, set video.fps to {fastest * stride:.4g}, or choose "
        "larger strides for this stage"
    )


class Windows:
    """Every window of `frames` frames at one of `strides` in the clips of `split`.

    Where it fits, and where the clip's source shows the motion in it (`window_count`). They are
    numbered stride by stride, then clip by clip, then by start. Only cumulative counts are kept.
    """

    def __init__(self, store: HasSamples, *, frames: int, strides: Sequence[int], split: str):
        self.frames, self.strides, self.split = frames, tuple(strides), split
        of_split = [(i, s) for i, s in enumerate(store.samples) if s.split == split]
        self._samples = np.array([i for i, _ in of_split], np.int64)
        clips = [clip for _, clip in of_split]
        starts = [
            np.array([window_count(clip, frames=frames, stride=stride) for clip in clips], np.int64)
            for stride in self.strides
        ]
        self._ends = [np.cumsum(counts) for counts in starts]
        self.counts = tuple(int(counts.sum()) for counts in starts)
        self._firsts = np.concatenate([[0], np.cumsum(self.counts)])
        for stride, count in zip(self.strides, self.counts, strict=True):
            if count == 0:
                raise UserError(self._why_none(stride, clips))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, number: int) -> Window:
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        which = int(np.searchsorted(self._firsts, number, side="right")) - 1
        place = number - int(self._firsts[which])
        row = int(np.searchsorted(self._ends[which], place, side="right"))
        start = place - (int(self._ends[which][row - 1]) if row else 0)
        return Window(int(self._samples[row]), start, self.strides[which], which)

    def number(self, stride_index: int, place: int) -> int:
        """Number of the window at `place` among those of one stride."""
        return int(self._firsts[stride_index]) + place

    def evenly_spaced(self, count: int) -> list[int]:
        """`count` windows (or all, if fewer) spread evenly over the clips, each stride equally."""
        rounds = -(-count // len(self.strides))
        spread = []
        for stride_index, available in enumerate(self.counts):
            taken = min(rounds, available)
            spread.append([self.number(stride_index, i * available // taken) for i in range(taken)])
        interleaved = [row[i] for i in range(rounds) for row in spread if i < len(row)]
        return interleaved[:count]

    def _why_none(self, stride: int, clips: Sequence[HasFrames]) -> str:
        needed = (self.frames - 1) * stride + 1
        slow = [clip for clip in clips if clip.frames >= needed]
        if slow:
            why = why_too_slow(slow, frames=self.frames, stride=stride)
            return f"The {self.split} split has no window that shows motion: {why}."
        longest = (
            f"the longest of its {len(clips)} clips has {max(clip.frames for clip in clips)}"
            if clips
            else "it has no clip"
        )
        return (
            f"The {self.split} split has no clip of {needed} frames ({self.frames} at stride "
            f"{stride}): {longest}; add longer videos, or choose fewer frames or a smaller "
            "stride for this stage."
        )


class BoxedFrames(Windows):
    """Every frame of `split` in which somebody looked for things, as a window of one frame."""

    def __init__(self, store: HasBoxedSamples, *, split: str):
        of_split = [(i, s.boxes) for i, s in enumerate(store.samples) if s.split == split]
        self._frames_of = {i: [boxed.frame for boxed in boxes] for i, boxes in of_split}
        if not any(self._frames_of.values()):
            raise UserError(
                f"None of the {len(of_split)} clips of the {split} split has a frame with boxes, "
                "which this stage learns from; put boxes into NAME.json beside more videos."
            )
        # A clip with k such frames has k places, as a clip of k frames has at stride 1.
        super().__init__(_Lengths(store, self._frames_of), frames=1, strides=(1,), split=split)

    def __getitem__(self, number: int) -> Window:
        window = super().__getitem__(number)
        return window._replace(start=self._frames_of[window.sample][window.start])


class _Lengths:
    """A store whose clips are as long as they have frames with boxes."""

    def __init__(self, store: HasBoxedSamples, frames_of: dict[int, list[int]]):
        self.samples = [
            _Length(len(frames_of.get(i, ())), sample.split)
            for i, sample in enumerate(store.samples)
        ]


class _Length(NamedTuple):
    frames: int
    split: str
    fps: float = 1.0
    source_fps: None = None  # single frames are taken from any source


class Plan:
    """The windows of every step's global batch.

    Position p = step * global_batch + i of the endless sequence draws stride p mod S, so the S
    strides come equally often however many windows each has; within a stride, every epoch is a full
    shuffle of all its windows, keyed by (seed, stride, epoch). Epochs follow one another without
    dropping the last, incomplete batch. Memory and time do not grow with the windows.
    """

    def __init__(self, windows: Windows, global_batch: int, seed: int):
        assert global_batch > 0, f"a global batch has samples, got {global_batch}"
        self.windows, self.global_batch = windows, global_batch
        digest = hashlib.blake2b(f"{seed}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big")
        # A batch may begin in one block and end in the next.
        self._block = functools.lru_cache(maxsize=2)(self._drawn)

    def indices(self, step: int) -> list[int]:
        """Window numbers of the global batch of `step`."""
        first = step * self.global_batch
        return [self._at(position) for position in range(first, first + self.global_batch)]

    def of_rank(self, step: int, *, rank: int, world: int) -> list[int]:
        """The contiguous part of `indices(step)` that process `rank` of `world` reads.

        Raises:
            UserError: the global batch cannot be divided among the processes.
        """
        if self.global_batch % world:
            raise UserError(
                f"A global batch of {self.global_batch} cannot be shared by {world} processes; "
                f"choose a batch that {world} divides, or another number of processes."
            )
        share = self.global_batch // world
        first = step * self.global_batch + rank * share
        return [self._at(position) for position in range(first, first + share)]

    def _at(self, position: int) -> int:
        block, place = divmod(position, AT_ONCE)
        return self._block(block)[place]

    def _drawn(self, block: int) -> list[int]:
        """Window numbers at the positions of one block."""
        positions = np.arange(block * AT_ONCE, (block + 1) * AT_ONCE, dtype=np.uint64)
        drawn, stride_indices = np.divmod(positions, len(self.windows.strides))
        counts = np.array(self.windows.counts, np.uint64)[stride_indices]
        epochs, places = np.divmod(drawn, counts)
        keys = mixed(mixed(stride_indices ^ self._key) ^ epochs)
        chosen = shuffled(places, counts, keys)
        return [
            self.windows.number(stride_index, place)
            for stride_index, place in zip(stride_indices.tolist(), chosen.tolist(), strict=True)
        ]
