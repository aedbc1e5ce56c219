"""Writes frames to mp4 files as they are made, joins files, and makes a small animated preview."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from videoldm_core.system.files import disk_error, make_folder, publish_file

PREVIEW_FPS = 8  # of a preview that keeps the video's pace
PREVIEW_PX = 320  # longest side
PREVIEW_STILLS = 96  # at most; of a longer video they are further apart, and show it faster


class VideoFile:
    """An mp4 (H.264, yuv420p); it appears under its name when closed without error."""

    def __init__(self, path: Path, *, fps: float) -> None:
        self.path = path
        self._part = path.with_name(f".{path.stem}.part.mp4")
        self._fps = fps
        self._container = None

    def write(self, frames: Tensor) -> None:
        """Appends frames t 3 H W in [-1, 1].

        Raises:
            UserError: the disk is full or read-only.
        """
        import av

        pixels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
        try:
            if self._container is None:
                self._open(images.shape[1], images.shape[2])
            for image in images:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                self._mux(self._stream.encode(frame))
        except OSError as error:
            raise disk_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._mux(self._stream.encode())
            self._container.close()
            if kind is None:
                publish_file(self._part, self.path)
        except OSError as failure:
            raise disk_error(self.path, failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        import av

        make_folder(self.path.parent)
        self._container = av.open(str(self._part), "w", options={"movflags": "+faststart"})
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        # Macroblock trees make x264 read memory that it has not set: the same frames then become
        # other bytes now and then (10 of 60 tries of 8 frames of 64x96).
        self._stream.options = {"crf": "17", "mbtree": "0"}

    def _mux(self, packets: list) -> None:
        assert self._container is not None, "the file was opened with its first frame"
        for packet in packets:
            self._container.mux(packet)


def join_videos(parts: Sequence[Path], path: Path, *, frames_per_part: int) -> None:
    """One mp4 of several that one program wrote alike: packets are copied, nothing is encoded.

    Every part begins with a key frame and has the same settings in its header.

    Args:
        frames_per_part: of all but the last.

    Raises:
        UserError: the disk is full or read-only.
    """
    import av

    part_file = path.with_name(f".{path.stem}.part.mp4")
    try:
        with av.open(str(part_file), "w", options={"movflags": "+faststart"}) as joined:
            stream, written, delay = None, 0, 0
            for number, part in enumerate(parts):
                with av.open(str(part)) as source:
                    video = source.streams.video[0]
                    stream = stream or joined.add_stream_from_template(video)
                    step = _ticks_per_frame(video)
                    for packet in source.demux(video):
                        if packet.dts is None or packet.pts is None:
                            continue  # the empty one at the end of a file
                        if written == 0:
                            delay = -packet.dts // step
                        # A short part is decoded with less delay; one clock for all of them.
                        packet.dts = (written - delay) * step
                        packet.pts += number * frames_per_part * step
                        packet.stream = stream
                        joined.mux(packet)
                        written += 1
        publish_file(part_file, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        part_file.unlink(missing_ok=True)


def write_preview(video: Path, path: Path) -> None:
    """A gif of at most PREVIEW_STILLS frames of a video.

    Raises:
        UserError: the disk is full or read-only.
    """
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        fps = float(stream.average_rate)
        pace = max(1, round(fps / PREVIEW_FPS))
        every = max(pace, -(-stream.frames // PREVIEW_STILLS))
        stills = []
        for number, frame in enumerate(container.decode(stream)):
            if number % every == 0:
                stills.append(frame.to_image())
                stills[-1].thumbnail((PREVIEW_PX, PREVIEW_PX))
    part = path.with_name(f".{path.name}.part")
    try:
        stills[0].save(
            part,
            format="GIF",
            save_all=True,
            append_images=stills[1:],
            duration=round(1000 * pace / fps),
            loop=0,
        )
        publish_file(part, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _ticks_per_frame(stream: Any) -> int:
    return round(1 / (stream.guessed_rate * stream.time_base))
