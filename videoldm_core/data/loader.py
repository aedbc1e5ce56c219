"""Batches of windows, read ahead by one background thread.

Reads exactly what the plan says, in this process: worker processes only slow indexed reads down.
Does not crop, scale or noise; that is the objective's business.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from videoldm_core.cascade.annotations import Box, Vocabulary
from videoldm_core.data.plan import Plan, Window, Windows
from videoldm_core.data.store import Sample, Store
from videoldm_core.diffusion.labels_boxes import Told, told_of

AHEAD = 2  # batches read before they are asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a stage learns from in one step."""

    clip: Tensor  # float32 (b t c h w): unscaled latents, or pixels in [-1, 1]
    text: Tensor  # float32 (b l d)
    stride_index: Tensor  # int64 (b): which of the stage's strides the frames are apart
    sample_ids: Tensor  # int64 (b): step * global_batch + position, on any number of processes
    told: Told | None = None  # labels and boxes; None for a model without such tokens

    def __getitem__(self, clips: slice) -> "Batch":
        """Some of the clips."""
        return Batch(
            clip=self.clip[clips],
            text=self.text[clips],
            stride_index=self.stride_index[clips],
            sample_ids=self.sample_ids[clips],
            told=None if self.told is None else self.told[clips],
        )

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(
            clip=self.clip.to(device),
            text=self.text.to(device),
            stride_index=self.stride_index.to(device),
            sample_ids=self.sample_ids,
            told=None if self.told is None else self.told.to(device),
        )


def read_batch(
    store: Store,
    windows: Windows,
    numbers: Sequence[int],
    *,
    first_id: int = 0,
    resize_to: tuple[int, int] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Batch:
    """Reads the windows with these numbers.

    Args:
        first_id: sample number of the first; the others follow.
        resize_to: (height, width) to which pixels are averaged down; None keeps the store's size.
        vocabulary: the labels and boxes that are told of the windows; None: none.
    """
    clips, texts, strides, known = [], [], [], []
    for number in numbers:
        window = windows[number]
        sample = store.samples[window.sample]
        frames = range(
            window.start, window.start + (windows.frames - 1) * window.stride + 1, window.stride
        )
        clips.append(
            store.read_latents(sample, frames)
            if store.index.kind == "latents"
            else _pixels(store.read_frames(sample, frames, resize_to=resize_to))
        )
        texts.append(store.read_text(sample))
        strides.append(window.stride_index)
        known.append((sample.labels, _boxes_of(sample, window, windows.frames)))
    return Batch(
        clip=torch.stack(clips),
        text=torch.stack(texts),
        stride_index=torch.tensor(strides),
        sample_ids=torch.arange(first_id, first_id + len(numbers)),
        told=None if vocabulary is None else told_of(vocabulary, known),
    )


class Batches:
    """The batches of one process from `start_step` on, without end.

    Iterate, and `close` (or leave the `with` block) when done; a reader's error is raised where its
    batch is asked for.

    Args:
        rank, world: which contiguous part of every global batch is read.
        resize_to, vocabulary: see `read_batch`.
    """

    def __init__(  # noqa: PLR0913 - what is read, by whom and how
        self,
        store: Store,
        plan: Plan,
        *,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        resize_to: tuple[int, int] | None = None,
        vocabulary: Vocabulary | None = None,
    ):
        # A batch that cannot be shared fails here, not in the thread.
        plan.of_rank(start_step, rank=rank, world=world)
        self._store, self._plan = store, plan
        self._resize_to, self._vocabulary = resize_to, vocabulary
        self._rank, self._world, self._step = rank, world, start_step
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._stopped.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stops reading ahead and waits for the thread."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_ahead(self) -> None:
        # Of this thread only: a second team of threads would fight the training's for the cores
        # (measured on two busy cores: 3 to 30 times fewer batches).
        torch.set_num_threads(1)
        step = self._step
        while not self._stopped.is_set():
            try:
                self._offer(self._read(step))
            except Exception as error:  # every error belongs to the consumer, who raises it
                self._offer(error)
                return
            step += 1

    def _read(self, step: int) -> Batch:
        numbers = self._plan.of_rank(step, rank=self._rank, world=self._world)
        first_id = step * self._plan.global_batch + self._rank * len(numbers)
        return read_batch(
            self._store,
            self._plan.windows,
            numbers,
            first_id=first_id,
            resize_to=self._resize_to,
            vocabulary=self._vocabulary,
        )

    def _offer(self, item: Batch | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def _boxes_of(sample: Sample, window: Window, frames: int) -> tuple[Box, ...] | None:
    """The boxes of a window of one frame; None: unknown, as for a window of several."""
    if frames > 1:
        return None
    return next((boxed.boxes for boxed in sample.boxes if boxed.frame == window.start), None)


def _pixels(frames: Tensor) -> Tensor:
    """uint8 (t h w c) to float (t c h w) in [-1, 1]."""
    return rearrange(frames, "t h w c -> t c h w").float().div_(127.5).sub_(1)
