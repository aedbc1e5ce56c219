"""Interlaced video: frames of two fields, every other row of two moments, into whole pictures.

The flag in the file says little: whole pictures are flagged, too, and resizing them field by field
combs them. What the frames show decides, once per video, when it is probed.
"""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

import av
from av.filter import Graph

Scan = Literal["progressive", "tff", "bff"]
"""Rows of a frame: of one moment, or the top (bottom) field, rows 0, 2 ... (1, 3 ...), first."""

INTERLACED_FROM = 0.1  # share of combed frames among the flagged ones that show which they are

Shown = tuple[int, av.VideoFrame]  # stamp in ticks, frame


class Deinterlacing(NamedTuple):
    """The ffmpeg filter that makes whole pictures, and the field that comes first."""

    method: str  # bwdif or yadif
    first: str  # tff or bff


def deinterlacing(scan: Scan, method: str) -> Deinterlacing | None:
    """How a video is deinterlaced; None where it needs or wants it not.

    Args:
        method: bwdif, yadif or none.
    """
    return None if scan == "progressive" or method == "none" else Deinterlacing(method, scan)


class FrameFilter:
    """One ffmpeg filter over frames in order; starts anew where their layout changes."""

    def __init__(self, name: str, options: str = "") -> None:
        self._name, self._options = name, options
        self._graph: Graph | None = None
        self._layout: dict[str, str] = {}

    def take(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        """Frames that are finished once `frame` is there; all before it where its layout is new."""
        layout = _layout(frame)
        if self._graph is None or layout != self._layout:
            yield from self.rest()
            self._layout, self._graph = layout, _graph(layout, self._name, self._options)
        self._graph.vpush(frame)
        yield from _pulled(self._graph)

    def rest(self) -> Iterator[av.VideoFrame]:
        """Frames that still wait for others; none will come."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from _pulled(self._graph)
        self._graph = None


def _layout(frame: av.VideoFrame) -> dict[str, str]:
    """What a graph must know of its frames, as options of ffmpeg's `buffer`."""
    return {
        "video_size": f"{frame.width}x{frame.height}",
        "pix_fmt": frame.format.name,
        "colorspace": f"{frame.colorspace}",
        "range": f"{frame.color_range}",
        "time_base": f"{frame.time_base}",
    }


def _graph(layout: dict[str, str], name: str, options: str) -> Graph:
    graph = Graph()
    graph.threads = 1  # many videos are decoded side by side, one per core
    source, sink = graph.add("buffer", **layout), graph.add("buffersink")
    graph.link_nodes(source, graph.add(name, options or None), sink).configure()
    return graph


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


class ScanMeter:
    """Tells by what they show whether frames that are flagged interlaced are: ffmpeg's idet.

    It compares how well a frame's rows fit each other, and those of the frames before and after.
    Costs nothing until the first flagged frame.
    """

    def __init__(self) -> None:
        self._idet = FrameFilter("idet")
        self._flags: deque[bool] = deque()  # of the frames that idet still has
        self._verdicts: Counter[str] = Counter()
        self.flagged = 0

    def add(self, frame: av.VideoFrame) -> None:
        """Looks at the next frame."""
        self.flagged += frame.interlaced_frame
        if self.flagged:
            self._flags.append(frame.interlaced_frame)
            self._count(self._idet.take(frame))

    def scan(self) -> Scan:
        """The verdict over all frames; ends the measuring."""
        self._count(self._idet.rest())
        tff, bff = self._verdicts["tff"], self._verdicts["bff"]
        if tff + bff <= INTERLACED_FROM * (tff + bff + self._verdicts["progressive"]):
            return "progressive"
        return "tff" if tff >= bff else "bff"

    def _count(self, measured: Iterator[av.VideoFrame]) -> None:
        for frame in measured:
            if self._flags.popleft():
                self._verdicts[frame.metadata["lavfi.idet.single.current_frame"]] += 1


def deinterlaced(shown: Iterator[Shown], how: Deinterlacing) -> Iterator[Shown]:
    """A whole picture per frame, at the time of its first field; frames not flagged pass.

    Each picture is made of its frame and the frames before and after it.
    """
    options = f"mode=send_frame:parity={how.first}:deint=interlaced"
    pictures, waiting = FrameFilter(how.method, options), deque[Shown]()
    for stamp, frame in shown:
        waiting.append((stamp, frame))
        yield from _timed(pictures.take(frame), waiting)
    yield from _timed(pictures.rest(), waiting)


def _timed(pictures: Iterator[av.VideoFrame], waiting: deque[Shown]) -> Iterator[Shown]:
    """The pictures with the times of their frames: the filter's are of another tick."""
    for picture in pictures:
        stamp, frame = waiting.popleft()
        picture.pts, picture.duration, picture.time_base = (
            frame.pts,
            frame.duration,
            frame.time_base,
        )
        yield stamp, picture


class AsPictures:
    """Frames without the flag that makes swscale resize them field by field; no pixel is copied."""

    def __init__(self) -> None:
        self._unflag = FrameFilter("setfield", "prog")

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame; itself, where it is not flagged."""
        if not frame.interlaced_frame:
            return frame
        (picture,) = self._unflag.take(frame)
        return picture
