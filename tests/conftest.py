"""Fixtures of all tests: videos whose grey level tells the frame, and the outside test material."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
GREY_START, GREY_STEP = 16, 6  # frame i is grey level 16 + 6 i: apart enough to survive H.264


@pytest.fixture
def asset() -> Callable[[str], Path]:
    """asset("videos/edge/x.mp4"): material beside the checkout; without it the test is skipped."""

    def find(name: str) -> Path:
        path = ASSETS / name
        if not path.exists():
            pytest.skip(
                f"the outside test material {name!r} is not beside this checkout ({ASSETS})"
            )
        return path

    return find


@pytest.fixture
def counting_video(tmp_path: Path) -> Callable[..., Path]:
    """counting_video("a.mp4", frames=36, fps=16, size=(64, 48)): frame i is grey level 16 + 6 i."""

    def make(
        name: str = "counting.mp4",
        *,
        frames: int = 36,
        fps: float = 16,
        size: tuple[int, int] = (64, 48),
        options: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Path:
        assert frames <= 40, "more grey levels than H.264 keeps apart"
        path = (folder or tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = size
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "8", **(options or {})}
            for index in range(frames):
                grey = np.full((height, width, 3), GREY_START + GREY_STEP * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def counted() -> Callable[[np.ndarray], list[int]]:
    """Reads the frame numbers back from frames (t h w 3) of a counting video."""

    def read(frames: np.ndarray) -> list[int]:
        greys = frames.reshape(len(frames), -1).astype(float).mean(axis=1)
        return [round((grey - GREY_START) / GREY_STEP) for grey in greys]

    return read
