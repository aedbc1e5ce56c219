"""A video in the making: its finished segments lie in a folder beside it, until they are joined.

An interrupted command, given the same request again, goes on after the last finished segment.
"""

import shutil
from pathlib import Path

from videoldm_core.sampling.decoding import Frames
from videoldm_core.sampling.interpolation import Progress
from videoldm_core.sampling.video_file import VideoFile, join_videos, write_preview
from videoldm_core.system.files import disk_error

WHAT = "decoded and upscaled frames"


def unfinished_folder(out: Path) -> Path:
    """Where unfinished videos that are to be called `out` are kept, one folder per request."""
    return out.with_name(f"{out.stem}.unfinished")


def folder_of(out: Path, identity: str) -> Path:
    """Where one of them is kept.

    Args:
        identity: of all that decides the video. Another request for the same name, by a slip or
            after an update, finds nothing of this one, and leaves it as it is.
    """
    return unfinished_folder(out) / identity[:16]


def end(out: Path) -> None:
    """Removes what is kept of a video that is finished, of whichever request.

    Raises:
        UserError: the disk is read-only.
    """
    folder = unfinished_folder(out)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise disk_error(folder, error) from error


def write_video(frames: Frames, out: Path, *, folder: Path, fps: float, progress: Progress) -> None:
    """Makes the segments that `folder` lacks, then `out` and its preview.

    Segments are mp4 files: what is joined is what was encoded, so that a video is the same to the
    byte however often making it was interrupted. Each begins with a key frame of the codec.

    Raises:
        UserError: the disk is full or read-only.
    """
    config, parts = frames.drawing.config, []
    per_segment = config.portions_per_segment
    for first in range(0, frames.portions, per_segment):
        parts.append(folder / f"segment-{first // per_segment:05}.mp4")
        if parts[-1].exists():
            continue
        with VideoFile(parts[-1], fps=fps) as file:
            for number in range(first, min(first + per_segment, frames.portions)):
                progress(WHAT, number * config.core, frames.count)
                file.write(frames.portion(number))
    join_videos(parts, out, frames_per_part=per_segment * config.core)
    write_preview(out, out.with_suffix(".gif"))
    progress(WHAT, frames.count, frames.count)
