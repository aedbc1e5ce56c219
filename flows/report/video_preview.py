"""The sampled video as the report shows it: a short film and a few stills, of bounded size.

Frames are looked at one by one as they are decoded, so that memory does not grow with the video.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoldm_core.errors import reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

STILLS = 8
STILL_HEIGHT_PX = 120
FILM_BYTES = 2 << 20  # at most, in the page
FILM_SECONDS = 10.0
FILM_SIDE_PX = 480  # the longer one
FILM_RATE = 15  # frames per second, at most
FILM_BITS_PER_SECOND = 1_200_000


@dataclass(frozen=True, kw_only=True)
class VideoPreview:
    """What the page says and shows of a video."""

    film: bytes  # an mp4; empty where none is small enough
    stills: tuple[bytes, ...]  # png
    is_whole: bool  # the film is the video itself
    about: str  # "6000 frames of 1024x512, 200.0 s"
    problem: str = ""  # why it cannot be shown


def preview_of(path: Path) -> VideoPreview | None:
    """The preview of a video; None where there is no such file."""
    import av

    if not path.is_file():
        return None
    try:
        return _preview(path)
    except (av.FFmpegError, ValueError, IndexError) as error:
        return VideoPreview(film=b"", stills=(), is_whole=False, about="", problem=reason_of(error))


def _preview(path: Path) -> VideoPreview:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        container.seek(0)
        rate = stream.average_rate or Fraction(25)
        size = f"{stream.width}x{stream.height}"
        is_whole = path.stat().st_size <= FILM_BYTES
        film = None if is_whole else _Film(stream.width, stream.height, rate)
        stills = []
        wanted = _evenly(count)
        for number, frame in enumerate(container.decode(stream)):
            if film is not None:
                film.add(number, frame)
            if number in wanted:
                stills.append(_still(frame.to_image()))
    content = path.read_bytes() if film is None else film.finished()
    about = f"{count} frames of {size}, {float(count / rate):.1f} s"
    return VideoPreview(film=content, stills=tuple(stills), is_whole=is_whole, about=about)


def _evenly(count: int) -> set[int]:
    """Numbers of the frames that are shown of so many, the first and the last among them."""
    stills = min(STILLS, count)
    return {round(i * (count - 1) / max(1, stills - 1)) for i in range(stills)}


def _still(image: "Image") -> bytes:
    image.thumbnail((10 * STILL_HEIGHT_PX, STILL_HEIGHT_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class _Film:
    """The beginning of a video, smaller, as an mp4 in memory."""

    def __init__(self, width: int, height: int, rate: Fraction) -> None:
        import av

        self._every = max(1, round(rate / FILM_RATE))
        self._frames = round(FILM_SECONDS * rate)
        shrink = min(1.0, FILM_SIDE_PX / max(width, height))
        # H.264 halves the colours of both sides.
        self._width, self._height = (max(2, round(s * shrink / 2) * 2) for s in (width, height))
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._rate = rate / self._every
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height = self._width, self._height
        self._stream.pix_fmt = "yuv420p"
        most = str(FILM_BITS_PER_SECOND)
        self._stream.options = {"crf": "26", "maxrate": most, "bufsize": most}

    def add(self, number: int, frame: Any) -> None:
        """Takes one frame of the video, in order."""
        if number >= self._frames or number % self._every:
            return
        small = frame.reformat(width=self._width, height=self._height, format="yuv420p")
        small.pts, small.time_base = number // self._every, 1 / self._rate
        self._mux(self._stream.encode(small))

    def finished(self) -> bytes:
        """The file; nothing where it has more than FILM_BYTES."""
        self._mux(self._stream.encode(None))
        self._container.close()
        content = self._buffer.getvalue()
        return content if len(content) <= FILM_BYTES else b""

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            self._container.mux(packet)
