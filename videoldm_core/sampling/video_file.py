"""Writes frames to an mp4 as they are made, and a small animated preview."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from videoldm_core.files import disk_error

PREVIEW_FPS = 8
PREVIEW_PX = 320  # longest side


class VideoFile:
    """An mp4 (H.264, yuv420p) and a gif beside it; both appear under their names when closed
    without error.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        self.path, self.preview = path, path.with_suffix(".gif")
        self._part = path.with_name(f".{path.stem}.part.mp4")
        self._fps, self._frames, self._stills = fps, 0, []
        self._container = None

    def write(self, frames: Tensor) -> None:
        """Appends frames t 3 H W in [-1, 1].

        Raises:
            UserError: the disk is full or read-only.
        """
        import av

        pixels = ((frames.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        images = pixels.permute(0, 2, 3, 1).numpy()
        try:
            if self._container is None:
                self._open(images.shape[1], images.shape[2])
            for image in images:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                self._mux(self._stream.encode(frame))
                if self._frames % max(1, round(self._fps / PREVIEW_FPS)) == 0:
                    still = Image.fromarray(image)
                    still.thumbnail((PREVIEW_PX, PREVIEW_PX))  # all of them stay in memory
                    self._stills.append(still)
                self._frames += 1
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
                self._save_preview()
                self._part.replace(self.path)
        except OSError as failure:
            raise disk_error(self.path, failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", options={"movflags": "+faststart"})
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "17"}

    def _mux(self, packets: list) -> None:
        assert self._container is not None, "the file was opened with its first frame"
        for packet in packets:
            self._container.mux(packet)

    def _save_preview(self) -> None:
        part = self.preview.with_name(f".{self.preview.name}.part")
        first, *others = self._stills
        first.save(
            part,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=1000 // PREVIEW_FPS,
            loop=0,
        )
        part.replace(self.preview)
