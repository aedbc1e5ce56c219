"""The admission report as records: what admission.json holds."""

from pathlib import Path

from pydantic import ValidationError

from preprocessing.admission.clips import Clip
from preprocessing.sources.folder import LeftOut
from preprocessing.video.decode import Probe
from videoldm_core.errors import UserError
from videoldm_core.records import Record
from videoldm_core.system.files import unreadable

RECORD_FILE, PAGE_FILE = "admission.json", "admission.html"
Window = tuple[int, tuple[int, ...]]  # frames, strides: what a stage reads at a time


class Settings(Record):
    """The numbers that decide, as they were when the report was made."""

    fps: float
    height: int  # of the base size, px
    width: int
    upscale: int  # pixel shards are this many times larger
    clip_seconds: float
    deinterlace: str = "bwdif"  # method, or none
    windows: dict[str, Window]
    boxed: tuple[str, ...] = ()  # stages of these that see frames with boxes and no other


class VideoReport(Record):
    """One video: used, or refused with its reason."""

    name: str  # below the folder of videos, as preprocessing/sources/names.py writes it
    path: str  # the whole of it, written in the same way
    digest: str
    size: int  # bytes
    caption: str
    is_accepted: bool
    category: str = ""  # of the refusal: encrypted, truncated, too short ...
    reason: str = ""
    probe: Probe | None = None
    notes: tuple[str, ...] = ()  # header against frames, damage, enlargement, doubtful captions
    unseen_by: tuple[str, ...] = ()  # stages none of whose windows fits into a clip of it
    too_slow_for: tuple[str, ...] = ()  # stages in whose windows some of its frames would repeat
    without_boxes_for: tuple[str, ...] = ()  # stages of boxes, where none of its frames has any
    clips: int = 0
    split: str = ""  # train, heldout, or both


class StageReport(Record):
    """What one stage will really see."""

    name: str
    frames: int
    strides: tuple[int, ...]
    needs_s: float  # clip length below which the widest window does not fit
    needs_fps: float = 0.0  # of a video, below which some window shows no motion; 0: any
    needs_boxes: bool = False  # its windows are the frames with boxes
    train_windows: tuple[int, ...]  # per stride
    heldout_windows: tuple[int, ...]
    videos: int  # that at least one window comes from


class Admission(Record):
    """The whole report; `problem` is set when nothing can be trained from it."""

    format: int = 1
    decoder: str
    settings: Settings
    split_rule: str
    accepted: int
    refused: int
    captioned: int = 0  # of the accepted ones
    seconds: float  # of accepted video
    train_clips: int
    heldout_clips: int
    stages: tuple[StageReport, ...]
    videos: tuple[VideoReport, ...]
    clips: tuple[Clip, ...]
    left_out: LeftOut = LeftOut()  # what else lies in the folder
    problem: str = ""

    @property
    def without_caption(self) -> int:
        """How many of the accepted videos have no caption."""
        return self.accepted - self.captioned


def read_admission(out: Path) -> Admission | None:
    """The report in `out`; None when there is none, or nothing can be trained from it.

    Raises:
        UserError: it cannot be read, or is not one of this version.
    """
    path = out / RECORD_FILE
    try:
        admission = Admission.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValidationError as error:
        raise UserError(
            f"{str(path)!r} is not an admission report of this version "
            f"({str(error).splitlines()[0]}); delete it, and the videos are admitted again."
        ) from None
    return None if admission.problem else admission
