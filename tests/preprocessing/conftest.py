"""Fixtures of the preprocessing tests: videos with chosen pixels and times, and their admission."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from preprocessing.admission import examine
from preprocessing.admission.admit import admit
from preprocessing.isolation.child import no_progress
from preprocessing.isolation.workers import Outcome, Workers
from preprocessing.sources.folder import NOTHING_ELSE, find_sources
from videoldm_core.errors import UserError

WINDOWS = {"image": (1, (1,)), "motion": (5, (4, 1)), "upscaler": (6, (1,))}


@pytest.fixture
def write_frames() -> Callable[..., Path]:
    """write_frames(path, frames, stamps): RGB frames (t h w 3) at millisecond stamps."""

    def write(path, frames, stamps, *, prepare=None):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"
            stream.options = {"crf": "4"}
            stream.codec_context.time_base = Fraction(1, 1000)
            if prepare:
                prepare(stream)
            for pixels, stamp in zip(frames, stamps, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = stamp, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


class InThisProcess(Workers):
    """The pool without its processes, for tests of what is done with the findings."""

    def run(self, function, calls):
        for index, call in enumerate(calls):
            try:
                answer = function(no_progress, *call.args)
                content = np.frombuffer(b"".join(answer.pieces), np.uint8)
                outcome = Outcome(index, call.read(answer.facts, content))
            except UserError as error:
                outcome = Outcome(index, error=error)
            yield outcome


@pytest.fixture
def _few_processes(request, monkeypatch):
    if "processes" not in request.fixturenames:
        monkeypatch.setattr(examine, "Workers", InThisProcess)


@pytest.fixture
def processes():
    """Asks for the real pool."""


@pytest.fixture
def folder(tmp_path, counting_video):
    """Three good videos of 5 s, unlike each other."""
    for index in range(3):
        counting_video(
            f"good{index}.mp4",
            frames=40,
            fps=8,
            folder=tmp_path / "videos",
            size=(64, 48 + 2 * index),
        )
    return tmp_path / "videos"


@pytest.fixture
def admit_folder(_few_processes, folder, tmp_path):
    """Admits `sources`, else the folder's, for three small stages."""

    def run(
        *,
        sources=None,
        windows=WINDOWS,
        boxed=(),
        left_out=NOTHING_ELSE,
        cpu_hours=1.0,
        progress=None,
        **changes,
    ):
        video = {"fps": 8.0, "height": 24, "width": 32, "upscale": 2, "clip_seconds": 3.0}
        video |= {"deinterlace": "bwdif"}
        return admit(
            find_sources(folder) if sources is None else sources,
            video=SimpleNamespace(**{**video, **changes}),
            windows=windows,
            boxed=boxed,
            left_out=left_out,
            out=tmp_path / "out",
            workers=2,
            cpu_hours=cpu_hours,
            progress=progress,
        )

    return run
