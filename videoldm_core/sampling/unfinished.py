"""A video in the making: its finished segments lie in a folder beside it, until they are joined.

An interrupted command, given the same request again, goes on after the last finished segment.
"""

import shutil
from pathlib import Path

from videoldm_core.files import disk_error, write_text_atomically
from videoldm_core.sampling.decoding import Frames
from videoldm_core.sampling.interpolation import Progress
from videoldm_core.sampling.video_file import VideoFile, join_videos, write_preview

WHAT = "decoded and upscaled frames"


def unfinished_folder(out: Path) -> Path:
    """Where what belongs to the unfinished video `out` is kept."""
    return out.with_name(f"{out.stem}.unfinished")


def begin(folder: Path, identity: str) -> None:
    """Empties the folder of an unfinished video, unless it is of the same request.

    Args:
        identity: of all that decides the video.

    Raises:
        UserError: the disk is full or read-only.
    """
    mark = folder / "identity"
    try:
        if folder.exists() and not (mark.is_file() and mark.read_bytes() == identity.encode()):
            shutil.rmtree(folder)
    except OSError as error:
        raise disk_error(folder, error) from error
    write_text_atomically(mark, identity)


def end(folder: Path) -> None:
    """Removes the folder of a video that is finished.

    Raises:
        UserError: the disk is read-only.
    """
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
