"""What each stage will see of the clips, counted as training counts it, and why it may be nothing.

Pure arithmetic; the counts are those of videoldm_core.data.plan.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from preprocessing.admission.clips import Clip, window_frames
from preprocessing.admission.record import Admission, Settings, StageReport
from videoldm_core.data.plan import shows_motion, why_too_slow, window_count


def stage_report(name: str, clips: Sequence[Clip], settings: Settings) -> StageReport:
    """What one stage will see."""
    frames, strides = settings.windows[name]

    def counts(split: str) -> tuple[int, ...]:
        of_split = [clip for clip in clips if clip.split == split]
        return tuple(sum(_windows_in(c, name, s, settings) for c in of_split) for s in strides)

    return StageReport(
        name=name,
        frames=frames,
        strides=strides,
        needs_s=window_frames(frames, max(strides)) / settings.fps,
        needs_fps=needed_fps(settings, name),
        needs_boxes=name in settings.boxed,
        train_windows=counts("train"),
        heldout_windows=counts("heldout"),
        videos=len(
            {c.source for c in clips if any(_windows_in(c, name, s, settings) for s in strides)}
        ),
    )


def needed_fps(settings: Settings, name: str) -> float:
    """Frames per second that a video needs for all of a stage's windows; 0: any video will do."""
    frames, strides = settings.windows[name]
    return settings.fps / min(strides) if frames > 1 else 0.0


def unseen_by(clips: Sequence[Clip], settings: Settings) -> dict[str, Any]:
    """Stages (or strides) that see nothing of these clips, as `VideoReport`'s fields tell why."""
    unseen: dict[str, tuple[str, ...]] = {}
    for name, (_, strides) in settings.windows.items():
        reasons = [_why_unseen(clips, name, stride, settings) for stride in strides]
        for reason in filter(None, dict.fromkeys(reasons)):
            missing = [s for s, why in zip(strides, reasons, strict=True) if why == reason]
            whole = len(missing) == len(strides)
            named = [name] if whole else [f"{name} at stride {stride}" for stride in missing]
            unseen[reason] = (*unseen.get(reason, ()), *named)
    return unseen


def problem_of(admission: Admission) -> str:
    """Why nothing can be trained from these videos, without the full stop; empty if it can."""
    if not admission.accepted:
        categories = Counter(video.category for video in admission.videos)
        ((category, count),) = categories.most_common(1)
        example = next(video for video in admission.videos if video.category == category)
        return (
            f"None of the {len(admission.videos)} videos can be used, most often because of "
            f"{category!r} ({count}), as {example.name!r}: {example.reason}; give others"
        )
    # The widest first: where it fits, the others do, and its need is the one to tell.
    for stage in sorted(admission.stages, key=lambda stage: -stage.needs_s):
        for split, counts in (("train", stage.train_windows), ("heldout", stage.heldout_windows)):
            for stride, count in zip(stage.strides, counts, strict=True):
                if not count:
                    return _no_window(admission, stage, stride, split)
    return ""


def _windows_in(clip: Clip, name: str, stride: int, settings: Settings) -> int:
    if name in settings.boxed:
        return len(clip.boxes)
    return window_count(clip, frames=settings.windows[name][0], stride=stride)


def _why_unseen(clips: Sequence[Clip], name: str, stride: int, settings: Settings) -> str:
    """The field of `VideoReport` that names the stage; empty where it sees something."""
    if any(_windows_in(clip, name, stride, settings) for clip in clips):
        return ""
    if name in settings.boxed:
        return "without_boxes_for"
    is_slow = not any(shows_motion(clip, stride) for clip in clips)
    return "too_slow_for" if is_slow else "unseen_by"


def _no_window(admission: Admission, stage: StageReport, stride: int, split: str) -> str:
    part = {"train": "training", "heldout": "held-out"}[split]
    clips = [clip for clip in admission.clips if clip.split == split]
    needed = window_frames(stage.frames, stride)
    says = f"Stage {stage.name!r} would see no {part}"
    if stage.needs_boxes:
        return (
            f"{says} frame: it learns from frames with boxes, and none of the {len(clips)} {part} "
            "clips has any; put boxes into NAME.json beside more videos (held out: "
            f"{admission.split_rule})"
        )
    long_enough = [clip for clip in clips if clip.frames >= needed]
    if long_enough:
        why = why_too_slow(long_enough, frames=stage.frames, stride=stride)
        return f"{says} window that shows motion: {why}"
    lengths = [clip.frames / clip.fps for clip in clips]
    longest = f"the longest {part} clip has {max(lengths):.2f} s" if lengths else "there is none"
    needed_s = needed / admission.settings.fps
    return (
        f"{says} window: {stage.frames} frames at stride "
        f"{stride} need {needed_s:.2f} s at {admission.settings.fps:g} frames/s, and {longest}; "
        f"add videos, at least two of {needed_s:.1f} s or one of {2 * needed_s + 1:.0f} s"
    )
